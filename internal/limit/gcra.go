package limit

import (
	"math"
	"time"
)

// unit is how many parts one request or token has: with a minute's microseconds as the denominator, a rate of n per
// minute gives back exactly n parts per microsecond. Nothing is ever rounded, and the parts mean the same under
// every limit, so a changed limit needs no conversion.
const unit = int64(time.Minute / time.Microsecond)

// maxCount bounds limits and amounts so that no sum below overflows: maxOverrun × maxCount × unit < 2^63.
const maxCount = int64(10_000_000_000)

// maxOverrun is how many whole allowances a key can be behind: an upstream that reports an absurd usage must not shut a key
// out for longer than that many minutes.
const maxOverrun = 10

// backstep is how far a Take may go back in time without being believed. Requests read the clock before they reach
// the lock, so times arrive out of order, on a machine with too much to do by seconds; believing each would count the
// interval between two of them twice. A clock that was put back does not show in times that Go's monotonic clock is part of.
const backstep = time.Minute

// bucket is the generic cell rate algorithm (ITU-T I.371), kept as the distance between the theoretical arrival time
// and the time last seen, in parts used, rather than as a time: it survives a clock that jumps, and a rate that changes.
type bucket struct {
	used int64     // parts used and not yet given back; ≥ 0
	seen time.Time // up to which time the giving back is done
}

// rewind believes a clock that jumped backwards, so that nobody waits for the old time to come again. It gives
// nothing back.
func (b *bucket) rewind(now time.Time) {
	if now.Sub(b.seen) < -backstep {
		b.seen = now
	}
}

// advance gives back what the time up to now brings, at n per minute: nothing when that is in the past.
func (b *bucket) advance(now time.Time, n int64) {
	if b.seen.IsZero() {
		b.seen = now
		return
	}
	micros := now.Sub(b.seen).Microseconds()
	if micros <= 0 {
		return
	}
	b.seen = b.seen.Add(time.Duration(micros) * time.Microsecond)
	n = min(n, maxCount)
	if n <= 0 {
		return
	}
	if micros > b.used/n {
		b.used = 0
		return
	}
	b.used -= micros * n
}

// wait is how long until amount fits below capacity at n > 0 per minute: zero when it fits now. It is exact to the
// microsecond, rounded up. An amount above capacity never fits: ask before.
func (b *bucket) wait(amount, capacity, n int64) time.Duration {
	amount, capacity, n = min(amount, maxCount), min(capacity, maxCount), min(n, maxCount)
	over := b.used + amount*unit - capacity*unit
	if over <= 0 {
		return 0
	}
	return time.Duration(min((over+n-1)/n, math.MaxInt64/int64(time.Microsecond))) * time.Microsecond
}

// add uses amount, whatever there is left, up to maxOverrun times the capacity.
func (b *bucket) add(amount, capacity int64) {
	b.used += min(amount, maxCount) * unit
	b.used = min(b.used, maxOverrun*min(capacity, maxCount)*unit)
}

// trim fits the bucket to a new capacity and a new rate of n per minute; without a rate nothing is used.
func (b *bucket) trim(capacity, n int64) {
	if n <= 0 {
		b.used = 0
		return
	}
	b.used = min(b.used, min(capacity, maxCount)*unit)
}
