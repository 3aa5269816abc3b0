package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	readyPrefix   = "listening on "
	readyDeadline = 30 * time.Second
	stopGrace     = 10 * time.Second
)

// process is a child that is measured, or the upstream. It ends when stop is called and when this process dies.
type process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
	once   sync.Once
	stdin  func()
}

// spawn starts a child. Its lines on standard output go to lines, until it ends.
func spawn(name string, cmd *exec.Cmd, lines func(string)) (*process, error) {
	p := &process{name: name, cmd: cmd, exited: make(chan struct{})}
	// SIGTERM, because nginx passes that on to its workers, and SIGKILL would leave them behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = func() { in.Close() }
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the thread that forked ends, so it has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for s := bufio.NewScanner(out); s.Scan(); {
			lines(s.Text())
		}
		_ = cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return p, nil
}

// spawnReady starts a child that says where it listens, and waits for that.
func spawnReady(ctx context.Context, name string, cmd *exec.Cmd) (*process, string, error) {
	ready := make(chan string, 1)
	var stderr bytes.Buffer
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	p, err := spawn(name, cmd, func(line string) {
		if url, ok := strings.CutPrefix(line, readyPrefix); ok && len(ready) == 0 {
			ready <- strings.TrimPrefix(strings.TrimSpace(url), "http://")
		}
	})
	if err != nil {
		return nil, "", err
	}
	select {
	case address := <-ready:
		return p, address, nil
	case <-p.exited:
		return nil, "", fmt.Errorf("%s ended before it listened: %s", name, stderr.Bytes())
	case <-time.After(readyDeadline):
		err = fmt.Errorf("%s: no %q line within %s", name, readyPrefix, readyDeadline)
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.stop()
	return nil, "", err
}

// stop ends the child and its group: SIGTERM, then SIGKILL.
func (p *process) stop() {
	p.once.Do(func() {
		p.stdin()
		group := -p.cmd.Process.Pid
		_ = syscall.Kill(group, syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(stopGrace):
		}
		_ = syscall.Kill(group, syscall.SIGKILL)
		<-p.exited
	})
}

// family is the child and its children: nginx works in those.
func (p *process) family() []int {
	pid := p.cmd.Process.Pid
	all := []int{pid}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range children {
		b, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// cpu is the time that the family has used, user and system, of all threads that ever were: to the nanosecond, where
// /proc/PID/stat has hundredths of a second (clock_getcpuclockid(3), by way of the kernel's encoding of the id).
func (p *process) cpu() (time.Duration, error) {
	const schedClock = 2
	var total time.Duration
	for _, pid := range p.family() {
		var ts syscall.Timespec
		id := int32(^pid<<3 | schedClock)
		_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&ts)), 0)
		if errno != 0 {
			return 0, fmt.Errorf("CPU time of %s: %w", p.name, errno)
		}
		total += time.Duration(ts.Nano())
	}
	return total, nil
}

// resident is the family's memory in bytes; field is VmRSS (now) or VmHWM (the most since forgetPeak). What several
// share, nginx's master and workers, is counted as often as it is mapped, so only differences of it mean something.
func (p *process) resident(field string) (int64, error) {
	var total int64
	for _, pid := range p.family() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, rest, ok := strings.Cut(string(b), field+":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			return 0, fmt.Errorf("no %s of process %d", field, pid)
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += kib << 10
	}
	return total, nil
}

// proportional is the family's memory in bytes with what is shared counted once.
func (p *process) proportional() (int64, error) {
	var total int64
	for _, pid := range p.family() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(b), "\nPss:")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0, fmt.Errorf("no Pss of process %d", pid)
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += kib << 10
	}
	return total, nil
}

// memory is what the family occupies. One process is told by what is resident; of several, what they share counts once.
func (p *process) memory() (int64, error) {
	if len(p.family()) == 1 {
		return p.resident("VmRSS")
	}
	return p.proportional()
}

// forgetPeak starts VmHWM anew from what is resident now (proc(5), clear_refs).
func (p *process) forgetPeak() error {
	for _, pid := range p.family() {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			return err
		}
	}
	return nil
}
