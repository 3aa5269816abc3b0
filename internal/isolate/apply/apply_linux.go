package apply

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/nft"
	"github.com/vallum/vallum/internal/isolate/tunnel"
)

// Options of Up.
type Options struct {
	Hosts   string        // the hosts file; empty: it is left alone
	Confirm time.Duration // how long the confirmation may take before everything is rolled back
	Caller  netip.Addr    // a new connection from here confirms; invalid: only Confirm does
	Flags   string        // what confirm has to be given, such as " --state DIR"
	Say     func(format string, args ...any)
}

// ErrRolledBack says that nobody confirmed, so that the machine is as it was before.
var ErrRolledBack = errors.New("nobody confirmed in time; everything was rolled back")

// Privileged says what is missing to change this machine's network; nil when nothing is.
func Privileged() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("reading this process's capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("this changes devices, routes and rules and needs CAP_NET_ADMIN; run it as root")
	}
	return nil
}

// Up applies the plan. When it changes anything that was not confirmed before, a rollback is armed in a process of its
// own before the first change, and Up waits until somebody confirms.
func Up(ctx context.Context, s State, p *isolate.Plan, o Options) error {
	if err := errors.Join(Privileged(), s.Open()); err != nil {
		return err
	}
	unlock, err := s.lock(5 * time.Second)
	if err != nil {
		return err
	}
	token, err := begin(s, p, o)
	if err != nil || token == "" {
		unlock()
		return err
	}
	before := established()
	err = s.apply(p, o)
	if err != nil {
		err = errors.Join(fmt.Errorf("applying the plan: %w", err), s.rollback(token))
	}
	unlock()
	if err != nil {
		return err
	}
	by := ""
	if o.Caller.IsValid() {
		by = fmt.Sprintf(", or by a new connection from %s", o.Caller)
	}
	o.Say("applied; confirm within %s with: vallum isolate confirm%s%s", o.Confirm, o.Flags, by)
	return s.awaitConfirmation(ctx, token, before, o)
}

// begin does all that comes before the first change. The token is empty when nothing needs to be confirmed: then the
// plan holds already, and what was missing of it has been repaired.
func begin(s State, p *isolate.Plan, o Options) (token string, err error) {
	pending, err := s.read(pendingFile)
	if err != nil {
		return "", err
	}
	confirmed, err := s.read(confirmedFile)
	if err != nil {
		return "", err
	}
	if pending == nil && confirmed == nil {
		if err := tunnel.Free(p.Device); err != nil {
			return "", err
		}
	}
	if pending == nil && same(planOf(confirmed), p) {
		if err := s.apply(p, o); err != nil {
			return "", fmt.Errorf("repairing what was applied: %w", err)
		}
		return "", s.write(confirmedFile, &record{Plan: p, Hosts: o.Hosts, Token: confirmed.Token})
	}
	token = rand.Text()
	next := &record{Plan: p, Hosts: o.Hosts, Token: token, Deadline: time.Now().Add(o.Confirm)}
	if err := s.write(pendingFile, next); err != nil {
		return "", fmt.Errorf("writing what is about to be applied: %w", err)
	}
	if err := s.arm(token, o.Confirm); err != nil {
		return "", errors.Join(fmt.Errorf("arming the rollback; nothing was changed: %w", err), s.remove(pendingFile))
	}
	return token, nil
}

// apply makes the machine what the plan says. What refuses comes first, what carries comes after it: killed anywhere in
// between, nothing of the overlay leaves in clear.
func (s State) apply(p *isolate.Plan, o Options) error {
	old, err := s.read(confirmedFile)
	if err != nil {
		return err
	}
	if err := tunnel.Prohibit(p); err != nil {
		return err
	}
	if err := nft.Load(p.Rules); err != nil {
		return err
	}
	if old != nil && old.Plan.Device != p.Device {
		if err := s.removeDevice(old.Plan.Device); err != nil {
			return err
		}
	}
	if err := s.device(p); err != nil {
		return err
	}
	if err := writeHosts(o.Hosts, p.Hosts); err != nil {
		return err
	}
	for _, e := range cutOff(p) {
		o.Say("%s", e)
	}
	// What was asked for is not yet what is: another program may have the port, or a rule of policy routing the packets.
	return s.missing(&record{Plan: p, Hosts: o.Hosts})
}

// device makes the overlay's device by the kernel, or by a process that is started when none runs.
func (s State) device(p *isolate.Plan) error {
	// The kernel may have got WireGuard since: a tunnel that runs goes on, with all that is connected through it.
	if p.Kernel && s.tunnelRuns() {
		p.Kernel = false
	}
	if p.Kernel {
		err := tunnel.MakeKernel(p)
		if err == nil {
			return tunnel.Configure(p, s.keys())
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		p.Kernel = false // it said that it could, and cannot
	}
	// Whatever somebody did to its device, a tunnel that runs is given back what the plan says. wireguard-go does not take
	// up again a port that it has lost: it begins anew then.
	if s.tunnelRuns() && tunnel.Configure(p, s.keys()) == nil {
		if soon(3*time.Second, func() error { return s.carried(p) }) == nil {
			return nil
		}
		if err := s.removeDevice(p.Device); err != nil {
			return err
		}
	}
	return s.startTunnel(p)
}

// ErrElsewhere says that rules of an overlay are loaded of which the state folder knows nothing.
var ErrElsewhere = errors.New("rules of an overlay are loaded, and not by this state folder; name the one that up was given with --state")

// Down removes exactly what Up added, and reports whether there was anything. That there is nothing is no error, unless
// rules are loaded that somebody else has added.
func Down(s State) (removed bool, err error) {
	if err := errors.Join(Privileged(), s.Open()); err != nil {
		return false, err
	}
	unlock, err := s.lock(5 * time.Second)
	if err != nil {
		return false, err
	}
	defer unlock()
	for _, name := range []string{pendingFile, confirmedFile} {
		r, err := s.read(name)
		if err != nil {
			return removed, err
		}
		if r != nil {
			removed = true
			if err := s.undo(r); err != nil {
				return removed, err
			}
		}
		if err := s.remove(name); err != nil {
			return removed, err
		}
	}
	if loaded, err := nft.Counters(); err != nil || removed || loaded == nil {
		return removed, err
	}
	return false, ErrElsewhere
}

// undo removes what a record added; the rules go last.
func (s State) undo(r *record) error {
	return errors.Join(s.removeDevice(r.Plan.Device), writeHosts(r.Hosts, nil), tunnel.Unprohibit(), nft.Remove())
}

func (s State) removeDevice(name string) error {
	return errors.Join(s.stopTunnel(), tunnel.Remove(name))
}

// Confirm keeps what is pending. A rollback that has begun wins.
func Confirm(s State) error {
	if _, err := os.Stat(s.Dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nothing waits to be confirmed in %q: it is not there; name the folder that up was given with --state", s.Dir)
	}
	unlock, err := s.lock(5 * time.Second)
	if err != nil {
		return err
	}
	defer unlock()
	return s.confirm("")
}

// confirm keeps what is pending, with the lock held. A token that is given must be the pending one's.
func (s State) confirm(token string) error {
	r, err := s.read(pendingFile)
	if err != nil {
		return err
	}
	if r == nil || token != "" && r.Token != token {
		return errors.New("nothing waits to be confirmed: it is confirmed already, or was rolled back")
	}
	if err := s.write(confirmedFile, &record{Plan: r.Plan, Hosts: r.Hosts, Token: r.Token}); err != nil {
		return err
	}
	return s.remove(pendingFile)
}

// rollback returns to what was confirmed last, or to nothing, with the lock held. A token that is no longer the pending
// one's means that somebody confirmed, or began anew: then there is nothing to do.
func (s State) rollback(token string) error {
	pending, err := s.read(pendingFile)
	if err != nil || pending == nil || pending.Token != token {
		return err
	}
	confirmed, err := s.read(confirmedFile)
	if err != nil {
		return err
	}
	if confirmed == nil {
		err = s.undo(pending)
	} else {
		err = s.restore(pending, confirmed)
	}
	if err != nil {
		return fmt.Errorf("rolling back: %w; vallum isolate down tries again", err)
	}
	return s.remove(pendingFile)
}

func (s State) restore(pending, confirmed *record) error {
	if pending.Plan.Device != confirmed.Plan.Device {
		if err := s.removeDevice(pending.Plan.Device); err != nil {
			return err
		}
	}
	if pending.Hosts != confirmed.Hosts {
		if err := writeHosts(pending.Hosts, nil); err != nil {
			return err
		}
	}
	return s.apply(confirmed.Plan, Options{Hosts: confirmed.Hosts, Say: func(string, ...any) {}})
}
