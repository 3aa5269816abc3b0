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
	"github.com/vallum/vallum/internal/isolate/tunnel"
	"github.com/vallum/vallum/internal/isolate/wire"
)

func newIsolateVerify(s streams) *cobra.Command {
	in := &isolateInput{}
	var outsider bool
	var watch time.Duration
	var tokens, text, ports string
	c := &cobra.Command{
		Use:   "verify [ADDRESS…]",
		Short: "Proves the overlay: from this node, from outside, and on the wire",
		Long: "On a node: every peer must answer inside the overlay and be silent outside it. --wire looks at the underlay's packets\n" +
			"for as long as it is told: send a marked prompt meanwhile and give its token ids, because vLLM never sends the text.\n" +
			"--as-outsider needs no keys: run it on a machine that is no member, with the nodes' addresses.\n" +
			"Exit status 0: it holds; 1: it does not; 3: nothing was seen, so that nothing is proven.",
		Example: "  vallum isolate verify --wire 30s --tokens 9906,11,1917\n" +
			"  vallum isolate verify --as-outsider 192.0.2.1 10.99.0.1",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			list, err := parsePorts(ports)
			if err != nil {
				return usageError{err}
			}
			if outsider {
				return s.verifyOutside(c.Context(), args, list)
			}
			if len(args) > 0 {
				return usagef("addresses are for --as-outsider; a node knows its peers")
			}
			needles, err := parseNeedles(tokens, text)
			if err != nil {
				return usageError{err}
			}
			return s.verifyNode(c.Context(), in, list, needles, watch)
		},
	}
	in.flags(c)
	c.Flags().BoolVar(&outsider, "as-outsider", false, "this machine is no member: nothing of the addresses may answer")
	c.Flags().DurationVar(&watch, "wire", 0, "look at the underlay's packets for this long")
	c.Flags().StringVar(&tokens, "tokens", "", "token ids of the marked prompt, side by side: 9906,11,1917")
	c.Flags().StringVar(&text, "text", "", "text of the marked prompt")
	c.Flags().StringVar(&ports, "ports", "", "TCP ports to try, such as 8000,29501,30000-31000 (default: vLLM's well-known ones)")
	return c
}

// verifyNode verifies from a member.
func (s streams) verifyNode(ctx context.Context, in *isolateInput, ports []uint16, needles [][]byte, watch time.Duration) error {
	n, err := in.read(s)
	if err != nil {
		return err
	}
	self, ok := n.manifest.ByKey(n.public)
	if !ok {
		return errors.New("this node is not in the manifest")
	}
	st := apply.State{Dir: n.state}
	if err := st.Holds(); err != nil {
		return err
	}
	p, _, err := st.Applied()
	if err != nil {
		return err
	}
	if err := n.manifest.Current(time.Now()); err != nil {
		fmt.Fprintf(s.err, "vallum: warning: %v\n", err)
	}
	failed := s.verifyPeers(ctx, p, ports)
	if watch > 0 {
		if err := s.verifyWire(ctx, p, self.Endpoint, needles, watch); err != nil {
			return err
		}
	}
	if failed {
		return errNo
	}
	return nil
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

// verifyPeers asks every peer inside, and knocks outside. Liveness comes from the tunnel: vLLM's /health stays 200 when
// the tunnel is dead.
func (s streams) verifyPeers(ctx context.Context, p *isolate.Plan, ports []uint16) (failed bool) {
	for _, peer := range p.Peers {
		for _, a := range peer.Allowed {
			took, err := echoFrom(p, a.Addr())
			if err != nil {
				failed = true
				fmt.Fprintf(s.out, "FAIL  %s does not answer inside the overlay at %s: %v\n", peer.Name, a.Addr(), err)
				continue
			}
			fmt.Fprintf(s.out, "ok    %s answers inside the overlay at %s in %s\n", peer.Name, a.Addr(), took.Round(10*time.Microsecond))
		}
		answers := knock(ctx, peer.Endpoint.Addr(), ports)
		for _, answer := range answers {
			failed = true
			fmt.Fprintf(s.out, "FAIL  %s answers outside the overlay: %s\n", peer.Name, answer)
		}
		if len(answers) == 0 {
			fmt.Fprintf(s.out, "ok    %s is silent outside the overlay on %d port(s) of %s\n", peer.Name, len(ports), peer.Endpoint.Addr())
		}
	}
	if list, err := tunnel.Handshakes(p); err == nil {
		for _, h := range list {
			if !h.Last.IsZero() && time.Since(h.Last) > 4*time.Minute {
				fmt.Fprintf(s.out, "      %s was heard %s ago: its tunnel may be dead\n", h.Name, time.Since(h.Last).Round(time.Second))
			}
		}
	}
	return failed
}

func echoFrom(p *isolate.Plan, to netip.Addr) (took time.Duration, err error) {
	for _, own := range p.Addresses {
		if own.Is4() != to.Is4() {
			continue
		}
		// The first packet may wait for a handshake.
		for range 3 {
			if _, err = wire.Echo(own, to, time.Second); err == nil {
				return wire.Echo(own, to, time.Second)
			}
		}
		return 0, err
	}
	return 0, errors.New("this node has no overlay address of that family")
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

func (s streams) verifyOutside(ctx context.Context, args []string, ports []uint16) error {
	if len(args) == 0 {
		return usagef("--as-outsider needs the nodes' addresses: those of the underlay, and those of the overlay routed to them")
	}
	failed := false
	for _, arg := range args {
		addr, err := netip.ParseAddr(arg)
		if err != nil {
			return usagef("%q is not an address", arg)
		}
		answers := knock(ctx, addr, ports)
		for _, answer := range answers {
			failed = true
			fmt.Fprintf(s.out, "FAIL  %s: %s\n", addr, answer)
		}
		if len(answers) == 0 {
			fmt.Fprintf(s.out, "ok    %s is silent on %d port(s)\n", addr, len(ports))
		}
	}
	if failed {
		return errNo
	}
	return nil
}

func (s streams) verifyWire(ctx context.Context, p *isolate.Plan, own netip.AddrPort, needles [][]byte, watch time.Duration) error {
	w := wire.NewWatcher(p, own, needles)
	ctx, stop := context.WithTimeout(ctx, watch)
	defer stop()
	if err := wire.Capture(ctx, w, p); err != nil {
		return err
	}
	r := w.Report()
	snapshot, err := observeMachine("")
	if err != nil {
		return err
	}
	for _, f := range r.Flows {
		marked := ""
		if f.Marked {
			marked = ", with the marked prompt"
		}
		fmt.Fprintf(s.out, "FAIL  in clear: %s %s to %s, %d packet(s)%s: %s\n", f.Protocol, f.From, f.To, f.Packets, marked, holder(snapshot, f))
	}
	fmt.Fprintf(s.out, "wire: %s; %d packet(s) of the tunnel that carried something\n", r.Verdict, r.Tunnel)
	switch r.Verdict {
	case wire.Clean:
		return nil
	case wire.Inconclusive:
		return statusError(exitInconclusive)
	}
	return errNo
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
