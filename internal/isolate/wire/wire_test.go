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
	rest := ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", make([]byte, 40))
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
		"up asks for the path's MTU":        {[][]byte{tunnel, ip4(udp, "192.0.2.2:50000", "192.0.2.1:51820", make([]byte, 1472)), ip4(icmp, "192.0.2.2:0", "192.0.2.1:0", append([]byte{8, 0, 7, 7, 1, 2, 3, 4}, make([]byte, 1464)...))}, Clean},
		"something to the tunnel's port":    {[][]byte{tunnel, ip4(udp, "192.0.2.2:50000", "192.0.2.1:51820", []byte{0, 0, 7})}, InClear},
		"an echo with something in it":      {[][]byte{tunnel, ip4(icmp, "192.0.2.2:0", "192.0.2.1:0", []byte{8, 0, 7, 7, 1, 2, 3, 4, 9})}, InClear},
		"zeros to another port":             {[][]byte{tunnel, ip4(udp, "192.0.2.2:50000", "192.0.2.1:5557", make([]byte, 40))}, InClear},
		"members talk past the tunnel":      {[][]byte{tunnel, ip4(tcp, "192.0.2.2:50000", "192.0.2.1:29501", nil)}, InClear},
		"an overlay address":                {[][]byte{tunnel, ip4(tcp, "10.99.0.1:50000", "10.99.0.2:29501", nil)}, InClear},
		"others at the tunnel's ports":      {[][]byte{tunnel, ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{4, 0, 0, 1}, make([]byte, 60)...))}, InClear},
		"too short for the tunnel":          {[][]byte{tunnel, ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{1, 0, 0, 0}, make([]byte, 143)...))}, InClear},
		"no type of the tunnel's":           {[][]byte{tunnel, ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{5, 0, 0, 0}, make([]byte, 60)...))}, InClear},
		"the tunnel, taken apart":           {[][]byte{fragment(tunnel, 7, 0, true), fragment(rest, 7, 88, false)}, Clean},
		"part of something else":            {[][]byte{fragment(tunnel, 7, 0, true), fragment(rest, 8, 88, false)}, InClear},
		"the tunnel's port, of a stranger":  {[][]byte{ip4(udp, "192.0.2.9:51820", "192.0.2.1:51820", tunnel[28:]), ip4(udp, "192.0.2.1:51820", "192.0.2.9:51820", tunnel[28:])}, Inconclusive},
		"a member's other port":             {[][]byte{tunnel, ip4(udp, "192.0.2.2:51821", "192.0.2.1:51820", tunnel[28:])}, InClear},
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

// fragment is the packet as a part of one with the number.
func fragment(b []byte, id, offset uint16, more bool) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint16(b[4:], id)
	at := offset / 8
	if more {
		at |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], at)
	return b
}

// A marked prompt that is nowhere on the wire is clean only when it was seen inside the tunnel: otherwise nobody sent it,
// or it has other token ids.
func TestThePromptsAbsenceProvesNothingUnlessItWasSent(t *testing.T) {
	w := watcher([]byte("needle"))
	w.See(ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{4, 0, 0, 0}, make([]byte, 60)...)))
	w.SeeInside(ip4(tcp, "10.99.0.1:50000", "10.99.0.2:29501", []byte("another prompt")))
	if r := w.Report(); r.Verdict != Inconclusive || !r.Sought || r.Crossed != 0 {
		t.Errorf("never sent: %+v", r)
	}
	w.SeeInside(ip4(tcp, "10.99.0.1:50000", "10.99.0.2:29501", []byte("the needle")))
	if r := w.Report(); r.Verdict != Clean || r.Crossed != 1 {
		t.Errorf("sent: %+v", r)
	}
	w.See(ip4(tcp, "192.0.2.7:50000", "192.0.2.8:29501", []byte("the needle")))
	if r := w.Report(); r.Verdict != InClear {
		t.Errorf("in clear too: %+v", r)
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
		{5, 0, 0, 0, 200, 0, 0, 0, 0x40, 0x9c, 0, 0, 0x09, 0xf4, 1, 0},
		{5, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x9c, 0, 0, 0, 0, 0, 0, 0x09, 0xf4, 1, 0, 0, 0, 0, 0},
		[]byte("5,200,40000,128009"),
		[]byte("5, 200, 40000, 128009"),
	}
	if len(needles) != len(want) {
		t.Errorf("%d needles, want %d", len(needles), len(want))
	}
	for i, n := range want {
		if !bytes.Equal(needles[i], n) {
			t.Errorf("needle %d is %x, want %x", i, needles[i], n)
		}
	}
	for i, n := range needles {
		for _, cut := range []int{0, 1, len(n) / 2} {
			w := watcher(needles...)
			w.See(segment(1000, slices.Concat([]byte("xx"), n[:cut])))
			w.See(segment(1002+uint32(cut), slices.Concat(n[cut:], []byte("yy"))))
			if r := w.Report(); r.Verdict != InClear || !r.Flows[0].Marked {
				t.Errorf("needle %d cut at %d was not found: %+v", i, cut, r)
			}
		}
	}
	if _, err := Needles([]uint32{1, 2}, ""); err == nil {
		t.Error("two tokens are looked for: they would be found by chance")
	}
	if _, err := Needles([]uint32{1, 2, 1 << 31}, ""); err == nil {
		t.Error("a number that no tokenizer gives is looked for, and would not be found")
	}
}

// segment is a packet of one direction of a connection between strangers.
func segment(seq uint32, payload []byte) []byte {
	b := ip4(tcp, "192.0.2.7:1", "192.0.2.8:2", payload)
	binary.BigEndian.PutUint32(b[24:], seq)
	return b
}

// A prompt may lie across packets that come in any order, twice, overlapping, or filled up by Ethernet.
func TestThePromptIsFoundAcrossSegments(t *testing.T) {
	type part struct {
		at   uint32
		text string
	}
	long := string(bytes.Repeat([]byte("x"), 3000))
	for name, row := range map[string]struct {
		parts []part
		want  bool
	}{
		"in order":                              {[]part{{0, "..ABCD"}, {6, "EFGH.."}}, true},
		"the second first":                      {[]part{{6, "EFGH.."}, {0, "..ABCD"}}, true},
		"three, the middle last":                {[]part{{0, "..ABC"}, {7, "FGH.."}, {5, "DE"}}, true},
		"byte by byte, backwards":               {[]part{{7, "H"}, {6, "G"}, {5, "F"}, {4, "E"}, {3, "D"}, {2, "C"}, {1, "B"}, {0, "A"}}, true},
		"with others in between":                {[]part{{0, "..ABCD"}, {6000, long}, {9000, long}, {6, "EFGH.."}}, true},
		"ends of long ones":                     {[]part{{0, long + "ABCD"}, {3004, "EFGH" + long}}, true},
		"ends of long ones, the second first":   {[]part{{3004, "EFGH" + long}, {0, long + "ABCD"}}, true},
		"sent again, cut otherwise":             {[]part{{0, "..AB"}, {0, "..ABCD"}, {5, "DEFGH"}}, true},
		"over the end of the numbers":           {[]part{{0xfffffffe, "ABCD"}, {2, "EFGH"}}, true},
		"over the end of the numbers, reversed": {[]part{{2, "EFGH"}, {0xfffffffe, "ABCD"}}, true},
		"with a hole":                           {[]part{{0, "..ABCD"}, {7, "EFGH.."}}, false},
		"never all of it":                       {[]part{{0, "..ABCD"}, {6, "EFG.."}}, false},
		"side by side in time, not in place":    {[]part{{0, "..ABCD"}, {50000, "EFGH"}}, false},
	} {
		for _, padding := range []int{0, 6} {
			w := watcher([]byte("ABCDEFGH"))
			for _, p := range row.parts {
				b := segment(p.at, []byte(p.text))
				binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
				w.See(append(b, make([]byte, padding)...))
			}
			if got := len(w.Report().Flows) == 1; got != row.want {
				t.Errorf("%s, with %d bytes of padding: found %v", name, padding, got)
			}
		}
	}
}

// What the kernel dropped nobody has looked at: no wire is clean then, and one that is not stays so.
func TestAWireOfWhichPartWasLostIsNotClean(t *testing.T) {
	w := watcher()
	w.See(ip4(udp, "192.0.2.2:51820", "192.0.2.1:51820", append([]byte{4, 0, 0, 0}, make([]byte, 60)...)))
	w.lost = 1
	if r := w.Report(); r.Verdict != Inconclusive || r.Lost != 1 {
		t.Errorf("%+v", r)
	}
	w.See(ip4(tcp, "10.99.0.1:50000", "10.99.0.2:29501", nil))
	if r := w.Report(); r.Verdict != InClear {
		t.Errorf("%+v", r)
	}
}

func TestThePromptIsNotPutTogetherFromTwoStreams(t *testing.T) {
	w := watcher([]byte("ABCDEFGH"))
	w.See(segment(0, []byte("ABCD")))
	back := ip4(tcp, "192.0.2.8:2", "192.0.2.7:1", []byte("EFGH"))
	binary.BigEndian.PutUint32(back[24:], 4)
	w.See(back)
	if r := w.Report(); len(r.Flows) != 0 {
		t.Errorf("found in two directions: %+v", r)
	}
	w.See(ip4(udp, "192.0.2.7:1", "192.0.2.8:2", []byte("ABCD")))
	w.See(ip4(udp, "192.0.2.7:1", "192.0.2.8:2", []byte("EFGH")))
	if r := w.Report(); len(r.Flows) != 1 || r.Flows[0].Protocol != "udp" {
		t.Errorf("datagrams one after the other: %+v", r)
	}
}

// What a watch keeps has a bound, whatever crosses the wire; and what it keeps is still right.
func TestAWatchKeepsABoundedPartOfTheWire(t *testing.T) {
	w := watcher(bytes.Repeat([]byte("ABCDEFGH"), 128))
	full := bytes.Repeat([]byte("y"), 1400)
	for i := range 3 * maxStreams {
		b := segment(0, full)
		binary.BigEndian.PutUint16(b[20:], uint16(i))
		for seq := range uint32(8) {
			binary.BigEndian.PutUint32(b[24:], seq*1400)
			w.See(b)
		}
	}
	for seq := range uint32(10 * maxPieces) {
		w.See(segment(seq*1400, full))
	}
	bytes, pieces := 0, 0
	for _, st := range w.search.streams {
		for _, p := range st.pieces {
			bytes += len(p.data)
		}
		pieces = max(pieces, len(st.pieces))
	}
	if len(w.search.streams) > maxStreams || pieces > maxPieces || bytes > maxKept || bytes != w.search.kept {
		t.Errorf("%d streams, %d pieces in one, %d bytes (%d counted)", len(w.search.streams), pieces, bytes, w.search.kept)
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
