package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/daemon/screen"
	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/apply"
	"github.com/vallum/vallum/internal/isolate/audit"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/knock"
	"github.com/vallum/vallum/internal/isolate/nft"
	"github.com/vallum/vallum/internal/isolate/tunnel"
	"github.com/vallum/vallum/internal/isolate/wire"
)

// verification is what is asked of verify.
type verification struct {
	in                  isolateInput
	outsider, asJSON    bool
	watch, wait         time.Duration
	tokens, text, ports string
	measuring
}

func newIsolateVerify(s streams) *cobra.Command {
	v := &verification{}
	c := &cobra.Command{
		Use:   "verify [ADDRESS…]",
		Short: "Proves and measures the overlay: inside, outside, on the wire",
		Long: "On a node: every peer must answer inside the overlay and be silent outside it. --wire looks at the underlay's packets\n" +
			"for as long as it is told: send a marked prompt meanwhile and give its token ids, because vLLM never sends the text.\n" +
			"--as-outsider needs no keys: run it on a machine that is no member, with the nodes' addresses.\n" +
			"Exit status 0: it holds; 1: it does not; 3: something was not seen, not asked or not measured, so that it is not proven;\n" +
			"4: what was asked holds, and there are RDMA devices or NVLink, of which nothing here sees anything.\n\n" +
			"--measure takes round trips and throughput to every peer that runs --measure-serve meanwhile, and says what they mean\n" +
			"for tensor, pipeline and data parallelism: at most 2 s and 256 MiB a path. With --bare on both sides it measures the\n" +
			"underlay too, with zeros in clear; no rule is opened, because both ends connect to each other at once.",
		Example: "  vallum isolate verify --wire 30s --tokens 9906,11,1917\n" +
			"  vallum isolate verify --as-outsider 192.0.2.1 10.99.0.1\n" +
			"  vallum isolate verify --measure-serve 1m --bare   # on one node, then:\n" +
			"  vallum isolate verify --measure --bare",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return v.run(c.Context(), s, args) },
	}
	v.in.flags(c)
	c.Flags().BoolVar(&v.outsider, "as-outsider", false, "this machine is no member: nothing of the addresses may answer")
	c.Flags().DurationVar(&v.watch, "wire", 0, "look at the underlay's packets for this long")
	c.Flags().StringVar(&v.tokens, "tokens", "", "token ids of the marked prompt, side by side: 9906,11,1917")
	c.Flags().StringVar(&v.text, "text", "", "text of the marked prompt")
	c.Flags().StringVar(&v.ports, "ports", "", "TCP ports to try, such as 8000,29501,30000-31000 (default: vLLM's well-known ones, and 64 of those that the kernel chooses)")
	c.Flags().DurationVar(&v.wait, "wait", knock.Wait, "how long an answer from outside the overlay may take: 4s to 1m")
	c.Flags().BoolVar(&v.asJSON, "json", false, "as JSON")
	v.measuring.flags(c)
	return c
}

func (v *verification) run(ctx context.Context, s streams, args []string) error {
	ports, err := parsePorts(v.ports)
	if err != nil {
		return usageError{err}
	}
	if v.wait < knock.Wait || v.wait > knock.LongestWait {
		return usagef("--wait %s is not from %s to %s: a kernel needs 3 s to learn that nobody is there", v.wait, knock.Wait, knock.LongestWait)
	}
	if err := v.measuring.check(v.outsider); err != nil {
		return err
	}
	p := &proof{s: s, asJSON: v.asJSON, Checks: []proven{}}
	if v.outsider {
		if err := p.outside(ctx, args, ports, v.wait, v.in.state); err != nil {
			return err
		}
		return p.end()
	}
	if len(args) > 0 {
		return usagef("addresses are for --as-outsider; a node knows its peers")
	}
	needles, err := parseNeedles(v.tokens, v.text)
	if err != nil {
		return usageError{err}
	}
	self, plan, manifest, err := v.holds(s)
	if err != nil {
		return err
	}
	if v.serve > 0 && !self.Has(fleet.RoleVLLM) {
		return errGateway
	}
	if v.serve > 0 {
		return s.serveMeasuring(ctx, plan, self, v.measuring)
	}
	p.Node = plan.Node
	if v.ports == "" && !slices.Contains(ports, plan.APIPort) {
		ports = append(ports, plan.APIPort)
	}
	if err := p.bypasses(); err != nil {
		return err
	}
	p.peers(ctx, plan, ports, v.wait)
	if v.watch > 0 {
		if err := p.wire(ctx, plan, self.Endpoint, needles, v.watch); err != nil {
			return err
		}
	}
	if v.measure {
		p.measure(ctx, plan, manifest, self, v.measuring)
	}
	return p.end()
}

// holds is the node and its plan, when the overlay stands as planned.
func (v *verification) holds(s streams) (self fleet.Node, p *isolate.Plan, m *fleet.Manifest, err error) {
	n, err := v.in.read(s)
	if err != nil {
		return self, nil, nil, err
	}
	self, ok := n.manifest.ByKey(n.public)
	if !ok {
		return self, nil, nil, errors.New("this node is not in the manifest")
	}
	st := apply.State{Dir: n.state}
	if err := st.Holds(); err != nil {
		return self, nil, nil, err
	}
	if p, _, err = st.Applied(); err != nil {
		return self, nil, nil, err
	}
	if err := n.manifest.Current(time.Now()); err != nil {
		fmt.Fprintf(s.err, "vallum: warning: %v\n", err)
	}
	return self, p, n.manifest, nil
}

func parseNeedles(tokens, text string) ([][]byte, error) {
	var ids []uint32
	for f := range strings.SplitSeq(tokens, ",") {
		if f == "" {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(f), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--tokens: %q is not a token id", f)
		}
		ids = append(ids, uint32(n))
	}
	return wire.Needles(ids, text)
}

// sampled is how many of the ports that the kernel chooses are tried.
const sampled = 64

func parsePorts(s string) ([]uint16, error) {
	if s == "" {
		return append(append(audit.Ports(), 8000), knock.Sample(sampled)...), nil
	}
	var list []uint16
	for f := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(f, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || a == 0 || b < a {
			return nil, fmt.Errorf("--ports: %q is not a port or a range of ports", f)
		}
		for p := a; p <= b; p++ {
			list = append(list, uint16(p))
		}
	}
	return list, nil
}

// peers asks every peer inside, and knocks outside. Liveness comes from the tunnel: vLLM's /health stays 200 when the
// tunnel is dead.
func (p *proof) peers(ctx context.Context, plan *isolate.Plan, ports []uint16, wait time.Duration) {
	reports, inside := make([]knock.Report, len(plan.Peers)), make([][]func(), len(plan.Peers))
	var asking sync.WaitGroup
	for i, peer := range plan.Peers {
		asking.Go(func() { reports[i] = knock.Ask(ctx, peer.Endpoint.Addr(), wait, ports, channelOf) })
		inside[i] = make([]func(), len(peer.Allowed))
		for j, a := range peer.Allowed {
			asking.Go(func() {
				took, err := echoFrom(ctx, plan, a.Addr())
				inside[i][j] = func() { p.answered(peer.Name, a.Addr(), took, err) }
			})
		}
	}
	asking.Wait()
	for i, peer := range plan.Peers {
		for _, say := range inside[i] {
			say()
		}
		p.strangers(fmt.Sprintf("%s, at %s outside the overlay,", peer.Name, peer.Endpoint.Addr()), reports[i])
	}
	if list, err := tunnel.Handshakes(plan); err == nil {
		for _, h := range list {
			if !h.Last.IsZero() && time.Since(h.Last) > 4*time.Minute {
				p.note("%s was heard %s ago: its tunnel may be dead", h.Name, time.Since(h.Last).Round(time.Second))
			}
		}
	}
}

func (p *proof) answered(peer string, at netip.Addr, took time.Duration, err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("no answer in %d s; what does vallum isolate status say there?", shaking)
	}
	if err != nil {
		p.fail("%s does not answer inside the overlay at %s: %v", peer, at, err)
		return
	}
	p.ok("%s answers inside the overlay at %s in %s", peer, at, took.Round(10*time.Microsecond))
}

// shaking is how often a peer is asked, a second each: WireGuard repeats a handshake that was lost only after 5 s
// (REKEY_TIMEOUT).
const shaking = 8

func echoFrom(ctx context.Context, p *isolate.Plan, to netip.Addr) (took time.Duration, err error) {
	own := ownFor(p, to)
	if !own.IsValid() {
		return 0, errors.New("this node has no overlay address of that family")
	}
	met := false
	for range shaking {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		took, err = knock.Echo(own, to, time.Second)
		if err == nil && met {
			return took, nil
		}
		met = met || err == nil // the first may have waited for the handshake
	}
	return took, err
}

// bypasses names what carries traffic past everything that is asked here.
func (p *proof) bypasses() error {
	snapshot, err := observeMachine("")
	if err != nil {
		return err
	}
	for _, b := range snapshot.Bypasses {
		p.NotProtected = append(p.NotProtected, b.Text())
		p.say("%s", screen.Wrap("NOT PROTECTED: "+b.Text(), "      ", 0, screenColumns))
	}
	return nil
}

// channelOf is what vLLM uses a port for.
func channelOf(port uint16) string { return audit.PortChannel(port, 8000) }

// strangers says what came of knocking.
func (p *proof) strangers(who string, r knock.Report) {
	for _, answer := range r.Answers {
		p.fail("%s answers: %s", who, answer)
	}
	for _, why := range r.Unasked {
		p.unsure("%s could not be asked: %s", who, why)
	}
	if r.Silent() {
		p.ok("%s is silent: %d questions, no answer", who, r.Asked)
	}
}

// outside asks as a stranger. Silence is also what a machine gives that is switched off: whether it is up is a member's to
// say.
func (p *proof) outside(ctx context.Context, args []string, ports []uint16, wait time.Duration, state string) error {
	if len(args) == 0 {
		return usagef("--as-outsider needs the nodes' addresses: those of the underlay, and those of the overlay routed to them")
	}
	if err := refuseMember(state); err != nil {
		return err
	}
	snapshot, err := observeMachine("")
	if err != nil {
		return err
	}
	var all []netip.Addr
	for _, arg := range args {
		addr, err := netip.ParseAddr(arg)
		if err != nil {
			return usagef("%q is not an address", arg)
		}
		if snapshot.Own(addr.Unmap()) {
			return usagef("%s is an address of this machine: an outsider asks others", addr)
		}
		all = append(all, addr.Unmap())
	}
	reports := make([]knock.Report, len(all))
	var asking sync.WaitGroup
	for i, addr := range all {
		asking.Go(func() { reports[i] = knock.Ask(ctx, addr, wait, ports, channelOf) })
	}
	asking.Wait()
	for i, addr := range all {
		p.strangers(addr.String(), reports[i])
	}
	if !p.failed && !p.inconclusive {
		p.note("a machine that is off is silent too: vallum isolate verify on a member says that it is up")
	}
	return nil
}

// refuseMember refuses to pose as an outsider on a machine that is none: its own rules keep overlay addresses off the
// underlay, so that it would hear nothing whatever the others let in.
func refuseMember(state string) error {
	dir, err := isolateState(state)
	if err != nil {
		return err
	}
	plan, _, err := (apply.State{Dir: dir}).Applied()
	if err != nil {
		return err
	}
	// Whatever folder it was applied from. Who may not look at the rules is told by the folder alone.
	if loaded, err := nft.Counters(); plan == nil && err == nil && loaded != nil {
		return errors.New("the rules of an overlay are loaded on this machine, so that it is no outsider: run it on one without")
	}
	if plan == nil {
		return nil
	}
	return fmt.Errorf("this machine is node %q of fleet %q, and no outsider: run it on a machine without the overlay", plan.Node, plan.Fleet)
}

func (p *proof) wire(ctx context.Context, plan *isolate.Plan, own netip.AddrPort, needles [][]byte, watch time.Duration) error {
	w := wire.NewWatcher(plan, own, needles)
	ctx, stop := context.WithTimeout(ctx, watch)
	defer stop()
	if err := wire.Capture(ctx, w, plan); err != nil {
		return err
	}
	r := w.Report()
	p.Wire = &r
	snapshot, err := observeMachine("")
	if err != nil {
		return err
	}
	for _, f := range r.Flows {
		marked := ""
		if f.Marked {
			marked = ", with the marked prompt"
		}
		p.fail("in clear: %s %s to %s, %d packet(s)%s: %s", f.Protocol, f.From, f.To, f.Packets, marked, holder(snapshot, f))
	}
	if r.Lost > 0 {
		p.say("      %d packet(s) came too fast to be looked at: watch for a shorter time, or with less traffic", r.Lost)
	}
	if r.Sought && r.Crossed > 0 {
		p.say("      the marked prompt crossed inside the tunnel in %d packet(s)", r.Crossed)
	}
	if r.Sought && r.Crossed == 0 {
		p.note("the marked prompt was not seen inside the tunnel either: nobody sent it meanwhile, or it has other token ids")
	}
	p.say("wire: %s; %d packet(s) of the tunnel that carried something", r.Verdict, r.Tunnel)
	switch r.Verdict {
	case wire.Clean:
	case wire.Inconclusive:
		p.inconclusive = true
	default:
		p.failed = true
	}
	return nil
}

// holder names who on this machine has the flow: the socket of the connection, otherwise who listens for it.
func holder(snapshot *isolate.Snapshot, f wire.Flow) string {
	for _, whole := range []bool{true, false} {
		for _, k := range snapshot.Sockets {
			if k.Namespace == "" && k.Protocol == f.Protocol && k.PID != 0 && (has(k, f.From, whole) || has(k, f.To, whole)) {
				return fmt.Sprintf("%s (%d), %s", k.Process, k.PID, audit.Channel(k, 8000))
			}
		}
	}
	for _, port := range []uint16{f.To.Port(), f.From.Port()} {
		if name := audit.PortChannel(port, 8000); name != "" {
			return name
		}
	}
	return "nobody holds it now"
}

// has reports whether an end of a flow is the socket's: by its address, or by its port alone where it listens on every one.
func has(k isolate.Socket, end netip.AddrPort, whole bool) bool {
	a := k.Local.Addr().Unmap()
	return k.Local.Port() == end.Port() && (a == end.Addr() || !whole && k.Listening && a.IsUnspecified())
}
