// Package wire looks at packets on the underlay: what belongs to the tunnel, what is in clear, and whether a marked
// prompt is in it. It refuses to call a wire clean on which it saw nothing.
package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/isolate"
)

// Verdict is what a watch found. The zero value is no verdict, and not a good one.
type Verdict string

// Verdicts.
const (
	Clean        Verdict = "clean"        // the tunnel's packets and no others
	InClear      Verdict = "in clear"     // at least one packet outside the tunnel
	Inconclusive Verdict = "inconclusive" // no packet of the tunnel that carries something, or some were lost unseen
)

// Flow is packets in clear between two ends.
type Flow struct {
	Protocol string         `json:"protocol"`
	From     netip.AddrPort `json:"from"`
	To       netip.AddrPort `json:"to"`
	Packets  int            `json:"packets"`
	Marked   bool           `json:"marked"` // the marked prompt was in it
}

// Report is the result of a watch.
type Report struct {
	Verdict Verdict `json:"verdict"`
	Tunnel  int     `json:"tunnel"` // packets that carried something; handshakes and keepalives do not count
	Lost    int     `json:"lost"`   // packets that came faster than they were looked at
	Flows   []Flow  `json:"flows"`
}

// Watcher judges packets. It is not safe for use by several goroutines.
type Watcher struct {
	overlay   []netip.Prefix
	endpoints map[netip.AddrPort]bool
	members   map[netip.Addr]bool
	allowed   map[uint16]bool // ports of the allow list: clear by the operator's will
	search    *searcher
	flows     map[Flow]*Flow
	tunnel    int
	lost      int
}

// NewWatcher watches for what the plan keeps off the underlay, and for the needles.
func NewWatcher(p *isolate.Plan, own netip.AddrPort, needles [][]byte) *Watcher {
	w := &Watcher{
		endpoints: map[netip.AddrPort]bool{own: true}, members: map[netip.Addr]bool{own.Addr(): true}, allowed: map[uint16]bool{},
		search: newSearcher(needles), flows: map[Flow]*Flow{},
	}
	for _, r := range p.Routes {
		if r.Type == "prohibit" {
			w.overlay = append(w.overlay, r.To)
		}
	}
	for _, peer := range p.Peers {
		w.endpoints[peer.Endpoint], w.members[peer.Endpoint.Addr()] = true, true
	}
	for _, c := range p.Rules.Chains {
		for _, r := range c.Rules {
			if strings.HasPrefix(r.Name, "allow-") {
				w.allowed[r.Port] = true
			}
		}
	}
	return w
}

// Needles are the ways in which token ids cross a wire: msgpack and pickle element by element, and arrays of 32 and 64
// bits. vLLM never sends a prompt's text between nodes, so that who looks for text alone finds nothing and is wrong.
func Needles(tokens []uint32, text string) ([][]byte, error) {
	var all [][]byte
	if text != "" {
		all = append(all, []byte(text))
	}
	if len(tokens) == 0 {
		return all, nil
	}
	if len(tokens) < 3 {
		return nil, fmt.Errorf("%d token id(s) would be found by chance; give three or more that stand side by side", len(tokens))
	}
	var msgpack, pickle, narrow, wide []byte
	for _, t := range tokens {
		narrow = binary.LittleEndian.AppendUint32(narrow, t)
		wide = binary.LittleEndian.AppendUint64(wide, uint64(t))
		switch {
		case t < 1<<7:
			msgpack = append(msgpack, byte(t))
			pickle = append(pickle, 'K', byte(t))
		case t < 1<<8:
			msgpack = append(msgpack, 0xcc, byte(t))
			pickle = append(pickle, 'K', byte(t))
		case t < 1<<16:
			msgpack = binary.BigEndian.AppendUint16(append(msgpack, 0xcd), uint16(t))
			pickle = binary.LittleEndian.AppendUint16(append(pickle, 'M'), uint16(t))
		default:
			msgpack = binary.BigEndian.AppendUint32(append(msgpack, 0xce), t)
			pickle = binary.LittleEndian.AppendUint32(append(pickle, 'J'), t)
		}
	}
	return append(all, msgpack, pickle, narrow, wide), nil
}

// See judges a packet that begins with its IP header. Others are not looked at.
func (w *Watcher) See(b []byte) {
	p, ok := parse(b)
	k := p.flow
	if !ok || k.From.Addr() == k.To.Addr() {
		return
	}
	if p.protocol == udp && w.endpoints[k.From] && w.endpoints[k.To] {
		if carries(p.payload) {
			w.tunnel++
		}
		return
	}
	marked := w.search.found(p)
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(w.overlay, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	overlay := inside(k.From.Addr()) || inside(k.To.Addr())
	between := w.members[k.From.Addr()] && w.members[k.To.Addr()]
	if !marked && !overlay && (!between || w.harmless(p)) {
		return
	}
	f, seen := w.flows[k]
	if !seen {
		one := k
		f = &one
		w.flows[k] = f
	}
	f.Packets++
	f.Marked = f.Marked || marked
}

// carries reports whether a packet of WireGuard has something inside: its type is data, and it is longer than a
// keepalive's 32 bytes. A tunnel that only keeps itself alive has tested nothing.
func carries(payload []byte) bool { return len(payload) > 32 && payload[0] == 4 }

// harmless is what crosses between members outside the tunnel and says nothing: neighbour discovery, the kernel's word
// that nobody listens on a dead tunnel's port (it quotes ciphertext), the zeros with which `up` asks what size of
// packets the path carries, and what the operator allowed.
func (w *Watcher) harmless(p packet) bool {
	switch p.protocol {
	case icmp, icmpv6:
		if len(p.payload) == 0 {
			return false
		}
		kind := p.payload[0]
		echo := p.protocol == icmp && (kind == 8 || kind == 0) || p.protocol == icmpv6 && (kind == 128 || kind == 129)
		if echo {
			return zeros(p.payload[min(8, len(p.payload)):]) // its number and checksum say nothing either
		}
		return kind == 3 && p.protocol == icmp || p.protocol == icmpv6 && (kind == 1 || kind >= 130 && kind <= 137 || kind == 143)
	case tcp, udp:
		if p.protocol == udp && w.endpoints[p.flow.To] && zeros(p.payload) {
			return true
		}
		return w.allowed[p.flow.From.Port()] || w.allowed[p.flow.To.Port()]
	}
	return false
}

func zeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// Report is what was seen so far.
func (w *Watcher) Report() Report {
	r := Report{Verdict: Inconclusive, Tunnel: w.tunnel, Lost: w.lost}
	for _, f := range w.flows {
		r.Flows = append(r.Flows, *f)
	}
	slices.SortFunc(r.Flows, func(a, b Flow) int { return b.Packets - a.Packets })
	switch {
	case len(r.Flows) > 0:
		r.Verdict = InClear
	case w.tunnel > 0 && w.lost == 0:
		r.Verdict = Clean
	}
	return r
}
