package limit

import (
	"errors"
	"fmt"
	"time"

	"github.com/vallum/vallum/internal/verdict"
)

// Slot is one running request. The zero Slot, and nil, hold nothing and refuse to reserve. Its methods may be called
// from several goroutines, in any order; the last use of it is Release or Cancel.
type Slot struct {
	shard   *shard
	account *account

	// The rest is guarded by shard.mu.
	given   bool  // the slot was given back
	made    bool  // Reserve was allowed
	settled bool  // the real use is known, or counts as known
	counted bool  // it stands among the key's reservations: there was a token limit
	amount  int64 // tokens reserved
	low     int64 // the least that the key had used between this reservation and the next one, in parts
	before  *Slot // neighbours among the key's unsettled reservations
	after   *Slot
}

// Reserve sets tokens aside for the request: an upper bound of what it can use. A refusal is OverBudget, with the exact
// time after which there is room if nobody else asks; a request that is larger than a whole minute's budget is refused
// for good and says so, without a time that would be a lie. Once per slot.
func (s *Slot) Reserve(tokens int64, now time.Time) verdict.Verdict {
	if s == nil || s.shard == nil {
		return verdict.Refuse(verdict.Unanswered, errors.New("tokens reserved without a slot"))
	}
	if tokens < 0 {
		return verdict.Refuse(verdict.InternalError, fmt.Errorf("reserving %d tokens: the estimate is negative", tokens))
	}
	s.shard.mu.Lock()
	defer s.shard.mu.Unlock()
	if s.given || s.made {
		return verdict.Refuse(verdict.InternalError, errors.New("tokens reserved twice, or after the slot was given back"))
	}
	a := s.account
	a.advance(now)
	budget := a.limits.TokensPerMinute
	if budget <= 0 {
		s.made = true
		return verdict.Allow()
	}
	if tokens > budget {
		return verdict.Refuse(verdict.OverBudget, fmt.Errorf("the request may use %d tokens, tokens_per_minute is %d", tokens, budget)).
			Saying("The request alone needs more than a whole minute's budget (up to %d tokens): make it or its output limit smaller; waiting does not help.", tokens).
			Final()
	}
	if wait := a.tokens.wait(tokens, budget, budget); wait > 0 {
		return verdict.Refuse(verdict.OverBudget, fmt.Errorf("%d tokens do not fit into what is left of %d per minute", tokens, budget)).After(wait)
	}
	a.tokens.add(tokens, budget)
	s.made, s.counted, s.amount = true, true, min(tokens, maxCount)
	s.shard.reserved += s.amount
	a.link(s)
	return verdict.Allow()
}

// Settle replaces the reservation by the real use, which may be less or more. Only the first call counts. A negative
// number means that the use is not known, and settles at the reservation.
func (s *Slot) Settle(tokens int64, now time.Time) {
	if s == nil || s.shard == nil {
		return
	}
	s.shard.mu.Lock()
	defer s.shard.mu.Unlock()
	s.settle(tokens, now)
}

// Release gives the slot back. A reservation that was not settled counts in full. Only the first of Release and Cancel counts.
func (s *Slot) Release(now time.Time) { s.giveBack(-1, now) }

// Cancel gives back the slot and the reservation of a request that was refused after Take and never reached an
// upstream; the rate keeps its cost, or refused requests would be free. A settled use stays.
func (s *Slot) Cancel(now time.Time) { s.giveBack(0, now) }

func (s *Slot) giveBack(tokens int64, now time.Time) {
	if s == nil || s.shard == nil {
		return
	}
	s.shard.mu.Lock()
	defer s.shard.mu.Unlock()
	if s.given {
		return
	}
	s.settle(tokens, now)
	s.given = true
	s.account.running--
	s.shard.running--
}

// settle is Settle with the shard locked.
func (s *Slot) settle(tokens int64, now time.Time) {
	if !s.counted || s.settled || s.given {
		return
	}
	s.settled = true
	a := s.account
	a.advance(now)
	budget := a.limits.TokensPerMinute
	s.shard.reserved -= s.amount
	switch {
	case tokens < 0 || tokens == s.amount:
	case tokens > s.amount && budget > 0:
		a.tokens.add(tokens-s.amount, budget)
	case tokens < s.amount:
		a.refund(s, (s.amount-tokens)*unit)
	}
	a.unlink(s)
}

// refund takes back parts that were reserved and not used, as if they had never been reserved. That is not the same
// as subtracting them: while they were reserved they were also given back by and by, and a key that had used less
// would have had nothing to be given back. The difference made by a smaller use at some time is the smaller of it and
// the least that was in use since then (Lindley's recursion), so that is what comes back. Otherwise a key could wait
// until a large reservation has drained, return it unused, and use the budget twice at once.
func (a *account) refund(s *Slot, parts int64) {
	for r := s; r != nil; r = r.after {
		parts = min(parts, r.low)
		r.low -= parts
	}
	a.tokens.used -= parts
}

// noteLow keeps the least use since the newest reservation.
func (a *account) noteLow() {
	if a.last != nil {
		a.last.low = min(a.last.low, a.tokens.used)
	}
}

// link appends the reservation, whose tokens are already in use.
func (a *account) link(s *Slot) {
	s.low = a.tokens.used
	s.before = a.last
	if a.last != nil {
		a.last.after = s
	}
	a.last = s
}

// unlink takes the reservation out; the one before it now also answers for the time since this one was made.
func (a *account) unlink(s *Slot) {
	if s.before != nil {
		s.before.after = s.after
		s.before.low = min(s.before.low, s.low)
	}
	if s.after == nil {
		a.last = s.before
	} else {
		s.after.before = s.before
	}
	s.before, s.after = nil, nil
}
