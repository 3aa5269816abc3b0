package apply_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// cable joins two namespaces by a pair of devices with an address each.
func cable(t *testing.T, a, b *space, nameA, nameB, addrA, addrB string, mtu int) {
	t.Helper()
	a.do(func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.handle)}))
	})
	for _, end := range []struct {
		s          *space
		name, addr string
	}{{a, nameA, addrA}, {b, nameB, addrB}} {
		end.s.do(func() {
			l := link(t, end.name)
			must(t, netlink.LinkSetMTU(l, mtu))
			if end.addr != "" {
				must(t, netlink.AddrAdd(l, &netlink.Addr{IPNet: ipnet.Of(netip.MustParsePrefix(end.addr)), Flags: unix.IFA_F_NODAD}))
			}
			must(t, netlink.LinkSetUp(l))
		})
	}
}

// apart puts a host behind two routers, with a cable of the MTU between them; all other cables take 9000.
func (l *lab) apart(h *host, mtu int) {
	l.t.Helper()
	near, far := newSpace(l.t), newSpace(l.t)
	h.do(func() { must(l.t, netlink.LinkDel(link(l.t, "eth0"))) })
	h.under = netip.MustParseAddr("198.51.100.2")
	cable(l.t, far, h.space, "host", "eth0", "198.51.100.254/24", "198.51.100.2/24", 9000)
	cable(l.t, near, far, "middle", "middle", "203.0.113.1/30", "203.0.113.2/30", mtu)
	cable(l.t, near, l.sw, "lan", "tonear", "192.0.2.254/24", "", 9000)
	l.sw.do(func() { must(l.t, netlink.LinkSetMaster(link(l.t, "tonear"), link(l.t, "sw"))) })
	route := func(s *space, to, by string) {
		s.do(func() {
			must(l.t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix(to)), Gw: net.ParseIP(by)}))
			must(l.t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)) // the namespace's own
		})
	}
	route(near, "198.51.100.0/24", "203.0.113.2")
	route(far, "192.0.2.0/24", "203.0.113.1")
	h.do(func() {
		must(l.t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.ParseIP("198.51.100.254")}))
	})
}

// setMTU writes an MTU into the host's configuration.
func (h *host) setMTU(t *testing.T, l *lab, mtu int) {
	t.Helper()
	must(t, os.WriteFile(h.file("vallum.yaml"), fmt.Appendf(nil, "isolate: {fleet_key: %q, device: %s, mtu: %d}\n", l.public, h.device, mtu), 0o644))
}

// The devices take 9000 bytes, a cable between two routers 1400: the overlay takes what fits, and nothing of it is taken
// apart or lost on the way.
func TestTheOverlayFitsThroughTheNarrowestPartOfThePath(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	l.jumbo(9000)
	l.apart(b, 1400)
	a.echo(t, 5000)
	l.sign(nil, "a", "b")
	plan, _ := a.must(t, "plan")
	if !strings.Contains(plan, "MTU 1320,") || !strings.Contains(plan, "1400 bytes fit through to it: an echo of that size came back") {
		t.Errorf("before b is up:\n%s", plan)
	}
	a.up(t)
	// Now a answers no echo outside the overlay, and the router's word is all there is.
	plan, _ = b.must(t, "plan")
	if !strings.Contains(plan, "MTU 1320,") || !strings.Contains(plan, "1400 bytes fit through to it: the route or a router on the way says so") {
		t.Errorf("when a is up:\n%s", plan)
	}
	b.up(t)
	w := l.watch()
	b.carries(t, a.over)
	if _, _, _ = w.end(); w.fragments != 0 || w.tunnel < 30 { // 64 KiB each at most
		t.Errorf("%d packets of the tunnel, %d fragments", w.tunnel, w.fragments)
	}
	a.must(t, "status")
	// With packets as large as the devices take a megabyte does not get through, although the kernel takes single packets
	// apart: what it knows of the path, it tells.
	for _, h := range []*host{a, b} {
		h.setMTU(t, l, 8920)
		h.must(t, "up", "--hosts", h.file("hosts"), "--accept-cut")
	}
	if out, _, code := b.run("status"); code != 1 || !strings.Contains(out, "get through, of 8920") {
		t.Errorf("status of an overlay that is too wide: exit %d %s", code, out)
	}
	if plan, _ := a.must(t, "plan"); !strings.Contains(plan, `may have 9000 bytes and only 1400 fit through to "b"`) {
		t.Errorf("no warning:\n%s", plan)
	}
}

func TestJumboPacketsAreUsedWhereTheyFit(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.jumbo(9000)
	l.sign(nil, "a", "b")
	plan, _ := a.must(t, "plan")
	if !strings.Contains(plan, "MTU 8920,") || !strings.Contains(plan, "9000 bytes fit through to it: an echo of that size came back") {
		t.Errorf("%s", plan)
	}
	out, _ := a.must(t, "observe", l.hosts["b"].under.String()+":51820", "[2001:db8::2]:51820")
	if strings.Count(out, `"mtu": 9000,
      "proof": "an echo of that size came back"`) != 2 {
		t.Errorf("observe: %s", out)
	}
}

// A switch that drops what is too large says nothing: echoes find it before the peer is up, and after that the overlay
// itself shows it.
func TestASwitchThatDropsLargePacketsIsFound(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	l.jumbo(9000)
	l.sw.do(func() { must(t, netlink.LinkSetMTU(link(t, "tob"), 1400)) })
	a.echo(t, 5000)
	l.sign(nil, "a", "b")
	var fits int
	for line := range strings.Lines(a.planned(t)) {
		if strings.Contains(line, "bytes fit through to it: an echo") {
			_, err := fmt.Sscan(line, &fits)
			must(t, err)
		}
	}
	if fits < 1390 || fits > 1404 { // the bridge lets a VLAN's tag of 4 bytes through beyond its MTU
		t.Errorf("%d bytes are said to fit", fits)
	}
	a.up(t)
	// b has no way to know: a is silent outside. It finds out over the overlay, and says what to write.
	r := b.rise(t)
	b.must(t, "confirm")
	code, said := r.end()
	if code != 0 || !strings.Contains(said, "isolate: {mtu: ") {
		t.Errorf("up: exit %d %s", code, said)
	}
	out, said, code := b.run("status")
	if code != 1 || !strings.Contains(out, "get through, of 8920") || !strings.Contains(said, "write isolate: {mtu: 1") {
		t.Errorf("status: exit %d %s %s", code, out, said)
	}
	for _, h := range []*host{a, b} {
		h.setMTU(t, l, 1300)
		h.must(t, "up", "--hosts", h.file("hosts"), "--accept-cut")
		h.must(t, "status")
	}
	b.carries(t, a.over)
}

func (h *host) planned(t *testing.T) string {
	t.Helper()
	out, _ := h.must(t, "plan")
	return out
}
