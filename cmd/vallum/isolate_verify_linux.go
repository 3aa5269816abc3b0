package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/apply"
	"github.com/vallum/vallum/internal/isolate/audit"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/tunnel"
	"github.com/vallum/vallum/internal/isolate/wire"
)

// verification is what is asked of verify.
type verification struct {
	in                  isolateInput
	outsider, asJSON    bool
	watch               time.Duration
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
			"Exit status 0: it holds; 1: it does not; 3: nothing was seen or measured, so that nothing is proven.\n\n" +
			"--measure takes round trips and throughput to every peer that runs --measure-serve meanwhile, and says what they mean\n" +
			"for tensor, pipeline and data parallelism: at most 2 s and 256 MiB a path. With --bare on both sides it measures the\n" +
			"underlay too, with zeros in clear; no rule is opened, because both ends connect to each other at once.",
		Example: "  vallum isolate verify --wire 30s --tokens 9906,11,1917\n" +
			"  vallum isolate verify --as-outsider 192.0.2.1 10.99.0.1\n" +
			"  vallum isolate verify --measure-serve 1m --bare      # on one node, and on another:\n" +
			"  vallum isolate verify --measure --bare",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return v.run(c.Context(), s, args) },
	}
	v.in.flags(c)
	c.Flags().BoolVar(&v.outsider, "as-outsider", false, "this machine is no member: nothing of the addresses may answer")
	c.Flags().DurationVar(&v.watch, "wire", 0, "look at the underlay's packets for this long")
	c.Flags().StringVar(&v.tokens, "tokens", "", "token ids of the marked prompt, side by side: 9906,11,1917")
	c.Flags().StringVar(&v.text, "text", "", "text of the marked prompt")
	c.Flags().StringVar(&v.ports, "ports", "", "TCP ports to try, such as 8000,29501,30000-31000 (default: vLLM's well-known ones)")
	c.Flags().BoolVar(&v.asJSON, "json", false, "as JSON")
	v.measuring.flags(c)
	return c
}

func (v *verification) run(ctx context.Context, s streams, args []string) error {
	ports, err := parsePorts(v.ports)
	if err != nil {
		return usageError{err}
	}
	if err := v.measuring.check(v.outsider); err != nil {
		return err
	}
	p := &proof{s: s, asJSON: v.asJSON, Checks: []proven{}}
	if v.outsider {
		if err := p.outside(ctx, args, ports); err != nil {
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
	self, plan, err := v.holds(s)
	if err != nil {
		return err
	}
	if v.serve > 0 {
		return s.serveMeasuring(ctx, plan, self, v.measuring)
	}
	p.Node = plan.Node
	p.peers(ctx, plan, ports)
	if v.watch > 0 {
		if err := p.wire(ctx, plan, self.Endpoint, needles, v.watch); err != nil {
			return err
		}
	}
	if v.measure {
		p.measure(ctx, plan, self, v.measuring)
	}
	return p.end()
}

// holds is the node and its plan, when the overlay stands as planned.
func (v *verification) holds(s streams) (self fleet.Node, p *isolate.Plan, err error) {
	n, err := v.in.read(s)
	if err != nil {
		return self, nil, err
	}
	self, ok := n.manifest.ByKey(n.public)
	if !ok {
		return self, nil, errors.New("this node is not in the manifest")
	}
	st := apply.State{Dir: n.state}
	if err := st.Holds(); err != nil {
		return self, nil, err
	}
	if p, _, err = st.Applied(); err != nil {
		return self, nil, err
	}
	if err := n.manifest.Current(time.Now()); err != nil {
		fmt.Fprintf(s.err, "vallum: warning: %v\n", err)
	}
	return self, p, nil
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

func parsePorts(s string) ([]uint16, error) {
	if s == "" {
		return append(audit.Ports(), 8000), nil
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
func (p *proof) peers(ctx context.Context, plan *isolate.Plan, ports []uint16) {
	for _, peer := range plan.Peers {
		for _, a := range peer.Allowed {
			took, err := echoFrom(plan, a.Addr())
			if err != nil {
				p.fail("%s does not answer inside the overlay at %s: %v", peer.Name, a.Addr(), err)
				continue
			}
			p.ok("%s answers inside the overlay at %s in %s", peer.Name, a.Addr(), took.Round(10*time.Microsecond))
		}
		answers := knock(ctx, peer.Endpoint.Addr(), ports)
		for _, answer := range answers {
			p.fail("%s answers outside the overlay: %s", peer.Name, answer)
		}
		if len(answers) == 0 {
			p.ok("%s is silent outside the overlay on %d port(s) of %s", peer.Name, len(ports), peer.Endpoint.Addr())
		}
	}
	if list, err := tunnel.Handshakes(plan); err == nil {
		for _, h := range list {
			if !h.Last.IsZero() && time.Since(h.Last) > 4*time.Minute {
				p.note("%s was heard %s ago: its tunnel may be dead", h.Name, time.Since(h.Last).Round(time.Second))
			}
		}
	}
}

func echoFrom(p *isolate.Plan, to netip.Addr) (took time.Duration, err error) {
	own := ownFor(p, to)
	if !own.IsValid() {
		return 0, errors.New("this node has no overlay address of that family")
	}
	// The first packet may wait for a handshake.
	for range 3 {
		if _, err = wire.Echo(own, to, time.Second); err == nil {
			return wire.Echo(own, to, time.Second)
		}
	}
	return 0, err
}

// knock tries TCP ports side by side and says which answered. A refusal is an answer too: it came past the rules.
func knock(ctx context.Context, addr netip.Addr, ports []uint16) (answers []string) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	slots := make(chan struct{}, 256)
	for _, port := range ports {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			d := net.Dialer{Timeout: time.Second}
			c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, port).String())
			answer := ""
			switch {
			case err == nil:
				_ = c.Close()
				answer = fmt.Sprintf("port %d is open", port)
			case errors.Is(err, syscall.ECONNREFUSED):
				answer = fmt.Sprintf("port %d is closed, and says so: no rule keeps strangers from it", port)
			default:
				return
			}
			if name := audit.PortChannel(port, 8000); name != "" {
				answer += " (" + name + ")"
			}
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, answer)
		})
	}
	wait.Wait()
	return answers
}

func (p *proof) outside(ctx context.Context, args []string, ports []uint16) error {
	if len(args) == 0 {
		return usagef("--as-outsider needs the nodes' addresses: those of the underlay, and those of the overlay routed to them")
	}
	for _, arg := range args {
		addr, err := netip.ParseAddr(arg)
		if err != nil {
			return usagef("%q is not an address", arg)
		}
		answers := knock(ctx, addr, ports)
		for _, answer := range answers {
			p.fail("%s: %s", addr, answer)
		}
		if len(answers) == 0 {
			p.ok("%s is silent on %d port(s)", addr, len(ports))
		}
	}
	return nil
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

// holder names who on this machine has the flow.
func holder(snapshot *isolate.Snapshot, f wire.Flow) string {
	for _, k := range snapshot.Sockets {
		local := netip.AddrPortFrom(k.Local.Addr().Unmap(), k.Local.Port())
		if local == f.From || local == f.To {
			return fmt.Sprintf("%s (%d), %s", k.Process, k.PID, audit.Channel(k, 8000))
		}
	}
	for _, port := range []uint16{f.To.Port(), f.From.Port()} {
		if name := audit.PortChannel(port, 8000); name != "" {
			return name
		}
	}
	return "nobody holds it now"
}
