package nodes

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// machine is a set of namespaces: network, processes, mounts, host name. Its first process lives as long as a pipe of
// ours is open, so that however this program ends, the kernel ends all that ran in the machine.
type machine struct {
	init *exec.Cmd
	hold io.Closer // our end of the first process's standard input
	net  *os.File  // the network namespace
	work chan func()
	once sync.Once
}

// begin is what the first process does. It takes no notice of its children, so that the kernel buries them.
const begin = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs shm /dev/shm
mkdir -p /var/run/wireguard
mount -t tmpfs wireguard /var/run/wireguard
mount --bind "$1" /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind "$2" /etc/resolv.conf; fi
echo "$3" >/proc/sys/kernel/hostname
trap '' CHLD
echo made
exec cat`

// newMachine makes a machine with nothing but loopback, whose files lie in dir.
func newMachine(dir, name string, hosts []byte, resolver netip.Addr) (*machine, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	hostsFile, resolvFile := filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
	resolv := fmt.Appendf(nil, "nameserver %s\noptions timeout:5 attempts:2\n", resolver)
	if err := errors.Join(os.WriteFile(hostsFile, hosts, 0o644), os.WriteFile(resolvFile, resolv, 0o644)); err != nil {
		return nil, err
	}
	m := &machine{work: make(chan func())}
	m.init = exec.Command("sh", "-c", begin, "sh", hostsFile, resolvFile, name)
	m.init.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
	}
	var stderr bytes.Buffer
	m.init.Stderr = &stderr
	in, err := m.init.StdinPipe()
	if err != nil {
		return nil, err
	}
	m.hold = in
	out, err := m.init.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.init.Start(); err != nil {
		return nil, fmt.Errorf("making namespaces: %w", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "made\n" {
		m.end()
		return nil, fmt.Errorf("making namespaces: %w: %s", err, &stderr)
	}
	if err := m.enter(); err != nil {
		m.end()
		return nil, fmt.Errorf("entering the namespaces: %w", err)
	}
	return m, m.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// enter starts the thread from which every process of the machine is started.
func (m *machine) enter() error {
	spaces := []struct {
		name string
		flag int
	}{{"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"uts", unix.CLONE_NEWUTS}, {"mnt", unix.CLONE_NEWNS}}
	var files []*os.File
	for _, s := range spaces {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", m.init.Process.Pid, s.name))
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	m.net = files[0]
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		for i, s := range spaces {
			err = errors.Join(err, unix.Setns(int(files[i].Fd()), s.flag))
		}
		for _, f := range files[1:] {
			err = errors.Join(err, f.Close())
		}
		entered <- err
		for f := range m.work {
			f()
		}
	}()
	return <-entered
}

// end kills the first process, and with it the kernel kills all others of the machine.
func (m *machine) end() {
	m.once.Do(func() {
		close(m.work)
		_ = m.init.Process.Kill()
		_ = m.hold.Close()
		_ = m.init.Wait() // it was killed: its status says nothing
		if m.net != nil {
			_ = m.net.Close()
		}
	})
}

// Do runs f on a thread of its own in the machine's network, and only there: f has no goroutines in it.
func (m *machine) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(m.net.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering the machine's network: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Start starts a command inside the machine, in a process group of its own.
func (m *machine) Start(c *exec.Cmd) error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Setpgid = true
	if c.Dir == "" {
		c.Dir = "/"
	}
	started := make(chan error)
	m.work <- func() { started <- c.Start() }
	return <-started
}

// Result is what a command said and how it ended.
type Result struct {
	Out, Err string
	Code     int
}

func (r Result) String() string { return fmt.Sprintf("exit %d\n%s%s", r.Code, r.Out, r.Err) }

// StatusError is a command that ended with a status other than 0.
type StatusError struct {
	Args []string
	Result
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: %s", strings.Join(e.Args, " "), e.Result)
}

// Run runs a command inside the machine to its end. A status other than 0 is a *StatusError; the Result is there too.
func (m *machine) Run(ctx context.Context, args ...string) (Result, error) {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	return m.Finish(c)
}

// Finish is Run for a command that the caller has made.
func (m *machine) Finish(c *exec.Cmd) (Result, error) {
	var out, errs bytes.Buffer
	if c.Stdout == nil {
		c.Stdout = &out
	}
	if c.Stderr == nil {
		c.Stderr = &errs
	}
	c.WaitDelay = 2 * time.Second // what the command leaves running may hold its output
	if err := m.Start(c); err != nil {
		return Result{}, err
	}
	err := c.Wait()
	r := Result{out.String(), errs.String(), c.ProcessState.ExitCode()}
	if r.Code != 0 {
		return r, &StatusError{c.Args, r}
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return r, err
	}
	return r, nil
}
