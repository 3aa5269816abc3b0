package isolate

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/isolate/env"
	"github.com/vallum/vallum/internal/isolate/fleet"
)

// ProhibitMetric is the metric of the routes that refuse: behind any route of the overlay's device, and a number by
// which ours is told from others'.
const ProhibitMetric = 4278

// overhead is what WireGuard adds to a packet over IPv6, the larger case: 40 + 8 + 32 bytes.
const overhead = 80

// leastMTU is what IPv6 needs of a device (RFC 8200, section 5).
const leastMTU = 1280

// Plan is everything that `up` does on one node. It holds no secret: keys are files that Apply reads.
type Plan struct {
	Fleet        string       `json:"fleet"`
	Serial       uint64       `json:"serial"`
	Node         string       `json:"node"`
	Device       string       `json:"device"`
	Kernel       bool         `json:"kernel"` // kernel WireGuard; otherwise wireguard-go in a process of its own
	MTU          int          `json:"mtu"`
	Port         uint16       `json:"port"` // UDP, of WireGuard
	APIPort      uint16       `json:"api_port"`
	Addresses    []netip.Addr `json:"addresses"`
	Peers        []Peer       `json:"peers"`
	Routes       []Route      `json:"routes"`
	Rules        Ruleset      `json:"rules"`
	Hosts        []string     `json:"hosts"`
	Environment  []env.Pair   `json:"environment"`
	Cuts         []Cut        `json:"cuts"`          // what works now and would not any more
	Warnings     []string     `json:"warnings"`      // what is allowed, and should be known
	NotProtected []string     `json:"not_protected"` // what no rule or tunnel of ours ever sees
}

// Peer is another member of the overlay.
type Peer struct {
	Name      string         `json:"name"`
	PublicKey string         `json:"public_key"`
	Endpoint  netip.AddrPort `json:"endpoint"`
	Allowed   []netip.Prefix `json:"allowed"`   // AllowedIPs: its own addresses, each alone
	Preshared bool           `json:"preshared"` // a pre-shared key lies in a file
	Path      Path           `json:"path,omitzero"`
}

// Cut is a listener or a connection that works now and that the plan would cut off.
type Cut struct {
	What   string `json:"what"`
	Socket Socket `json:"socket,omitzero"`
	Right  string `json:"right"` // what keeps it
}

// New makes the plan of the node that holds the WireGuard public key. It refuses a node that is not in the manifest, a
// snapshot that leaves no way to make a device, and an allow list that opens vLLM's API by source address.
func New(o *config.Isolate, m *fleet.Manifest, s *Snapshot, publicKey string) (*Plan, error) {
	self, ok := m.ByKey(publicKey)
	if !ok {
		return nil, fmt.Errorf("this node's key %s is not in the manifest with serial %d: it never was, or the node was removed", publicKey, m.Serial)
	}
	if err := refuseUnsafe(o, m, s, self); err != nil {
		return nil, err
	}
	p := &Plan{
		Fleet: m.Fleet, Serial: m.Serial, Node: self.Name, Device: o.Device, Kernel: s.KernelWireGuard,
		Port: self.Endpoint.Port(), APIPort: m.APIPort, Addresses: self.Addresses, Rules: ruleset(o, m, self),
		MTU: mtu(o, m, s, self),
	}
	for _, n := range m.Nodes {
		p.Hosts = append(p.Hosts, hosts(m, n)...)
		if n.Name == self.Name {
			continue
		}
		path, _ := s.path(n.Endpoint.Addr())
		peer := Peer{Name: n.Name, Path: path, PublicKey: n.PublicKey, Endpoint: n.Endpoint, Preshared: slices.Contains(s.Preshared, n.Name)}
		for _, a := range n.Addresses {
			peer.Allowed = append(peer.Allowed, single(a))
			p.Routes = append(p.Routes, Route{To: single(a), Device: o.Device, Type: "unicast"})
		}
		p.Peers = append(p.Peers, peer)
	}
	for _, r := range m.Overlay {
		p.Routes = append(p.Routes, Route{To: r, Type: "prohibit", Metric: ProhibitMetric})
	}
	p.Environment = env.Base(o.Device, self)
	p.Cuts = cuts(o, m, s, p)
	p.Warnings = warnings(m, s, p)
	p.NotProtected = notProtected(s)
	return p, nil
}

func refuseUnsafe(o *config.Isolate, m *fleet.Manifest, s *Snapshot, self fleet.Node) error {
	var wrong []error
	if !s.KernelWireGuard && !s.TUN {
		wrong = append(wrong, errors.New("the kernel has no WireGuard and there is no /dev/net/tun, so there is no way to make the overlay; load the module wireguard or tun"))
	}
	for _, a := range o.Allow {
		if a.Protocol == "tcp" && a.Port == int(m.APIPort) && self.Has(fleet.RoleVLLM) && !o.Underlay {
			wrong = append(wrong, fmt.Errorf("allow %q opens vLLM's API port %d outside the overlay: a source address is no authentication and prompts cross in clear; make the gateway a member, or write insecure_underlay_api: true", a.Name, a.Port))
		}
	}
	for _, d := range s.Devices {
		if d.Name == o.Device {
			continue
		}
		for _, addr := range d.Addresses {
			for _, r := range m.Overlay {
				if d.Name != "lo" && r.Overlaps(addr.Masked()) && addr.Bits() > 0 {
					wrong = append(wrong, fmt.Errorf("device %q has address %s inside the overlay %s; choose another overlay range", d.Name, addr, r))
				}
			}
		}
	}
	return errors.Join(wrong...)
}

// mtu is what fits into the underlay's packets towards every peer.
func mtu(o *config.Isolate, m *fleet.Manifest, s *Snapshot, self fleet.Node) int {
	if o.MTU != 0 {
		return o.MTU
	}
	least := 0
	for _, n := range m.Nodes {
		if p, ok := s.path(n.Endpoint.Addr()); ok && n.Name != self.Name && (least == 0 || p.MTU < least) {
			least = p.MTU
		}
	}
	if least == 0 {
		least = 1500
	}
	return max(least-overhead, leastMTU)
}

// Narrow is how large the overlay's packets to a peer may be, where the path is known to take less than the device sends;
// 0 where it takes all, and where nothing is known.
func (p *Plan) Narrow(peer Peer) int {
	if peer.Path.MTU == 0 || peer.Path.MTU >= p.MTU+overhead {
		return 0
	}
	return max(peer.Path.MTU-overhead, 1)
}

// hosts are the lines by which torch finds names without asking a resolver. Its TCPStore looks up peers as IPv4-mapped
// addresses, and a plain line does not answer that (10 s a peer, and a PTR query in clear).
func hosts(m *fleet.Manifest, n fleet.Node) []string {
	var lines []string
	name := n.Name + "." + m.Fleet + ".internal"
	for _, a := range n.Addresses {
		lines = append(lines, a.String()+" "+name)
		if a.Is4() {
			lines = append(lines, "::ffff:"+a.String()+" "+name)
		}
	}
	return lines
}

func warnings(m *fleet.Manifest, s *Snapshot, p *Plan) []string {
	var w []string
	for _, n := range m.Nodes {
		if _, ok := s.towards(n.Endpoint.Addr()); !ok && !s.Own(n.Endpoint.Addr()) {
			w = append(w, fmt.Sprintf("there is no route to %s of node %q", n.Endpoint.Addr(), n.Name))
		}
	}
	for _, name := range s.Preshared {
		if !slices.ContainsFunc(p.Peers, func(peer Peer) bool { return peer.Name == name }) {
			w = append(w, fmt.Sprintf("a pre-shared key lies here for %q, which is no peer: nothing uses it", name))
		}
	}
	for _, peer := range p.Peers {
		if p.Narrow(peer) > 0 {
			w = append(w, fmt.Sprintf("packets of the tunnel may have %d bytes and only %d fit through to %q: they are taken apart on the way, or lost", p.MTU+overhead, peer.Path.MTU, peer.Name))
		}
	}
	if len(p.Peers) == 0 {
		w = append(w, "this node is alone in the manifest")
	}
	for _, miss := range s.Missing {
		w = append(w, fmt.Sprintf("not observed: %s: %s", miss.What, miss.Cause))
	}
	return append(w, "a peer of role vllm is fully trusted, and so is every process of this machine: both reach every port on the overlay")
}

// notProtected names what goes round the overlay.
func notProtected(s *Snapshot) []string {
	var list []string
	for _, b := range s.Bypasses {
		list = append(list, b.Text())
	}
	return list
}

// fingerprint is a public key in a length that a line has room for.
func fingerprint(publicKey string) string {
	b, err := base64.StdEncoding.DecodeString(publicKey)
	if err != nil || len(b) < 6 {
		return "?"
	}
	return base64.StdEncoding.EncodeToString(b[:6])
}
