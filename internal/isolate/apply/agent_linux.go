package apply

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/observe"
)

// armed is what the agent says when it is ready to roll back whatever happens to who started it.
const armed = "armed"

// arm starts the rollback in a process and session of its own, and returns when it says that it is ready.
func (s State) arm(token string, after time.Duration) error {
	c := exec.Command(s.Program, "isolate", "rollback", "--state", s.Dir, "--token", token, "--after", after.String())
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

// Agent is the process that arm starts: it says that it is ready, waits, and rolls back what nobody confirmed. It stops
// waiting when what it watches is confirmed. Signals of a session that ends do not stop it.
func Agent(s State, token string, after time.Duration) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	deadline := time.Now().Add(after)
	fmt.Println(armed)
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
	return s.holds(r.Plan)
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

func callerName(a netip.Addr) string {
	if !a.IsValid() {
		return "the address that you come from (unknown here)"
	}
	return a.String()
}

// supervise starts the tunnel again whenever it ends, until ctx does. The device, its keys and addresses come back alike.
func (s State) supervise(ctx context.Context) error {
	for ctx.Err() == nil {
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
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}
