package isolate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/isolate/fleet"
)

// cuts lists what works now and would not any more: whoever applies a plan should know it before, not after.
func cuts(o *config.Isolate, m *fleet.Manifest, s *Snapshot, p *Plan) []Cut {
	list := forwardingCuts(o, s)
	ports := map[string]bool{}
	for _, k := range s.Sockets {
		if k.Listening && k.Namespace == "" {
			ports[portKey(k)] = true
		}
	}
	for _, k := range s.Sockets {
		if k.Namespace != "" || k.Local.Addr().Unmap().IsLoopback() || inOverlay(m, k.Local.Addr()) || k.Protocol == "udp" && k.Local.Port() == p.Port {
			continue
		}
		if c, cut := cutOf(k, s, p.Rules, o.Device, ports[portKey(k)]); cut {
			list = append(list, c)
		}
	}
	slices.SortStableFunc(list, func(a, b Cut) int {
		return cmp.Or(cmp.Compare(b2i(a.Socket.Local.IsValid()), b2i(b.Socket.Local.IsValid())), cmp.Compare(a.What, b.What))
	})
	return slices.CompactFunc(list, func(a, b Cut) bool { return a.What == b.What })
}

// forwardingCuts is what the forward chain would stop. Packets that are forwarded to containers never pass input, so that
// nothing else of the plan speaks of them.
func forwardingCuts(o *config.Isolate, s *Snapshot) []Cut {
	published := "their published ports would stop"
	if len(o.Egress) == 0 {
		published = "their published ports and their way out would stop"
	}
	right := fmt.Sprintf("container_bridges: [%s] keeps the way out; for what is published: publish on loopback, or run with the host's network", s.bridge())
	switch s.forwarder() {
	case kubernetes:
		return []Cut{{What: "kube-proxy or the CNI forwards to pods: services and pod traffic of this machine would stop", Right: "on Kubernetes let the CNI isolate: vallum isolate policy kubernetes"}}
	case docker:
		return []Cut{{What: "docker forwards to containers: " + published, Right: right}}
	case containers:
		return []Cut{{What: "this machine forwards to containers or virtual machines: " + published, Right: right}}
	}
	if !s.Forwarding {
		return nil
	}
	what := "this machine forwards packets between its devices; that would stop"
	if len(o.Egress) > 0 {
		what += fmt.Sprintf(", but for what %v begins", o.Egress)
	}
	return []Cut{{What: what, Right: "container_bridges: [NAME], or leave forwarding to another machine"}}
}

// bridge is the first bridge, for a hint.
func (s *Snapshot) bridge() string {
	for _, d := range s.Devices {
		if d.Kind == "bridge" {
			return d.Name
		}
	}
	return "docker0"
}

// RefusedForward reports whether the rules would refuse a new packet that this machine passes on between two others.
func (s *Snapshot) RefusedForward(r Ruleset, from, to netip.Addr) bool {
	from, to = from.Unmap(), to.Unmap()
	if s.Own(from) || s.Own(to) {
		return false
	}
	d, _ := s.towards(from)
	for _, c := range r.Chains {
		if c.Hook != "forward" {
			continue
		}
		for _, rule := range c.Rules {
			// No rule of the chain asks for more than addresses and the device.
			if rule.matches(d.Name, rule.Protocol, from, netip.AddrPortFrom(to, rule.Port)) {
				return !rule.Accept
			}
		}
		return c.Drop
	}
	return false
}

func cutOf(k Socket, s *Snapshot, r Ruleset, device string, inbound bool) (Cut, bool) {
	right := fmt.Sprintf("isolate: {allow: [{name: ssh, port: 22}, {name: NAME, protocol: %s, port: %d}]}", k.Protocol, k.Local.Port())
	if k.Listening {
		if r.opens(device, k.Protocol, k.Local.Port()) {
			return Cut{}, false
		}
		return Cut{What: fmt.Sprintf("%s listens on %s %s", processName(k), k.Protocol, k.Local), Socket: k, Right: right}, true
	}
	from := k.Remote.Addr().Unmap()
	// A connection that this machine opened goes on: its replies are let in.
	if !inbound || !s.Refused(r, k.Protocol, from, k.Local) {
		return Cut{}, false
	}
	return Cut{What: fmt.Sprintf("%s is connected with %s on %s port %d", processName(k), from, k.Protocol, k.Local.Port()), Socket: k, Right: right}, true
}

// Refused reports whether the rules would refuse a new packet from another machine to this one.
func (s *Snapshot) Refused(r Ruleset, protocol string, from netip.Addr, to netip.AddrPort) bool {
	from, to = from.Unmap(), netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if from.IsLoopback() || s.Own(from) || !s.Own(to.Addr()) {
		return false
	}
	d, _ := s.towards(from)
	return !r.accepts(d.Name, protocol, from, to)
}

// Uninvited are the TCP connections that others opened to this machine and that the rules would refuse now.
func (s *Snapshot) Uninvited(r Ruleset) []Socket {
	listening := map[uint16]bool{}
	for _, k := range s.Sockets {
		if k.Protocol == "tcp" && k.Listening && k.Namespace == "" {
			listening[k.Local.Port()] = true
		}
	}
	var list []Socket
	for _, k := range s.Sockets {
		if k.Protocol == "tcp" && !k.Listening && k.Namespace == "" && listening[k.Local.Port()] && s.Refused(r, "tcp", k.Remote.Addr(), k.Local) {
			list = append(list, k)
		}
	}
	return list
}

// opens reports whether any rule lets something reach the port otherwise than by the overlay's device.
func (r Ruleset) opens(overlay, protocol string, port uint16) bool {
	for _, c := range r.Chains {
		for _, rule := range c.Rules {
			if c.Hook == "input" && rule.Accept && rule.InDevice != overlay && rule.Protocol == protocol && rule.Port == port && rule.ICMPType == 0 {
				return true
			}
		}
	}
	return false
}

func portKey(k Socket) string { return fmt.Sprintf("%s/%d", k.Protocol, k.Local.Port()) }

func inOverlay(m *fleet.Manifest, a netip.Addr) bool {
	return slices.ContainsFunc(m.Overlay, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

func processName(k Socket) string {
	if k.PID == 0 {
		return "somebody"
	}
	return fmt.Sprintf("%s (%d)", k.Process, k.PID)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
