package apply_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// tooWide are the lines that a terminal of 80 columns would break, and that hold something between which it could be
// broken better: a word alone is as long as it is. A character that a terminal obeys is told too.
func tooWide(text string) (list []string) {
	for l := range strings.SplitSeq(text, "\n") {
		if strings.ContainsFunc(l, func(r rune) bool { return r < ' ' || r == 0x7f }) || utf8.RuneCountInString(l) > 80 && len(strings.Fields(strings.TrimLeft(l, " #"))) > 1 {
			list = append(list, l)
		}
	}
	return list
}

// A machine with long names: of devices, nodes, allowed ports and processes, IPv6 addresses without a zero in them, and a
// process whose name is written for the terminal of who looks at it. Whatever isolate says of it fits 80 columns, and what
// programs read stays whole.
func TestEverythingFitsATerminal(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, b, x := l.hosts["a"], l.hosts["b"], l.hosts["x"]
	const long = "2001:db8:1234:5678:9abc:def0:1234:"
	l.sign(func(m *fleet.Manifest) {
		m.Overlay = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("fd12:3456:789a:bcde::/64")}
		for i := range m.Nodes {
			m.Nodes[i].Name = []string{"rack-17-unit-42-inference-west-a", "rack-17-unit-42-inference-west-b"}[i]
			m.Nodes[i].Endpoint = netip.MustParseAddrPort(fmt.Sprintf("[%s567%d]:51820", long, i))
			m.Nodes[i].Addresses[1] = netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:bcde:f012:3456:789a:bcd%d", i))
		}
	}, "a", "b")
	for i, h := range []*host{a, b, x} {
		h.do(func() {
			must(t, netlink.AddrAdd(link(t, "eth0"), &netlink.Addr{IPNet: ipnet.Of(netip.MustParsePrefix(fmt.Sprintf("%s567%d/64", long, i))), Flags: unix.IFA_F_NODAD}))
		})
	}
	a.do(func() {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br-0123456789ab"}}))
	})
	must(t, os.WriteFile(a.file("vallum.yaml"), fmt.Appendf(nil,
		"isolate: {fleet_key: %q, device: %s, container_bridges: [br-0123456789ab], allow: [{name: ssh-from-the-bastion-hosts, port: 22, from: [%q, %q]}]}\n",
		l.public, a.device, long+"aaaa/128", long+"bbbb/128"), 0o644))
	a.vllm(t, "VLLM::EngineCore_DP0_with_a_long_title", "["+long+"5670]:47003", "0.0.0.0:5557")
	a.vllm(t, "vllm\x1b[2J\nok  all", "["+long+"5670]:47004")
	lookOn := func(h *host, code int, args ...string) {
		t.Helper()
		c := h.command(args...)
		var out, errs strings.Builder
		c.Stdout, c.Stderr = &out, &errs
		h.do(func() { must(t, c.Start()) })
		_ = c.Wait()
		if c.ProcessState.ExitCode() != code {
			t.Errorf("isolate %q: exit %d, want %d\n%s%s", args, c.ProcessState.ExitCode(), code, &out, &errs)
		}
		for _, l := range append(tooWide(out.String()), tooWide(errs.String())...) {
			if args[0] == "env" && (!strings.HasPrefix(l, "#") || strings.Contains(l, "'{")) {
				continue // for programs, as commands with their flags are
			}
			t.Errorf("isolate %s prints %d columns, or what a terminal obeys: %q", args[0], utf8.RuneCountInString(l), l)
		}
	}
	look := func(code int, args ...string) { t.Helper(); lookOn(a, code, args...) }
	look(0, "plan")
	look(1, "audit")
	look(1, "up", "--hosts", "") // what it would cut off
	look(1, "status")
	a.up(t)
	look(0, "status")
	look(1, "audit")
	for _, topology := range []string{"dp", "tp", "pp", "ray", "pd-nixl", "pd-mooncake"} {
		look(0, "env", "--topology", topology, "--kv-events", "--rdma")
	}
	look(0, "env", "--list")
	verify := []string{"verify", "--config", a.file("vallum.yaml")}
	look(1, append(verify, "--wire", "100ms", "--tokens", "9906,11,1917")...) // b is not there
	look(2, "verify", "--as-outsider", "--measure")
	a.nft(t, "flush ruleset")
	a.wireguardDown(t)
	look(1, verify...)
	look(1, "status")
	look(1, "audit")
	look(1, "exec", "--topology", "dp", "--", "true")
	lookOn(x, 1, "verify", "--as-outsider", "--ports", "8000,5557,47003", long+"5671", long+"ffff", "2001:db9::1")
	whole(t, a, "plan", "--json")
	whole(t, a, "audit", "--json")
	if rules, _ := a.must(t, "plan", "--nft"); len(tooWide(rules)) == 0 {
		t.Error("no rule is longer than a line: either none is, and this proves nothing, or nft's rules were broken for a terminal")
	}
}

// whole asks that an answer for programs is one, and that no text in it was broken.
func whole(t *testing.T, h *host, args ...string) {
	t.Helper()
	out, errs, _ := h.run(args...)
	if !json.Valid([]byte(out)) || len(tooWide(out)) == 0 {
		t.Errorf("isolate %q was broken for a terminal: %s%s", args, out, errs)
	}
}

// wireguardDown sets the overlay's device down.
func (h *host) wireguardDown(t *testing.T) {
	h.do(func() { must(t, linkDownOf(t, h.device)) })
}
