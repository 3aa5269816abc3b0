package isolate

import (
	"net/netip"
	"slices"
)

// Path is how much fits through to an address of the underlay without being taken apart.
type Path struct {
	To    netip.Addr `json:"to"`
	MTU   int        `json:"mtu"` // bytes of an IP packet
	Proof PathProof  `json:"proof"`
}

// PathProof says how a path's MTU is known. The zero value is no proof.
type PathProof string

// Proofs, the best first.
const (
	PathEcho  PathProof = "an echo of that size came back"
	PathTold  PathProof = "the route or a router on the way says so"
	PathRoute PathProof = "the device's, not proven"
)

// path is what is known of the way to an address. Without a probe it is the device's MTU.
func (s *Snapshot) path(to netip.Addr) (Path, bool) {
	if i := slices.IndexFunc(s.Paths, func(p Path) bool { return p.To == to }); i >= 0 {
		return s.Paths[i], true
	}
	d, ok := s.towards(to)
	return Path{to, d.MTU, PathRoute}, ok && d.MTU > 0
}

// Remember keeps what an earlier plan knew of the ways to its peers where nothing answers now: right after a boot, or
// behind the rules of peers that are up already, which answer no echo outside the overlay.
func (s *Snapshot) Remember(p *Plan) {
	if p == nil {
		return
	}
	for _, peer := range p.Peers {
		to := peer.Endpoint.Addr()
		now, ok := s.path(to)
		if peer.Path.To != to || peer.Path.Proof == PathRoute || !ok || now.Proof != PathRoute || peer.Path.MTU >= now.MTU {
			continue
		}
		s.Paths = slices.DeleteFunc(s.Paths, func(p Path) bool { return p.To == to })
		s.Paths = append(s.Paths, peer.Path)
	}
}
