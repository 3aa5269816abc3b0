//go:build unix

package conns

import "syscall"

// Files is how many files the process may open; 0 when there is no bound worth the name. Go has raised the soft limit to
// the hard one when the program started (package os, since Go 1.19).
func Files() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || uint64(limit.Cur) > 1<<30 {
		return 0
	}
	return int(limit.Cur)
}
