//go:build inside

package inside

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/conformance/nodes"
)

// unloadable comes first: the module is not loaded yet.
func unloadable(p *proof) {
	const forbidden = "/etc/modprobe.d/proof.conf"
	if _, err := os.Stat("/sys/module/wireguard"); err == nil {
		p.Fatalf("the module is loaded before anything asked for it")
	}
	write(p, forbidden, "install wireguard /bin/false\n")
	l := newLab(p, 0, "a", "b")
	a, b := l.Node("a"), l.Node("b")
	echo(p, b)
	raise(p, l, "a")
	if got := kind(a, nodes.Device); got != "tuntap" && got != "tun" || len(tunnelsOn(p, a)) == 0 {
		p.Errorf("the module does not load, and the device of a is of kind %q", got)
	}
	p.must("allowing the module", os.Remove(forbidden))
	raise(p, l, "b")
	wantKernel(p, b)
	p.must("wireguard-go and the kernel", says(a, b.Over, "one to the other", soon))
	// Now the kernel of a could, and its tunnel runs.
	c, err := a.Dial("tcp", netip.AddrPortFrom(b.Over, port), soon)
	p.must("connecting", err)
	defer c.Close()
	raise(p, l, "a")
	fine(p, a, "status")
	p.must("the same connection after another up", talk(c, "still there", soon))
	fine(p, a, "down")
	raise(p, l, "a")
	wantKernel(p, a)
	p.must("both by the kernel", says(a, b.Over, "one to the other", soon))
}

func carries(p *proof) {
	l := newLab(p, 9000, "a", "b")
	large := l.Node("a")
	raise(p, l, "a")
	wantMTU(p, large, 8920)
	l.Close()
	l = newLab(p, 0, "a", "b")
	a, b := l.Node("a"), l.Node("b")
	if plan := fine(p, a, "plan"); !strings.Contains(plan.Out, "the kernel's WireGuard") {
		p.Errorf("the plan does not choose the kernel: %s", plan)
	}
	echo(p, b)
	raise(p, l, "a", "b")
	p.must("over the overlay", says(a, b.Over, strings.Repeat("large ", 20_000), soon))
	for _, n := range []*nodes.Node{a, b} {
		wantKernel(p, n)
		wantMTU(p, n, 1420)
		if said := fine(p, n, "status").Out; strings.Contains(said, "never heard") || strings.Contains(said, "only packets of") {
			p.Errorf("status on %s: %s", n.Name, said)
		}
	}
	fine(p, a, "verify")
	_, err := l.Node("x").Vallum(p.Context(), "verify", "--as-outsider", a.Under.String())
	p.must("an outsider's verify", err)
}

// wantMTU wants what the path carries, less what WireGuard adds.
func wantMTU(p *proof, n *nodes.Node, want int) {
	p.Helper()
	if got := mtuOf(p, n); got != want {
		p.Errorf("the overlay's MTU on %s is %d, want %d", n.Name, got, want)
	}
}

func mtuOf(p *proof, n *nodes.Node) (mtu int) {
	p.Helper()
	p.must("looking for the device", n.Do(func() error {
		l, err := netlink.LinkByName(nodes.Device)
		if err == nil {
			mtu = l.Attrs().MTU
		}
		return err
	}))
	return mtu
}

const words = "the marked words of a prompt"

func onTheWire(p *proof) {
	l := newLab(p, 0, "a", "b", "c")
	a, b, c, x := l.Node("a"), l.Node("b"), l.Node("c"), l.Node("x")
	echo(p, a)
	bare := record(p, l, func() {
		p.must("without the overlay", says(b, a.Under, words, soon))
		p.must("an outsider without the overlay", says(x, a.Under, "let me in", soon))
	})
	if found := bare.Find([][]byte{[]byte(words)}); len(found) != 2 {
		p.Fatalf("without the overlay the words are in %v, so that nothing is shown", found)
	}
	over := record(p, l, func() {
		raise(p, l, "a", "b", "c")
		p.must("a route", x.RouteBy(a.Over))
		for range 5 {
			p.must("over the overlay", says(b, a.Over, words, soon))
			p.must("over the overlay", says(c, a.Over, words, soon))
		}
		for _, to := range []netip.Addr{a.Under, a.Over} {
			if says(x, to, "let me in", shut) == nil {
				p.Errorf("the outsider reaches %s", to)
			}
		}
	})
	if len(over.Flows(nodes.Tunnel)) < 4 {
		p.Errorf("the tunnels carried %v", over.Flows(nodes.Tunnel))
	}
	wantNoClear(p, l, over, words)
	wantKernel(p, a)
}

// share gives a node a key that it has in common with a peer.
func share(p *proof, n *nodes.Node, peer, key string) {
	p.Helper()
	c := n.Command(p.Context(), "keygen", "--preshared", peer)
	c.Stdin = strings.NewReader(key + "\n")
	_, err := n.Finish(c)
	p.must("keygen --preshared", err)
}

func preshared(p *proof) {
	const one, other = "b25lIGtleSBmb3IgdHdvIG5vZGVzLCB0aGUgc2FtZSE=", "YW5vdGhlciBrZXkgZm9yIHR3byBub2RlcywgYmFkbHk="
	l := newLab(p, 0, "a", "b")
	a, b := l.Node("a"), l.Node("b")
	echo(p, a)
	share(p, a, "b", one)
	share(p, b, "a", other)
	raise(p, l, "a", "b")
	if says(b, a.Over, "with another key", shut) == nil {
		p.Errorf("nodes with other keys hear each other")
	}
	p.must("removing a key", os.Remove(filepath.Join(state(b), "preshared", "a.key")))
	share(p, b, "a", one)
	raise(p, l, "b")
	p.must("with the same key", says(b, a.Over, "with the same key", soon))
	wantKernel(p, a)
}

func deleted(p *proof) {
	l := raised(p, "a", "b")
	a, b := l.Node("a"), l.Node("b")
	echo(p, b)
	c, err := a.Dial("tcp", netip.AddrPortFrom(b.Over, port), soon)
	p.must("connecting", err)
	defer c.Close()
	p.must("before", talk(c, words, soon))
	gone := record(p, l, func() {
		p.must("deleting the device", a.Do(func() error {
			d, err := netlink.LinkByName(nodes.Device)
			return errors.Join(err, netlink.LinkDel(d))
		}))
		if _, err := a.Dial("tcp", netip.AddrPortFrom(b.Over, port), shut); !errors.Is(err, syscall.EACCES) {
			p.Errorf("without the device the route does not refuse: %v", err)
		}
		p.must("a route past the overlay", a.RouteBy(b.Over))
		if says(a, b.Over, words, shut) == nil || talk(c, words, shut) == nil {
			p.Errorf("without the device a reaches b")
		}
		refused(p, a, "is not there", "status")
	})
	wantNoClear(p, l, gone, words)
	raise(p, l, "a")
	wantKernel(p, a)
	b2, err := a.Dial("tcp", netip.AddrPortFrom(b.Over, port), soon)
	p.must("a new connection", err)
	p.must("a new connection", errors.Join(talk(b2, "new", soon), b2.Close()))
	// What was sent meanwhile comes first.
	want := words + "after"
	p.must("the connection from before", talk(answers{c, len(words)}, "after", soon))
	p.Logf("the connection went on with %d bytes", len(want))
}

// answers is a connection on which some bytes are read first, for they were sent before.
type answers struct {
	net.Conn
	before int
}

func (a answers) Read(b []byte) (int, error) {
	for a.before > 0 {
		n, err := a.Conn.Read(make([]byte, a.before))
		if err != nil {
			return 0, err
		}
		a.before -= n
	}
	return a.Conn.Read(b)
}

func removed(p *proof) {
	l := raised(p, "a", "b", "c")
	a, b, c := l.Node("a"), l.Node("b"), l.Node("c")
	echo(p, a)
	p.must("c before", says(c, a.Over, "a member", soon))
	p.must("b before", says(b, a.Over, "a member", soon))
	p.must("signing", l.Sign(p.Context(), "a", "b"))
	raise(p, l, "a", "b")
	if says(c, a.Over, "no member", shut) == nil || says(c, a.Under, "no member", shut) == nil {
		p.Errorf("c was removed and reaches a")
	}
	p.must("b after", says(b, a.Over, "a member", soon))
	wantKernel(p, a)
	fine(p, a, "status")
}

func halfway(p *proof) {
	l := newLab(p, 0, "a", "b")
	a, b := l.Node("a"), l.Node("b")
	echo(p, b)
	raise(p, l, "b")
	table := func() bool {
		_, err := a.Run(p.Context(), "nft", "list", "table", "inet", "vallum_isolate")
		return err == nil
	}
	for _, moment := range []struct {
		name    string
		guarded bool // something is refused already
		now     func() bool
	}{
		{"what it will do is written", false, func() bool { _, err := os.Stat(filepath.Join(state(a), "pending.json")); return err == nil }},
		{"the rules are loaded", true, table},
		{"the device is made", true, func() bool { return kind(a, nodes.Device) != "" }},
	} {
		c := a.Command(p.Context(), "up", "--accept-cut")
		p.must("up", a.Start(c))
		eventually(p, moment.name, soon, moment.now)
		p.must("killing up", c.Process.Kill())
		_ = c.Wait() // it was killed
		if moment.guarded {
			half := record(p, l, func() { _ = says(a, b.Over, words, shut) })
			wantNoClear(p, l, half, words)
		}
		raise(p, l, "a")
		wantKernel(p, a)
		fine(p, a, "status")
		p.must("repaired, when "+moment.name, says(a, b.Over, words, soon))
		fine(p, a, "down")
	}
}

func exact(p *proof) {
	l := newLab(p, 0, "a", "b")
	a := l.Node("a")
	before := looks(p, a)
	want := func(what string) {
		p.Helper()
		if now := looks(p, a); now != before {
			p.Errorf("after %s it looks otherwise:\n%s\nbefore:\n%s", what, now, before)
		}
	}
	raise(p, l, "a")
	if looks(p, a) == before {
		p.Fatalf("up changed nothing that is seen here, so that nothing is shown")
	}
	fine(p, a, "down")
	want("down")
	refused(p, a, "everything was rolled back", "up", "--accept-cut", "--confirm", "3s")
	want("a rollback")
}

func notOurs(p *proof) {
	l := newLab(p, 0, "a", "b")
	a := l.Node("a")
	make := func(what string) {
		p.Helper()
		_, err := a.Run(p.Context(), "sh", "-c", what)
		p.must(what, err)
	}
	for _, how := range []string{
		"ip link add vallum0 type dummy && ip addr add 198.51.100.1/24 dev vallum0",
		"ip link add vallum0 type wireguard && ip addr add 198.51.100.1/24 dev vallum0 && ip link set vallum0 up",
	} {
		make(how)
		before := looks(p, a)
		refused(p, a, "nothing says that it is ours; choose another name as isolate.device", "up", "--accept-cut")
		fine(p, a, "down")
		if now := looks(p, a); now != before {
			p.Errorf("%s: it looks otherwise:\n%s\nbefore:\n%s", how, now, before)
		}
		make("ip link del vallum0")
	}
	raise(p, l, "a")
	make("ip link del vallum0 && ip link add vallum0 type dummy")
	refused(p, a, "choose another name as isolate.device", "up", "--accept-cut")
	refused(p, a, "not ours; it stays", "down")
	if got := kind(a, nodes.Device); got != "dummy" {
		p.Errorf("the device is now of kind %q", got)
	}
	make("ip link del vallum0")
	fine(p, a, "down")
}

func portTaken(p *proof) {
	l := newLab(p, 0, "a", "b")
	a := l.Node("a")
	before := looks(p, a)
	var other net.PacketConn
	p.must("taking the port", a.Do(func() (err error) {
		other, err = net.ListenPacket("udp", ":51820")
		return err
	}))
	refused(p, a, "UDP port 51820", "up", "--accept-cut")
	if now := looks(p, a); now != before {
		p.Errorf("it looks otherwise:\n%s\nbefore:\n%s", now, before)
	}
	p.must("giving the port back", other.Close())
	raise(p, l, "a")
	wantKernel(p, a)
}
