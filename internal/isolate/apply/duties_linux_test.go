package apply_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/ipnet"
	"github.com/vallum/vallum/internal/isolate/nft"
)

// A batch that the kernel does not take is an error, and leaves no half of it: what it replaced still guards.
func TestABatchThatDoesNotLoadIsAnErrorAndNotAGuard(t *testing.T) {
	needRoot(t)
	good := isolate.Ruleset{Chains: []isolate.Chain{{Hook: "input", Drop: true, Rules: []isolate.Rule{{Name: "loopback", InDevice: "lo", Accept: true}}}}}
	bad := isolate.Ruleset{Chains: []isolate.Chain{{Hook: "input", Drop: true, Rules: []isolate.Rule{
		{Name: "first"}, {Name: strings.Repeat("too long for a comment", 20)},
	}}}}
	newSpace(t).do(func() {
		if err := nft.Load(bad); err == nil || !strings.Contains(err.Error(), "none holds now") {
			t.Errorf("a bad batch on an empty machine: %v", err)
		}
		if err := nft.Check(good); err == nil || !strings.Contains(err.Error(), "not loaded") {
			t.Errorf("something of it was loaded: %v", err)
		}
		must(t, nft.Load(good))
		if nft.Load(bad) == nil {
			t.Error("a bad batch was taken")
		}
		if err := nft.Check(good); err != nil {
			t.Errorf("a batch that did not load took away what was there: %v", err)
		}
		if err := nft.Load(isolate.Ruleset{Chains: []isolate.Chain{{Hook: "prerouting"}}}); err == nil {
			t.Error("a hook that is not known was taken")
		}
	})
}

// What the kernel made of a batch is compared with what was meant, although it took the batch.
func TestRulesThatTheKernelTookOtherwiseAreAnError(t *testing.T) {
	needRoot(t)
	// Two chains of one name become one: taken, and not what was meant.
	twice := isolate.Ruleset{Chains: []isolate.Chain{{Hook: "input", Drop: true}, {Hook: "input", Drop: true, Rules: []isolate.Rule{{Name: "loopback", InDevice: "lo", Accept: true}}}}}
	newSpace(t).do(func() {
		if err := nft.Load(twice); err == nil || !strings.Contains(err.Error(), "are not those of the plan") {
			t.Errorf("rules that were taken otherwise than they were meant: %v", err)
		}
	})
}

// Whoever may change rules may open them; what he changed is seen, whatever it is.
func TestEveryChangeOfTheRulesIsSeen(t *testing.T) {
	needRoot(t)
	rules := isolate.Ruleset{Chains: []isolate.Chain{
		{Hook: "input", Drop: true, Rules: []isolate.Rule{{Name: "loopback", InDevice: "lo", Accept: true}, {Name: isolate.RuleRefused}}},
		{Hook: "output"},
	}}
	const table = "inet " + isolate.TableName
	for script, want := range map[string]string{
		"add table " + table + " { flags dormant; }":                                                 "its rules are there and may guard nothing",
		"chain " + table + " input { policy accept; }":                                               "missing: input: policy drop",
		"add rule " + table + " input accept":                                                        "not ours: input: a rule with comment",
		"insert rule " + table + ` input counter accept comment "refused"`:                           `not ours: input: a rule with comment "refused"`,
		"flush chain " + table + " input":                                                            "missing: input: iifname",
		"add chain " + table + " other":                                                              "hangs on no hook",
		"add chain " + table + " first { type filter hook input priority -300; policy accept; }":     "not ours: first: policy accept at priority -300",
		"delete table " + table:                                                                      "not loaded",
		"delete chain " + table + " output":                                                          "missing: output: policy accept",
		"add table inet somebody; add chain inet somebody in { type filter hook input priority 0; }": "",
		"reset counters table " + table:                                                              "",
	} {
		newSpace(t).do(func() {
			must(t, nft.Load(rules))
			if out, err := exec.Command("nft", script).CombinedOutput(); err != nil {
				t.Errorf("%s: %v %s", script, err, out)
				return
			}
			err := nft.Check(rules)
			if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", script, err, want)
			}
			must(t, nft.Load(rules)) // up repairs it
		})
	}
}

// An overlay address belongs to one key: a member that takes another's is not heard, although it is let in by its own.
func TestAMemberCannotPoseAsAnother(t *testing.T) {
	l := newLab(t, "a", "b", "gw")
	a, b, gw := l.hosts["a"], l.hosts["b"], l.hosts["gw"]
	a.echo(t, 8000)
	l.sign(nil, "a", "b", "gw")
	for _, h := range []*host{a, b, gw} {
		h.up(t)
	}
	if !gw.reaches(a.over, 8000, open) {
		t.Fatal("the gateway does not reach the API: this would prove nothing")
	}
	want := map[string][]string{b.key: {b.over.String() + "/32", b.over6.String() + "/128"}, gw.key: {gw.over.String() + "/32", gw.over6.String() + "/128"}}
	if got := a.peers(t); !reflect.DeepEqual(got, want) {
		t.Errorf("the peers may send as %q, want %q", got, want)
	}
	gw.do(func() {
		must(t, netlink.AddrAdd(link(t, gw.device), &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(b.over, 32))}))
	})
	for own, gets := range map[netip.Addr]bool{gw.over: true, b.over: false} {
		wait := closed
		if gets {
			wait = open
		}
		var err error
		gw.do(func() {
			var c net.Conn
			dialer := net.Dialer{Timeout: wait, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))}
			if c, err = dialer.Dial("tcp", netip.AddrPortFrom(a.over, 8000).String()); err == nil {
				_ = c.Close()
			}
		})
		if (err == nil) != gets {
			t.Errorf("the gateway as %s: %v", own, err)
		}
	}
}

// vLLM is started on an overlay that is whole: its device up with its address on it, its rules loaded, its routes there.
func TestExecLooksAtEveryPartOfTheOverlay(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	a.up(t)
	start := func() (string, int) {
		out, said, code := a.run("exec", "--topology", "dp", "--", "echo", "RUNS")
		return out + said, code
	}
	for want, harm := range map[string]func(){
		"10.99.0.1 is not on device": func() {
			must(t, netlink.AddrDel(link(t, a.device), &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(a.over, 32))}))
		},
		"is down": func() { must(t, linkDownOf(t, a.device)) },
		"the rules are not loaded": func() {
			c, err := nftables.New()
			must(t, err)
			c.DelTable(&nftables.Table{Name: isolate.TableName, Family: nftables.TableFamilyINet})
			must(t, c.Flush())
		},
		"prohibit route of 10.99.0.0/24 is missing": func() {
			must(t, netlink.RouteDel(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix("10.99.0.0/24")), Type: 8, Priority: isolate.ProhibitMetric}))
		},
	} {
		if out, code := start(); code != 0 || !strings.Contains(out, "RUNS") {
			t.Fatalf("a whole overlay: exit %d %s", code, out)
		}
		a.do(harm)
		if out, code := start(); code != 1 || !strings.Contains(out, want) || strings.Contains(out, "RUNS") {
			t.Errorf("exit %d, want %q\n%s", code, want, out)
		}
		if _, said, code := a.run("env", "--topology", "dp"); code != 1 || !strings.Contains(said, want) {
			t.Errorf("env: exit %d, want %q\n%s", code, want, said)
		}
		a.must(t, "up", "--hosts", a.file("hosts"))
	}
}

// Sockets are per network namespace: an audit that looked only into its own would miss every container. What this machine
// forwards to one is refused by its rules; a container that is plugged in elsewhere they do not see.
func TestAuditSeesOtherNetworkNamespaces(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, x := l.hosts["a"], l.hosts["x"]
	l.sign(nil, "a", "b")
	c := a.container(t, dockersRules)
	a.up(t)
	c.vllm(t, "vllm", "0.0.0.0:14580")
	x.vllm(t, "vllm", "0.0.0.0:14581")
	find := func(port, want string) {
		t.Helper()
		out, _, _ := a.run("audit")
		if got := lineWith(out, ":"+port+" "); !strings.Contains(got, want) {
			t.Errorf("port %s: %q, want %q\n%s", port, got, want, out)
		}
	}
	find("14580", "in another network namespace, guarded by rule not-forwarded")
	find("14581", `with a device "eth0" that this machine's rules do not see`)
	// An adapter on the container's bridge joins it to another network, unless what crosses bridges passes the rules.
	a.do(func() {
		must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "past0"}, VxlanId: 7, Port: 4789}))
		must(t, netlink.LinkSetMaster(link(t, "past0"), link(t, "docker0")))
		for _, family := range []string{"ip", "ip6"} { // the namespace's own; not there where bridges have no rules
			_ = os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+family+"tables", []byte("0"), 0o644)
		}
	})
	find("14580", `with a device "eth0" that this machine's rules do not see`)
	a.do(func() { must(t, netlink.LinkDel(link(t, "past0"))) })
	find("14580", "guarded by rule not-forwarded")
	a.do(func() {
		must(t, netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "past1", ParentIndex: link(t, "eth0").Attrs().Index, Namespace: netlink.NsFd(c.handle)}, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	})
	find("14580", "guarded by rule not-forwarded") // it is down
	c.do(func() { must(t, netlink.LinkSetUp(link(t, "past1"))) })
	find("14580", `with a device "past1" that this machine's rules do not see`)
}
