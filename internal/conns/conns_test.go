package conns

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// caller is a connection that a listener is given, as a client at that address opens one.
type caller struct {
	net.Conn
	from   net.Addr
	ended  chan struct{}
	ending sync.Once
}

func (c *caller) RemoteAddr() net.Addr { return c.from }

func (c *caller) Close() error {
	c.ending.Do(func() { close(c.ended) })
	return nil
}

// open reports whether nobody closed it.
func (c *caller) open() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

func from(address string) *caller {
	c := &caller{ended: make(chan struct{}), from: &net.UnixAddr{Name: "@", Net: "unix"}}
	if address != "" {
		c.from = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 5))
	}
	return c
}

// door is a listener whose connections the test brings.
type door struct{ come chan net.Conn }

func (d door) Accept() (net.Conn, error) {
	if c, ok := <-d.come; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (d door) Close() error   { return nil }
func (d door) Addr() net.Addr { return &net.TCPAddr{} }

// room is a Bound with listeners, and what came through them.
type room struct {
	*Bound
	t     *testing.T
	lists []net.Listener
	doors []door
}

func newRoom(t *testing.T, l Limits, listeners int, shared func(netip.Addr) bool) *room {
	r := &room{Bound: &Bound{}, t: t}
	r.Limit(l)
	for range listeners {
		d := door{make(chan net.Conn, 1)}
		r.doors, r.lists = append(r.doors, d), append(r.lists, r.Listener(d, shared))
	}
	return r
}

// comes brings a connection to a listener, and gives what its server gets; nil when the connection was closed as it came.
func (r *room) comes(listener int, c *caller) net.Conn {
	r.t.Helper()
	r.doors[listener].come <- c
	got := make(chan net.Conn, 1)
	last := from("") // so that Accept returns also when the first is refused
	last.from = nil
	go func() {
		held, err := r.lists[listener].Accept()
		if err != nil {
			r.t.Error(err)
		}
		got <- held
	}()
	select {
	case held := <-got:
		return held
	case <-c.ended:
	}
	r.raise(1)
	r.doors[listener].come <- last
	_ = (<-got).Close()
	r.raise(-1)
	return nil
}

// raise changes the limit on all connections.
func (r *room) raise(by int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limits.All += by
}

func (r *room) holds(what string, open int, s Stats) {
	r.t.Helper()
	s.Open, s.Most = open, r.limits.All
	if got := r.Stats(); got != s {
		r.t.Errorf("%s: %+v, want %+v", what, got, s)
	}
}

// busy is a connection on which a request runs.
func busy(c net.Conn) net.Conn {
	idleness(c).Store(Active)
	return c
}

func TestTheBoundHoldsOverAllListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, Limits{All: 3, Address: 3}, 2, nil)
		var held []net.Conn
		for i, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
			held = append(held, busy(r.comes(i%2, from(a))))
		}
		for i := range 2 {
			if r.comes(i, from("192.0.2.4")) != nil {
				t.Errorf("listener %d has a fourth connection", i)
			}
		}
		r.holds("when all places were taken", 3, Stats{RefusedAll: 2})
		_ = held[1].Close()
		_ = held[1].Close() // a second time it has no place to give back
		r.holds("after one was closed", 2, Stats{RefusedAll: 2})
		if r.comes(1, from("192.0.2.4")) == nil || r.comes(1, from("192.0.2.5")) != nil {
			t.Error("one place was given back, and one connection should get it")
		}
	})
}

// Idle connections are closed for new ones, the longest idle first; those on which a request runs are not.
func TestIdleConnectionsMakeRoomOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, Limits{All: 5, Address: 5}, 2, nil)
		var callers []*caller
		var held []net.Conn
		for range 5 {
			c := from("192.0.2.1")
			callers, held = append(callers, c), append(held, r.comes(len(held)%2, c))
			<-time.After(time.Second)
		}
		busy(held[0])
		State(held[1], http.StateActive)
		<-time.After(time.Second)
		State(held[1], http.StateIdle) // now the last of the idle ones
		for _, next := range []int{2, 3, 4, 1} {
			if !callers[next].open() {
				t.Fatalf("connection %d was closed before its turn", next)
			}
			if busy(r.comes(0, from("192.0.2.2"))); callers[next].open() {
				t.Fatalf("connection %d is open; it was the next", next)
			}
		}
		if r.comes(0, from("192.0.2.2")) != nil || !callers[0].open() {
			t.Error("a connection on which a request runs had to make room")
		}
		r.holds("at last", 5, Stats{IdleClosed: 4, RefusedAll: 1})
		if got := idleness(held[2]).Load(); got != Closed {
			t.Errorf("a connection that was closed counts as %d for its server", got)
		}
	})
}

// Who opens connections without end from one network fills its own share, and closes its own idle ones.
func TestAnAddressHasItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		proxies := netip.MustParsePrefix("10.0.0.0/8")
		r := newRoom(t, Limits{All: 12, Address: 2}, 1, proxies.Contains)
		other := from("192.0.2.1")
		r.comes(0, other)
		<-time.After(time.Second)
		for _, address := range []string{"192.0.2.9", "2001:db8::"} {
			a := netip.MustParseAddr(address)
			first := from(address)
			second := from(a.Next().String())
			if a.Is4() {
				second = from("::ffff:192.0.2.9")
			}
			if r.comes(0, first) == nil || busy(r.comes(0, second)) == nil {
				t.Fatalf("%s has not got its share", address)
			}
			third := from(address)
			if busy(r.comes(0, third)); first.open() || !other.open() || !second.open() {
				t.Errorf("%s: the third connection should have closed the first", address)
			}
			if r.comes(0, from(address)) != nil {
				t.Errorf("%s has a third busy connection", address)
			}
		}
		r.holds("when two networks had their share", 5, Stats{IdleClosed: 2, RefusedAddress: 2})
		for _, many := range []string{"10.1.2.3", ""} {
			for range 3 {
				if r.comes(0, from(many)) == nil {
					t.Errorf("%q stands for many, and has no share of its own", many)
				}
			}
		}
		r.holds("with a proxy's", 11, Stats{IdleClosed: 2, RefusedAddress: 2})
	})
}

func TestTheZeroBoundRefuses(t *testing.T) {
	for _, l := range []Limits{{}, {Address: 9}, {All: 9}} {
		r := newRoom(t, l, 1, nil)
		if r.comes(0, from("192.0.2.1")) != nil {
			t.Errorf("%+v takes a connection", l)
		}
	}
}

// A flood is told of once a minute, with how many there were, and not once for each connection.
func TestRefusalsAreToldOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, Limits{All: 2, Address: 1}, 1, nil)
		var told []Refusals
		r.Refused = func(n Refusals) { told = append(told, n) }
		busy(r.comes(0, from("192.0.2.1")))
		busy(r.comes(0, from("192.0.2.2")))
		for range 100 {
			r.comes(0, from("192.0.2.3"))
			r.comes(0, from("192.0.2.1"))
			<-time.After(time.Minute/100 - time.Millisecond)
		}
		if len(told) != 1 {
			t.Errorf("within a minute told %+v", told)
		}
		<-time.After(time.Second)
		r.comes(0, from("192.0.2.1"))
		want := []Refusals{{All: 1, Last: netip.MustParsePrefix("192.0.2.3/32")}, {All: 99, Address: 101, Last: netip.MustParsePrefix("192.0.2.1/32")}}
		if !slices.Equal(told, want) {
			t.Errorf("told %+v, want %+v", told, want)
		}
	})
}

// A search looks at every connection: one that found nothing is not made again for each that comes.
func TestASearchThatFoundNothingIsNotRepeatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, Limits{All: 1, Address: 1}, 1, nil)
		held := busy(r.comes(0, from("192.0.2.1")))
		if r.comes(0, from("192.0.2.2")) != nil {
			t.Fatal("a busy connection made room")
		}
		State(held, http.StateIdle)
		if r.comes(0, from("192.0.2.2")) != nil {
			t.Error("the search was repeated")
		}
		<-time.After(lookAgain)
		if r.comes(0, from("192.0.2.2")) == nil {
			t.Error("the idle connection is not found")
		}
	})
}

// With many that are idle, several are closed by one search: it must not be made for each connection that comes.
func TestASearchClosesAShareOfTheIdle(t *testing.T) {
	const n = 400
	r := newRoom(t, Limits{All: n, Address: n}, 1, nil)
	for range n {
		r.comes(0, from("192.0.2.1"))
	}
	if r.comes(0, from("192.0.2.1")) == nil {
		t.Fatal("nothing made room")
	}
	r.holds("after one search", n-n/16+1, Stats{IdleClosed: n / 16})
}

func TestLimitsChangeWhileConnectionsAreOpen(t *testing.T) {
	r := newRoom(t, Limits{All: 3, Address: 3}, 1, nil)
	var held []net.Conn
	for range 3 {
		held = append(held, busy(r.comes(0, from("192.0.2.1"))))
	}
	r.Limit(Limits{All: 2, Address: 2})
	r.holds("right after", 3, Stats{})
	_ = held[0].Close()
	if r.comes(0, from("192.0.2.2")) != nil {
		t.Error("a third connection has a place of two")
	}
	_ = held[1].Close()
	if r.comes(0, from("192.0.2.2")) == nil {
		t.Error("the second place is not given")
	}
}

// Whatever comes and goes at the same time: no more than the bound, and nothing is left.
func TestCountsReturnToZero(t *testing.T) {
	bound := &Bound{}
	bound.Limit(Limits{All: 20, Address: 8})
	addresses := []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", ""}
	var wg sync.WaitGroup
	for i := range 8 {
		d := door{make(chan net.Conn)}
		l := bound.Listener(d, nil)
		held := make(chan net.Conn, 64)
		wg.Go(func() {
			defer close(d.come)
			for n := range 500 {
				d.come <- from(addresses[(n+i)%len(addresses)])
			}
		})
		wg.Go(func() {
			defer close(held)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				held <- c
			}
		})
		for range 2 {
			wg.Go(func() {
				for c := range held {
					State(c, http.StateActive)
					if s := bound.Stats(); s.Open > 20 {
						t.Errorf("%d are open", s.Open)
					}
					State(c, http.StateIdle)
					wg.Go(func() { _ = c.Close() })
					_ = c.Close()
				}
			})
		}
	}
	wg.Wait()
	if len(bound.from) != 0 || len(bound.open.places) != 0 {
		t.Errorf("%d connections and %d addresses are left", len(bound.open.places), len(bound.from))
	}
}

// A server finds the place under TLS too, and a connection that has none changes nothing.
func TestThePlaceIsFoundUnderTLS(t *testing.T) {
	r := newRoom(t, Limits{All: 1, Address: 1}, 1, nil)
	held := r.comes(0, from("192.0.2.1"))
	secure := tls.Server(held, &tls.Config{})
	State(secure, http.StateActive)
	if got := idleness(held).Load(); got != Active {
		t.Errorf("it counts as %d", got)
	}
	State(secure, http.StateClosed)
	State(secure, http.StateNew)
	if got := idleness(held).Load(); got != Active {
		t.Errorf("it counts as %d", got)
	}
	idleness(held).Store(Closed)
	State(secure, http.StateIdle)
	if got := idleness(held).Load(); got != Closed {
		t.Errorf("a closed connection counts as %d", got)
	}
	State(from(""), http.StateActive)
}

// What a connection can do is not lost by its place.
func TestSocketsKeepTheirMethods(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": t.TempDir() + "/s"} {
		plain, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		bound := &Bound{}
		bound.Limit(Limits{All: 1, Address: 1})
		l := bound.Listener(plain, nil)
		theirs, err := net.Dial(network, plain.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ours, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if half, ok := ours.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			t.Errorf("%s: %T cannot be closed in one direction", network, ours)
		}
		if _, ok := ours.(interface{ SetLinger(int) error }); !ok && network == "tcp" {
			t.Errorf("%T cannot be reset", ours)
		}
		if err := errors.Join(ours.Close(), theirs.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		if n := bound.Stats().Open; n != 0 {
			t.Errorf("%s: %d are open", network, n)
		}
	}
}
