// Package busy says how much a machine has worked, so that a figure can be told with the load that it was measured under.
// It refuses to guess: what /proc does not tell is nothing.
package busy

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// Tick is the unit of CPU time in /proc: USER_HZ is 100 on every Linux that Go runs on.
const Tick = 10 * time.Millisecond

// Time is what all CPUs have worked since the start of the machine (proc(5), stat: user to steal less idle and iowait); 0
// where there is no /proc.
func Time() time.Duration {
	b, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(b), "\n")
	var total time.Duration
	for i, field := range strings.Fields(first) {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, _ := strconv.ParseInt(field, 10, 64)
		total += time.Duration(n) * Tick
	}
	return total
}
