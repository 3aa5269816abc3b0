// Package verdict is the one answer that every stage of the data path gives: allowed, or refused for a Reason.
// It refuses by default: the zero Verdict, and a stage that forgets to answer, are refusals.
package verdict

import (
	"errors"
	"fmt"
	"time"
)

// Verdict is allowed, or a refusal with a Reason for the caller and a cause for the operator.
// The zero Verdict is refused with Unanswered.
type Verdict struct {
	allowed bool
	reason  Reason
	cause   error
	param   string
	detail  string
	after   time.Duration
	final   bool
}

// Allow is the verdict that lets the request go on to the next stage.
func Allow() Verdict { return Verdict{allowed: true} }

// Refuse is a refusal. The cause is for the operator only: it is recorded, and never sent to the caller.
func Refuse(r Reason, cause error) Verdict { return Verdict{reason: r, cause: cause} }

// Refused reports whether the request must not go on.
func (v Verdict) Refused() bool { return !v.allowed }

// Reason is why the request is refused; meaningless when it is allowed.
func (v Verdict) Reason() Reason { return v.reason }

// Cause is what the operator reads; nil when there is nothing to add to the reason.
func (v Verdict) Cause() error { return v.cause }

// At names the field, as a JSON pointer (RFC 6901) or a header's name, that the refusal is about. The caller sees it.
func (v Verdict) At(param string) Verdict { v.param = bounded(param, 256); return v }

// Param is what At named, or "".
func (v Verdict) Param() string { return v.param }

// Saying adds a clause that the caller may read: made of our words, catalogue names, numbers and byte positions only,
// never of values that came from the upstream, the configuration or another caller.
func (v Verdict) Saying(format string, args ...any) Verdict {
	v.detail = fmt.Sprintf(format, args...)
	return v
}

// Message is the sentence for the caller: the reason's fixed sentence and what Saying added.
func (v Verdict) Message() string {
	s := v.reason.Sentence()
	if v.detail == "" {
		return s
	}
	return s + " " + v.detail
}

// After says when trying again may help; it becomes Retry-After, rounded up to whole seconds (RFC 9110 §10.2.3).
func (v Verdict) After(d time.Duration) Verdict { v.after = d; return v }

// Final says that this refusal stays what it is however long the caller waits, although others of its reason pass:
// there is no Retry-After, and the answer carries x-should-retry: false.
func (v Verdict) Final() Verdict { v.final = true; return v }

// ShouldNotRetry reports whether the answer carries x-should-retry: false, for its reason or because it is Final.
func (v Verdict) ShouldNotRetry() bool { return v.final || v.reason.ShouldNotRetry() }

// RetryAfter is what After set, or the reason's own default, or zero when trying again does not help.
func (v Verdict) RetryAfter() time.Duration {
	if v.final {
		return 0
	}
	if v.after > 0 {
		return v.after
	}
	return v.reason.info().after
}

// Err is the verdict as the operator reads it in a log; nil when allowed.
func (v Verdict) Err() error {
	if v.allowed {
		return nil
	}
	if v.cause == nil {
		return errors.New(v.reason.String())
	}
	return fmt.Errorf("%s: %w", v.reason, v.cause)
}

func bounded(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
