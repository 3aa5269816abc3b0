// Package audit judges the sockets of vLLM, Ray and their children: which channel, inside the overlay or not, and what
// guards it. It refuses to call a machine clean on which nothing of vLLM was seen, or that has RDMA or NVLink.
package audit

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/isolate"
)

// Verdict of a finding or of a whole audit. The zero value is no verdict, and not a good one.
type Verdict string

// Verdicts.
const (
	Inside       Verdict = "inside"       // on the overlay or on loopback
	Guarded      Verdict = "guarded"      // on every address, and only the rules keep strangers from it
	NotProtected Verdict = "unprotected"  // by hardware that no rule or tunnel sees: never green
	Outside      Verdict = "outside"      // on the underlay, or open to it
	Inconclusive Verdict = "inconclusive" // nothing to judge was seen, or not all of it
)

// Input is what an audit judges.
type Input struct {
	Snapshot *isolate.Snapshot
	Plan     *isolate.Plan     // what is applied; nil: nothing is
	Rules    error             // why the rules are not those of the plan; nil: they were read back equal
	Overlay  error             // why the overlay does not hold, rules and all; what stands after "hint: " is what to do
	Counters map[string]uint64 // of the rules, as in "input refused"; of a watch, what they counted meanwhile
}

// Finding is one socket.
type Finding struct {
	Verdict Verdict        `json:"verdict"`
	Socket  isolate.Socket `json:"socket"`
	Channel string         `json:"channel"`
	Why     string         `json:"why"`
}

// Report is an audit's answer.
type Report struct {
	Verdict      Verdict   `json:"verdict"`
	Broken       string    `json:"broken,omitempty"` // why the overlay that is applied does not hold: never green
	Findings     []Finding `json:"findings"`
	Settings     []Setting `json:"settings"`      // of the running processes, with what they mean
	Hints        []string  `json:"hints"`         // what is probably set wrongly
	NotProtected []string  `json:"not_protected"` // devices that no tunnel or rule sees, with the options
	Missing      []string  `json:"missing"`       // what could not be looked at: no audit is green then
	NotTested    []string  `json:"not_tested"`    // what this program's authors could not run
}

// OK reports whether nothing is outside.
func (r Report) OK() bool { return r.Verdict == Inside || r.Verdict == Guarded }

// NotTested is what nobody has run with this program, in every report: silence would read as proof. docs/isolate.md has
// the same list.
var NotTested = []string{
	"the kernel's WireGuard on real machines, with vLLM over it, and how fast it is (Debian's Linux 6.1 in an emulated machine was; vLLM ran over wireguard-go)",
	"NCCL on GPUs (gloo on CPUs was)",
	"RDMA, RoCE, InfiniBand and NVLink themselves: they pass every rule and every tunnel (that they are found was, with files in their place)",
	"NVLink bridges between two cards: no file shows them, so that they are not even found",
	"Ray, NIXL, Mooncake and other connectors",
	"pipeline parallel (vLLM's CPU build does not complete it)",
	"vLLM itself on more than two nodes, and over IPv6 (the overlay alone was)",
	"docker, kube-proxy and CNIs themselves (rules of docker's and kube-proxy's shape were)",
	"logind, and systems other than Debian 12 (its systemd and systemd-networkd were, through a reboot and a power cut)",
	"arm64 as a machine (the tests of what is not the kernel's were, emulated)",
}

// Judge judges.
func Judge(in Input) Report {
	r := Report{Verdict: Inconclusive, Findings: []Finding{}, NotTested: NotTested}
	for _, b := range in.Snapshot.Bypasses {
		r.NotProtected = append(r.NotProtected, b.Text())
		r.Verdict = NotProtected
	}
	if in.Overlay != nil {
		broken, hint, _ := strings.Cut(in.Overlay.Error(), "\nhint: ")
		r.Broken, r.Verdict = broken, Outside
		r.Hints = append(r.Hints, hint)
	}
	r.Settings = in.settings()
	for _, s := range r.Settings {
		// Settings alone are no traffic: they make nothing green, only worse.
		if s.Verdict == NotProtected || s.Verdict == Outside {
			r.Verdict = worse(r.Verdict, s.Verdict)
		}
	}
	for _, k := range in.Snapshot.Sockets {
		if k.Of == "" || k.Protocol == "udp" && !k.Listening {
			continue
		}
		f := in.judge(k)
		r.Findings = append(r.Findings, f)
		r.Verdict = worse(r.Verdict, f.Verdict)
		if f.Verdict == Outside {
			r.Hints = append(r.Hints, in.hint(k)...)
		}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(rank(b.Verdict)-rank(a.Verdict), cmp.Compare(a.Channel, b.Channel), a.Socket.Local.Compare(b.Socket.Local))
	})
	for _, miss := range in.Snapshot.Missing {
		r.Missing = append(r.Missing, miss.What+": "+miss.Cause)
		if r.OK() {
			r.Verdict = Inconclusive
		}
	}
	slices.Sort(r.Hints)
	r.Hints = slices.Compact(r.Hints)
	return r
}

func rank(v Verdict) int {
	return slices.Index([]Verdict{Inconclusive, Inside, Guarded, NotProtected, Outside}, v)
}

func worse(a, b Verdict) Verdict {
	if rank(a) > rank(b) {
		return a
	}
	return b
}

func (in Input) judge(k isolate.Socket) Finding {
	f := Finding{Socket: k, Channel: Channel(k, in.apiPort())}
	if k.Listening {
		f.Verdict, f.Why = in.listener(k)
		return f
	}
	f.Verdict, f.Why = in.connection(k)
	return f
}

func (in Input) listener(k isolate.Socket) (Verdict, string) {
	a := k.Local.Addr().Unmap()
	open, by := in.open(k)
	switch {
	case a.IsLoopback():
		return Inside, "loopback"
	case in.Plan == nil:
		return Outside, "no overlay is applied: whoever reaches this machine reaches it"
	case in.Rules != nil:
		return Outside, "the rules are not loaded as planned, so that nothing guards it"
	case open:
		return Outside, "open to the underlay by rule " + by
	case k.Past != "":
		return Outside, fmt.Sprintf("in another network namespace, with a device %q that this machine's rules do not see", k.Past)
	case k.Namespace != "":
		return Guarded, "in another network namespace, guarded by rule " + isolate.RuleForwarded
	case in.overlay(a):
		return Inside, "on the overlay"
	case a.IsUnspecified():
		return Guarded, "wildcard, guarded by rule " + isolate.RuleRefused
	}
	return Outside, "on the underlay's address: the rules keep strangers from it, and the other nodes too"
}

func (in Input) connection(k isolate.Socket) (Verdict, string) {
	from, to := k.Local.Addr().Unmap(), k.Remote.Addr().Unmap()
	switch {
	case to.IsLoopback() || from == to:
		return Inside, "loopback"
	case k.Past != "":
		return Outside, fmt.Sprintf("in another network namespace, with a device %q that this machine's rules do not see", k.Past)
	case k.Namespace != "" && (in.overlay(from) || in.overlay(to)):
		return Outside, "in another network namespace, to which this overlay does not lead: the address is somebody else's there"
	case in.overlay(from) && in.overlay(to) && in.Rules == nil:
		return Inside, "on the overlay"
	case in.overlay(from) && in.overlay(to):
		return Outside, "between overlay addresses, and the rules that keep it there are not loaded"
	case in.member(to) && k.Opening:
		return Outside, "waits for a member outside the overlay, where that one's rules refuse it"
	case in.member(to):
		return Outside, "in clear between members of the fleet"
	case in.inbound(k):
		return Outside, "from outside the overlay"
	case in.Plan == nil:
		return Outside, "no overlay is applied: whether it leads to another node is not known"
	}
	return Inside, "opened by this machine to somebody who is no member (a model hub, traces): not vLLM's own traffic between nodes"
}

// open tells by which allow rule the underlay reaches a listener.
func (in Input) open(k isolate.Socket) (bool, string) {
	if in.Plan == nil {
		return false, ""
	}
	for _, c := range in.Plan.Rules.Chains {
		for _, r := range c.Rules {
			if c.Hook == "input" && r.Accept && strings.HasPrefix(r.Name, "allow-") && r.Protocol == k.Protocol && r.Port == k.Local.Port() {
				return true, r.Name
			}
		}
	}
	return false, ""
}

// inbound reports whether somebody else opened the connection: a listener has its port.
func (in Input) inbound(k isolate.Socket) bool {
	return slices.ContainsFunc(in.Snapshot.Sockets, func(l isolate.Socket) bool {
		return l.Listening && l.Protocol == k.Protocol && l.Namespace == k.Namespace && l.Local.Port() == k.Local.Port()
	})
}

func (in Input) overlay(a netip.Addr) bool {
	if in.Plan == nil {
		return false
	}
	return slices.ContainsFunc(in.Plan.Routes, func(r isolate.Route) bool { return r.Type == "prohibit" && r.To.Contains(a) })
}

func (in Input) member(a netip.Addr) bool {
	return in.Plan != nil && slices.ContainsFunc(in.Plan.Peers, func(p isolate.Peer) bool { return p.Endpoint.Addr() == a })
}

func (in Input) apiPort() uint16 {
	if in.Plan == nil {
		return 8000
	}
	return in.Plan.APIPort
}

// hint names the setting that is missing. With one of them missing vLLM hangs at its start without a word; what tells
// is who listens on the underlay, who waits for a peer there, and that the rules count refusals.
func (in Input) hint(k isolate.Socket) []string {
	if in.Plan == nil || len(in.Plan.Addresses) == 0 || k.Namespace != "" { // devices and addresses are others there
		return nil
	}
	if k.Opening {
		i := slices.IndexFunc(in.Plan.Peers, func(p isolate.Peer) bool { return p.Endpoint.Addr() == k.Remote.Addr().Unmap() })
		if i < 0 {
			return nil
		}
		return []string{fmt.Sprintf("%s waits for %s of node %s, outside the overlay: on that node VLLM_HOST_IP or GLOO_SOCKET_IFNAME is missing, or here an address of the underlay was given", who(k), k.Remote, in.Plan.Peers[i].Name)}
	}
	if !k.Listening || k.Local.Addr().IsUnspecified() {
		return nil
	}
	set, value := "", ""
	switch {
	case strings.HasPrefix(k.Process, "VLLM::EngineCor"):
		set, value = "VLLM_HOST_IP", in.Plan.Addresses[0].String()
	case strings.HasPrefix(k.Process, "VLLM::Worker"):
		set, value = "GLOO_SOCKET_IFNAME", in.Plan.Device
	case strings.HasPrefix(k.Process, "VLLM::DPCoordin"), strings.HasPrefix(k.Process, "VLLM::APIServer"):
		return []string{fmt.Sprintf("%s listens on the underlay: set --data-parallel-address with the first node's overlay address; %s", who(k), in.refusals())}
	default:
		return nil
	}
	return []string{fmt.Sprintf("%s listens on the underlay%s: set %s=%s (vallum isolate env prints all of it); %s", who(k), in.told(k.PID, set), set, value, in.refusals())}
}

// told says what a process was told with a variable, as far as that is known.
func (in Input) told(pid int, name string) string {
	for _, p := range in.Snapshot.Processes {
		v, set := p.Settings[name]
		switch {
		case p.PID != pid:
		case set:
			return fmt.Sprintf(", with %s=%q", name, v)
		case p.From != 0:
			return ", and " + name + " is not set"
		}
	}
	return ""
}

func (in Input) refusals() string {
	n := in.Counters["input "+isolate.RuleRefused]
	if n == 0 {
		return "the rules have refused no packet yet"
	}
	return fmt.Sprintf("the rules have refused %d packet(s), so that who tries hangs without a word", n)
}

func who(k isolate.Socket) string { return fmt.Sprintf("%s (%d)", k.Process, k.PID) }
