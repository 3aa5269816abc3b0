package isolate

import (
	"net/netip"
	"slices"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/isolate/fleet"
)

// ruleset is default deny by device: all but a handful of vLLM's ports are chosen by the kernel, so no list of ports
// can name them (vllm/utils/network_utils.py get_open_port).
func ruleset(o *config.Isolate, m *fleet.Manifest, self fleet.Node) Ruleset {
	input := Chain{Hook: "input", Drop: true}
	output := Chain{Hook: "output"}
	forward := Chain{Hook: "forward", Drop: true}
	input.Rules = append(input.Rules, Rule{Name: "loopback", InDevice: "lo", Accept: true})
	ours := []string{"lo", o.Device}
	for _, p := range m.Overlay {
		// Before replies: an established connection that is rerouted to the underlay is in clear, whoever began it.
		input.Rules = append(input.Rules, Rule{Name: RuleOutside, NotIn: ours, From: p}, Rule{Name: RuleOutside, NotIn: ours, To: p})
		output.Rules = append(output.Rules, Rule{Name: RuleLeak, NotOut: ours, To: p}, Rule{Name: RuleLeak, NotOut: ours, From: p})
		// The weak host model answers on any device for any address; and nothing is passed on into or out of the overlay.
		forward.Rules = append(forward.Rules, Rule{Name: RuleLeak, To: p}, Rule{Name: RuleLeak, From: p})
	}
	input.Rules = append(input.Rules, Rule{Name: "replies", Replies: true, Accept: true})
	// Without neighbour discovery IPv6 stops within seconds. Hop limit 255 is a neighbour's, never a router's (RFC 4861).
	for _, advertOrSolicit := range []uint8{134, 135, 136} {
		input.Rules = append(input.Rules, Rule{Name: "neighbours", Protocol: "icmpv6", ICMPType: advertOrSolicit, HopLimit: 255, Accept: true})
	}
	input.Rules = append(input.Rules, memberRules(o, m, self)...)
	for _, a := range o.Allow {
		input.Rules = append(input.Rules, allowRules(a)...)
	}
	input.Rules = append(input.Rules, Rule{Name: RuleRefused})
	forward.Rules = append(forward.Rules, Rule{Name: "replies", Replies: true, Accept: true})
	for _, b := range o.Egress {
		forward.Rules = append(forward.Rules, Rule{Name: "containers-out", InDevice: b, Accept: true})
	}
	forward.Rules = append(forward.Rules, Rule{Name: RuleForwarded})
	return Ruleset{Chains: []Chain{input, output, forward}}
}

// memberRules lets in the tunnel's packets from each peer's endpoint, and over the overlay what the roles say. The
// source address means something there: WireGuard takes it from the peer that holds the key, and from nobody else.
func memberRules(o *config.Isolate, m *fleet.Manifest, self fleet.Node) []Rule {
	var tunnel, inside []Rule
	for _, p := range m.Nodes {
		if p.Name == self.Name {
			continue
		}
		tunnel = append(tunnel, Rule{Name: "tunnel-" + p.Name, From: single(p.Endpoint.Addr()), Protocol: "udp", Port: self.Endpoint.Port(), Accept: true})
		for _, a := range p.Addresses {
			echo := Rule{Name: "probe-" + p.Name, InDevice: o.Device, From: single(a), Protocol: "icmp", ICMPType: 8, Accept: true}
			if a.Is6() {
				echo.Protocol, echo.ICMPType = "icmpv6", 128
			}
			switch {
			case self.Has(fleet.RoleVLLM) && p.Has(fleet.RoleVLLM):
				inside = append(inside, Rule{Name: "peer-" + p.Name, InDevice: o.Device, From: single(a), Accept: true})
			case self.Has(fleet.RoleVLLM) && p.Has(fleet.RoleGateway):
				inside = append(inside, Rule{Name: "gateway-" + p.Name, InDevice: o.Device, From: single(a), Protocol: "tcp", Port: m.APIPort, Accept: true}, echo)
			default:
				inside = append(inside, echo)
			}
		}
	}
	return append(tunnel, inside...)
}

func allowRules(a config.Allow) []Rule {
	rule := Rule{Name: "allow-" + a.Name, InDevice: a.Device, Protocol: a.Protocol, Port: uint16(a.Port), Accept: true}
	if len(a.From) == 0 {
		return []Rule{rule}
	}
	var rules []Rule
	for _, s := range a.From {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			continue // config has refused it; no rule allows nothing
		}
		one := rule
		one.From = p
		rules = append(rules, one)
	}
	return rules
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Lines are the policies and rules, each in a line of its own, in their order.
func (r Ruleset) Lines() []string {
	var all []string
	for _, c := range r.Chains {
		policy := "accept"
		if c.Drop {
			policy = "drop"
		}
		all = append(all, c.Hook+": policy "+policy)
		for _, rule := range c.Rules {
			all = append(all, c.Hook+": "+rule.Text())
		}
	}
	return all
}

// Difference says how the lines that were read back differ from those that were to be loaded; empty when they do not.
func Difference(want, got []string) []string {
	var diff []string
	for _, l := range want {
		if !slices.Contains(got, l) {
			diff = append(diff, "missing: "+l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			diff = append(diff, "not ours: "+l)
		}
	}
	if len(diff) == 0 && !slices.Equal(want, got) {
		diff = append(diff, "the rules stand in another order, or twice")
	}
	return diff
}
