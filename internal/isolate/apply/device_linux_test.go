package apply_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/vallum/vallum/internal/isolate/fleet"
)

// peers are what each peer of the host's device may send as, by its public key.
func (h *host) peers(t *testing.T) map[string][]string {
	t.Helper()
	c, err := wgctrl.New()
	must(t, err)
	defer c.Close()
	d, err := c.Device(h.device)
	must(t, err)
	all := map[string][]string{}
	for _, peer := range d.Peers {
		var may []string
		for _, p := range peer.AllowedIPs {
			may = append(may, p.String())
		}
		slices.Sort(may)
		all[peer.PublicKey.String()] = may
	}
	return all
}

// A device of that name that somebody else made is neither taken over nor removed.
func TestADeviceThatIsNotOursStays(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	foreign := func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a.device}, PeerName: "other"}))
	}
	a.do(foreign)
	before := a.state(t)
	if _, said, code := a.run("up", "--hosts", a.file("hosts"), "--accept-cut"); code != 1 || !strings.Contains(said, "nothing says that it is ours; choose another name as isolate.device") || a.state(t) != before {
		t.Errorf("up: exit %d %s", code, said)
	}
	a.must(t, "down")
	if !a.has(a.device) {
		t.Error("down removed a device that up had not made")
	}
	a.do(func() { must(t, netlink.LinkDel(link(t, a.device))) })
	a.up(t)
	a.killTunnel(t, true)
	eventually(t, "the device is gone", open, func() bool { return !a.has(a.device) })
	a.do(foreign)
	if _, said, code := a.run("down"); code != 1 || !strings.Contains(said, "is of type \"veth\" and not ours; it stays") || !a.has(a.device) {
		t.Errorf("down: exit %d %s", code, said)
	}
	a.do(func() { must(t, netlink.LinkDel(link(t, a.device))) })
	a.must(t, "down")
}

// A state folder that knows of nothing is not the one that up was given: its down has removed nothing, and says so.
func TestDownSaysWhenItIsGivenTheWrongFolder(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	if out, _ := a.must(t, "down"); !strings.Contains(out, "nothing was applied from "+a.dir+"; nothing was changed") {
		t.Errorf("before up: %s", out)
	}
	r := a.rise(t)
	right := a.dir
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		must(t, os.Chmod(filepath.Dir(dir), 0o700))
		a.dir = dir
		_ = os.Chmod(dir, 0o700)
		if _, said, code := a.run("confirm"); code != 1 || !strings.Contains(said, "nothing waits to be confirmed") {
			t.Errorf("confirm: exit %d %s", code, said)
		}
		if out, said, code := a.run("down"); code != 1 || !strings.Contains(said, "not by this state folder; name the one that up was given with --state") {
			t.Errorf("down: exit %d %s%s", code, out, said)
		}
		if _, said, code := a.run("status"); code != 1 {
			t.Errorf("status: exit %d %s", code, said)
		}
	}
	a.dir = right
	a.must(t, "confirm")
	if code, said := r.end(); code != 0 || !strings.Contains(said, "confirm within 1m0s with: vallum isolate confirm --state "+right) {
		t.Errorf("exit %d %s", code, said)
	}
	a.must(t, "status")
	if out, _ := a.must(t, "down"); !strings.Contains(out, "are removed") {
		t.Errorf("down: %s", out)
	}
}

// One at a time changes the machine, and who undoes a plan undoes his own and no other.
func TestOneAtATimeChangesTheMachine(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	before := a.state(t)
	held, err := os.OpenFile(a.file("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	must(t, unix.Flock(int(held.Fd()), unix.LOCK_EX))
	for _, args := range [][]string{{"up", "--accept-cut", "--hosts", a.file("hosts")}, {"down"}, {"confirm"}} {
		if _, said, code := a.run(args...); code != 1 || !strings.Contains(said, "another vallum isolate is at work on this machine") || a.state(t) != before {
			t.Errorf("%s: exit %d %s", args[0], code, said)
		}
	}
	must(t, held.Close())
	r := a.rise(t)
	a.must(t, "rollback", "--token", "of-another", "--after", "0s")
	if out, _ := a.must(t, "status"); !strings.Contains(out, "not confirmed yet") {
		t.Errorf("another's rollback: %s", out)
	}
	a.must(t, "confirm")
	if code, said := r.end(); code != 0 {
		t.Errorf("exit %d %s", code, said)
	}
	a.must(t, "rollback", "--token", "of-another", "--after", "0s")
	a.must(t, "status")
}

// wireguard-go is told what to do by a file. Two network namespaces that share the file system and a device's name must not
// configure each other's.
func TestANamespaceLeavesTheDeviceOfAnotherAlone(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	l.sign(nil, "a", "b")
	a.up(t)
	must(t, os.WriteFile(b.file("vallum.yaml"), fmt.Appendf(nil, "isolate: {fleet_key: %q, device: %s}\n", l.public, a.device), 0o644))
	before := b.state(t)
	if _, said, code := b.run("up", "--hosts", b.file("hosts"), "--accept-cut"); code != 1 || !strings.Contains(said, "unix socket in use") || b.state(t) != before {
		t.Errorf("exit %d %s", code, said)
	}
	c, err := wgctrl.New()
	must(t, err)
	defer c.Close()
	if d, err := c.Device(a.device); err != nil || d.PublicKey.String() != a.key {
		t.Errorf("the device has the key %s, not %s: %v", d.PublicKey, a.key, err)
	}
	a.must(t, "status")
}

// A plan that fails half way is undone, by up itself.
func TestAPlanThatFailsHalfWayIsUndone(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	a.do(func() { // the port is somebody's: rules and routes are made before that shows
		c, err := net.ListenPacket("udp", ":51820")
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
	})
	before := a.state(t)
	_, said, code := a.run("up", "--hosts", a.file("hosts"), "--accept-cut", "--confirm", "60s")
	if code != 1 || !strings.Contains(said, "applying the plan: UDP port 51820, on which") || a.exists("pending.json") {
		t.Errorf("exit %d, pending %v: %s", code, a.exists("pending.json"), said)
	}
	if is := a.state(t); is != before {
		t.Errorf("after it failed:\n%s\nbefore:\n%s", is, before)
	}
}

// A member that was removed is no peer of the device any more: its key is worth nothing, whatever the rules say.
func TestARemovedMemberIsNoPeerAnyMore(t *testing.T) {
	l := newLab(t, "a", "b", "c")
	a, b, c := l.hosts["a"], l.hosts["b"], l.hosts["c"]
	l.sign(nil, "a", "b", "c")
	a.up(t)
	if got := a.peers(t); len(got) != 2 {
		t.Fatalf("%v", got)
	}
	l.sign(func(m *fleet.Manifest) {
		m.Nodes = slices.DeleteFunc(m.Nodes, func(n fleet.Node) bool { return n.Name == "b" })
	}, "a", "b", "c")
	a.up(t)
	if got := a.peers(t); len(got) != 1 || got[c.key] == nil {
		t.Errorf("%v; b is %s", got, b.key)
	}
}

// IPv6 finds its neighbours by packets that no connection belongs to: default deny must let those of neighbours in.
func TestIPv6FindsItsNeighboursBehindTheRules(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	a.echo(t, 5000)
	l.sign(func(m *fleet.Manifest) {
		for i, n := range m.Nodes {
			m.Nodes[i].Endpoint = netip.AddrPortFrom(l.hosts[n.Name].under6, 51820)
		}
	}, "a", "b")
	a.up(t)
	b.up(t)
	for _, h := range []*host{a, b} {
		h.do(func() {
			eth := link(t, "eth0").Attrs().Index
			known, err := netlink.NeighList(eth, netlink.FAMILY_V6)
			must(t, err)
			for _, n := range known {
				must(t, netlink.NeighDel(&n))
			}
		})
	}
	if !b.reaches(a.over, 5000, open) {
		t.Error("over IPv6 the nodes do not find each other again")
	}
	b.do(func() {
		known, err := netlink.NeighList(link(t, "eth0").Attrs().Index, netlink.FAMILY_V6)
		must(t, err)
		if !slices.ContainsFunc(known, func(n netlink.Neigh) bool { return n.IP.String() == a.under6.String() && len(n.HardwareAddr) > 0 }) {
			t.Errorf("a was not asked for as a neighbour, and this proves nothing: %v", known)
		}
	})
}

// Without the right to change the network up says what it needs, and changes nothing.
func TestUpSaysThatItNeedsTheRightToChangeTheNetwork(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	before := a.state(t)
	for _, command := range []string{"up --accept-cut --config $STATE/vallum.yaml --hosts ''", "down"} {
		out, code := a.alone(t, "setpriv --bounding-set=-net_admin --inh-caps=-net_admin $PROGRAM isolate "+command+" --state $STATE")
		if code != 1 || !strings.Contains(out, "needs CAP_NET_ADMIN; run it as root") || a.exists("pending.json") || a.state(t) != before {
			t.Errorf("%s: exit %d %s", command, code, out)
		}
	}
}

// Expiry stops up, and so does a clock that is wrong; an overlay that runs goes on, vLLM is started on it, and verify warns.
func TestAnExpiredManifestStopsUpAndNotTheOverlay(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	a.echo(t, 5000)
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	for want, signed := range map[string]time.Time{
		"the manifest has expired: on ":                               time.Now().AddDate(0, 0, -9),
		"the manifest was signed in the future of this node's clock:": time.Now().AddDate(0, 0, 9),
	} {
		l.signAt(signed, func(m *fleet.Manifest) { m.Expires = signed.AddDate(0, 0, 1) }, "a", "b")
		if _, said, code := a.run("up", "--hosts", a.file("hosts")); code != 1 || !strings.Contains(said, want) {
			t.Errorf("up: exit %d, want %q: %s", code, want, said)
		}
		if _, said, code := a.run("plan"); code != 0 || !strings.Contains(said, "up would refuse: "+want) {
			t.Errorf("plan: exit %d, want %q: %s", code, want, said)
		}
		if out, said, code := a.run("verify", "--config", a.file("vallum.yaml"), "--ports", "8000"); code != 0 || !strings.Contains(said, "warning: "+want) {
			t.Errorf("verify: exit %d, want %q: %s%s", code, want, out, said)
		}
		if out, said, code := a.run("exec", "--topology", "dp", "--", "echo", "RUNS"); code != 0 || !strings.Contains(out, "RUNS") {
			t.Errorf("exec: exit %d: %s", code, said)
		}
	}
	a.must(t, "status")
	if !b.reaches(a.over, 5000, open) {
		t.Error("the overlay stopped with its manifest")
	}
}
