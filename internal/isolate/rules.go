package isolate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// TableName is the one nftables table, of family inet, that is ours. Nothing else is touched.
const TableName = "vallum_isolate"

// Priority of the chains: before filter's 0, where docker and others sit. A drop is final whoever accepts later.
const Priority = -10

// Ruleset is the table as a value: what is loaded, and what is compared with what was read back.
type Ruleset struct {
	Chains []Chain `json:"chains"`
}

// Chain is a base chain of type filter.
type Chain struct {
	Hook  string `json:"hook"`   // input, output or forward; also its name
	Drop  bool   `json:"policy"` // whether what no rule accepts is dropped
	Rules []Rule `json:"rules"`
}

// Rule is a conjunction of matches and a verdict. The zero Rule drops everything, and says so.
type Rule struct {
	Name     string       `json:"name"`                // the comment, by which audit and verify find its counter
	InDevice string       `json:"in_device,omitempty"` // iifname == …
	NotIn    []string     `json:"not_in,omitempty"`    // iifname is none of these
	NotOut   []string     `json:"not_out,omitempty"`   // oifname is none of these
	From     netip.Prefix `json:"from,omitzero"`       // source
	To       netip.Prefix `json:"to,omitzero"`         // destination
	Protocol string       `json:"protocol,omitempty"`  // tcp, udp, icmp, icmpv6
	Port     uint16       `json:"port,omitempty"`      // destination port
	ICMPType uint8        `json:"icmp_type,omitempty"` // of icmp or icmpv6
	HopLimit uint8        `json:"hop_limit,omitempty"` // of IPv6
	Replies  bool         `json:"replies,omitempty"`   // ct state established, related
	Accept   bool         `json:"accept"`
}

// Names of rules that others look up.
const (
	RuleRefused   = "refused"         // the end of input: nothing allowed it
	RuleOutside   = "overlay-outside" // an overlay address arrived on another device
	RuleLeak      = "overlay-leak"    // an overlay address would have left by another device
	RuleForwarded = "not-forwarded"   // nothing allowed it through
)

// Text is the ruleset as nft prints and reads it. Every statement ends its line: on one line without a separator nft
// refuses the whole batch, and a load that failed unnoticed looks like a guard.
func (r Ruleset) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", TableName)
	for _, c := range r.Chains {
		policy := "accept"
		if c.Drop {
			policy = "drop"
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook %s priority filter - %d; policy %s;\n", c.Hook, c.Hook, -Priority, policy)
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule.Text())
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// Text is the rule in nft's words.
func (r Rule) Text() string {
	var w []string
	if r.InDevice != "" {
		w = append(w, "iifname", strconv.Quote(r.InDevice))
	}
	for _, d := range r.NotIn {
		w = append(w, "iifname !=", strconv.Quote(d))
	}
	for _, d := range r.NotOut {
		w = append(w, "oifname !=", strconv.Quote(d))
	}
	for _, m := range []struct {
		side string
		p    netip.Prefix
	}{{"saddr", r.From}, {"daddr", r.To}} {
		if m.p.IsValid() {
			w = append(w, family(m.p), m.side, prefixText(m.p))
		}
	}
	if r.HopLimit != 0 {
		w = append(w, "ip6 hoplimit", strconv.Itoa(int(r.HopLimit)))
	}
	w = append(w, r.transport()...)
	if r.Replies {
		w = append(w, "ct state established,related")
	}
	verdict := "drop"
	if r.Accept {
		verdict = "accept"
	}
	return strings.Join(append(w, "counter", verdict, "comment", strconv.Quote(r.Name)), " ")
}

func (r Rule) transport() []string {
	var w []string
	switch {
	case r.ICMPType != 0:
		w = append(w, r.Protocol, "type", icmpName(r.Protocol, r.ICMPType))
	case r.Port == 0 && r.Protocol != "":
		w = append(w, "meta l4proto", r.Protocol)
	}
	if r.Port != 0 {
		w = append(w, r.Protocol, "dport", strconv.Itoa(int(r.Port)))
	}
	return w
}

// icmpName is the word that nft prints for the types that the rules use.
func icmpName(protocol string, t uint8) string {
	switch {
	case t == 8 && protocol == "icmp", t == 128 && protocol == "icmpv6":
		return "echo-request"
	case t == 134:
		return "nd-router-advert"
	case t == 135:
		return "nd-neighbor-solicit"
	case t == 136:
		return "nd-neighbor-advert"
	}
	return strconv.Itoa(int(t))
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "ip"
	}
	return "ip6"
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// accepts reports whether a new packet from a peer to a local port on the device would be let in. A device of "" is any.
func (r Ruleset) accepts(device, protocol string, from netip.Addr, to netip.AddrPort) bool {
	i := slices.IndexFunc(r.Chains, func(c Chain) bool { return c.Hook == "input" })
	if i < 0 {
		return true
	}
	for _, rule := range r.Chains[i].Rules {
		if rule.matches(device, protocol, from, to) {
			return rule.Accept
		}
	}
	return !r.Chains[i].Drop
}

func (r Rule) matches(device, protocol string, from netip.Addr, to netip.AddrPort) bool {
	switch {
	case r.Replies, r.ICMPType != 0:
		return false
	case r.InDevice != "" && r.InDevice != device, slices.Contains(r.NotIn, device), len(r.NotOut) > 0:
		return false
	case r.From.IsValid() && !r.From.Contains(from), r.To.IsValid() && !r.To.Contains(to.Addr()):
		return false
	case r.Protocol != "" && r.Protocol != protocol, r.Port != 0 && r.Port != to.Port():
		return false
	}
	return true
}
