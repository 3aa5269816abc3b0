package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/apply"
	"github.com/vallum/vallum/internal/isolate/observe"
	"github.com/vallum/vallum/internal/isolate/tunnel"
)

func observeMachine(state string) (*isolate.Snapshot, error) {
	return observe.Machine(filepath.Join(state, "preshared")), nil
}

// pathWait is how long a router or a peer may take to answer a probe of the path's MTU.
const pathWait = 250 * time.Millisecond

// observePaths adds how much fits through to the endpoints, and what an earlier plan knew of it where nothing answers.
func observePaths(s *isolate.Snapshot, state string, to []netip.AddrPort) {
	paths, err := observe.Paths(to, pathWait)
	s.Paths = paths
	if err != nil {
		s.Missing = append(s.Missing, isolate.Missing{What: "paths", Cause: err.Error()})
	}
	if p, _, err := (apply.State{Dir: state}).Applied(); err == nil {
		s.Remember(p)
	}
}

func overlayHolds(state string) error { return apply.State{Dir: state}.Holds() }

// isolateHere are the commands that look at or change this machine.
func isolateHere(s streams) []*cobra.Command {
	return []*cobra.Command{newIsolateUp(s), newIsolateConfirm(s), newIsolateDown(s), newIsolateStatus(s), newIsolateRollback(), newIsolateTunnel(), newIsolateAudit(s), newIsolateVerify(s), newIsolateExec(s)}
}

func newIsolateUp(s streams) *cobra.Command {
	in := &isolateInput{}
	var acceptCut bool
	o := apply.Options{}
	var caller string
	c := &cobra.Command{
		Use:   "up",
		Short: "Applies the plan; rolls it back unless it is confirmed",
		Long: "up needs CAP_NET_ADMIN. Before the first change a process of its own is armed that undoes everything; it does so\n" +
			"unless `vallum isolate confirm` is run within --confirm, or a new connection comes in from the address that the\n" +
			"SSH session of the caller comes from. A plan that was confirmed before is repaired without asking.",
		RunE: func(c *cobra.Command, _ []string) error {
			n, err := in.read(s)
			if err != nil {
				return err
			}
			if err := n.manifest.Current(time.Now()); err != nil {
				return err
			}
			p, snapshot, err := in.plan(n)
			if err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			st := apply.State{Dir: n.state, Program: program}
			if err := s.refuseCuts(st, p, acceptCut); err != nil {
				return err
			}
			for _, w := range append(p.NotProtected, p.Warnings...) {
				fmt.Fprintf(s.err, "vallum: note: %s\n", w)
			}
			if caller == "" {
				caller = snapshot.Caller
			}
			o.Caller, _ = netip.ParseAddr(caller)
			if in.state != "" {
				o.Flags = " --state " + in.state
			}
			o.Say = func(format string, args ...any) { fmt.Fprintf(s.err, "vallum: "+format+"\n", args...) }
			if err := errors.Join(st.Open(), n.seen.Write(st.SeenFile())); err != nil {
				return err
			}
			if err := apply.Up(c.Context(), st, p, o); err != nil {
				return err
			}
			fmt.Fprintf(s.out, "the overlay of node %s holds: %v on %s\n", p.Node, p.Addresses, p.Device)
			s.sayNarrow(p, narrow(p))
			return nil
		},
	}
	in.flags(c)
	c.Flags().BoolVar(&acceptCut, "accept-cut", false, "cut off what plan lists as such")
	c.Flags().StringVar(&o.Hosts, "hosts", "/etc/hosts", "the hosts file that gets the members' names; empty for none")
	c.Flags().DurationVar(&o.Confirm, "confirm", time.Minute, "how long the confirmation may take")
	c.Flags().StringVar(&caller, "caller", "", "the address whose new connection confirms (default: that of the SSH session)")
	return c
}

// refuseCuts refuses to cut off what works now, unless that was accepted or is cut off already.
func (s streams) refuseCuts(st apply.State, p *isolate.Plan, accepted bool) error {
	now, confirmed, err := st.Applied()
	if err != nil {
		return err
	}
	if len(p.Cuts) == 0 || confirmed && now != nil && slices.Equal(now.Rules.Lines(), p.Rules.Lines()) {
		return nil
	}
	for _, cut := range p.Cuts {
		fmt.Fprintf(s.err, "vallum: would be cut off: %s\n", cut.What)
		if !accepted {
			s.hint("to keep it: %s", cut.Right)
		}
	}
	if accepted {
		return nil
	}
	return fmt.Errorf("%d thing(s) that work now would be cut off; nothing was changed: allow them, or --accept-cut", len(p.Cuts))
}

func newIsolateConfirm(s streams) *cobra.Command {
	return isolateStateCommand("confirm", "Keeps what up applied", func(st apply.State) error {
		if err := apply.Confirm(st); err != nil {
			return err
		}
		fmt.Fprintln(s.out, "confirmed")
		return nil
	})
}

func newIsolateDown(s streams) *cobra.Command {
	var forget bool
	c := isolateStateCommand("down", "Removes exactly what up added", func(st apply.State) error {
		removed, err := apply.Down(st)
		if err != nil {
			return err
		}
		if forget {
			if err := os.Remove(st.SeenFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if !removed {
			fmt.Fprintf(s.out, "nothing was applied from %s; nothing was changed\n", st.Dir)
			return nil
		}
		fmt.Fprintln(s.out, "the overlay and its rules are removed")
		return nil
	})
	c.Flags().BoolVar(&forget, "forget", false, "forget which manifest was seen last: an older one, or another fleet's, would be accepted")
	return c
}

func newIsolateStatus(s streams) *cobra.Command {
	return isolateStateCommand("status", "Says whether what was applied holds; when peers were last heard", func(st apply.State) error {
		p, confirmed, err := st.Applied()
		if err != nil {
			return err
		}
		if err := st.Holds(); err != nil {
			return err
		}
		fmt.Fprintf(s.out, "node %s of fleet %s, serial %d: holds\n", p.Node, p.Fleet, p.Serial)
		if !confirmed {
			fmt.Fprintln(s.out, "not confirmed yet: it will be rolled back")
		}
		return s.printPeers(p)
	})
}

// printPeers lists the peers by when they were last heard: a tunnel that lives shakes hands every two minutes. It fails
// for one that answers small packets and no large ones: vLLM would hang on it.
func (s streams) printPeers(p *isolate.Plan) error {
	list, err := tunnel.Handshakes(p)
	if err != nil {
		return err
	}
	sizes := narrow(p)
	for i, h := range list {
		fmt.Fprintf(s.out, "  %-20s %s, %d bytes out, %d in\n", h.Name, heard(h.Last, time.Now(), p.Peers[i].Preshared), h.Sent, h.Received)
	}
	if s.sayNarrow(p, sizes) {
		return errNo
	}
	return nil
}

// heard says when a peer was heard last. One that is alive shakes hands every two minutes, and its session ends after
// three (WireGuard's REKEY_AFTER_TIME and REJECT_AFTER_TIME): keepalives ask for it.
func heard(last, now time.Time, preshared bool) string {
	switch ago := now.Sub(last).Round(time.Second); {
	case last.IsZero() && preshared:
		return "never heard; is the pre-shared key there the same?"
	case last.IsZero():
		return "never heard"
	case ago > 3*time.Minute:
		return fmt.Sprintf("heard %s ago, so that nothing comes from it now; what does vallum isolate status say there?", ago)
	default:
		return fmt.Sprintf("heard %s ago", ago)
	}
}

// sayNarrow tells which peers take less than the device sends, and reports whether one does.
func (s streams) sayNarrow(p *isolate.Plan, sizes []int) (found bool) {
	for i, size := range sizes {
		if size == 0 {
			continue
		}
		found = true
		fmt.Fprintf(s.out, "  %-20s only packets of %d bytes get through, of %d: larger ones are lost or taken apart\n", p.Peers[i].Name, size, p.MTU)
		s.hint("on every node write isolate: {mtu: %d}, or mend the path, and run vallum isolate up again", max(size, 1280))
	}
	return found
}

// narrow is, for each peer, how large packets may be, where they may not have the device's MTU: as the plan knew it, or as
// the peer answers over the overlay; 0 for all others.
func narrow(p *isolate.Plan) []int {
	sizes := make([]int, len(p.Peers))
	var all sync.WaitGroup
	for i, peer := range p.Peers {
		sizes[i] = p.Narrow(peer)
		all.Go(func() {
			if size, answers, err := observe.Largest(peer.Allowed[0].Addr(), p.MTU, pathWait); err == nil && answers && size < p.MTU && (sizes[i] == 0 || size < sizes[i]) {
				sizes[i] = size
			}
		})
	}
	all.Wait()
	return sizes
}

// isolateStateCommand is a command that needs the state folder and nothing else.
func isolateStateCommand(use, short string, do func(apply.State) error) *cobra.Command {
	var state string
	c := &cobra.Command{Use: use, Short: short}
	c.RunE = func(*cobra.Command, []string) error {
		dir, err := isolateState(state)
		if err != nil {
			return err
		}
		program, err := os.Executable()
		if err != nil {
			return err
		}
		return do(apply.State{Dir: dir, Program: program})
	}
	isolateStateFlag(c, &state)
	return c
}

// newIsolateRollback is the process that up arms.
func newIsolateRollback() *cobra.Command {
	var token string
	var after time.Duration
	c := isolateStateCommand("rollback", "Undoes what nobody confirms", func(st apply.State) error { return apply.Agent(st, token, after) })
	c.Hidden = true
	c.Flags().StringVar(&token, "token", "", "of what is pending")
	c.Flags().DurationVar(&after, "after", time.Minute, "when")
	return c
}

// newIsolateTunnel is the process that carries the overlay where the kernel does not.
func newIsolateTunnel() *cobra.Command {
	var child bool
	c := isolateStateCommand("tunnel", "Carries the overlay's packets", nil)
	c.Hidden = true
	c.RunE = func(c *cobra.Command, _ []string) error {
		named, err := c.Flags().GetString("state")
		if err != nil {
			return err
		}
		dir, err := isolateState(named)
		if err != nil {
			return err
		}
		program, err := os.Executable()
		if err != nil {
			return err
		}
		return apply.Tunnel(c.Context(), apply.State{Dir: dir, Program: program}, child)
	}
	c.Flags().BoolVar(&child, "child", false, "the tunnel itself, not its supervisor")
	return c
}
