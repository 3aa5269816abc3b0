package apply_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// drops makes the host throw away, on their way in, packets of a protocol and, unless it is 0, to a port; only every other
// one of them, beginning with the first, if half.
func (h *host) drops(t *testing.T, protocol byte, port uint16, half bool) {
	t.Helper()
	e := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}}}
	if port != 0 {
		e = append(e, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
	}
	if half {
		e = append(e, &expr.Numgen{Register: 1, Modulus: 2, Type: unix.NFT_NG_INCREMENTAL},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, 0)})
	}
	h.do(func() {
		c, err := nftables.New()
		must(t, err)
		table := c.AddTable(&nftables.Table{Name: "drops", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRaw})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(e, &expr.Verdict{Kind: expr.VerdictDrop})})
		must(t, c.Flush())
	})
}

// outsider is what verify says to him.
func (h *host) outsider(args ...string) (out string, code int) {
	out, said, code := h.run(append([]string{"verify", "--as-outsider"}, args...)...)
	return out + said, code
}

// Silence counts only where an answer could have come: from a machine that is there, by a way that is there, and with the
// time that a lost packet costs.
func TestAnOutsidersSilenceIsNotAssumed(t *testing.T) {
	l := newLab(t, "a", "b", "x", "xslow", "xudp", "xecho")
	a, x := l.hosts["a"], l.hosts["x"]
	l.sign(nil, "a", "b")
	a.up(t)
	slow := l.hosts["xslow"]
	slow.echo(t, 8000)
	slow.drops(t, unix.IPPROTO_TCP, 8000, true)
	for _, name := range []string{"xudp", "xecho"} {
		l.hosts[name].drops(t, unix.IPPROTO_TCP, 0, false)
	}
	l.hosts["xecho"].drops(t, unix.IPPROTO_UDP, 0, false)
	x.do(func() {
		// 10.99.0.1 by the node, as an outsider has to; 10.99.0.2 by nobody; 10.99.0.3 refused by x itself.
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("10.99.0.1/32")), Gw: net.ParseIP(a.under.String())}))
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("10.99.0.2/32")), Type: unix.RTN_UNREACHABLE}))
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("10.99.0.3/32")), Type: unix.RTN_PROHIBIT}))
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("fd00:99::1/128")), Gw: net.ParseIP(a.under6.String())}))
	})
	for name, row := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a member, at every address":        {[]string{a.under.String(), a.under6.String(), a.over.String(), a.over6.String()}, 0, a.over.String() + " is silent: 83 questions, no answer"},
		"what silence does not show":        {[]string{a.under.String()}, 0, "a machine that is off is silent too"},
		"nobody has the address":            {[]string{"192.0.2.200"}, 3, "nobody has the address"},
		"many that nobody has":              {[]string{"192.0.2.201", "192.0.2.202", "192.0.2.203", "192.0.2.204", "192.0.2.205"}, 3, "192.0.2.205 could not be asked: nobody has the address"},
		"nobody has the address, over IPv6": {[]string{"2001:db8::c8"}, 3, "nobody has the address"},
		"there is no way":                   {[]string{"10.99.0.2"}, 3, "could not be asked"},
		"no route at all":                   {[]string{"2001:db9::1"}, 3, "this machine has no route to it"},
		"this machine refuses":              {[]string{"10.99.0.3"}, 3, "this machine's own routes or rules refuse it"},
		"a first packet that is lost":       {[]string{slow.under.String(), "--ports", "8000"}, 1, "port 8000 is open (HTTP API)"},
		"only TCP is kept from strangers":   {[]string{l.hosts["xudp"].under.String()}, 1, "closed, and says so: UDP port 33434"},
		"TCP and UDP are, and echoes not":   {[]string{l.hosts["xecho"].under.String()}, 1, "an echo (ping) is answered"},
		"one of two could not be asked":     {[]string{a.under.String(), "192.0.2.200"}, 3, a.under.String() + " is silent"},
		"itself":                            {[]string{x.under.String()}, 2, "is an address of this machine"},
		"too short a time":                  {[]string{a.under.String(), "--wait", "3s"}, 2, "is not from 4s to 1m0s"},
		"no address":                        {nil, 2, "needs the nodes' addresses"},
		"a name":                            {[]string{"a.lab.internal"}, 2, "is not an address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if out, code := x.outsider(row.args...); code != row.code || !strings.Contains(out, row.want) || strings.HasPrefix(name, "many") && strings.Contains(out, "is silent:") {
				t.Errorf("exit %d, want %d and %q\n%s", code, row.code, row.want, out)
			}
		})
	}
	t.Run("a member poses as an outsider", func(t *testing.T) {
		t.Parallel()
		if out, code := a.outsider(x.under.String()); code != 1 || !strings.Contains(out, `this machine is node "a" of fleet "lab", and no outsider`) {
			t.Errorf("exit %d\n%s", code, out)
		}
		elsewhere := *a
		elsewhere.dir = t.TempDir()
		if out, code := elsewhere.outsider(x.under.String()); code != 1 || !strings.Contains(out, "the rules of an overlay are loaded on this machine") {
			t.Errorf("with another state folder: exit %d\n%s", code, out)
		}
	})
}

// A node that has no peer, and one whose peer is nowhere, have proven nothing.
func TestVerifyProvesNothingWhereNothingWasAsked(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(func(m *fleet.Manifest) { m.Nodes = m.Nodes[:1] }, "a", "b")
	a.up(t)
	if out, said, code := a.run("verify", "--config", a.file("vallum.yaml")); code != 3 || !strings.Contains(out, "nothing was asked: the manifest has no other node") {
		t.Errorf("alone: exit %d\n%s%s", code, out, said)
	}
}

// A process that stood still has heard nothing, whatever was answered: that is no silence.
func TestAnOutsiderThatStoodStillHasHeardNothing(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, x := l.hosts["a"], l.hosts["x"]
	l.sign(nil, "a", "b")
	a.up(t)
	c := x.command("verify", "--as-outsider", a.under.String(), "--ports", "8000", "--wait", "8s")
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	x.do(func() { must(t, c.Start()) })
	eventually(t, "it asks", open, func() (asks bool) {
		x.do(func() {
			all, err := netlink.SocketDiagTCP(unix.AF_INET)
			must(t, err)
			asks = slices.ContainsFunc(all, func(k *netlink.Socket) bool { return k.State == 2 && k.ID.DestinationPort == 8000 }) // SYN sent
		})
		return asks
	})
	must(t, c.Process.Signal(unix.SIGSTOP))
	<-time.After(3 * time.Second)
	must(t, c.Process.Signal(unix.SIGCONT))
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != 3 || !strings.Contains(joined(out.String()), "this machine stood still for ") {
		t.Errorf("exit %d\n%s", code, &out)
	}
}
