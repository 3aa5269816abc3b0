//go:build inside

package inside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/conformance/nodes"
)

// What the machine's disk has. An emulated processor is ten times slower: what should happen has its time, and what
// should not happen is tried for longer than what should was seen to take.
const (
	vallum = "/proof/vallum"
	port   = 7000
	soon   = 60 * time.Second
	shut   = 3 * time.Second
)

// proof notes why it failed.
type proof struct {
	*testing.T
	why string
}

func (p *proof) Errorf(format string, args ...any) {
	p.Helper()
	if p.why == "" {
		p.why = fmt.Sprintf(format, args...)
	}
	p.T.Errorf(format, args...)
}

func (p *proof) Fatalf(format string, args ...any) {
	p.Helper()
	p.Errorf(format, args...)
	p.FailNow()
}

// must ends the proof for an error.
func (p *proof) must(what string, err error) {
	p.Helper()
	if err != nil {
		p.Fatalf("%s: %v", what, err)
	}
}

// prove runs a proof and says its outcome.
func prove(t *testing.T, name string, f func(*proof)) {
	began := time.Now()
	t.Run(name, func(t *testing.T) {
		p := &proof{T: t}
		defer func() {
			why := p.why
			if t.Failed() && why == "" {
				why = "it failed and did not say why"
			}
			fmt.Println(Outcome{name, !t.Failed(), why}.Line())
			fmt.Println(time.Since(began).Round(time.Second), name)
		}()
		f(p)
	})
}

// newLab makes nodes and the outsider x in namespaces of this machine.
func newLab(p *proof, mtu int, names ...string) *nodes.Lab {
	p.Helper()
	l, err := nodes.New(p.Context(), nodes.Options{Dir: p.TempDir(), Vallum: vallum, MTU: mtu}, names, []string{"x"})
	p.must("making a lab", err)
	p.Cleanup(l.Close)
	return l
}

// raised is a lab whose overlay is up.
func raised(p *proof, names ...string) *nodes.Lab {
	p.Helper()
	l := newLab(p, 0, names...)
	raise(p, l, names...)
	return l
}

func raise(p *proof, l *nodes.Lab, names ...string) {
	p.Helper()
	for _, name := range names {
		p.must("up", l.Node(name).Up(p.Context()))
	}
}

// kind is the kind of a device on the node; "" when there is none.
func kind(n *nodes.Node, device string) (kind string) {
	_ = n.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err == nil {
			kind = l.Type()
		}
		return err
	})
	return kind
}

// wantKernel wants the kernel's device, and no process of a tunnel.
func wantKernel(p *proof, n *nodes.Node) {
	p.Helper()
	if got := kind(n, nodes.Device); got != "wireguard" {
		p.Errorf("the device of %s is of kind %q", n.Name, got)
	}
	if tunnels := tunnelsOn(p, n); len(tunnels) != 0 {
		p.Errorf("beside the kernel's device a tunnel runs on %s: %v", n.Name, tunnels)
	}
}

func tunnelsOn(p *proof, n *nodes.Node) (found []nodes.Process) {
	p.Helper()
	all, err := n.Processes()
	p.must("processes", err)
	for _, one := range all {
		if slices.Contains(one.Args, "tunnel") {
			found = append(found, one)
		}
	}
	return found
}

// echo answers on all addresses of the node with what it is told.
func echo(p *proof, n *nodes.Node) {
	p.Helper()
	l, err := n.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	p.must("listening", err)
	p.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
}

// says tells the node at an address something and wants it back.
func says(from *nodes.Node, to netip.Addr, what string, wait time.Duration) error {
	c, err := from.Dial("tcp", netip.AddrPortFrom(to, port), wait)
	if err != nil {
		return err
	}
	defer c.Close()
	return talk(c, what, wait)
}

func talk(c net.Conn, what string, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, what); err != nil {
		return err
	}
	b := make([]byte, len(what))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != what {
		return fmt.Errorf("said %q and heard %q", what, b)
	}
	return nil
}

// eventually waits for a condition.
func eventually(p *proof, what string, wait time.Duration, holds func() bool) {
	p.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(wait); !holds(); <-tick.C {
		if time.Now().After(end) {
			p.Fatalf("after %s it still does not hold: %s", wait, what)
		}
	}
}

// record records the wire while f runs.
func record(p *proof, l *nodes.Lab, f func()) *nodes.Recording {
	p.Helper()
	r, err := l.Record()
	p.must("recording", err)
	defer r.Stop() // f may have ended the proof
	f()
	p.must("recording", r.Stop())
	return r
}

// wantNoClear wants no overlay address, no TCP between members and none of the words on the wire.
func wantNoClear(p *proof, l *nodes.Lab, r *nodes.Recording, words ...string) {
	p.Helper()
	a, b := l.Node("a").Under, l.Node("b").Under
	member := func(addr netip.Addr) bool { return addr == a || addr == b || nodes.Overlay.Contains(addr) }
	clear := r.Flows(func(f nodes.Flow) bool {
		// What the outsider tries is his own; only what a member sends counts.
		return member(f.From.Addr()) && (nodes.Inside(f) || f.Protocol == "tcp" && member(f.To.Addr()))
	})
	if len(clear) > 0 {
		p.Errorf("past the tunnel: %v", clear)
	}
	for _, w := range words {
		if found := r.Find([][]byte{[]byte(w)}); len(found) > 0 {
			p.Errorf("%q is on the wire: %v", w, found)
		}
	}
}

// config writes the node's part of vallum.yaml anew, with more in it.
func state(n *nodes.Node) string { return filepath.Join(n.Dir, "state") }

// refused runs a command that has to fail and to say something.
func refused(p *proof, n *nodes.Node, says string, args ...string) {
	p.Helper()
	r, err := n.Vallum(p.Context(), args...)
	var status *nodes.StatusError
	// Lines are broken to a terminal's width.
	if said := strings.Join(strings.Fields(r.Out+r.Err), " "); !errors.As(err, &status) || !strings.Contains(said, says) {
		p.Errorf("isolate %v on %s: want an end that says %q, got %v %s", args, n.Name, says, err, r)
	}
}

// fine runs a command that has to end with 0.
func fine(p *proof, n *nodes.Node, args ...string) nodes.Result {
	p.Helper()
	r, err := n.Vallum(p.Context(), args...)
	p.must("isolate "+args[0]+" on "+n.Name, err)
	return r
}

// sh runs a script in this machine's own namespaces.
func sh(p *proof, script string) string {
	p.Helper()
	out, err := tried(p.Context(), script)
	if err != nil {
		p.Fatalf("%s: %v: %s", script, err, out)
	}
	return out
}

func tried(ctx context.Context, script string) (string, error) {
	out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// looks is what a machine's network looks like, less what counts and ages, once it stands still: the kernel takes a second
// or two to find that nobody else has an IPv6 address (RFC 4862, section 5.4), and gives it a route of its own then.
func looks(p *proof, n *nodes.Node) string {
	p.Helper()
	var last string
	eventually(p, n.Name+"'s network stands still", soon, func() bool {
		r, err := n.Run(p.Context(), "sh", "-c", "ip -o link; ip -o addr; ip route show table all; ip -6 route show table all; nft list ruleset; cat /etc/hosts; ls /var/run/wireguard")
		p.must("looking at "+n.Name, err)
		still := r.Out == last && !strings.Contains(r.Out, " tentative")
		last = r.Out
		return still
	})
	return last
}

func write(p *proof, file, content string) {
	p.Helper()
	p.must("writing", errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)))
}
