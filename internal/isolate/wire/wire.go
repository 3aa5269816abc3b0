// Package wire looks at packets on the underlay: what belongs to the tunnel, what is in clear, and whether a marked
// prompt is in it. It refuses to call a wire clean on which it saw nothing.
package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vallum/vallum/internal/isolate"
)

// Verdict is what a watch found. The zero value is no verdict, and not a good one.
type Verdict string

// Verdicts.
const (
	Clean        Verdict = "clean"        // the tunnel's packets and no others
	InClear      Verdict = "in clear"     // at least one packet outside the tunnel
	Inconclusive Verdict = "inconclusive" // no packet of the tunnel that carries something, some were lost unseen, or the prompt was nowhere
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
	Tunnel  int     `json:"tunnel"`  // packets that carried something; handshakes and keepalives do not count
	Lost    int     `json:"lost"`    // packets that came faster than they were looked at, or were not seen whole
	Sought  bool    `json:"sought"`  // a marked prompt was looked for
	Crossed int     `json:"crossed"` // packets inside the tunnel with the marked prompt: that it was found there shows that it can be found
	Flows   []Flow  `json:"flows"`
}

// Watcher judges packets. It is not safe for use by several goroutines.
type Watcher struct {
	overlay   []netip.Prefix
	endpoints map[netip.AddrPort]bool
	members   map[netip.Addr]bool
	allowed   map[uint16]bool // ports of the allow list: clear by the operator's will
	search    *searcher
	inside    *searcher // of the overlay's own device
	flows     map[Flow]*Flow
	parts     map[part]bool // of the tunnel's packets that were taken apart
	tunnel    int
	crossed   int
	lost      int
}

// maxParts bounds what is remembered of packets that were taken apart; their other parts follow at once.
const maxParts = 1024

// NewWatcher watches for what the plan keeps off the underlay, and for the needles.
func NewWatcher(p *isolate.Plan, own netip.AddrPort, needles [][]byte) *Watcher {
	w := &Watcher{
		endpoints: map[netip.AddrPort]bool{own: true}, members: map[netip.Addr]bool{own.Addr(): true}, allowed: map[uint16]bool{},
		search: newSearcher(needles), inside: newSearcher(needles), flows: map[Flow]*Flow{}, parts: map[part]bool{},
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

// Needles are the ways in which token ids cross a wire: msgpack and pickle element by element, arrays of 32 and 64 bits,
// and numbers in JSON, as a proxy of prefill and decode sends them. Between nodes vLLM never sends a prompt's text, so that who looks for text alone finds nothing and is wrong.
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
	var written []string
	for _, t := range tokens {
		if t >= 1<<31 {
			return nil, fmt.Errorf("%d is no token id: the largest is %d", t, 1<<31-1)
		}
		written = append(written, strconv.Itoa(int(t)))
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
	return append(all, msgpack, pickle, narrow, wide, []byte(strings.Join(written, ",")), []byte(strings.Join(written, ", "))), nil
}

// See judges a packet that begins with its IP header. Others are not looked at.
func (w *Watcher) See(b []byte) {
	p, ok := parse(b)
	k := p.flow
	if !ok || k.From.Addr() == k.To.Addr() {
		return
	}
	if w.ofTunnel(p) {
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

// SeeInside looks at a packet on the overlay's own device. Nothing there is in clear; but a marked prompt that is not
// even there was not sent, or is looked for by other token ids than it has, and then its absence outside says nothing.
func (w *Watcher) SeeInside(b []byte) {
	if p, ok := parse(b); ok && w.inside.found(p) {
		w.crossed++
	}
}

// ofTunnel reports whether a packet is the tunnel's: between two endpoints, and of WireGuard's form. The ports alone
// prove nothing when the tunnel is dead and somebody else has them.
func (w *Watcher) ofTunnel(p packet) bool {
	if p.protocol != udp {
		return false
	}
	if p.part != (part{}) && w.parts[p.part] {
		return true
	}
	if !w.endpoints[p.flow.From] || !w.endpoints[p.flow.To] || !wireGuard(p.payload) {
		return false
	}
	if p.part != (part{}) {
		if len(w.parts) >= maxParts {
			clear(w.parts)
		}
		w.parts[p.part] = true
	}
	return true
}

// wireGuard reports whether it is a message of WireGuard's: a type, three zeros, and at least the type's length
// (whitepaper, section 5.4).
func wireGuard(b []byte) bool {
	return len(b) >= 4 && b[0] >= 1 && b[0] <= 4 && zeros(b[1:4]) && len(b) >= []int{148, 92, 64, 32}[b[0]-1]
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
	r := Report{Verdict: Inconclusive, Tunnel: w.tunnel, Lost: w.lost, Sought: len(w.search.needles) > 0, Crossed: w.crossed}
	for _, f := range w.flows {
		r.Flows = append(r.Flows, *f)
	}
	slices.SortFunc(r.Flows, func(a, b Flow) int { return b.Packets - a.Packets })
	switch {
	case len(r.Flows) > 0:
		r.Verdict = InClear
	case w.tunnel > 0 && w.lost == 0 && (!r.Sought || r.Crossed > 0):
		r.Verdict = Clean
	}
	return r
}
