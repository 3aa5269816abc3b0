// Package conns bounds how many connections are open, over all listeners that share a Bound and for each address.
// It refuses a connection beyond the bound, once no idle one is left that could be closed for it, and knows nothing of
// what is said on any of them.
package conns

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a connection does, in the number that its server keeps for it (Idleness). Above Active it is idle, since so many
// nanoseconds of Unix time: no byte of a request has come, and it may be closed at once.
const (
	Closed int64 = -1 // by the Bound, or by its server: neither does so twice
	Active int64 = 0  // a request arrives or runs
)

// lookAgain is for how long a search that found no idle connection is not repeated: it looks at all of them, and a flood
// of connections must not make one search each.
const lookAgain = 50 * time.Millisecond

// mostAtOnce is how many idle connections are closed by one search, if they are no more than a sixteenth of the idle ones.
const mostAtOnce = 128

// Limits are how many connections may be open at once. Zero is none.
type Limits struct {
	All     int // over all listeners
	Address int // of one address, where the listener counts it
}

// Stats are what became of connections since the start.
type Stats struct {
	Open           int   // now
	Most           int   // that may be
	IdleClosed     int64 // to make room for another
	RefusedAll     int64 // closed when they came: all places were taken, by connections that were busy
	RefusedAddress int64 // the same, of their address's places
}

// Refusals are what is told of connections that were refused, once a minute at most.
type Refusals struct {
	All, Address int64        // since it was told last, by the bound that they were over
	Last         netip.Prefix // where the last of them came from; invalid when that is not known
}

// Bound is the account of the connections of any number of listeners. The zero Bound refuses every connection; Limit sets
// how many it takes. It may be used by any number of goroutines.
type Bound struct {
	Refused func(Refusals) // told of refusals; not changed once a listener uses the Bound. It may be nil

	mu     sync.Mutex
	limits Limits
	open   group
	from   map[netip.Prefix]*group
	stats  Stats
	untold Refusals
	told   time.Time
}

// group is the connections of one address, or all of them.
type group struct {
	places map[*place]struct{}
	barren time.Time // when a search found nothing to close
}

// Limit changes the limits, from now on: connections that are open stay open.
func (b *Bound) Limit(l Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = l
}

// Stats are the numbers of now.
func (b *Bound) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Open, s.Most = len(b.open.places), b.limits.All
	return s
}

// place is what a connection takes of a Bound.
type place struct {
	bound *Bound
	conn  net.Conn     // to be closed
	from  netip.Prefix // invalid when the address is not counted
	state atomic.Int64
}

// Idleness is the number in which the connection's server says what the connection does. It begins as idle since now.
func (p *place) Idleness() *atomic.Int64 { return &p.state }

// take gives the connection its place, or reports that there is none. For it idle connections are closed, those first that
// have been idle longest.
func (b *Bound) take(p *place) bool {
	p.bound = b
	p.state.Store(time.Now().UnixNano())
	for {
		taken, idle := b.try(p)
		for _, old := range idle {
			_ = old.conn.Close() // gives its place back
		}
		if taken || len(idle) == 0 {
			return taken
		}
	}
}

// try takes the place if there is one; otherwise it gives the idle connections to close, and none when there is none.
func (b *Bound) try(p *place) (taken bool, idle []*place) {
	b.mu.Lock()
	var tell *Refusals
	defer func() {
		b.mu.Unlock()
		if tell != nil && b.Refused != nil {
			b.Refused(*tell)
		}
	}()
	own := b.from[p.from]
	switch {
	case p.from.IsValid() && (own == nil && b.limits.Address < 1 || own != nil && len(own.places) >= b.limits.Address):
		if idle = own.idlest(); len(idle) == 0 {
			b.stats.RefusedAddress++
			b.untold.Address++
			tell = b.tell(p)
		}
	case len(b.open.places) >= b.limits.All:
		if idle = b.open.idlest(); len(idle) == 0 {
			b.stats.RefusedAll++
			b.untold.All++
			tell = b.tell(p)
		}
	default:
		b.list(p)
		return true, nil
	}
	b.stats.IdleClosed += int64(len(idle))
	return false, idle
}

// tell gives what is to be told now: nothing, within a minute of the last time.
func (b *Bound) tell(p *place) *Refusals {
	now := time.Now()
	b.untold.Last = p.from
	if !b.told.IsZero() && now.Sub(b.told) < time.Minute {
		return nil
	}
	tell := b.untold
	b.told, b.untold = now, Refusals{}
	return &tell
}

func (b *Bound) list(p *place) {
	b.open.add(p)
	if !p.from.IsValid() {
		return
	}
	if b.from == nil {
		b.from = map[netip.Prefix]*group{}
	}
	if b.from[p.from] == nil {
		b.from[p.from] = &group{}
	}
	b.from[p.from].add(p)
}

// giveBack may be called more than once.
func (p *place) giveBack() {
	b := p.bound
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.open.places, p)
	if own := b.from[p.from]; own != nil {
		if delete(own.places, p); len(own.places) == 0 {
			delete(b.from, p.from)
		}
	}
}

func (g *group) add(p *place) {
	if g.places == nil {
		g.places = map[*place]struct{}{}
	}
	g.places[p] = struct{}{}
}

// idlest marks the connections that have been idle longest as closed, and gives them.
func (g *group) idlest() []*place {
	if g == nil || !g.barren.IsZero() && time.Since(g.barren) < lookAgain {
		return nil
	}
	type since struct {
		at int64
		p  *place
	}
	var oldest []since // the first comes first
	idle := 0
	for p := range g.places {
		at := p.state.Load()
		if at <= Active {
			continue
		}
		idle++
		if len(oldest) == mostAtOnce && at >= oldest[mostAtOnce-1].at {
			continue
		}
		i, _ := slices.BinarySearchFunc(oldest, at, func(s since, at int64) int { return int(max(-1, min(1, s.at-at))) })
		oldest = slices.Insert(oldest, i, since{at, p})
		oldest = oldest[:min(len(oldest), mostAtOnce)]
	}
	var closing []*place
	for _, s := range oldest[:min(len(oldest), max(1, idle/16))] {
		if s.p.state.CompareAndSwap(s.at, Closed) { // or a request of it has just come
			closing = append(closing, s.p)
		}
	}
	g.barren = time.Time{}
	if len(closing) == 0 {
		g.barren = time.Now()
	}
	return closing
}
