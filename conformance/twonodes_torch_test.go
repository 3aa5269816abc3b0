//go:build conformance

package conformance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/vallum/vallum/conformance/nodes"
	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
)

const (
	torchPart    = "torch.distributed (gloo)"
	torchVersion = parts.TorchVersion
	storePort    = 29501
)

// marked is what allreduce.py's tensor is full of, as gloo sends it.
var marked = [][]byte{repeated(0x5AC3E1B7, 8)}

var torchProofs = []proof{
	{"an outsider reads, overwrites and deletes TCPStore's keys; behind isolate it does not connect", storeOfStrangers},
	{"a half-set environment sends tensors in clear; behind isolate it hangs, and audit names the variable", halfSetEnvironment},
	{"a tunnel that dies stops the all-reduce, sends nothing in clear, and up lets it go on", tunnelDies},
	{"an outsider with a silent member's address passes a rule by address; behind isolate it reaches nothing", stolenAddress},
}

// keptStore is a TCPStore that runs on a node.
type keptStore struct{ *nodes.Task }

func serveStore(p *report.Proof, n *nodes.Node, name string, at netip.Addr) keptStore {
	p.Helper()
	t := launch(p, n, name, python(p, "store.py", "serve", at.String(), strconv.Itoa(storePort))...)
	if err := t.WaitFor("ready", slowly); err != nil {
		p.NotRun("TCPStore: %v", err)
	}
	return keptStore{t}
}

// keys asks the store's owner what is in it.
func (s keptStore) keys(p *report.Proof) string {
	p.Helper()
	before := strings.Count(s.Said(), "\n")
	fmt.Fprintln(s.In)
	eventually(p, "the store's owner says what is in it", soon, func() bool { return strings.Count(s.Said(), "\n") > before })
	lines := strings.Split(strings.TrimSpace(s.Said()), "\n")
	return lines[len(lines)-1]
}

const untouched = `{"vllm_secret_key": "marked-secret", "other": "kept"}`

// raid is what attack of store.py achieved.
type raid struct {
	Connected   bool
	Get         string
	Set, Delete bool
	Error       string
}

// raidStore attacks the store at an address. Where it shall not be reached, each further address is one more attempt.
func raidStore(p *report.Proof, from *nodes.Node, at netip.Addr, further ...netip.Addr) (r raid) {
	p.Helper()
	args := python(p, "store.py", "attack", strconv.Itoa(storePort), fmt.Sprint(shut.Seconds()), at.String())
	for _, a := range further {
		args = append(args, a.String())
	}
	out, err := from.Run(p.Context(), args...)
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(out.Out) {
		var one raid
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			p.Fatalf("%v: %s", err, out)
		}
		p.Logf("from %s: %s", from.Name, line)
		if !r.Connected { // the first that succeeds is what counts
			r = one
		}
	}
	return r
}

func storeOfStrangers(p *report.Proof, _ *stand) {
	l := newLab(p)
	a, b, x := l.Node("a"), l.Node("b"), l.Node("x")
	bare := serveStore(p, a, "store-bare", a.Under)
	if got := raidStore(p, x, a.Under); got.Get != "marked-secret" || !got.Set || !got.Delete {
		p.Fatalf("without Vallum the outsider does not get at the keys, so that nothing is shown: %+v", got)
	}
	if got := bare.keys(p); got != `{"vllm_secret_key": "overwritten", "other": null}` {
		p.Errorf("the owner does not see what the outsider did: %s", got)
	}
	bare.Stop()

	raise(p, l, "a", "b")
	s := serveStore(p, a, "store", a.Over)
	if err := x.RouteBy(a.Over); err != nil {
		p.Fatal(err)
	}
	// The store listens on every address, whatever it was told.
	if got := raidStore(p, x, a.Under, a.Over); got.Connected || got.Get != "" || got.Set || got.Delete {
		p.Errorf("the outsider reaches the store: %+v", got)
	}
	if got := s.keys(p); got != untouched {
		p.Errorf("the keys have changed: %s", got)
	}
	if got := raidStore(p, b, a.Over); got.Get != "marked-secret" { // who is let in is what is being tested
		p.Errorf("the other member does not reach the store: %+v", got)
	}
}

// reducing is the two ranks of an all-reduce.
type reducing struct{ ranks [2]*nodes.Task }

// steps is how many all-reduces the first rank has seen the end of.
func (r reducing) steps() int { return strings.Count(r.ranks[0].Said(), "step ") }

func (r reducing) wantSteps(p *report.Proof, more int) {
	p.Helper()
	for i := range more {
		if err := r.ranks[0].WaitFor(fmt.Sprintf("step %d\n", r.steps()+1), slowly); err != nil {
			p.Fatalf("all-reduce %d of %d: %v\nthe other rank: %s", i+1, more, err, r.ranks[1].Said())
		}
	}
}

// reduceBy starts both ranks by a command of the caller's.
func reduceBy(p *report.Proof, l *nodes.Lab, name string, command func(n *nodes.Node, rank int) *exec.Cmd) (r reducing) {
	p.Helper()
	for i, node := range []string{"a", "b"} {
		n := l.Node(node)
		r.ranks[i] = launchCommand(p, n, name, command(n, i))
	}
	return r
}

// bareReduce is a rank that is told where the first one is, and not which device to take.
func bareReduce(p *report.Proof, master netip.Addr) func(*nodes.Node, int) *exec.Cmd {
	return func(_ *nodes.Node, rank int) *exec.Cmd {
		args := python(p, "allreduce.py", "--master-addr", master.String(), "--master-port", strconv.Itoa(storePort),
			"--nnodes", "2", "--node-rank", strconv.Itoa(rank), "--name", fmt.Sprintf("VLLM::Worker_TP%d", rank))
		return exec.Command(args[0], args[1:]...)
	}
}

// execReduce is a rank that `isolate exec` gives its environment and flags.
func execReduce(p *report.Proof) func(*nodes.Node, int) *exec.Cmd {
	return func(n *nodes.Node, _ int) *exec.Cmd {
		return n.Command(p.Context(), append([]string{"exec", "--topology", "tp", "--"}, python(p, "allreduce.py")...)...)
	}
}

func halfSetEnvironment(p *report.Proof, _ *stand) {
	l := newLab(p)
	a, b := l.Node("a"), l.Node("b")
	var bare reducing
	r := record(p, l, func() {
		bare = reduceBy(p, l, "bare", bareReduce(p, a.Under))
		bare.wantSteps(p, 3)
	})
	if len(r.Find(marked)) == 0 {
		p.Fatal("without Vallum the tensor is not seen on the wire, so that nothing is shown")
	}
	for _, t := range bare.ranks {
		t.Stop()
	}

	raise(p, l, "a", "b")
	var half reducing
	r = record(p, l, func() {
		half = reduceBy(p, l, "half", bareReduce(p, a.Over)) // the overlay's address, but not its device
		audit := ""
		eventually(p, "audit names GLOO_SOCKET_IFNAME", slowly, func() bool {
			said, _ := a.Vallum(p.Context(), "audit")
			audit = said.String()
			return said.Code == 1 && strings.Contains(strings.Join(strings.Fields(said.Err), " "), "GLOO_SOCKET_IFNAME is not set: set GLOO_SOCKET_IFNAME="+nodes.Device)
		})
		p.Log("audit: ", audit)
		<-time.After(shut) // what should not happen has this long to do it
	})
	if n := half.steps(); n != 0 {
		p.Errorf("%d all-reduces were done although half of the setting is missing", n)
	}
	if found := r.Find(marked); len(found) > 0 {
		p.Errorf("the tensor is on the wire in clear: %s", flows(found))
	}
	if inside := r.Flows(nodes.Inside); len(inside) > 0 {
		p.Errorf("overlay addresses past the tunnel: %s", flows(inside))
	}
	for _, t := range half.ranks {
		t.Stop()
	}
	if n := counted(p, a, "input", "refused") + counted(p, b, "input", "refused"); n == 0 {
		p.Error("the rules have refused nothing: it hung for another reason, and this shows nothing")
	}

	r = record(p, l, func() { reduceBy(p, l, "whole", execReduce(p)).wantSteps(p, 3) })
	wantTunnelOnly(p, l, r, marked)
}

// counted is how many packets a rule has seen on a node, as nft says it.
func counted(p *report.Proof, n *nodes.Node, chain, rule string) int {
	p.Helper()
	r, err := n.Run(p.Context(), "nft", "-j", "list", "chain", "inet", "vallum_isolate", chain)
	if err != nil {
		p.NotRun("nft: %v", err)
	}
	var list struct {
		Nftables []struct {
			Rule struct {
				Comment string
				Expr    []struct{ Counter struct{ Packets int } }
			}
		}
	}
	if err := json.Unmarshal([]byte(r.Out), &list); err != nil {
		p.Fatal(err)
	}
	for _, o := range list.Nftables {
		for _, e := range o.Rule.Expr {
			if o.Rule.Comment == rule && e.Counter.Packets > 0 {
				return e.Counter.Packets
			}
		}
	}
	return 0
}

func tunnelDies(p *report.Proof, _ *stand) {
	l := newLab(p)
	raise(p, l, "a", "b")
	b := l.Node("b")
	var job reducing
	r := record(p, l, func() {
		job = reduceBy(p, l, "job", execReduce(p))
		job.wantSteps(p, 5)
		if err := b.KillTunnel(true); err != nil {
			p.Fatal(err)
		}
		<-time.After(shut) // what was on its way
		stopped := job.steps()
		<-time.After(shut)
		if n := job.steps(); n != stopped {
			p.Errorf("%d all-reduces were done without a tunnel", n-stopped)
		}
		// A worker that is started again now asks by the default route, unless that is prohibited.
		if got := raidStore(p, b, l.Node("a").Over); got.Connected {
			p.Errorf("a new connection without a tunnel: %+v", got)
		}
		if _, err := b.Vallum(p.Context(), "up"); err != nil { // confirmed before: it repairs
			p.Fatal(err)
		}
		job.wantSteps(p, 5)
	})
	wantTunnelOnly(p, l, r, marked)
}

func stolenAddress(p *report.Proof, _ *stand) {
	l := newLab(p)
	a, b, x := l.Node("a"), l.Node("b"), l.Node("x")
	bare := serveStore(p, a, "store-bare", a.Under)
	rules := fmt.Sprintf("table inet byaddress {\nchain in {\ntype filter hook input priority 0; policy accept;\ntcp dport %d ip saddr != { 127.0.0.1, %s, %s } drop\n}\n}\n", storePort, a.Under, b.Under)
	if _, err := a.Run(p.Context(), "nft", rules); err != nil {
		p.NotRun("nft: %v", err)
	}
	if got := raidStore(p, x, a.Under); got.Connected {
		p.Fatalf("the rule by address lets everybody in, so that nothing is shown: %+v", got)
	}
	if err := b.SetEthernet(false); err != nil {
		p.Fatal(err)
	}
	if err := x.TakeAddress(b.Under); err != nil {
		p.Fatal(err)
	}
	if got := raidStore(p, x, a.Under); got.Get != "marked-secret" {
		p.Fatalf("with the silent member's address the outsider does not get past the rule, so that nothing is shown: %+v", got)
	}
	bare.Stop()

	l = newLab(p)
	a, b, x = l.Node("a"), l.Node("b"), l.Node("x")
	raise(p, l, "a", "b")
	s := serveStore(p, a, "store", a.Over)
	if at := netip.AddrPortFrom(a.Over, storePort); len(b.Open([]netip.AddrPort{at}, soon)) == 0 {
		p.Errorf("the member does not reach the store at %s", at)
	}
	if err := b.SetEthernet(false); err != nil {
		p.Fatal(err)
	}
	// The silent member's place on the Ethernet, and its overlay address beside it.
	for _, err := range []error{x.TakeAddress(b.Under), x.TakeAddress(b.Over), x.RouteBy(a.Over)} {
		if err != nil {
			p.Fatal(err)
		}
	}
	if got := raidStore(p, x, a.Under, a.Over); got.Connected {
		p.Errorf("with the silent member's addresses the outsider reaches the store: %+v", got)
	}
	if got := s.keys(p); got != untouched {
		p.Errorf("the keys have changed: %s", got)
	}
}
