package observe

import (
	"bytes"
	"fmt"
	"maps"
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
		// A process that sets its title, as all workers of vLLM do, overwrites the first part of what the kernel shows as
		// its environment, that which it was given; what it has set itself stands behind it. The rest is read where the
		// process comes from.
		one.Settings = map[string]string{}
		for pid := p.PID; pid > 1 && family(pid) == of && one.From == 0; pid = parent[pid] {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if err != nil {
				break
			}
			settings, whole := settingsOf(b)
			maps.Copy(settings, one.Settings)
			one.Settings = settings
			if whole {
				one.From = pid
			}
		}
		list = append(list, one)
	}
	return list, nil
}

// settingsOf picks the settings out of an environment. whole is false when a title has overwritten some of it: that
// leaves bytes of zero side by side, or the title's end.
func settingsOf(environ []byte) (settings map[string]string, whole bool) {
	settings, whole = map[string]string{}, true
	for v := range bytes.SplitSeq(bytes.TrimSuffix(environ, []byte{0}), []byte{0}) {
		name, value, ok := strings.Cut(string(v), "=")
		whole = whole && (ok || len(environ) == 0)
		if slices.Contains(isolate.SettingNames, name) && ok {
			settings[name] = value
		}
	}
	return settings, whole
}
