// Package limit counts requests, running requests and tokens per key, and says when there are too many.
// It refuses to read a clock, to wait and to guess: time comes in as a value, a request over a limit gets its
// verdict at once, and a use that is not known yet counts as what was reserved for it.
package limit

import (
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/vallum/vallum/internal/verdict"
)

// Limits are what one key may use. Zero in a field means that there is no limit of that kind (a role without limits
// is legal); a negative value refuses everything. Values above ten thousand million count as that.
type Limits struct {
	// RequestsPerMinute is the lasting rate of requests.
	RequestsPerMinute int64
	// Burst is how many requests may come at once before the rate holds. Zero means RequestsPerMinute: a whole minute's
	// worth. Without RequestsPerMinute it means nothing.
	Burst int64
	// Concurrent is how many requests may run at the same time.
	Concurrent int64
	// TokensPerMinute is the lasting rate of tokens, input and output together, and also how many may be used at once.
	TokensPerMinute int64
}

// check refuses what no configuration can mean. Negative numbers come from arithmetic gone wrong, and must not read as
// "no limit".
func (l Limits) check() error {
	if l.RequestsPerMinute < 0 || l.Burst < 0 || l.Concurrent < 0 || l.TokensPerMinute < 0 {
		return errors.New("a limit is negative: zero means no limit, everything else is a positive number")
	}
	return nil
}

func (l Limits) burst() int64 {
	if l.Burst > 0 {
		return l.Burst
	}
	return l.RequestsPerMinute
}

// shardCount spreads the keys over as many locks. A power of two.
const shardCount = 64

// sweepFloor is how many keys a shard holds before it looks for ones to forget.
const sweepFloor = 64

// Limiter holds what every key has used. It outlives every configuration: limits are given with each Take, so changed
// ones hold at once and a reload refills nothing. Safe for concurrent use; make one with New.
type Limiter struct {
	seed   maphash.Seed
	shards [shardCount]shard
}

// shard is the part of the keys under one lock.
type shard struct {
	mu       sync.Mutex
	keys     map[string]*account
	sweepAt  int
	running  int64 // slots out
	reserved int64 // tokens reserved and not yet settled
}

// New makes a Limiter in which nobody has used anything.
func New() *Limiter {
	l := &Limiter{seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].keys = make(map[string]*account)
		l.shards[i].sweepAt = sweepFloor
	}
	return l
}

// account is what one key has used.
type account struct {
	limits   Limits // the ones last given; time up to now passed under them
	requests bucket
	tokens   bucket
	running  int64
	last     *Slot // the newest of the unsettled reservations, which are linked in the order in which they were made
}

// Take counts a request of the key and takes a slot for it, both or neither. The key is the name under which limits
// count, at most as many of them as there are keys; lim holds from now on for all of the key's requests. A refusal is
// TooManyRequests, with the exact time after which the rate allows one more; when a slot is missing, nobody knows how long that takes.
// The slot of an allowed request must be given back with Release or Cancel, also after a panic.
func (l *Limiter) Take(key string, lim Limits, now time.Time) (*Slot, verdict.Verdict) {
	if key == "" {
		return nil, verdict.Refuse(verdict.InternalError, errors.New("limits taken for nobody"))
	}
	if err := lim.check(); err != nil {
		return nil, verdict.Refuse(verdict.InternalError, fmt.Errorf("limits of %q: %w", key, err))
	}
	sh := &l.shards[maphash.String(l.seed, key)&(shardCount-1)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	a := sh.account(key, lim, now)
	if lim.Concurrent > 0 && a.running >= lim.Concurrent {
		return nil, verdict.Refuse(verdict.TooManyRequests, fmt.Errorf("%d of %d concurrent requests are running", a.running, lim.Concurrent)).
			Saying("As many are running as may run at once.")
	}
	if lim.RequestsPerMinute > 0 {
		if wait := a.requests.wait(1, lim.burst(), lim.RequestsPerMinute); wait > 0 {
			return nil, verdict.Refuse(verdict.TooManyRequests,
				fmt.Errorf("%d requests per minute with a burst of %d are used up", lim.RequestsPerMinute, lim.burst())).After(wait)
		}
		a.requests.add(1, lim.burst())
	}
	a.running++
	sh.running++
	return &Slot{shard: sh, account: a}, verdict.Allow()
}

// InUse is how many slots are out and how many tokens are reserved and not settled, over all keys. Both are zero when
// no request runs.
func (l *Limiter) InUse() (slots, reservations int64) {
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		slots += sh.running
		reservations += sh.reserved
		sh.mu.Unlock()
	}
	return slots, reservations
}

// account finds the key's account, brings it up to now and sets its limits. The shard is locked.
func (sh *shard) account(key string, lim Limits, now time.Time) *account {
	a, known := sh.keys[key]
	if !known {
		if len(sh.keys) >= sh.sweepAt {
			sh.sweep(now)
		}
		a = &account{limits: lim}
		sh.keys[key] = a
	}
	// Only here, where the time is a request's arrival a moment ago. The other methods may be given a time from before
	// a body was read: were that believed, a slow body would let the time it took count twice.
	a.requests.rewind(now)
	a.tokens.rewind(now)
	a.advance(now)
	a.change(lim)
	return a
}

// sweep forgets keys that run nothing and have their whole allowance back: remembering them changes no answer. It
// runs when the shard has doubled since the last time, so that each key pays for a constant share of it.
func (sh *shard) sweep(now time.Time) {
	for key, a := range sh.keys {
		a.advance(now)
		if a.running == 0 && a.requests.used == 0 && a.tokens.used == 0 {
			delete(sh.keys, key)
		}
	}
	sh.sweepAt = max(sweepFloor, 2*len(sh.keys))
}

// advance lets the time up to now pass under the limits that held so far.
func (a *account) advance(now time.Time) {
	a.requests.advance(now, a.limits.RequestsPerMinute)
	a.tokens.advance(now, a.limits.TokensPerMinute)
	a.noteLow()
}

// change sets the limits from now on. What was used stays used, up to the whole of the new allowance: lowering a
// limit shuts nobody out for longer than the new limit itself would.
func (a *account) change(lim Limits) {
	if a.limits == lim {
		return
	}
	a.limits = lim
	a.requests.trim(lim.burst(), lim.RequestsPerMinute)
	a.tokens.trim(lim.TokensPerMinute, lim.TokensPerMinute)
	a.noteLow()
}
