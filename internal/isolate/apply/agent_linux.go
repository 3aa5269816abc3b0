package apply

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/observe"
)

// armed is what the agent says when it is ready to roll back whatever happens to who started it.
const armed = "armed"

// arm starts the rollback in a process outside this one, and returns when that says that it is ready. Where systemd runs
// it is a unit of its own: what is only detached ends with the session of its user where logind is told to end that
// (KillUserProcesses), and with its unit.
func (s State) arm(token string, after time.Duration) error {
	args := []string{s.Program, "isolate", "rollback", "--state", s.Dir, "--token", token, "--after", after.String()}
	run, ok := systemdRun()
	if !ok {
		return detach(args)
	}
	// As a unit of type notify it has started when it says so. It does not let itself be ended by a signal.
	c := exec.Command(run, append([]string{
		"--quiet", "--collect", "--unit=vallum-isolate-rollback-" + token, "--service-type=notify", "--property=TimeoutStartSec=10", "--property=TimeoutStopSec=2",
		"--description=Undoes what vallum isolate up did, unless it is confirmed", "--",
	}, args...)...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("the rollback's unit did not start: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// systemdRun is the program that starts units, if systemd runs this machine and would start them where this process is: in
// a network namespace of its own, such as of ip netns exec, a unit would undo the wrong machine's network.
func systemdRun() (program string, ok bool) {
	if info, err := os.Stat("/run/systemd/system"); err != nil || !info.IsDir() {
		return "", false
	}
	// A container that is given the machine's /run sees the machine's systemd, and is not run by it.
	if first, err := os.Readlink("/proc/1/exe"); err != nil || !strings.HasPrefix(filepath.Base(first), "systemd") {
		return "", false
	}
	for _, ns := range []string{"net", "mnt"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if first, err2 := os.Readlink("/proc/1/ns/" + ns); errors.Join(err, err2) != nil || own != first {
			return "", false
		}
	}
	program, err := exec.LookPath("systemd-run")
	return program, err == nil
}

// detach starts a process in a session of its own, and returns when it says that it is ready.
func detach(args []string) error {
	c := exec.Command(args[0], args[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Dir = "/"
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	said := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(out).ReadString('\n')
		if strings.TrimSpace(line) != armed {
			err = fmt.Errorf("the rollback's process did not start: %q: %w", line, err)
		}
		said <- err
	}()
	select {
	case err := <-said:
		return errors.Join(err, c.Process.Release())
	case <-time.After(10 * time.Second):
		return errors.Join(errors.New("the rollback's process does not answer"), c.Process.Kill())
	}
}

// ready tells systemd, where it has asked, that the unit has started (sd_notify(3)).
func ready() error {
	to := os.Getenv("NOTIFY_SOCKET")
	if to == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: to, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling systemd: %w", err)
	}
	_, err = c.Write([]byte("READY=1"))
	return errors.Join(err, c.Close())
}

// Agent is the process that arm starts: it says that it is ready, waits, and rolls back what nobody confirmed. It stops
// waiting when what it watches is confirmed. Signals of a session that ends do not stop it.
func Agent(s State, token string, after time.Duration) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	deadline := time.Now().Add(after)
	fmt.Println(armed)
	if err := ready(); err != nil {
		return err
	}
	for time.Now().Before(deadline) {
		r, err := s.read(pendingFile)
		if err == nil && (r == nil || r.Token != token) {
			return nil
		}
		time.Sleep(min(200*time.Millisecond, time.Until(deadline)))
	}
	unlock, err := s.lock(10 * time.Second)
	if err == nil {
		defer unlock()
	}
	// Who holds the lock for so long hangs. A machine that cannot be reached is worse than two at work.
	return s.rollback(token)
}

// awaitConfirmation waits until somebody confirms, a new connection from the caller shows that he can still get in, or
// the agent has rolled back. The end of ctx leaves the decision to the agent.
func (s State) awaitConfirmation(ctx context.Context, token string, before map[pair]bool, o Options) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	// The agent acts at its time; when it was killed, nobody but this process is left to do it.
	last := time.After(o.Confirm + 15*time.Second)
	for {
		select {
		case <-last:
			return errors.Join(ErrRolledBack, s.rollback(token))
		case <-ctx.Done():
			return fmt.Errorf("interrupted; what was applied is rolled back at its time unless it is confirmed: %w", ctx.Err())
		case <-tick.C:
		}
		r, err := s.read(pendingFile)
		if err != nil {
			return err
		}
		if r == nil {
			return s.outcome(token)
		}
		if r.Token != token {
			return errors.New("another vallum isolate up took over")
		}
		if !newFrom(o.Caller, before) {
			continue
		}
		unlock, err := s.lock(time.Second)
		if err != nil {
			continue
		}
		err = s.confirm(token)
		unlock()
		if err == nil {
			o.Say("confirmed: a new connection from %s got in", o.Caller)
		}
		return err
	}
}

// outcome says what became of what had the token and is no longer pending.
func (s State) outcome(token string) error {
	r, err := s.read(confirmedFile)
	if err != nil {
		return err
	}
	if r == nil || r.Token != token {
		return ErrRolledBack
	}
	return s.holds(r)
}

// pair is the two ends of a connection.
type pair struct{ local, remote netip.AddrPort }

// established are the connections of this network namespace.
func established() map[pair]bool {
	all, _, err := observe.Sockets()
	if err != nil {
		return nil
	}
	list := map[pair]bool{}
	for _, k := range all {
		if k.Protocol == "tcp" && !k.Listening && k.Namespace == "" {
			list[pair{k.Local, k.Remote}] = true
		}
	}
	return list
}

// newFrom reports whether the caller has opened a connection since: an old one proves nothing, for the rules let replies
// in. Sockets with a listener of their own port were opened from outside.
func newFrom(caller netip.Addr, before map[pair]bool) bool {
	if !caller.IsValid() || before == nil {
		return false
	}
	all, _, err := observe.Sockets()
	if err != nil {
		return false
	}
	listening := map[uint16]bool{}
	for _, k := range all {
		if k.Listening && k.Protocol == "tcp" && k.Namespace == "" {
			listening[k.Local.Port()] = true
		}
	}
	for _, k := range all {
		if fresh(k, caller, before) && listening[k.Local.Port()] {
			return true
		}
	}
	return false
}

func fresh(k isolate.Socket, caller netip.Addr, before map[pair]bool) bool {
	return k.Protocol == "tcp" && !k.Listening && k.Namespace == "" && k.Remote.Addr().Unmap() == caller.Unmap() && !before[pair{k.Local, k.Remote}]
}

// supervise starts the tunnel again whenever it ends, until ctx does. The device, its keys and addresses come back alike.
// One that ends at once, again and again, is waited for longer each time: it fills a log.
func (s State) supervise(ctx context.Context) error {
	for wait := leastWait; ctx.Err() == nil; {
		began := time.Now()
		c := exec.CommandContext(ctx, s.Program, "isolate", "tunnel", "--state", s.Dir, "--child")
		c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
		c.WaitDelay = 3 * time.Second
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		err := c.Run()
		if ctx.Err() != nil {
			return nil
		}
		fmt.Fprintf(os.Stderr, "the tunnel ended (%v); it is started again\n", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		if wait = min(2*wait, mostWait); time.Since(began) > 2*mostWait {
			wait = leastWait
		}
	}
	return nil
}

// How long a tunnel that has ended is not started again.
const (
	leastWait = 200 * time.Millisecond
	mostWait  = 3 * time.Second
)
