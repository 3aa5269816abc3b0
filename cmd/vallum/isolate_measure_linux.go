package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/measure"
)

// measuring is what is asked of verify about figures. The zero value measures nothing and serves nobody.
type measuring struct {
	measure, bare bool
	serve         time.Duration
	port          uint16
}

// longestServing bounds how long a node lets itself be measured: consent that is forgotten ends.
const longestServing = 10 * time.Minute

func (m *measuring) flags(c *cobra.Command) {
	c.Flags().BoolVar(&m.measure, "measure", false, "measure the tunnel to every peer that serves it")
	c.Flags().DurationVar(&m.serve, "measure-serve", 0, "let the peers measure, on the overlay's address only, for this long (at most 10m)")
	c.Flags().BoolVar(&m.bare, "bare", false, "with either: the path beside the overlay too, in clear")
	c.Flags().Uint16Var(&m.port, "measure-port", 51821, "TCP port of measuring, the same on both sides")
}

func (m *measuring) check(outsider bool) error {
	asked := m.measure || m.serve != 0
	switch {
	case m.serve < 0 || m.serve > longestServing:
		return usagef("--measure-serve: %s is not a time of at most %s", m.serve, longestServing)
	case m.measure && m.serve != 0:
		return usagef("--measure and --measure-serve are for two nodes: one measures, the other serves")
	case asked && outsider:
		return usagef("--as-outsider has no tunnel to measure")
	case m.bare && !asked:
		return usagef("--bare goes with --measure or --measure-serve")
	case asked && m.port == 0:
		return usagef("--measure-port: 0 is not a port")
	}
	return nil
}

// ownFor is this node's overlay address of the family of to; the zero address when it has none.
func ownFor(p *isolate.Plan, to netip.Addr) netip.Addr {
	for _, own := range p.Addresses {
		if own.Is4() == to.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

// errGateway is why a gateway is neither measured nor measures: a port for that would be one more that it reaches.
var errGateway = errors.New("a gateway reaches vLLM's API and nothing else; its round trip is the echo's, above; measure throughput between two nodes of role vllm")

// measure measures the peers one after the other, so that they do not share what is measured. That none could be measured
// is no failure of the overlay, and no figure either.
func (p *proof) measure(ctx context.Context, plan *isolate.Plan, manifest *fleet.Manifest, self fleet.Node, m measuring) {
	for _, peer := range plan.Peers {
		if other, known := manifest.ByKey(peer.PublicKey); known && !(self.Has(fleet.RoleVLLM) && other.Has(fleet.RoleVLLM)) {
			p.note("not measured: %s: %v", peer.Name, errGateway)
			continue
		}
		r, err := measurePeer(ctx, plan, self, peer, m)
		if err != nil {
			p.note("not measured: %s: %v", peer.Name, err)
			continue
		}
		p.Measured = append(p.Measured, r)
		p.say("measured %s at %s", r.Peer, r.Address)
		for _, line := range r.Lines() {
			p.say("      %s", line)
		}
	}
	if len(p.Measured) == 0 {
		p.say("nothing was measured")
		p.inconclusive = true
	}
}

func measurePeer(ctx context.Context, plan *isolate.Plan, self fleet.Node, peer isolate.Peer, m measuring) (r measure.Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, measure.ServedTime)
	defer cancel()
	if len(peer.Allowed) == 0 {
		return r, errors.New("it has no overlay address")
	}
	to := netip.AddrPortFrom(peer.Allowed[0].Addr(), m.port)
	d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(ownFor(plan, to.Addr()), 0))}
	c, err := d.DialContext(ctx, "tcp", to.String())
	var late net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return r, errors.New("it does not serve measuring; run there: vallum isolate verify --measure-serve 1m")
	case errors.As(err, &late) && late.Timeout():
		return r, fmt.Errorf("no answer from %s: its tunnel is down, or its rules keep this node's role from that port", to)
	case err != nil:
		return r, err
	}
	defer closeWith(ctx, c)()
	over, err := measure.Ask(c, measure.Token{}, measure.Token{})
	if err != nil {
		return r, err
	}
	var bare *measure.Asker
	missing := errors.New("--bare asks for it, in clear")
	if m.bare {
		var done func()
		if bare, done, missing = meet(ctx, over, self.Endpoint.Addr(), netip.AddrPortFrom(peer.Endpoint.Addr(), m.port)); missing == nil {
			defer done()
		}
	}
	var inside, beside []measure.Round
	for _, budget := range measure.Rounds() {
		one, err := over.Round(budget)
		if err != nil {
			return r, err
		}
		inside = append(inside, one)
		if missing != nil {
			continue
		}
		if one, missing = bare.Round(budget); missing == nil {
			beside = append(beside, one)
		}
	}
	return measure.NewResult(peer.Name, to.Addr().String(), inside, beside, missing)
}

// meet opens the bare path, with the peer's consent and without a rule.
func meet(ctx context.Context, over *measure.Asker, own netip.Addr, peer netip.AddrPort) (bare *measure.Asker, done func(), err error) {
	c, ticket, err := measure.Meet(ctx, own, peer, over.Bare)
	if errors.Is(err, measure.ErrNotOffered) {
		return nil, nil, fmt.Errorf("%w; add --bare there too", measure.ErrNotOffered)
	}
	if err != nil {
		return nil, nil, err
	}
	done = closeWith(ctx, c)
	if bare, err = measure.Ask(c, ticket.Mine, ticket.Theirs); err != nil {
		done()
		return nil, nil, err
	}
	return bare, done, nil
}

// closeWith closes a connection when ctx ends, or when the function that it returns is called.
func closeWith(ctx context.Context, c net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return func() { stop(); _ = c.Close() }
}

// serveMeasuring is the consent of this node: for a while its peers, and nobody else, may measure. It listens on the
// overlay's addresses only, and serves one at a time.
func (s streams) serveMeasuring(ctx context.Context, plan *isolate.Plan, self fleet.Node, m measuring) error {
	ctx, cancel := context.WithTimeout(ctx, m.serve)
	defer cancel()
	calls := make(chan net.Conn)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	var at []string
	for _, own := range plan.Addresses {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, m.port)))
		if err != nil {
			return fmt.Errorf("listening for measuring: %w", err)
		}
		at = append(at, l.Addr().String())
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		defer stop()
		defer func() { _ = l.Close() }()
		waiting.Go(func() { accept(ctx, l, calls) })
	}
	fmt.Fprintf(s.err, "vallum: peers may measure at %s for %s\n", strings.Join(at, " and "), m.serve)
	for {
		select {
		case c := <-calls:
			s.serveOne(ctx, c, plan, self, m)
		case <-ctx.Done():
			return nil
		}
	}
}

func accept(ctx context.Context, l net.Listener, calls chan<- net.Conn) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed, with ctx
		}
		select {
		case calls <- c:
		case <-ctx.Done():
			_ = c.Close()
			return
		}
	}
}

func (s streams) serveOne(ctx context.Context, c net.Conn, plan *isolate.Plan, self fleet.Node, m measuring) {
	peer, ok := peerAt(plan, c.RemoteAddr())
	if !ok {
		// The rules let nobody else in, but this node's own processes.
		fmt.Fprintf(s.err, "vallum: %s is no peer: not served\n", c.RemoteAddr())
		_ = c.Close()
		return
	}
	serving := measure.Serving{Bytes: measure.Bytes}
	if m.bare {
		serving.Bare = func(ctx context.Context, port uint16) (net.Conn, error) {
			c, err := measure.MeetBack(ctx, netip.AddrPortFrom(self.Endpoint.Addr(), m.port), netip.AddrPortFrom(peer.Endpoint.Addr(), port))
			if err != nil {
				fmt.Fprintf(s.err, "vallum: the bare path to %s: %v\n", peer.Name, err)
			}
			return c, err
		}
	}
	cost, err := measure.Serve(ctx, c, serving)
	fmt.Fprintf(s.out, "%s measured: %d bytes in, %d out\n", peer.Name, cost.In, cost.Out)
	if err != nil {
		fmt.Fprintf(s.err, "vallum: measuring by %s ended early: %v\n", peer.Name, err)
	}
}

// peerAt is the peer whose overlay address it is: WireGuard takes it from the one who holds the key, and from nobody else.
func peerAt(plan *isolate.Plan, from net.Addr) (isolate.Peer, bool) {
	a, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return isolate.Peer{}, false
	}
	for _, peer := range plan.Peers {
		for _, allowed := range peer.Allowed {
			if allowed.Contains(a.Addr().Unmap()) {
				return peer, true
			}
		}
	}
	return isolate.Peer{}, false
}
