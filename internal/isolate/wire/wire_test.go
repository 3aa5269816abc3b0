package wire

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/vallum/vallum/internal/isolate"
)

func watcher(needles ...[]byte) *Watcher {
	return NewWatcher(&isolate.Plan{
		Routes: []isolate.Route{{To: netip.MustParsePrefix("10.99.0.0/24"), Type: "prohibit"}},
		Peers:  []isolate.Peer{{Endpoint: netip.MustParseAddrPort("192.0.2.2:51820")}},
		Rules:  isolate.Ruleset{Chains: []isolate.Chain{{Rules: []isolate.Rule{{Name: "allow-ssh", Port: 22}}}}},
	}, netip.MustParseAddrPort("192.0.2.1:51820"), needles)
}

// ip4 is an IPv4 packet.
func ip4(protocol byte, from, to string, payload []byte) []byte {
	f, t := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	b := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}, f.Addr().AsSlice()...)
	b = append(b, t.Addr().AsSlice()...)
	if protocol == tcp || protocol == udp {
		b = binary.BigEndian.AppendUint16(b, f.Port())
		b = binary.BigEndian.AppendUint16(b, t.Port())
		b = append(b, make([]byte, map[byte]int{tcp: 16, udp: 4}[protocol])...)
		if protocol == tcp {
			b[20+12] = 5 << 4
		}
	}
	return append(b, payload...)
}

func TestPacketsAreJudged(t *testing.T) {
	tunnel := ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{4, 0, 0, 0}, make([]byte, 60)...))
	keepalive := ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{4, 0, 0, 0}, make([]byte, 28)...))
	handshake := ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{1, 0, 0, 0}, make([]byte, 144)...))
	for name, row := range map[string]struct {
		packets [][]byte
		want    Verdict
	}{
		"nothing":                           {nil, Inconclusive},
		"the tunnel":                        {[][]byte{tunnel}, Clean},
		"the tunnel, with nothing in it":    {[][]byte{keepalive, handshake}, Inconclusive},
		"ssh, allowed":                      {[][]byte{tunnel, ip4(tcp, "192.0.2.2:50000", "192.0.2.1:22", nil)}, Clean},
		"others talk":                       {[][]byte{tunnel, ip4(tcp, "192.0.2.7:50000", "192.0.2.8:443", nil)}, Clean},
		"only others talk":                  {[][]byte{ip4(tcp, "192.0.2.7:50000", "192.0.2.8:443", nil)}, Inconclusive},
		"port unreachable of a dead tunnel": {[][]byte{tunnel, ip4(icmp, "192.0.2.2:0", "192.0.2.1:0", []byte{3, 3})}, Clean},
		"members talk past the tunnel":      {[][]byte{tunnel, ip4(tcp, "192.0.2.2:50000", "192.0.2.1:29501", nil)}, InClear},
		"an overlay address":                {[][]byte{tunnel, ip4(tcp, "10.99.0.1:50000", "10.99.0.2:29501", nil)}, InClear},
		"the tunnel's port, of a stranger":  {[][]byte{ip4(udp, "192.0.2.9:51820", "192.0.2.1:51820", nil)}, Inconclusive},
		"rubbish":                           {[][]byte{{}, {0x45}, {0x60}, bytes.Repeat([]byte{0x4f}, 30), append([]byte{0x60, 0, 0, 0, 0, 0, 0}, make([]byte, 50)...)}, Inconclusive},
	} {
		w := watcher()
		for _, p := range row.packets {
			w.See(p)
		}
		if r := w.Report(); r.Verdict != row.want {
			t.Errorf("%s: %+v, want %s", name, r, row.want)
		}
	}
}

// The marked prompt is found in every form in which vLLM sends tokens, also across two packets, and to whomever.
func TestMarkedTokensAreFound(t *testing.T) {
	needles, err := Needles([]uint32{5, 200, 40000, 128009}, "marked")
	if err != nil {
		t.Fatal(err)
	}
	want := [][]byte{
		[]byte("marked"),
		{5, 0xcc, 200, 0xcd, 0x9c, 0x40, 0xce, 0, 1, 0xf4, 0x09},
		{'K', 5, 'K', 200, 'M', 0x40, 0x9c, 'J', 0x09, 0xf4, 1, 0},
	}
	for i, n := range want {
		if !bytes.Equal(needles[i], n) {
			t.Errorf("needle %d is %x, want %x", i, needles[i], n)
		}
	}
	for i, n := range needles {
		for _, cut := range []int{0, 1, len(n) / 2} {
			w := watcher(needles...)
			w.See(ip4(tcp, "192.0.2.7:1", "192.0.2.8:2", slices.Concat([]byte("xx"), n[:cut])))
			w.See(ip4(tcp, "192.0.2.7:1", "192.0.2.8:2", slices.Concat(n[cut:], []byte("yy"))))
			if r := w.Report(); r.Verdict != InClear || !r.Flows[0].Marked {
				t.Errorf("needle %d cut at %d was not found: %+v", i, cut, r)
			}
		}
	}
	if _, err := Needles([]uint32{1, 2}, ""); err == nil {
		t.Error("two tokens are looked for: they would be found by chance")
	}
}

func FuzzSee(f *testing.F) {
	f.Add(ip4(tcp, "192.0.2.2:50000", "192.0.2.1:29501", []byte("payload")))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 0, 44}, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := watcher([]byte("needle"))
		w.See(b)
		w.Report()
	})
}
