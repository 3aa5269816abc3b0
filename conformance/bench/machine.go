package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// machine is the processor's name.
func machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, ok := strings.Cut(string(b), "model name")
	name, _, _ := strings.Cut(rest, "\n")
	if !ok {
		return "unknown processor"
	}
	return strings.Trim(name, " \t:")
}

// commit is what was checked out, with a mark when the tree has changes.
func commit() string {
	out, err := exec.Command("git", "-C", "..", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func (s *stand) nginxVersion() string {
	if s.nginx == "" {
		return "no nginx"
	}
	out, err := s.nginxCommand("-v").CombinedOutput()
	if err != nil {
		return nginx
	}
	_, version, _ := strings.Cut(string(out), "version: ")
	return strings.TrimSpace(version)
}

// ownTime is what this program and the children that have ended worked.
func ownTime() time.Duration {
	var total time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if syscall.Getrusage(who, &r) == nil {
			total += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	return total
}
