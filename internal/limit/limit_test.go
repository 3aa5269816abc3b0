package limit

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/vallum/vallum/internal/verdict"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// take asserts that the key gets a slot.
func take(t *testing.T, l *Limiter, lim Limits, now time.Time) *Slot {
	t.Helper()
	s, v := l.Take("app", lim, now)
	if v.Refused() || s == nil {
		t.Fatalf("refused at %s: %v, want a slot", now.Sub(noon), v.Err())
	}
	return s
}

// refused asserts the reason and that nothing was handed out.
func refused(t *testing.T, s *Slot, v verdict.Verdict, want verdict.Reason) {
	t.Helper()
	if !v.Refused() || v.Reason() != want || s != nil {
		t.Fatalf("got slot %v, verdict %v, want %s and no slot", s, v.Err(), want)
	}
}

// nothingInUse asserts that slots and reservations all came back.
func nothingInUse(t *testing.T, l *Limiter) {
	t.Helper()
	if slots, reserved := l.InUse(); slots != 0 || reserved != 0 {
		t.Fatalf("%d slots and %d reserved tokens are left, want none", slots, reserved)
	}
}

func TestRateHoldsAfterTheBurst(t *testing.T) {
	l, lim := New(), Limits{RequestsPerMinute: 60, Burst: 3}
	for range 3 {
		take(t, l, lim, noon).Release(noon)
	}
	s, v := l.Take("app", lim, noon)
	refused(t, s, v, verdict.TooManyRequests)
	if v.RetryAfter() != time.Second {
		t.Errorf("retry after %s, want exactly 1s", v.RetryAfter())
	}
	s, v = l.Take("app", lim, noon.Add(time.Second-time.Microsecond))
	refused(t, s, v, verdict.TooManyRequests)
	take(t, l, lim, noon.Add(time.Second)).Release(noon)
	s, v = l.Take("app", lim, noon.Add(time.Second))
	refused(t, s, v, verdict.TooManyRequests)
	if other, v := l.Take("other", lim, noon); v.Refused() {
		t.Errorf("another key is refused: %v", v.Err())
	} else {
		other.Release(noon)
	}
	nothingInUse(t, l)
}

func TestBurstIsAMinutesWorthUnlessGiven(t *testing.T) {
	for rate, want := range map[int64]int{1: 1, 9: 9, 600: 600} {
		l, got := New(), 0
		for {
			s, v := l.Take("app", Limits{RequestsPerMinute: rate}, noon)
			if v.Refused() {
				break
			}
			s.Release(noon)
			got++
		}
		if got != want {
			t.Errorf("%d per minute let %d through at once, want %d", rate, got, want)
		}
	}
}

func TestZeroIsNoLimitAndNegativeRefuses(t *testing.T) {
	l := New()
	for range 10_000 {
		s := take(t, l, Limits{}, noon)
		if v := s.Reserve(1<<62, noon); v.Refused() {
			t.Fatalf("no limit refuses: %v", v.Err())
		}
		s.Release(noon)
	}
	for _, lim := range []Limits{{RequestsPerMinute: -1}, {Burst: -1}, {Concurrent: -1}, {TokensPerMinute: -1}} {
		s, v := l.Take("app", lim, noon)
		refused(t, s, v, verdict.InternalError)
	}
	s, v := l.Take("", Limits{}, noon)
	refused(t, s, v, verdict.InternalError)
	nothingInUse(t, l)
}

func TestRateAndSlotAreTakenTogetherOrNeither(t *testing.T) {
	l, lim := New(), Limits{RequestsPerMinute: 60, Burst: 2, Concurrent: 1}
	first := take(t, l, lim, noon)
	for range 50 { // refused for the slot: must not cost the rate
		s, v := l.Take("app", lim, noon)
		refused(t, s, v, verdict.TooManyRequests)
	}
	first.Release(noon)
	second := take(t, l, lim, noon)
	second.Release(noon)
	for range 50 { // refused for the rate: must not cost a slot
		s, v := l.Take("app", lim, noon)
		refused(t, s, v, verdict.TooManyRequests)
	}
	nothingInUse(t, l)
	take(t, l, lim, noon.Add(time.Second)).Release(noon)
}

func TestCancelReturnsSlotAndReservationAndKeepsTheRateCost(t *testing.T) {
	l, lim := New(), Limits{RequestsPerMinute: 1, Burst: 2, Concurrent: 1, TokensPerMinute: 100}
	for range 2 {
		s := take(t, l, lim, noon)
		if v := s.Reserve(100, noon); v.Refused() {
			t.Fatalf("reserve: %v", v.Err())
		}
		s.Cancel(noon)
		s.Release(noon) // the deferred one: must change nothing
		nothingInUse(t, l)
	}
	s, v := l.Take("app", lim, noon)
	refused(t, s, v, verdict.TooManyRequests)
}

func TestBudgetCountsReservationsAndSettlesByRealUse(t *testing.T) {
	l, lim := New(), Limits{TokensPerMinute: 600}
	a, b := take(t, l, lim, noon), take(t, l, lim, noon)
	if v := a.Reserve(500, noon); v.Refused() {
		t.Fatalf("first: %v", v.Err())
	}
	v := b.Reserve(200, noon)
	if v.Reason() != verdict.OverBudget || !v.Refused() {
		t.Fatalf("got %v, want over_budget", v.Err())
	}
	if v.RetryAfter() != 10*time.Second || v.ShouldNotRetry() {
		t.Errorf("retry after %s (final %v), want exactly 10s for 100 tokens at 10 per second", v.RetryAfter(), v.ShouldNotRetry())
	}
	if v := b.Reserve(200, noon.Add(10*time.Second-time.Microsecond)); !v.Refused() {
		t.Fatal("allowed a microsecond before Retry-After")
	}
	a.Settle(50, noon.Add(9*time.Second))
	a.Settle(500, noon.Add(9*time.Second)) // the second settlement must not count
	if v := b.Reserve(550, noon.Add(9*time.Second)); v.Refused() {
		t.Fatalf("the unused part did not come back: %v", v.Err())
	}
	a.Release(noon)
	b.Release(noon.Add(9 * time.Second)) // unsettled: counts in full
	c := take(t, l, lim, noon.Add(9*time.Second))
	if v := c.Reserve(600, noon.Add(9*time.Second)); v.RetryAfter() != 55*time.Second {
		t.Errorf("after an unsettled release retry after %s, want 55s for 550 tokens in use", v.RetryAfter())
	}
	c.Cancel(noon)
	nothingInUse(t, l)
}

func TestOverrunIsChargedButShutsNobodyOutForever(t *testing.T) {
	l, lim := New(), Limits{TokensPerMinute: 60}
	s := take(t, l, lim, noon)
	s.Reserve(10, noon)
	s.Settle(90, noon)
	s.Release(noon)
	next := take(t, l, lim, noon)
	if v := next.Reserve(1, noon); v.RetryAfter() != 31*time.Second {
		t.Errorf("90 used of 60: retry after %s, want 31s", v.RetryAfter())
	}
	next.Release(noon)
	liar := take(t, l, lim, noon.Add(time.Hour))
	liar.Reserve(1, noon.Add(time.Hour))
	liar.Settle(1<<62, noon.Add(time.Hour)) // an upstream that reports an absurd usage
	liar.Release(noon.Add(time.Hour))
	late := take(t, l, lim, noon.Add(time.Hour+maxOverrun*time.Minute))
	if v := late.Reserve(60, noon.Add(time.Hour+maxOverrun*time.Minute)); v.Refused() {
		t.Errorf("still refused after %d minutes: %v", maxOverrun, v.Err())
	}
	late.Cancel(noon)
	nothingInUse(t, l)
}

func TestLargerThanTheWholeBudgetIsRefusedForGood(t *testing.T) {
	l := New()
	s := take(t, l, Limits{TokensPerMinute: 100}, noon)
	defer s.Release(noon)
	v := s.Reserve(101, noon)
	if v.Reason() != verdict.OverBudget || v.RetryAfter() != 0 || !v.ShouldNotRetry() {
		t.Fatalf("got %v, retry after %s, final %v: want over_budget without a time", v.Err(), v.RetryAfter(), v.ShouldNotRetry())
	}
	if v := s.Reserve(100, noon); v.Refused() {
		t.Errorf("exactly the budget is refused: %v", v.Err())
	}
}

func TestReserveRefusesWhatMakesNoSense(t *testing.T) {
	l := New()
	s := take(t, l, Limits{TokensPerMinute: 100}, noon)
	if v := s.Reserve(-1, noon); v.Reason() != verdict.InternalError || !v.Refused() {
		t.Errorf("negative: %v", v.Err())
	}
	s.Reserve(1, noon)
	if v := s.Reserve(1, noon); v.Reason() != verdict.InternalError || !v.Refused() {
		t.Errorf("twice: %v", v.Err())
	}
	s.Release(noon)
	gone := take(t, l, Limits{TokensPerMinute: 100}, noon)
	gone.Release(noon)
	if v := gone.Reserve(1, noon); !v.Refused() {
		t.Error("reserved after release")
	}
	var none *Slot
	if !none.Reserve(1, noon).Refused() || !new(Slot).Reserve(1, noon).Refused() {
		t.Error("a slot that nobody gave reserves")
	}
	none.Settle(1, noon)
	none.Release(noon)
	new(Slot).Cancel(noon)
	nothingInUse(t, l)
}

func TestReloadRefillsNothing(t *testing.T) {
	l := New()
	before := Limits{RequestsPerMinute: 60, Burst: 4, Concurrent: 2, TokensPerMinute: 600}
	running := take(t, l, before, noon)
	running.Reserve(600, noon)
	for range 3 {
		take(t, l, before, noon).Release(noon)
	}
	after := Limits{RequestsPerMinute: 60, Burst: 5, Concurrent: 2, TokensPerMinute: 660}
	s := take(t, l, after, noon) // one more, by the larger burst
	if v := s.Reserve(61, noon); !v.Refused() {
		t.Error("the reload refilled the token budget")
	}
	if v := s.Reserve(60, noon); v.Refused() {
		t.Errorf("the larger budget does not hold at once: %v", v.Err())
	}
	none, v := l.Take("app", after, noon)
	refused(t, none, v, verdict.TooManyRequests) // both slots are out, and the burst is used
	s.Release(noon)
	none, v = l.Take("app", after, noon)
	refused(t, none, v, verdict.TooManyRequests)
	running.Release(noon)
	lower := Limits{RequestsPerMinute: 6, Burst: 1}
	none, v = l.Take("app", lower, noon)
	refused(t, none, v, verdict.TooManyRequests)
	if v.RetryAfter() != 10*time.Second {
		t.Errorf("lowered: retry after %s, want 10s, what the new limit itself takes", v.RetryAfter())
	}
	nothingInUse(t, l)
}

func TestAClockThatJumpsBackGrantsNothingAndLocksNobodyOut(t *testing.T) {
	l, lim := New(), Limits{RequestsPerMinute: 60, Burst: 1, TokensPerMinute: 60}
	take(t, l, lim, noon).Release(noon)
	past := noon.Add(-time.Hour)
	s, v := l.Take("app", lim, past)
	refused(t, s, v, verdict.TooManyRequests)
	if v.RetryAfter() != time.Second {
		t.Errorf("after the jump retry after %s, want 1s", v.RetryAfter())
	}
	ok := take(t, l, lim, past.Add(time.Second))
	ok.Reserve(60, past.Add(time.Second))
	ok.Settle(60, past.Add(-time.Hour))
	ok.Release(past.Add(-time.Hour))
	nothingInUse(t, l)
}

// A request whose body took long may reserve with the time of its arrival. Believing that time would give the
// time in between back once more.
func TestAnOldTimeDoesNotCountTwice(t *testing.T) {
	l, lim := New(), Limits{TokensPerMinute: 60}
	slow := take(t, l, lim, noon)
	full := take(t, l, lim, noon.Add(time.Minute))
	full.Reserve(60, noon.Add(time.Minute))
	if v := slow.Reserve(1, noon); !v.Refused() {
		t.Error("the old time finds room")
	}
	if v := full.account.tokens; !v.seen.Equal(noon.Add(time.Minute)) {
		t.Errorf("the clock went back to %s", v.seen)
	}
	slow.Release(noon)
	full.Release(noon)
	next := take(t, l, lim, noon.Add(time.Minute))
	if v := next.Reserve(1, noon.Add(time.Minute)); v.RetryAfter() != time.Second {
		t.Errorf("retry after %s, want 1s", v.RetryAfter())
	}
	next.Release(noon)
}

// On a machine that has too much to do a request may wait for seconds between its arrival and the lock. Were its time believed
// by every other one, what came back meanwhile would come back again.
func TestAnArrivalThatWaitedForTheLockGivesNothingBackTwice(t *testing.T) {
	l, lim := New(), Limits{TokensPerMinute: 60}
	full := take(t, l, lim, noon)
	full.Reserve(60, noon)
	for range 10 {
		take(t, l, lim, noon.Add(-20*time.Second)).Release(noon)
		next := take(t, l, lim, noon)
		if v := next.Reserve(1, noon); v.RetryAfter() != time.Second {
			t.Fatalf("no time passed, and a token fits after %s, want 1s", v.RetryAfter())
		}
		next.Release(noon)
	}
	full.Release(noon)
}

// Without the bound of refund, a reservation that has drained could be returned and the budget used twice at once.
func TestAnOldReservationReturnsOnlyWhatHasNotDrained(t *testing.T) {
	l, lim := New(), Limits{TokensPerMinute: 100}
	old := take(t, l, lim, noon)
	old.Reserve(100, noon)
	later := noon.Add(time.Minute)
	used := take(t, l, lim, later)
	used.Reserve(100, later)
	used.Settle(100, later)
	used.Release(later)
	old.Settle(0, later)
	old.Release(later)
	more := take(t, l, lim, later)
	if v := more.Reserve(100, later); v.RetryAfter() != time.Minute {
		t.Errorf("retry after %s, want a whole minute: 100 of 100 were used just now", v.RetryAfter())
	}
	more.Cancel(later)
	nothingInUse(t, l)
}

func TestIdleKeysAreForgottenAndRunningOnesAreNot(t *testing.T) {
	l, lim := New(), Limits{RequestsPerMinute: 60, Burst: 1}
	kept, v := l.Take("kept", Limits{Concurrent: 1}, noon)
	if v.Refused() {
		t.Fatal(v.Err())
	}
	now := noon
	for i := range 200_000 {
		now = now.Add(time.Millisecond)
		s, v := l.Take(fmt.Sprint("key", i), lim, now)
		if v.Refused() {
			t.Fatal(v.Err())
		}
		s.Release(now)
	}
	held := 0
	for i := range l.shards {
		held += len(l.shards[i].keys)
	}
	// A thousand keys are busy in any second; the rest is what a doubling leaves.
	if most := shardCount * 3 * sweepFloor; held > most {
		t.Errorf("%d keys are held, want at most %d", held, most)
	}
	if slots, _ := l.InUse(); slots != 1 {
		t.Fatalf("%d slots are out, want the kept one", slots)
	}
	if s, v := l.Take("kept", Limits{Concurrent: 1}, now); !v.Refused() || s != nil {
		t.Error("a key with a running request was forgotten: its slot was given twice")
	}
	kept.Release(now)
	nothingInUse(t, l)
}

// crowd runs one request from each of 200 goroutines that all start at once, and says how many were let through and
// how many of them ran at the same time at most. A third of them panic, hang up or are refused later, as requests do.
func crowd(t *testing.T, l *Limiter, limits func(i int) Limits, tokens int64) (through, most, spent int64) {
	t.Helper()
	var passed, now, peak, used atomic.Int64
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			defer func() { _ = recover() }()
			<-gate
			s, v := l.Take("app", limits(i), noon)
			if v.Refused() {
				return
			}
			defer s.Release(noon)
			if tokens > 0 {
				if v := s.Reserve(tokens, noon); v.Refused() {
					s.Cancel(noon)
					return
				}
			}
			passed.Add(1)
			running := now.Add(1)
			for old := peak.Load(); running > old && !peak.CompareAndSwap(old, running); old = peak.Load() {
			}
			defer now.Add(-1)
			switch i % 6 {
			case 0:
				used.Add(tokens)
				panic("a defect on the data path")
			case 1: // the client left before the usage was known
				used.Add(tokens)
			default:
				used.Add(tokens / 2)
				s.Settle(tokens/2, noon)
			}
		})
	}
	close(gate)
	wg.Wait()
	nothingInUse(t, l)
	return passed.Load(), peak.Load(), used.Load()
}

func TestTwoHundredAtOnceNeverPassTheRate(t *testing.T) {
	l := New()
	through, _, _ := crowd(t, l, func(int) Limits { return Limits{RequestsPerMinute: 60, Burst: 17} }, 0)
	if through != 17 {
		t.Errorf("%d got through, want exactly the burst of 17", through)
	}
}

func TestTwoHundredAtOnceNeverPassTheRateAcrossAReload(t *testing.T) {
	l := New()
	through, _, _ := crowd(t, l, func(i int) Limits {
		return Limits{RequestsPerMinute: int64(60 + i%2), Burst: 17} // two configurations in turn
	}, 0)
	if through != 17 {
		t.Errorf("%d got through, want exactly the burst of 17", through)
	}
}

func TestTwoHundredAtOnceNeverPassTheConcurrency(t *testing.T) {
	l := New()
	for range 20 {
		through, most, _ := crowd(t, l, func(int) Limits { return Limits{Concurrent: 9} }, 0)
		if most > 9 || through < 9 {
			t.Fatalf("%d ran at once (%d in all), want at most 9", most, through)
		}
	}
}

func TestTwoHundredAtOnceNeverPassTheBudget(t *testing.T) {
	l := New()
	_, _, spent := crowd(t, l, func(int) Limits { return Limits{TokensPerMinute: 1000} }, 30)
	if spent > 1000 || spent < 900 {
		t.Errorf("%d tokens were used, want at most 1000, and nearly that", spent)
	}
}

// A slow key's callers come back when Retry-After says, and all of them get through by then: under a fake clock.
func TestCallersThatObeyRetryAfterAllGetThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, lim := New(), Limits{RequestsPerMinute: 600, Burst: 10, Concurrent: 4}
		began := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for {
					s, v := l.Take("app", lim, time.Now())
					if !v.Refused() {
						defer func() { s.Release(time.Now()) }()
						return
					}
					<-time.After(v.RetryAfter())
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took < 9*time.Second || took > time.Minute {
			t.Errorf("100 requests took %s, want at least the 9s that 600 per minute with a burst of 10 allow", took)
		}
		nothingInUse(t, l)
	})
}

func TestTheRefusalNamesTheLimitToTheOperatorOnly(t *testing.T) {
	l := New()
	l.Take("app", Limits{RequestsPerMinute: 7, Burst: 1}, noon)
	_, v := l.Take("app", Limits{RequestsPerMinute: 7, Burst: 1}, noon)
	if cause := fmt.Sprint(v.Cause()); !strings.Contains(cause, "7 requests per minute") || v.Message() != verdict.TooManyRequests.Sentence() {
		t.Errorf("cause %q, message %q", cause, v.Message())
	}
}
