package apply_test

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// wireguard changes the host's device as somebody with `wg` would.
func (h *host) wireguard(t *testing.T, conf wgtypes.Config) {
	t.Helper()
	c, err := wgctrl.New()
	must(t, err)
	defer c.Close()
	must(t, c.ConfigureDevice(h.device, conf))
}

// takePort is another program that gets the tunnel's port while that is started again.
func (h *host) takePort(t *testing.T) (end func()) {
	t.Helper()
	pid := h.endChild(t)
	var c net.PacketConn
	eventually(t, "the port is free", open, func() (got bool) {
		h.do(func() {
			var err error
			c, err = net.ListenPacket("udp", ":51820")
			got = err == nil
		})
		return got
	})
	t.Cleanup(func() { _ = c.Close() })
	must(t, syscall.Kill(pid, syscall.SIGCONT))
	return func() { must(t, c.Close()) }
}

// endChild kills wireguard-go and keeps its supervisor, whose number it returns, from starting it again.
func (h *host) endChild(t *testing.T) (supervisor int) {
	t.Helper()
	b, err := os.ReadFile(h.file("tunnel.lock"))
	must(t, err)
	supervisor, err = strconv.Atoi(string(b))
	must(t, err)
	child, err := strconv.Atoi(allChildren(t, supervisor)[0])
	must(t, err)
	must(t, syscall.Kill(supervisor, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(supervisor, syscall.SIGCONT) }) // before down, which ends it
	eventually(t, "the supervisor stands still", open, func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", supervisor))
		must(t, err)
		return len(threads) > 0 && !slices.ContainsFunc(threads, func(file string) bool {
			stat, _ := os.ReadFile(file)
			return !bytes.Contains(stat, []byte(") T "))
		})
	})
	must(t, syscall.Kill(child, syscall.SIGKILL))
	h.awaitGone(t)
	return supervisor
}

// awaitAddress waits for the device, and for what it is given last but its routes.
func (h *host) awaitAddress(t *testing.T) {
	t.Helper()
	eventually(t, "the device is up with its addresses", open, func() (there bool) {
		h.do(func() {
			l, err := netlink.LinkByName(h.device)
			if err != nil || l.Attrs().Flags&net.FlagUp == 0 {
				return
			}
			list, err := netlink.AddrList(l, netlink.FAMILY_V6)
			there = err == nil && slices.ContainsFunc(list, func(a netlink.Addr) bool { return ipnet.Prefix(a.IPNet).Addr() == h.over6 })
		})
		return there
	})
}

// supplant puts another wireguard-go, with the same keys and peers, in the place of the one that up started.
func (h *host) supplant(t *testing.T) (end func()) {
	t.Helper()
	pid := h.endChild(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	for _, name := range []string{"node.key", "confirmed.json"} {
		b, err := os.ReadFile(h.file(name))
		must(t, err)
		must(t, os.WriteFile(dir+"/"+name, b, 0o600))
	}
	c := exec.Command(program, "isolate", "tunnel", "--child", "--state", dir)
	h.do(func() { must(t, c.Start()) })
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	h.awaitAddress(t)
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
}

// nft runs a script of nft's in the host's namespace.
func (h *host) nft(t *testing.T, script string) {
	t.Helper()
	h.do(func() {
		if out, err := exec.Command("nft", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", script, err, out)
		}
	})
}

// harm is what may happen to an overlay after it was made.
type harm struct {
	want string                                       // what everybody says of it
	do   func(t *testing.T, h, b *host) (undo func()) // undo, if any, comes before up repairs the rest
}

// harms are by their names what an operator would call them.
var harms = map[string]harm{
	"its port is taken": {" has taken it; end that, or give the node another port", func(t *testing.T, h, _ *host) func() { return h.takePort(t) }},
	"it listens on another port": {"does not listen on UDP port 51820", func(t *testing.T, h, _ *host) func() {
		port := 51999
		h.wireguard(t, wgtypes.Config{ListenPort: &port})
		return nil
	}},
	"its process is another":        {"has taken its place; end that", func(t *testing.T, h, _ *host) func() { return h.supplant(t) }},
	"its process is gone":           {"is not there", func(t *testing.T, h, _ *host) func() { h.killTunnel(t, true); h.awaitGone(t); return nil }},
	"another device has its name":   {`is of type "veth", and not WireGuard's`, func(t *testing.T, h, _ *host) func() { return h.fake(t) }},
	"the device is down":            {"is down", func(t *testing.T, h, _ *host) func() { h.do(func() { must(t, linkDownOf(t, h.device)) }); return nil }},
	"an address is removed":         {"10.99.0.1 is not on device", func(t *testing.T, h, _ *host) func() { h.unaddress(t, h.over); return nil }},
	"an IPv6 address is removed":    {"fd00:99::1 is not on device", func(t *testing.T, h, _ *host) func() { h.unaddress(t, h.over6); return nil }},
	"a route is removed":            {"the route of 10.99.0.2 by device", func(t *testing.T, h, b *host) func() { h.unroute(t, b.over); return nil }},
	"an IPv6 route is removed":      {"the route of fd00:99::2 by device", func(t *testing.T, h, b *host) func() { h.unroute(t, b.over6); return nil }},
	"a route leads past it":         {`packets for 10.99.0.2 would leave by "eth0"`, func(t *testing.T, h, b *host) func() { h.routeBy(t, b.over, true); return nil }},
	"policy routing leads past it":  {`packets for 10.99.0.2 would leave by "eth0"`, func(t *testing.T, h, b *host) func() { return h.policy(t, b.over) }},
	"the prohibit route is removed": {"the prohibit route of 10.99.0.0/24 is missing", func(t *testing.T, h, _ *host) func() { h.unprohibit(t); return nil }},
	"every rule is flushed":         {"the rules are not loaded", func(t *testing.T, h, _ *host) func() { h.nft(t, "flush ruleset"); return nil }},
	"a rule of ours is opened": {"not ours: input: a rule with comment", func(t *testing.T, h, _ *host) func() {
		h.nft(t, "insert rule inet vallum_isolate input accept")
		return nil
	}},
	"the names are gone": {"the members' names are not in", func(t *testing.T, h, _ *host) func() {
		must(t, os.WriteFile(h.file("hosts"), []byte("127.0.0.1 localhost\n"), 0o644))
		return nil
	}},
	"a peer is sent to elsewhere": {`packets for node "b" leave for 192.0.2.99:51820`, func(t *testing.T, h, b *host) func() {
		h.peer(t, b, wgtypes.PeerConfig{Endpoint: net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.99:51820"))})
		return nil
	}},
	"a peer has another shared secret": {`another pre-shared key for node "b"`, func(t *testing.T, h, b *host) func() {
		h.peer(t, b, wgtypes.PeerConfig{PresharedKey: &wgtypes.Key{1}})
		return nil
	}},
	"the node's key is another": {"the other nodes do not hear it", func(t *testing.T, h, _ *host) func() {
		key, err := wgtypes.GeneratePrivateKey()
		must(t, err)
		h.wireguard(t, wgtypes.Config{PrivateKey: &key})
		return nil
	}},
}

func (h *host) awaitGone(t *testing.T) {
	t.Helper()
	eventually(t, "the device is gone with its process", open, func() bool { return !h.has(h.device) })
}

// fake puts a device that carries nothing in the place of the overlay's, with its addresses.
func (h *host) fake(t *testing.T) (end func()) {
	t.Helper()
	h.killTunnel(t, true)
	h.awaitGone(t)
	h.do(func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: h.device}, PeerName: "end"}))
		l := link(t, h.device)
		must(t, netlink.LinkSetUp(l))
		for _, a := range []netip.Addr{h.over, h.over6} {
			must(t, netlink.AddrReplace(l, &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(a, a.BitLen()))}))
		}
	})
	return func() { h.do(func() { must(t, netlink.LinkDel(link(t, h.device))) }) }
}

func (h *host) unaddress(t *testing.T, a netip.Addr) {
	h.do(func() {
		must(t, netlink.AddrDel(link(t, h.device), &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(a, a.BitLen()))}))
	})
}

func (h *host) unroute(t *testing.T, to netip.Addr) {
	h.do(func() {
		must(t, netlink.RouteDel(&netlink.Route{LinkIndex: link(t, h.device).Attrs().Index, Dst: ipnet.Of(netip.PrefixFrom(to, to.BitLen())), Scope: netlink.SCOPE_LINK}))
	})
}

func (h *host) unprohibit(t *testing.T) {
	h.do(func() {
		must(t, netlink.RouteDel(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("10.99.0.0/24")), Type: unix.RTN_PROHIBIT, Priority: isolate.ProhibitMetric}))
	})
}

// policy routes an address by a table of its own, as VPN clients do; the main table says what it said.
func (h *host) policy(t *testing.T, to netip.Addr) (end func()) {
	rule := netlink.NewRule()
	rule.Dst, rule.Table, rule.Priority = ipnet.Of(netip.PrefixFrom(to, to.BitLen())), 77, 100
	h.do(func() {
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link(t, "eth0").Attrs().Index, Dst: rule.Dst, Table: 77}))
		must(t, netlink.RuleAdd(rule))
	})
	return func() { h.do(func() { must(t, netlink.RuleDel(rule)) }) }
}

func (h *host) peer(t *testing.T, b *host, conf wgtypes.PeerConfig) {
	t.Helper()
	var err error
	conf.PublicKey, err = wgtypes.ParseKey(b.key)
	must(t, err)
	conf.UpdateOnly = true
	h.wireguard(t, wgtypes.Config{Peers: []wgtypes.PeerConfig{conf}})
}

// Whatever happens to an overlay that stood: nobody calls it well, everybody says what is wrong and what to do, vLLM is not
// started on it, and up makes it whole.
func TestWhatHappensToAnOverlayIsSeenByEverybody(t *testing.T) {
	const labs = 3 // side by side: these tests wait far more than they compute
	names := slices.Sorted(maps.Keys(harms))
	for part := range labs {
		t.Run(fmt.Sprint("lab ", part), func(t *testing.T) {
			l := newLab(t, "a", "b")
			a, b := l.hosts["a"], l.hosts["b"]
			l.sign(nil, "a", "b")
			a.up(t)
			for i, name := range names {
				if i%labs == part {
					t.Run(name, func(t *testing.T) { harms[name].seen(t, a, b) })
				}
			}
		})
	}
}

// seen does the harm, and asks everybody.
func (m harm) seen(t *testing.T, a, b *host) {
	undo := m.do(t, a, b)
	for _, args := range [][]string{
		{"status"},
		{"audit"},
		{"verify", "--config", a.file("vallum.yaml")},
		{"exec", "--topology", "dp", "--", "echo", "RUNS"},
	} {
		out, said, code := a.run(args...)
		all := strings.Join(strings.Fields(out+said), " ")
		if code != 1 || !strings.Contains(all, m.want) || !strings.Contains(all, "hint: vallum isolate up repairs it") || strings.Contains(all, "RUNS") {
			t.Errorf("isolate %s: exit %d, want %q and what to do\n%s%s", args[0], code, m.want, out, said)
		}
	}
	if undo != nil {
		undo()
	}
	a.must(t, "up", "--hosts", a.file("hosts"))
	a.must(t, "status")
}

// What up cannot repair it does not call repaired.
func TestUpSaysWhatItCannotRepair(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	l.sign(nil, "a", "b")
	a.up(t)
	for name, want := range map[string]string{"its port is taken": "has taken it; end that", "policy routing leads past it": "ip rule"} {
		undo := harms[name].do(t, a, b)
		if out, said, code := a.run("up", "--hosts", a.file("hosts")); code != 1 || !strings.Contains(said, want) {
			t.Errorf("%s: exit %d, want %q\n%s%s", name, code, want, out, said)
		}
		undo()
		a.must(t, "up", "--hosts", a.file("hosts"))
		a.must(t, "status")
	}
}

// A packet that another table's rule accepts is still asked for by ours (nft(8): only a drop is final), wherever that
// stands: such a rule opens nothing, so that nothing is to be said of it.
func TestAnotherTablesAcceptOpensNothing(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, b, x := l.hosts["a"], l.hosts["b"], l.hosts["x"]
	a.echo(t, 29501)
	l.sign(nil, "a", "b")
	if !x.reaches(a.under, 29501, open) {
		t.Fatal("the stranger does not get in before up: this would prove nothing")
	}
	a.up(t)
	b.up(t)
	for _, priority := range []string{"-300", "-11", "300"} {
		a.nft(t, "table inet somebody { chain in { type filter hook input priority "+priority+"; policy accept; counter accept; }; chain out { type filter hook output priority "+priority+"; policy accept; counter accept; }; }")
		x.routeBy(t, a.over, true)
		for _, to := range []netip.Addr{a.under, a.over} {
			if x.reaches(to, 29501, closed) {
				t.Errorf("with a rule of priority %s that accepts everything a stranger reaches %s", priority, to)
			}
		}
		if !b.reaches(a.over, 29501, open) {
			t.Error("a member does not get in")
		}
		a.must(t, "status")
		a.do(func() {
			c, err := nftables.New()
			must(t, err)
			c.DelTable(&nftables.Table{Name: "somebody", Family: nftables.TableFamilyINet})
			must(t, c.Flush())
		})
	}
}
