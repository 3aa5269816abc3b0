package observe

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/vallum/vallum/internal/isolate"
)

// Processes are the running processes of vLLM and Ray and of what they started, with those settings that say how they
// reach other nodes. Of an environment nothing else is kept.
func Processes() ([]isolate.Process, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("reading the network namespace: %w", err)
	}
	family, parent := families(all)
	var list []isolate.Process
	for _, p := range all {
		of := family(p.PID)
		if of == "" {
			continue
		}
		stat, err := p.Stat()
		if err != nil || stat.State == "Z" {
			continue // it ended
		}
		one := isolate.Process{PID: p.PID, Name: stat.Comm, Of: of}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID)); err == nil && ns != own {
			one.Namespace = ns
		}
		// A process that sets its title, as all workers of vLLM do, overwrites what the kernel shows as its environment:
		// what it was given stands with the one that it comes from.
		for pid := p.PID; pid > 1 && family(pid) == of; pid = parent[pid] {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if settings, shown := settingsOf(b); err == nil && shown {
				one.Settings, one.From = settings, pid
				break
			}
		}
		list = append(list, one)
	}
	return list, nil
}

// settingsOf picks the settings out of an environment. shown is false when a title has overwritten it, which leaves
// bytes of zero; an environment that was empty from the start has no bytes.
func settingsOf(environ []byte) (settings map[string]string, shown bool) {
	settings, shown = map[string]string{}, len(environ) == 0
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		name, value, ok := strings.Cut(string(v), "=")
		shown = shown || ok
		if ok && slices.Contains(isolate.SettingNames, name) {
			settings[name] = value
		}
	}
	return settings, shown
}
