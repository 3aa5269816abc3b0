package main

import (
	"os"
	"os/exec"
	"strconv"
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

// busyTime is what all CPUs have worked since the start of the machine (proc(5), stat: user to steal less idle and iowait).
func busyTime() time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
	b, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(b), "\n")
	var total time.Duration
	for i, field := range strings.Fields(first) {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, _ := strconv.ParseInt(field, 10, 64)
		total += time.Duration(n) * tick
	}
	return total
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
