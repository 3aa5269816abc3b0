package limit

import (
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// oracle is a leaky bucket written as its definition, in fractions: what is in use at a time is computed from the whole
// history of uses, each with the amount that is known by now. It is slow, and shares nothing with the code.
type oracle struct {
	uses []use
	rate int64
}

type use struct {
	at     time.Duration
	amount int64
}

// inUse is the level at the time, in tokens.
func (o *oracle) inUse(at time.Duration) *big.Rat {
	level, last := new(big.Rat), time.Duration(0)
	drain := func(until time.Duration) {
		gone := new(big.Rat).Mul(big.NewRat(int64(until-last), int64(time.Minute)), big.NewRat(o.rate, 1))
		if level.Sub(level, gone); level.Sign() < 0 {
			level.SetInt64(0)
		}
		last = until
	}
	for _, u := range o.uses {
		drain(u.at)
		level.Add(level, big.NewRat(u.amount, 1))
	}
	drain(at)
	return level
}

func (o *oracle) fits(amount, capacity int64, at time.Duration) bool {
	level := o.inUse(at)
	return level.Add(level, big.NewRat(amount, 1)).Cmp(big.NewRat(capacity, 1)) <= 0
}

// micros draws a time that is a whole number of microseconds: the limiter's resolution.
func micros(t *rapid.T, most time.Duration) time.Duration {
	return time.Duration(rapid.Int64Range(0, int64(most/time.Microsecond)).Draw(t, "pass")) * time.Microsecond
}

func TestRateAgreesWithTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lim := Limits{RequestsPerMinute: rapid.Int64Range(1, 5000).Draw(t, "rate"), Burst: rapid.Int64Range(1, 40).Draw(t, "burst")}
		l, o, at := New(), &oracle{rate: lim.RequestsPerMinute}, time.Duration(0)
		for range rapid.IntRange(1, 60).Draw(t, "requests") {
			if rapid.Bool().Draw(t, "wait") {
				at += micros(t, 3*time.Minute/time.Duration(lim.RequestsPerMinute))
			}
			want := o.fits(1, lim.Burst, at)
			s, v := l.Take("app", lim, noon.Add(at))
			if v.Refused() == want {
				t.Fatalf("at %s: %v, the oracle says %v", at, v.Err(), want)
			}
			if v.Refused() {
				after := v.RetryAfter()
				if !o.fits(1, lim.Burst, at+after) || o.fits(1, lim.Burst, at+after-time.Microsecond) {
					t.Fatalf("retry after %s is not the first microsecond at which one fits", after)
				}
				continue
			}
			o.uses = append(o.uses, use{at, 1})
			s.Release(noon.Add(at))
		}
	})
}

// running is a request of the model: which of the oracle's uses it made.
type running struct {
	slot *Slot
	use  int
}

func TestTokensAgreeWithTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lim := Limits{TokensPerMinute: rapid.Int64Range(1, 100_000).Draw(t, "budget")}
		l, o, at := New(), &oracle{rate: lim.TokensPerMinute}, time.Duration(0)
		var open []running
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				at += micros(t, 40*time.Second)
			case 1:
				open = reserve(t, l, o, lim, at, open)
			case 2:
				if len(open) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				settle(t, o, open[i], at)
				open = append(open[:i], open[i+1:]...)
			}
			if a := accountOf(l); a != nil {
				a.advance(noon.Add(at))
				if got := big.NewRat(a.tokens.used, unit); got.Cmp(o.inUse(at)) != 0 {
					t.Fatalf("at %s %s tokens are in use, the oracle says %s", at, got.FloatString(6), o.inUse(at).FloatString(6))
				}
			}
		}
		for _, r := range open {
			r.slot.Release(noon.Add(at))
		}
		if slots, reserved := l.InUse(); slots != 0 || reserved != 0 {
			t.Fatalf("%d slots, %d tokens left", slots, reserved)
		}
	})
}

// accountOf is the one account of the test's key, for looking into it.
func accountOf(l *Limiter) *account {
	for i := range l.shards {
		if a := l.shards[i].keys["app"]; a != nil {
			return a
		}
	}
	return nil
}

func reserve(t *rapid.T, l *Limiter, o *oracle, lim Limits, at time.Duration, open []running) []running {
	amount := rapid.Int64Range(0, lim.TokensPerMinute).Draw(t, "amount")
	s, v := l.Take("app", lim, noon.Add(at))
	if v.Refused() {
		t.Fatal(v.Err())
	}
	want := o.fits(amount, lim.TokensPerMinute, at)
	v = s.Reserve(amount, noon.Add(at))
	if v.Refused() == want {
		t.Fatalf("at %s reserving %d: %v, the oracle says %v", at, amount, v.Err(), want)
	}
	if v.Refused() {
		after := v.RetryAfter()
		if !o.fits(amount, lim.TokensPerMinute, at+after) || o.fits(amount, lim.TokensPerMinute, at+after-time.Microsecond) {
			t.Fatalf("retry after %s is not the first microsecond at which %d fit", after, amount)
		}
		s.Cancel(noon.Add(at))
		return open
	}
	o.uses = append(o.uses, use{at, amount})
	return append(open, running{s, len(o.uses) - 1})
}

// settle ends a request in one of its ways. Less than reserved rewrites history; more is a use of its own, now.
func settle(t *rapid.T, o *oracle, r running, at time.Duration) {
	reserved := o.uses[r.use].amount
	switch rapid.IntRange(0, 3).Draw(t, "end") {
	case 0:
		real := rapid.Int64Range(0, reserved).Draw(t, "real")
		r.slot.Settle(real, noon.Add(at))
		o.uses[r.use].amount = real
	case 1:
		r.slot.Settle(reserved+1, noon.Add(at))
		o.uses = append(o.uses, use{at, 1})
	case 2:
		r.slot.Cancel(noon.Add(at))
		o.uses[r.use].amount = 0
	case 3: // never settled: counts in full
	}
	r.slot.Release(noon.Add(at))
}

// Whatever the clock does, and whatever is settled when, the uses in any run without a step back stay within the
// budget at once plus what the passing time gives.
func TestNoClockGrantsMoreThanTimeThatPassed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lim := Limits{RequestsPerMinute: 60, Burst: 5}
		l, at := New(), time.Duration(0)
		forward, through := time.Duration(0), int64(0)
		for range rapid.IntRange(1, 200).Draw(t, "requests") {
			step := time.Duration(rapid.Int64Range(-10_000, 3_000).Draw(t, "step")) * time.Millisecond
			forward += max(0, step)
			at += step
			if s, v := l.Take("app", lim, noon.Add(at)); !v.Refused() {
				s.Release(noon.Add(at))
				through++
			} else if v.RetryAfter() > backstep+5*time.Second {
				t.Fatalf("retry after %s: the jump locks the key out", v.RetryAfter())
			}
		}
		if most := lim.Burst + int64(forward/time.Second); through > most {
			t.Fatalf("%d got through in %s forwards, want at most %d", through, forward, most)
		}
	})
}
