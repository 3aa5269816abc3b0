package apply_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// routeBy sends an address by the underlay's device, as a routing daemon or a stranger does.
func (h *host) routeBy(t *testing.T, addr netip.Addr, add bool) {
	t.Helper()
	h.do(func() {
		r := &netlink.Route{LinkIndex: link(t, "eth0").Attrs().Index, Dst: ipnet.Of(netip.PrefixFrom(addr, addr.BitLen())), Priority: 0}
		if addr.Is6() {
			r.Priority = 1
		}
		if add {
			must(t, netlink.RouteReplace(r))
			return
		}
		must(t, netlink.RouteDel(r))
	})
}

func TestMembersReachEachOtherAndNobodyElseReachesThem(t *testing.T) {
	l := newLab(t, "a", "b", "gw", "x")
	a, b, gw, x := l.hosts["a"], l.hosts["b"], l.hosts["gw"], l.hosts["x"]
	for _, h := range []*host{a, b} {
		h.echo(t, 29501)
		h.echo(t, 8000)
		h.echo(t, 22)
	}
	// The attack first: without an overlay the stranger reaches what vLLM listens on.
	if !x.reaches(a.under, 29501, open) {
		t.Fatal("the stranger cannot reach an open port: the test would prove nothing")
	}
	// On a machine with docker or a firewall the kernel already tracks connections: what it knows goes on as a reply.
	a.track(t)
	old, err := x.dial(a.under, 29501, open)
	must(t, err)
	defer old.Close()
	must(t, says(old, open))
	before := map[*host]string{a: a.state(t), b: b.state(t)}

	l.sign(nil, "a", "b", "gw")
	a.up(t)
	b.up(t)
	gw.up(t)

	for _, to := range []netip.Addr{a.over, a.over6} {
		if !b.reaches(to, 29501, open) {
			t.Errorf("b does not reach %s by the overlay", to)
		}
		if !gw.reaches(to, 8000, open) {
			t.Errorf("the gateway does not reach the API at %s", to)
		}
		if gw.reaches(to, 29501, closed) {
			t.Errorf("the gateway reaches more than the API at %s", to)
		}
	}
	// The stranger routes overlay addresses by the Ethernet: the weak host model would answer him.
	for _, to := range []netip.Addr{a.over, b.over, a.over6} {
		x.routeBy(t, to, true)
	}
	for _, to := range []netip.Addr{a.under, a.under6, b.under, a.over, b.over, a.over6} {
		for _, port := range []uint16{29501, 8000} {
			if x.reaches(to, port, closed) {
				t.Errorf("the stranger reaches %s port %d", to, port)
			}
		}
	}
	if x.reaches(a.over, 22, closed) {
		t.Error("the stranger reaches the overlay's address past the tunnel, by a port that is allowed")
	}
	if !x.reaches(a.under, 22, open) {
		t.Error("ssh is allowed and does not get in")
	}
	if says(old, closed) == nil {
		t.Error("the stranger's connection from before still works")
	}
	if _, _, code := a.run("status"); code != 0 {
		t.Error("status does not say that it holds")
	}
	if b, err := os.ReadFile(a.file("hosts")); err != nil || !strings.Contains(string(b), "::ffff:10.99.0.2 b.lab.internal\n") {
		t.Errorf("the hosts file lacks the mapped name: %s %v", b, err)
	}
	a.must(t, "down")
	b.must(t, "down")
	for h, was := range before {
		if is := h.state(t); is != was {
			t.Errorf("%s after down:\n%s\nbefore up:\n%s", h.name, is, was)
		}
	}
	if !x.reaches(a.under, 29501, open) {
		t.Error("after down something is still refused")
	}
}

// track makes the kernel track the namespace's connections, as any firewall with state does.
func (h *host) track(t *testing.T) {
	t.Helper()
	h.do(func() {
		c, err := nftables.New()
		must(t, err)
		table := c.AddTable(&nftables.Table{Name: "somebody", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}})
		must(t, c.Flush())
	})
}

// state is what up may change of a host: devices, addresses, routes, tables, the hosts file.
func (h *host) state(t *testing.T) string {
	t.Helper()
	out, _ := h.must(t, "observe")
	keep := []string{}
	_, rest, _ := strings.Cut(out, `"devices"`)
	network, _, _ := strings.Cut(rest, `"sockets"`)
	_, rest, _ = strings.Cut(rest, `"tables"`)
	tables, _, _ := strings.Cut(rest, `"processes"`)
	hosts, err := os.ReadFile(h.file("hosts"))
	must(t, err)
	h.do(func() {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteList(nil, family)
			must(t, err)
			for _, r := range routes {
				keep = append(keep, r.String())
			}
		}
	})
	return network + tables + string(hosts) + strings.Join(keep, "\n")
}

// A tunnel that dies, and a route that goes round it, must not put one packet of the overlay on the wire in clear.
func TestADeadTunnelAndAWrongRouteLeakNothing(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	a.echo(t, 29501)
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	w := l.watch()
	c, err := b.dial(a.over, 29501, open)
	must(t, err)
	defer c.Close()
	must(t, says(c, open))

	// Rerouted under load: an established connection would go on in clear, for its packets are replies.
	a.routeBy(t, b.over, true)
	b.routeBy(t, a.over, true)
	if says(c, closed) == nil {
		t.Error("the connection went on by the Ethernet")
	}
	// New ones go out by the Ethernet's address, to the overlay's; and from the overlay's address to anybody.
	if b.reaches(a.over, 29501, closed) {
		t.Error("a new connection goes by the Ethernet")
	}
	b.do(func() {
		d := net.Dialer{Timeout: closed, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(b.over, 0))}
		if c, err := d.Dial("tcp", netip.AddrPortFrom(a.under, 29501).String()); err == nil {
			_ = c.Close()
			t.Error("an overlay address is sent from by the Ethernet")
		}
	})
	if n := a.counter(t, "overlay-leak") + b.counter(t, "overlay-leak"); n == 0 {
		t.Error("nothing was refused on the way out: the route did not go round the tunnel, and this proves nothing")
	}
	must(t, upAgain(a, t))
	must(t, upAgain(b, t))
	eventually(t, "the same connection goes on", open, func() bool { return says(c, open) == nil })

	// The tunnel's process is killed: its supervisor starts it again with the same key and address.
	b.killTunnel(t, false)
	eventually(t, "the tunnel is back", open, func() bool { return b.reaches(a.over, 29501, open) })

	// Supervisor and all: now there is no device, and the prohibit route answers at once.
	b.killTunnel(t, true)
	eventually(t, "the device is gone with its process", open, func() bool { return !b.has(b.device) })
	_, err = b.dial(a.over, 29501, open)
	if !errors.Is(err, syscall.EACCES) {
		t.Errorf("with a dead tunnel the kernel says %v, not that it is prohibited", err)
	}
	if _, said, code := b.run("status"); code != 1 || !strings.Contains(said, "is not there") {
		t.Errorf("status says %d %s", code, said)
	}
	b.must(t, "up", "--hosts", b.file("hosts"))
	eventually(t, "up repaired it", open, func() bool { return b.reaches(a.over, 29501, open) })
	if says(c, open) != nil {
		t.Error("a connection from before the tunnel's death does not go on: keys or addresses changed")
	}
	tunnel, inClear, payload := w.end()
	if inClear != 0 || payload || tunnel == 0 {
		t.Errorf("on the wire: %d packets in clear, payload seen %v, %d packets of the tunnel", inClear, payload, tunnel)
	}
}

// upAgain repairs routes that something else changed.
func upAgain(h *host, t *testing.T) error {
	h.must(t, "up", "--hosts", h.file("hosts"))
	return nil
}

func linkDown(t *testing.T) error { return linkDownOf(t, "eth0") }

func linkDownOf(t *testing.T, name string) error {
	t.Helper()
	return netlink.LinkSetDown(link(t, name))
}

// takeAddress gives the caller's namespace another host's address on the same Ethernet.
func takeAddress(t *testing.T, of *host) error {
	return netlink.AddrAdd(link(t, "eth0"), &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(of.under, 24))})
}
