package conns

import "fmt"

// What is left for other things than connections of clients and of requests to vLLM.
const (
	ForProbes = 32 // connections to the probes
	ForAdmin  = 16 // and to the administration: so the operator gets in
	forOurs   = 64 // files: listeners, the key store, the audit log's segments, what is watched
	apart     = ForProbes + ForAdmin + forOurs
	least     = 8      // connections, or nobody is served
	mostByUs  = 16_384 // connections, where nobody says how many: 40 KB each with TLS
)

// Fit gives the limits that are wanted, or what fits where they are zero, for a process that may open so many files; 0 is
// any number. Half of the files is for connections to vLLM: a request that runs needs one.
func Fit(wanted Limits, files int) (Limits, error) {
	fits := mostByUs
	if files > 0 {
		fits = (files - apart) / 2
	}
	switch {
	case fits < least:
		return Limits{}, fmt.Errorf("the process may open %d files, and needs %d: raise the limit (LimitNOFILE, ulimit -n)", files, apart+2*least)
	case files > 0 && wanted.All > fits:
		return Limits{}, fmt.Errorf("%d connections need %d files, and the process may open %d: raise that limit (LimitNOFILE, ulimit -n), or %d connections or less", wanted.All, apart+2*wanted.All, files, fits)
	case wanted.All == 0:
		wanted.All = min(fits, mostByUs)
	}
	if wanted.Address == 0 {
		wanted.Address = wanted.All / 4
	}
	wanted.Address = min(wanted.Address, wanted.All)
	return wanted, nil
}
