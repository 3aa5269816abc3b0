package apply_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
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

// jumbo sets the MTU of every device of the lab's Ethernet.
func (l *lab) jumbo(mtu int) {
	l.sw.do(func() {
		for _, name := range l.order {
			must(l.t, netlink.LinkSetMTU(link(l.t, "to"+name), mtu))
		}
		must(l.t, netlink.LinkSetMTU(link(l.t, "sw"), mtu))
	})
	for _, h := range l.hosts {
		h.do(func() { must(l.t, netlink.LinkSetMTU(link(l.t, "eth0"), mtu)) })
	}
}

// lose drops one packet in a hundred of the tunnel on its way in.
func (h *host) lose(t *testing.T) {
	t.Helper()
	h.do(func() {
		c, err := nftables.New()
		must(t, err)
		table := c.AddTable(&nftables.Table{Name: "loss", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRaw})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, 7)},
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop},
		}})
		must(t, c.Flush())
	})
}

// carries sends a megabyte to the echo and compares what comes back.
func (h *host) carries(t *testing.T, to netip.Addr) {
	t.Helper()
	c, err := h.dial(to, 5000, open)
	if err != nil {
		t.Errorf("%s to %s: %v", h.name, to, err)
		return
	}
	defer c.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	go func() { _, _ = c.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s to %s: a megabyte does not come back: %v", h.name, to, err)
	}
}

// Three nodes, each with each, over IPv4 and IPv6 underneath, small and large packets, and with loss.
func TestThreeNodesOverWhatNetworksAreLike(t *testing.T) {
	for name, row := range map[string]struct {
		six, loss bool
		mtu       int
	}{"IPv4 1500": {false, false, 1500}, "IPv6 9000": {true, false, 9000}, "IPv4 1500 1 % loss": {false, true, 1500}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "a", "b", "c")
			l.jumbo(row.mtu)
			l.sign(func(m *fleet.Manifest) {
				for i, n := range m.Nodes {
					if row.six {
						m.Nodes[i].Endpoint = netip.AddrPortFrom(l.hosts[n.Name].under6, 51820)
					}
				}
			}, l.order...)
			for _, h := range l.hosts {
				h.echo(t, 5000)
				if row.loss {
					h.lose(t)
				}
				h.up(t)
			}
			a := l.hosts["a"]
			if plan, _ := a.must(t, "plan"); !strings.Contains(plan, fmt.Sprintf("MTU %d,", row.mtu-80)) {
				t.Errorf("the overlay's MTU is not %d", row.mtu-80)
			}
			for _, from := range l.hosts {
				for _, to := range l.hosts {
					if from != to {
						from.carries(t, to.over)
						from.carries(t, to.over6)
					}
				}
			}
		})
	}
}

// A peer that moved is reached after a new manifest; until then the rules refuse it.
func TestAPeerThatMoves(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	a.echo(t, 5000)
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	if !b.reaches(a.over, 5000, open) {
		t.Fatal("the overlay does not work")
	}
	old := b.under
	b.under = netip.MustParseAddr("192.0.2.77")
	b.do(func() {
		eth := link(t, "eth0")
		must(t, netlink.AddrDel(eth, &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(old, 24))}))
		must(t, netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(b.under, 24))}))
	})
	if b.reaches(a.over, 5000, closed) {
		t.Error("a peer is let in from an address that the manifest does not name")
	}
	l.sign(nil, "a", "b")
	a.up(t)
	b.must(t, "up", "--hosts", b.file("hosts")) // of its own plan nothing changed
	eventually(t, "the peer is reached at its new address", 2*open, func() bool { return b.reaches(a.over, 5000, open) })
}

// After a reboot nothing of the kernel's is left and the files are: up makes it again without asking.
func TestUpAfterAReboot(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	a.echo(t, 5000)
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	a.reboot(t)
	if _, _, code := a.run("status"); code != 1 {
		t.Error("status calls a machine fine that has nothing")
	}
	a.must(t, "up", "--hosts", a.file("hosts"))
	a.must(t, "status")
	if !b.reaches(a.over, 5000, open) {
		t.Error("the overlay does not work again")
	}
}
