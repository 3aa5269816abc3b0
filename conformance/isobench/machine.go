package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/conformance/busy"
	"github.com/vallum/vallum/conformance/nodes"
)

// describe says what a run ran on.
func describe(took, worked time.Duration) result {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	numbers := strings.SplitN(strings.TrimSpace(string(release)), ".", 3)
	return result{
		CPUs: runtime.NumCPU(), Kernel: strings.Join(numbers[:min(2, len(numbers))], "."), Go: runtime.Version(),
		Seconds: took.Round(time.Second).Seconds(), Busy: 100 * worked.Seconds() / (took.Seconds() * float64(runtime.NumCPU())),
	}
}

// tunnelPIDs are the processes that carry the overlay on the nodes; none where it is not up or the kernel carries it.
func tunnelPIDs(list ...*nodes.Node) ([]int, error) {
	var pids []int
	for _, n := range list {
		all, err := n.Processes()
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			if len(p.Args) > 2 && p.Args[1] == "isolate" && p.Args[2] == "tunnel" && slices.Contains(p.Args, "--child") {
				pids = append(pids, p.PID)
			}
		}
	}
	return pids, nil
}

// awake keeps every core from halting until stop is called: a loop on each that gives way to anything else (sched(7),
// SCHED_IDLE). To wake a halted core of a virtual machine can take longer than the network does, and the tunnel's threads
// keep cores awake, so that on a quiet machine a step by the bare path can come out slower than one through the tunnel.
func awake() (stop func(), err error) {
	var loops []*exec.Cmd
	stop = func() {
		for _, c := range loops {
			_ = c.Process.Kill()
			_ = c.Wait() // it was killed: its status says nothing
		}
	}
	for core := range runtime.NumCPU() {
		c := exec.Command("sh", "-c", "read -r _; while :; do :; done")
		in, err := c.StdinPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			stop()
			return nil, err
		}
		loops = append(loops, c)
		var set unix.CPUSet
		set.Set(core)
		err = errors.Join(
			unix.SchedSetaffinity(c.Process.Pid, &set),
			unix.SchedSetAttr(c.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0),
		)
		if err == nil {
			_, err = in.Write([]byte("\n")) // not before it gives way
		}
		if err != nil {
			stop()
			return nil, fmt.Errorf("keeping core %d awake: %w", core, err)
		}
	}
	return stop, nil
}

// cpuOf is what the processes have worked so far.
func cpuOf(pids []int) (time.Duration, error) {
	var total time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The second field is a name in brackets, in which anything may stand (proc(5), pid stat: utime is 14, stime 15).
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) < 13 {
			return 0, fmt.Errorf("reading the times of process %d: %q", pid, b)
		}
		for _, field := range f[11:13] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(n) * busy.Tick
		}
	}
	return total, nil
}
