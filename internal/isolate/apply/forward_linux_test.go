package apply_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// What docker 28 and kube-proxy 1.34 write by iptables-nft, as nft prints it, less the chains that say nothing here.
const (
	dockersRules = `
table ip nat {
	chain DOCKER {
		iifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.2:8000
	}
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local counter jump DOCKER
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.17.0.0/16 oifname != "docker0" counter masquerade
	}
}
table ip filter {
	chain DOCKER {
		ip daddr 172.17.0.2 iifname != "docker0" oifname "docker0" tcp dport 8000 counter accept
	}
	chain DOCKER-USER {
	}
	chain DOCKER-FORWARD {
		oifname "docker0" ct state related,established counter accept
		oifname "docker0" counter jump DOCKER
		iifname "docker0" counter accept
	}
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter jump DOCKER-USER
		counter jump DOCKER-FORWARD
	}
}
`
	kubesRules = `
table ip nat {
	chain KUBE-SEP-POD {
		meta l4proto tcp counter dnat to 172.17.0.2:8000
	}
	chain KUBE-SEP-HOST {
		meta l4proto tcp counter dnat to 192.0.2.1:8000
	}
	chain KUBE-NODEPORTS {
		tcp dport 30080 counter jump KUBE-SEP-POD
		tcp dport 30081 counter jump KUBE-SEP-HOST
	}
	chain KUBE-SERVICES {
		fib daddr type local counter jump KUBE-NODEPORTS
	}
	chain KUBE-POSTROUTING {
		ip saddr 172.17.0.0/16 oifname != "docker0" counter masquerade
	}
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		counter jump KUBE-SERVICES
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		counter jump KUBE-POSTROUTING
	}
}
table ip filter {
	chain KUBE-FORWARD {
		ct state established,related counter accept
		ip daddr 172.17.0.0/16 counter accept
		ip saddr 172.17.0.0/16 counter accept
	}
	chain FORWARD {
		type filter hook forward priority filter; policy accept;
		counter jump KUBE-FORWARD
	}
}
`
)

// container is a namespace on a bridge of the host, with the rules by which it is reached.
func (h *host) container(t *testing.T, rules string) *host {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal("this test loads docker's rules by nft, which is not here: ", err)
	}
	c := &host{space: newSpace(t), name: "container", under: netip.MustParseAddr("172.17.0.2")}
	h.do(func() {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
		bridge := link(t, "docker0")
		must(t, netlink.AddrAdd(bridge, &netlink.Addr{IPNet: ipnet.Of(netip.MustParsePrefix("172.17.0.1/16"))}))
		must(t, netlink.LinkSetUp(bridge))
		must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)) // the namespace's own
	})
	cable(t, h.space, c.space, "vethc", "eth0", "", "172.17.0.2/16", 1500)
	h.do(func() {
		must(t, netlink.LinkSetMaster(link(t, "vethc"), link(t, "docker0")))
		load := exec.Command(nft, "-f", "-")
		load.Stdin = strings.NewReader(rules)
		if out, err := load.CombinedOutput(); err != nil {
			t.Fatalf("loading the rules: %v\n%s", err, out)
		}
	})
	c.do(func() {
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(172, 17, 0, 1)}))
	})
	return c
}

// others are the tables that are not ours, without what they counted.
func (h *host) others(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	h.do(func() {
		for _, table := range []string{"nat", "filter"} {
			out, err := exec.Command("nft", "list", "table", "ip", table).Output()
			must(t, err)
			b.WriteString(withoutCounts(string(out)))
		}
	})
	return b.String()
}

// Docker's published port goes round input: what guards it is the forward chain. up refuses to close it unasked, closes it
// when asked, also for who is connected already, and leaves docker's own tables as they are.
func TestDockersForwardPathIsClosedAndNeverPassedOver(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, b, x := l.hosts["a"], l.hosts["b"], l.hosts["x"]
	c := a.container(t, dockersRules)
	c.echo(t, 8000)
	a.echo(t, 5000)
	b.echo(t, 5000)
	x.echo(t, 5001)
	if !x.reaches(a.under, 8080, open) || !c.reaches(x.under, 5001, open) || !c.reaches(a.under, 5000, open) {
		t.Fatal("docker's rules do not work: this would prove nothing")
	}
	old, err := x.dial(a.under, 8080, open)
	must(t, err)
	defer old.Close()
	must(t, says(old, open))
	x.do(func() { // and one that is routed to the container, past the translation
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("172.17.0.0/16")), Gw: net.ParseIP(a.under.String())}))
	})
	routed, err := x.dial(c.under, 8000, open)
	must(t, err)
	defer routed.Close()
	must(t, says(routed, open))
	l.sign(nil, "a", "b")
	was := a.others(t)
	if _, said, code := a.run("up", "--hosts", a.file("hosts")); code != 1 || !strings.Contains(said, "docker forwards to containers: their published ports and their way out would stop") || !strings.Contains(said, "container_bridges: [docker0]") {
		t.Errorf("unasked: exit %d\n%s", code, said)
	}
	must(t, says(old, open))

	a.up(t)
	b.up(t)
	if x.reaches(a.under, 8080, closed) || x.reaches(c.under, 8000, closed) {
		t.Error("the published port is still open")
	}
	if says(old, closed) == nil || says(routed, closed) == nil {
		t.Error("who was connected still is")
	}
	if c.reaches(x.under, 5001, closed) {
		t.Error("the container still gets out, although no bridge is named")
	}
	if a.counter(t, "not-forwarded") == 0 {
		t.Error("the forward chain has refused nothing: this proves nothing")
	}
	must(t, os.WriteFile(a.file("vallum.yaml"), []byte(strings.Replace(a.conf(t), "allow:", "container_bridges: [docker0], allow:", 1)), 0o644))
	a.up(t)
	eventually(t, "the container gets out by the bridge that is named", open, func() bool { return c.reaches(x.under, 5001, closed) })
	if x.reaches(a.under, 8080, closed) || x.reaches(c.under, 8000, closed) {
		t.Error("a bridge that is named opens what is published")
	}
	// The overlay is for members, and what is behind them is none: in neither direction.
	for _, to := range []netip.Addr{a.over, b.over, a.under} {
		if c.reaches(to, 5000, closed) {
			t.Errorf("the container reaches %s", to)
		}
	}
	// Not one packet either, although no answer could come back.
	heard := b.hears(t, 5002)
	for range 3 {
		c.datagram(t, netip.AddrPortFrom(b.over, 5002))
	}
	a.datagram(t, netip.AddrPortFrom(b.over, 5002)) // and one that may, so that the others had the time
	if from := <-heard; from != a.over {
		t.Errorf("a packet of the container's came to a peer, as of %s", from)
	}
	// Nor does an overlay address that a container gives itself leave for the Ethernet.
	own := netip.MustParseAddr("10.99.0.77")
	c.do(func() {
		must(t, netlink.AddrAdd(link(t, "eth0"), &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(own, 32))}))
	})
	w, arrives := l.watch(), x.hears(t, 5003)
	for _, from := range []netip.Addr{own, c.under} { // and one that may leave, so that the other had the time
		c.do(func() {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
			sender, err := d.Dial("udp", netip.AddrPortFrom(x.under, 5003).String())
			must(t, err)
			defer sender.Close()
			_, _ = sender.Write([]byte(from.String()))
		})
	}
	if from := <-arrives; from != c.under {
		t.Errorf("a packet from %s left by the Ethernet", from)
	}
	if _, inClear, _ := w.end(); inClear != 0 {
		t.Errorf("%d packets with an overlay address on the Ethernet", inClear)
	}
	if b.reaches(a.over, 8080, closed) {
		t.Error("a peer is passed on to the container")
	}
	if is := a.others(t); is != was {
		t.Errorf("docker's tables are changed:\n%s\nbefore:\n%s", is, was)
	}
	a.must(t, "down")
	if !x.reaches(a.under, 8080, open) {
		t.Error("after down docker's port does not work again")
	}
}

func (h *host) conf(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(h.file("vallum.yaml"))
	must(t, err)
	return string(b)
}

// A node port leads to a pod, past input, or to a pod on the host's network, past the port that input sees.
func TestKubeProxysForwardPathIsClosedAndNeverPassedOver(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, x := l.hosts["a"], l.hosts["x"]
	pod := a.container(t, kubesRules)
	pod.echo(t, 8000)
	a.echo(t, 8000)
	for _, port := range []uint16{30080, 30081} {
		if !x.reaches(a.under, port, open) {
			t.Fatalf("kube-proxy's rules do not work for port %d: this would prove nothing", port)
		}
	}
	l.sign(nil, "a", "b")
	if _, said, code := a.run("up", "--hosts", a.file("hosts")); code != 1 || !strings.Contains(said, "kube-proxy or the CNI forwards to pods") || !strings.Contains(said, "vallum isolate policy kubernetes") {
		t.Errorf("unasked: exit %d\n%s", code, said)
	}
	a.up(t)
	for _, port := range []uint16{30080, 30081} {
		if x.reaches(a.under, port, closed) {
			t.Errorf("node port %d is still open", port)
		}
	}
	for _, rule := range []string{"not-forwarded", "refused"} {
		if a.counter(t, rule) == 0 {
			t.Errorf("rule %s has refused nothing: this proves nothing", rule)
		}
	}
}

// hears listens for datagrams; where the first came from is told.
func (h *host) hears(t *testing.T, port uint16) <-chan netip.Addr {
	t.Helper()
	from := make(chan netip.Addr, 1)
	h.do(func() {
		c, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 1500)
			n, _, err := c.ReadFrom(b)
			if err != nil {
				close(from)
				return
			}
			a, _ := netip.ParseAddr(string(b[:n]))
			from <- a
		}()
	})
	return from
}

// datagram sends the host's own address, which is left when others are translated.
func (h *host) datagram(t *testing.T, to netip.AddrPort) {
	t.Helper()
	h.do(func() {
		c, err := net.Dial("udp", to.String())
		must(t, err)
		defer c.Close()
		own := netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
		_, _ = c.Write([]byte(own.String()))
	})
}
