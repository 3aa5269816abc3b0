//go:build conformance

package conformance

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vallum/vallum/conformance/nodes"
	"github.com/vallum/vallum/conformance/report"
)

// duel is one topology of a real vLLM over two nodes, first without Vallum and then over the overlay.
type duel struct {
	topology
	t        *testing.T
	bareOnce sync.Once
	fallen   fallen
	overOnce sync.Once
	stood    stood
}

// fallen is what an outsider got of a vLLM without Vallum.
type fallen struct {
	done      bool
	ports     int // that listen
	open      int // that let him in
	heard     heard
	onTheWire map[nodes.Flow]int // where the marked tokens were between the members
}

// stood is a vLLM over the overlay, and how it came up.
type stood struct {
	*spread
	boot    *nodes.Recording // the wire, from before the start until it was ready
	refused nodes.Result     // what `isolate exec` said on the node whose tunnel was late
	watched *nodes.Task      // `isolate audit --watch`, from before the start until it was ready
}

func partOf(top topology) string { return "vLLM " + top.name + " over two nodes" }

func proofsDP(d *duel) []proof {
	return []proof{
		{"an outsider connects to every port of both nodes; behind isolate to none, and a member to all", d.ports},
		{"an outsider reads prompts from KV events; behind isolate he is told nothing", d.published},
		{"a prompt's tokens are on the wire; behind isolate nothing but the tunnel is", d.wire},
		{"a worker whose tunnel comes late joins, and nothing is sent in clear before", d.late},
		{"audit --watch finds every socket inside or guarded, those of the start too", d.audited},
	}
}

func proofsTP(d *duel) []proof {
	return []proof{
		{"an outsider connects to every port of both nodes; behind isolate to none, and a member to all", d.ports},
		{"an outsider reads prompts from the message queue; behind isolate he is told nothing", d.published},
		{"a prompt's tokens are on the wire; behind isolate nothing but the tunnel is", d.wire},
		{"overlay addresses routed past the tunnel under load: nothing is sent in clear, and up repairs it", d.rerouted},
		{"a tunnel killed under load: nothing is sent in clear, /health stays 200, and after up the same vLLM answers", d.killed},
	}
}

// They come last, by the name of their file: four engines need the memory that other suites' servers would hold.
func TestIsolateDP(t *testing.T) {
	proveAll(t, partOf(topologyDP), vllmVersion, proofsDP(&duel{topology: topologyDP, t: t}))
}

func TestIsolateTP(t *testing.T) {
	proveAll(t, partOf(topologyTP), vllmVersion, proofsTP(&duel{topology: topologyTP, t: t}))
}

// bareFirst shows the attacks on a vLLM without Vallum, once, and ends a proof that has nothing to build on.
func (d *duel) bareFirst(p *report.Proof) fallen {
	p.Helper()
	d.bareOnce.Do(func() { d.fallen = d.attack(p) })
	if !d.fallen.done {
		p.NotRun("without Vallum the attacks could not be tried")
	}
	return d.fallen
}

func (d *duel) attack(p *report.Proof) (f fallen) {
	p.Helper()
	l := newLab(p)
	s := &spread{lab: l}
	for rank, name := range []string{"a", "b"} {
		s.tasks = append(s.tasks, serve(p, d.t, l.Node(name), nodes.VLLM{Args: d.bare(l.Node("a").Under, rank)}))
	}
	s.waitServing(p)
	targets := s.targets(p, false)
	f.ports, f.open = len(targets), len(l.Node("x").Open(targets, soon))
	text, needles := s.prompt(p)
	r := record(p, l, func() {
		f.heard = s.eavesdrop(p, "x", targets, needles, true, func() { s.mustComplete(p, text, d.ranks...) })
	})
	f.onTheWire = r.Find(needles)
	for flow := range f.onTheWire { // what the outsider is told crosses the wire too, and does not count
		if x := l.Node("x").Under; flow.From.Addr() == x || flow.To.Addr() == x {
			delete(f.onTheWire, flow)
		}
	}
	p.Logf("without Vallum: %d of %d ports open, the prompt between the members: %s", f.open, f.ports, flows(f.onTheWire))
	f.done = true
	return f
}

func serve(p *report.Proof, t *testing.T, n *nodes.Node, v nodes.VLLM) *nodes.Task {
	p.Helper()
	task, err := n.Serve(t.Context(), "vllm", v) // it may have to live longer than the proof that needs it first
	if err != nil {
		p.NotRun("%v", err)
	}
	return task
}

func (s *spread) waitServing(p *report.Proof) {
	p.Helper()
	began := time.Now()
	if err := s.a().WaitServing(p.Context(), serving, s.tasks...); err != nil {
		p.NotRun("%v", err)
	}
	p.Logf("vLLM is ready after %s", time.Since(began).Round(time.Second))
}

// standing is the vLLM over the overlay, started once.
func (d *duel) standing(p *report.Proof) *stood {
	p.Helper()
	d.overOnce.Do(func() { d.stand(p) })
	if d.stood.spread == nil {
		p.NotRun("vLLM did not come up over the overlay")
	}
	return &d.stood
}

func (d *duel) stand(p *report.Proof) {
	p.Helper()
	l, err := makeLab(d.t, d.name+" over the overlay")
	if err != nil {
		p.NotRun("%v", err)
	}
	d.t.Cleanup(l.Close)
	s := &spread{lab: l}
	a, b, x := l.Node("a"), l.Node("b"), l.Node("x")
	for _, n := range []*nodes.Node{a, b} {
		if err := n.Up(d.t.Context()); err != nil {
			p.Fatal(err)
		}
		if err := x.RouteBy(n.Over); err != nil {
			p.Fatal(err)
		}
	}
	d.stood.boot = record(p, l, func() {
		ours := nodes.VLLM{Topology: d.name, Events: d.events}
		if d.name != "dp" {
			s.tasks = append(s.tasks, serve(p, d.t, a, ours), serve(p, d.t, b, ours))
			s.waitServing(p)
			return
		}
		watch, err := a.Launch("watch", a.Command(d.t.Context(), "audit", "--watch", serving.String()))
		if err != nil {
			p.Fatal(err)
		}
		d.stood.watched = watch
		d.startLate(p, s, ours)
		if err := syscall.Kill(watch.PID(), syscall.SIGINT); err != nil {
			p.Error(err)
		}
	})
	d.stood.spread = s
}

// startLate starts both nodes while the second one's tunnel is dead, and brings it up when the first one waits for it.
func (d *duel) startLate(p *report.Proof, s *spread, ours nodes.VLLM) {
	p.Helper()
	a, b := s.lab.Node("a"), s.lab.Node("b")
	if err := b.KillTunnel(true); err != nil {
		p.Fatal(err)
	}
	// `isolate exec` does not start it: a service manager that has the settings in its unit would.
	// The kernel takes the device of a killed process away a moment later.
	for late := time.Now().Add(10 * time.Second); ; {
		refused, err := b.Vallum(p.Context(), "exec", "--topology", d.name, "--", "echo", "started")
		if status := new(nodes.StatusError); err != nil && !errors.As(err, &status) {
			p.Fatal(err)
		}
		d.stood.refused = refused
		if refused.Code != 0 || time.Now().After(late) {
			break
		}
	}
	env, flags, err := b.Setting(p.Context(), "--topology", d.name, "--kv-events", "--even-if-down")
	if err != nil {
		p.Fatal(err)
	}
	s.tasks = append(s.tasks, serve(p, d.t, a, ours), serve(p, d.t, b, nodes.VLLM{Args: flags, Env: env}))
	handshake := netip.AddrPortFrom(a.Over, 29550)
	eventually(p, "the first node waits for the second", serving, func() bool {
		listeners, err := a.Listeners()
		return err == nil && strings.Contains(fmt.Sprint(listeners), handshake.String())
	})
	<-time.After(slowly / 6) // in which the second one tries in vain
	select {
	case <-s.tasks[1].Exited():
		p.Fatalf("the worker did not wait for its tunnel: %s", s.tasks[1].Said())
	default:
	}
	if _, err := b.Vallum(p.Context(), "up"); err != nil {
		p.Fatal(err)
	}
	s.waitServing(p)
}

func (d *duel) ports(p *report.Proof, _ *stand) {
	if bare := d.bareFirst(p); bare.ports < 10 || bare.open != bare.ports {
		p.Fatalf("without Vallum the outsider connects to %d of %d ports, so that nothing is shown", bare.open, bare.ports)
	}
	s := d.standing(p)
	targets := s.targets(p, true)
	if open := s.lab.Node("x").Open(targets, shut); len(open) > 0 {
		p.Errorf("the outsider connects to %v", open)
	}
	// Whoever is let in finds them open: the ports are the right ones.
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}} {
		from, to := s.lab.Node(pair[0]), s.lab.Node(pair[1])
		var theirs []netip.AddrPort
		listeners, err := to.Listeners()
		if err != nil {
			p.Fatal(err)
		}
		for _, l := range listeners {
			theirs = append(theirs, netip.AddrPortFrom(to.Over, l.Port()))
		}
		if open := from.Open(theirs, soon); len(open) != len(theirs) || len(open) == 0 {
			p.Errorf("%s connects to %d of %d ports of %s: %v", pair[0], len(open), len(theirs), pair[1], theirs)
		} else {
			p.Logf("%s connects to all %d ports of %s", pair[0], len(open), pair[1])
		}
	}
}

func (d *duel) published(p *report.Proof, _ *stand) {
	bare := d.bareFirst(p)
	if bare.heard.marked == 0 || d.events && len(bare.heard.from) != 2 {
		p.Fatalf("without Vallum the outsider is told %+v, so that nothing is shown", bare.heard)
	}
	s := d.standing(p)
	text, needles := s.prompt(p)
	got := s.eavesdrop(p, "x", s.targets(p, true), needles, false, func() { s.mustComplete(p, text, d.ranks...) })
	if got.greeted+got.published+got.messages > 0 {
		p.Errorf("the outsider is told %+v", got)
	}
	if !d.events {
		return
	}
	text, needles = s.prompt(p)
	a := netip.AddrPortFrom(s.a().Over, 5557)
	if got := s.eavesdrop(p, "b", []netip.AddrPort{a}, needles, true, func() { s.mustComplete(p, text, d.ranks...) }); got.marked == 0 {
		p.Errorf("a member is told %+v: nothing is published, and this shows nothing", got)
	}
}

// reverseName is what a question for the name of an overlay address holds: its labels, as DNS writes them.
var reverseName = [][]byte{[]byte("\x010\x0299\x0210\x07in-addr\x04arpa")}

func (d *duel) wire(p *report.Proof, _ *stand) {
	if bare := d.bareFirst(p); len(bare.onTheWire) == 0 {
		p.Fatal("without Vallum the tokens are not seen on the wire, so that nothing is shown")
	}
	s := d.standing(p)
	text, needles := s.prompt(p)
	r := record(p, s.lab, func() {
		for range 3 {
			s.mustComplete(p, text, d.ranks...)
		}
	})
	wantTunnelOnly(p, s.lab, r, needles)
	p.Logf("in the tunnel: %s", flows(r.Flows(nodes.Tunnel)))
	d.verified(p, s, text)
	wantTunnelOnly(p, s.lab, s.boot, nil)
	if asked := s.boot.Find(reverseName); len(asked) > 0 {
		p.Errorf("names of overlay addresses are asked for in clear: %s", flows(asked))
	}
}

// verified asks `isolate verify --wire` for the same: it finds the prompt inside the tunnel and nothing outside, and proves
// nothing by token ids that no prompt has.
func (d *duel) verified(p *report.Proof, s *stood, text string) {
	p.Helper()
	ids := s.tokens(p, text)
	backwards := slices.Clone(ids)
	slices.Reverse(backwards)
	for _, row := range []struct {
		ids  []uint32
		code int
		want string
	}{{ids, 0, "the marked prompt crossed inside the tunnel in"}, {backwards, 3, "was not seen inside the tunnel either"}} {
		list := strings.ReplaceAll(strings.Trim(fmt.Sprint(row.ids), "[]"), " ", ",")
		var r nodes.Result
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			r, err = s.a().Vallum(p.Context(), "verify", "--wire", "10s", "--tokens", list)
		}()
		for ended := false; !ended; {
			s.mustComplete(p, text, d.ranks...)
			select {
			case <-done:
				ended = true
			default:
			}
		}
		if status := new(nodes.StatusError); err != nil && !errors.As(err, &status) {
			p.Fatal(err)
		}
		if r.Code != row.code || !strings.Contains(r.Out, row.want) {
			p.Errorf("isolate verify --wire: want exit %d and %q: %s", row.code, row.want, r)
		}
		p.Logf("isolate verify --wire: %s", r)
	}
}

func (d *duel) late(p *report.Proof, _ *stand) {
	s := d.standing(p)
	if s.refused.Code == 0 || s.refused.Out != "" || !strings.Contains(s.refused.Err, "vLLM is not started") {
		p.Errorf("isolate exec without a tunnel: %s", s.refused)
	}
	text, needles := s.prompt(p)
	r := record(p, s.lab, func() { s.mustComplete(p, text, 1) })
	wantTunnelOnly(p, s.lab, r, needles)
	wantTunnelOnly(p, s.lab, s.boot, nil)
}

func (d *duel) audited(p *report.Proof, _ *stand) {
	s := d.standing(p)
	said, code := s.watched.Said(), s.watched.Code()
	if code != 0 {
		p.Errorf("audit --watch: exit %d", code)
	}
	for _, want := range []string{"data parallel handshake", "data parallel coordinator", "KV events", "HTTP API"} {
		if !slices.ContainsFunc(strings.Split(said, "\n"), func(line string) bool { // of the report, not of what it says meanwhile
			return strings.Contains(line, want) && (strings.HasPrefix(line, "inside ") || strings.HasPrefix(line, "guarded "))
		}) {
			p.Errorf("it has not judged: %s", want)
		}
	}
	p.Log(said)
	for _, name := range []string{"a", "b"} {
		if r, err := s.lab.Node(name).Vallum(p.Context(), "audit"); err != nil {
			p.Errorf("audit on %s, vLLM running: %v", name, err)
		} else if name == "b" && !strings.Contains(r.Out, "wildcard, guarded by rule refused") {
			p.Errorf("the headless node's KV events are not seen: %s", r)
		}
	}
}

// underLoad runs f on the wire while prompts are sent all the time.
func (s *stood) underLoad(p *report.Proof, text string, f func()) *nodes.Recording {
	p.Helper()
	return record(p, s.lab, func() {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_ = s.complete(text, -1, gaveUp) // whether it is answered is f's to ask
					}
				}
			})
		}
		defer wg.Wait()
		defer close(stop)
		f()
	})
}

// leaks is how many packets the output rule has refused on a node.
func leaks(p *report.Proof, n *nodes.Node) int { return counted(p, n, "output", "overlay-leak") }

func (d *duel) rerouted(p *report.Proof, _ *stand) {
	s := d.standing(p)
	a, b := s.lab.Node("a"), s.lab.Node("b")
	text, needles := s.prompt(p)
	before := leaks(p, a) + leaks(p, b)
	after := before
	r := s.underLoad(p, text, func() {
		s.mustComplete(p, text, -1)
		for _, err := range []error{a.RouteBy(b.Over), b.RouteBy(a.Over)} {
			if err != nil {
				p.Fatal(err)
			}
		}
		if err := s.complete(text, -1, gaveUp); err == nil {
			p.Error("a prompt was completed although the tunnel was gone round")
		}
		after = leaks(p, a) + leaks(p, b) // up loads the rules anew, and counts from 0
		for _, n := range []*nodes.Node{a, b} {
			if _, err := n.Vallum(p.Context(), "up"); err != nil {
				p.Fatal(err)
			}
		}
		s.mustComplete(p, text, -1)
	})
	wantTunnelOnly(p, s.lab, r, needles)
	if after == before {
		p.Error("nothing was refused on the way out: the route did not go round the tunnel, and this shows nothing")
	}
	p.Logf("%d packets were refused on the way out", after-before)
}

func (d *duel) killed(p *report.Proof, _ *stand) {
	s := d.standing(p)
	a := s.a()
	text, needles := s.prompt(p)
	before := s.processes(p)
	r := s.underLoad(p, text, func() {
		s.mustComplete(p, text, -1)
		if err := a.KillTunnel(true); err != nil {
			p.Fatal(err)
		}
		if err := s.complete(text, -1, gaveUp); err == nil {
			p.Error("a prompt was completed without a tunnel")
		}
		// Without the device new connections would take the default route.
		if c, err := a.Dial("tcp", netip.AddrPortFrom(s.lab.Node("b").Over, 29501), shut); err == nil {
			_ = c.Close()
			p.Error("a new connection without a tunnel")
		}
		if resp, err := a.Client(gaveUp).Get(fmt.Sprintf("http://127.0.0.1:%d/health", nodes.APIPort)); err != nil || resp.StatusCode != http.StatusOK {
			p.Errorf("/health without a tunnel: %v %v; docs/isolate.md says that it stays 200", resp, err)
		} else {
			_ = resp.Body.Close()
		}
		if status, err := a.Vallum(p.Context(), "status"); err == nil || !strings.Contains(status.Err, nodes.Device) {
			p.Errorf("isolate status without a tunnel: %s", status)
		}
		if _, err := a.Vallum(p.Context(), "up"); err != nil {
			p.Fatal(err)
		}
		s.mustComplete(p, text, -1)
	})
	wantTunnelOnly(p, s.lab, r, needles)
	if after := s.processes(p); after != before {
		p.Errorf("vLLM's processes were %s and are %s", before, after)
	}
}

// processes names vLLM's processes on both nodes, with their numbers.
func (s *spread) processes(p *report.Proof) string {
	p.Helper()
	var names []string
	for _, name := range []string{"a", "b"} {
		all, err := s.lab.Node(name).Processes()
		if err != nil {
			p.Fatal(err)
		}
		for _, k := range all {
			if strings.HasPrefix(k.Name, "VLLM::") || k.Name == "vllm" {
				names = append(names, fmt.Sprintf("%s/%s/%d", name, k.Name, k.PID))
			}
		}
	}
	if len(names) < 4 {
		p.Fatalf("vLLM's processes are not found: %v", names)
	}
	return strings.Join(names, " ")
}
