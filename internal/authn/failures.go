package authn

import (
	"net/netip"
	"sync"
	"time"

	"github.com/vallum/vallum/internal/remote"
)

const (
	defaultFailures  = 30
	defaultAddresses = 16384
	// evictLook is how many addresses are looked at when one must be forgotten.
	evictLook = 8
)

// failures counts wrong keys by address: a bucket each, of bounded number. It refuses nobody who has a right key, so that
// a flood, from many addresses or from one that is shared, locks nobody out; all it does is to tell the flood to wait.
type failures struct {
	mu        sync.Mutex
	interval  time.Duration // in which one failure is forgotten
	most      time.Duration // the bucket's height
	addresses int
	byNet     map[netip.Prefix]*failed
}

// failed is how far a network is ahead of its rate, at the time last seen.
type failed struct {
	ahead time.Duration
	seen  time.Time
}

func (f *failures) init(perMinute, addresses int) {
	if perMinute <= 0 {
		perMinute = defaultFailures
	}
	if addresses <= 0 {
		addresses = defaultAddresses
	}
	f.interval = time.Minute / time.Duration(perMinute)
	f.most = f.interval * time.Duration(perMinute)
	f.addresses = addresses
	f.byNet = make(map[netip.Prefix]*failed)
}

// count notes a failure and says how long the address has to wait; zero while it is within its rate.
func (f *failures) count(from netip.Addr, now time.Time) time.Duration {
	where := remote.Network(from)
	f.mu.Lock()
	defer f.mu.Unlock()
	b, known := f.byNet[where]
	if !known {
		if len(f.byNet) >= f.addresses {
			f.evict(now)
		}
		b = &failed{seen: now}
		f.byNet[where] = b
	}
	b.advance(now)
	if wait := b.ahead + f.interval - f.most; wait > 0 {
		return wait
	}
	b.ahead += f.interval
	return 0
}

// backstep is how far back a time may be without being taken for a clock that jumped: requests that arrive together
// do not get here in order, and going back with each would count the time between them twice.
const backstep = 2 * time.Second

// advance lets time pass; a clock that jumped back starts anew from there, and gives nothing.
func (b *failed) advance(now time.Time) {
	passed := now.Sub(b.seen)
	if passed > 0 {
		b.ahead = max(0, b.ahead-passed)
	}
	if passed > 0 || passed < -backstep {
		b.seen = now
	}
}

// evict forgets the least interesting of a few addresses. Which few the map's order says, which is random: whoever
// floods with addresses mostly evicts its own.
func (f *failures) evict(now time.Time) {
	var victim netip.Prefix
	least, looked := time.Duration(-1), 0
	for where, b := range f.byNet {
		b.advance(now)
		if least < 0 || b.ahead < least {
			victim, least = where, b.ahead
		}
		if looked++; looked == evictLook {
			break
		}
	}
	delete(f.byNet, victim)
}
