package gateway

import (
	"fmt"
	"time"

	"github.com/vallum/vallum/internal/ascii"
	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// usage is what the reply said of tokens, or our bound when it said nothing: a client that leaves early is counted by
// the events that it got, and its prompt by the bytes that it sent; sound of which vLLM told the seconds by these.
func (x *exchange) usage() vllm.Usage {
	if x.reply == nil || !x.outcome.Written && x.outcome.UpStatus >= 400 {
		return vllm.Usage{}
	}
	u := x.reply.Usage()
	if u.Counted || x.isFree() {
		return u
	}
	switch {
	case x.timed(u):
		u.Prompt, u.Completion = x.grant.Heard(x.bounds, u.Seconds, x.outcome.BytesDown)
	case x.grant.Stream() && (u.Prompt > 0 || x.op.Request != vllm.FormBody): // the bytes of a sound say nothing
		if u.Prompt <= 0 {
			u.Prompt = min(x.facts.BodyBytes, x.reserved)
		}
		u.Completion = max(u.Completion, x.reply.Chunks())
	default:
		return vllm.Usage{Prompt: x.reserved}
	}
	return u
}

// isFree reports whether a request that was not counted uses no tokens: the upstream got nothing of it, or answered one of
// the operations that run no model.
func (x *exchange) isFree() bool {
	runs := x.op.Model && (x.op.Group == vllm.Inference || x.op.Group == vllm.InferenceUnprefix) && x.op.ID != "messages.count_tokens"
	return x.outcome.BytesUp == 0 || x.outcome.Ended == verdict.Complete && !runs
}

// timed reports whether vLLM heard a sound, and told how long it is and no tokens.
func (x *exchange) timed(u vllm.Usage) bool { return x.op.Request == vllm.FormBody && u.Seconds > 0 }

// settlement is how many tokens the limit is charged in the end. What the upstream counted wins, in tokens or in seconds;
// a request that it refused costs nothing; one whose work may have been done although nobody counted it costs what can be
// shown, and a whole answer without its cost, or that never came, its reservation.
func (x *exchange) settlement(u vllm.Usage) int64 {
	switch {
	case u.Counted:
		return u.Prompt + u.Completion
	case x.outcome.UpStatus >= 400 || x.isFree():
		return 0
	case x.timed(u):
		return u.Prompt + u.Completion
	}
	return min(u.Prompt+u.Completion, x.reserved)
}

// record is what is known of the request so far. It holds no prompt, no output and no secret.
func (x *exchange) record(event audit.Event) audit.Record {
	r := audit.Record{
		Event: event, ID: x.request.ID, ClientRequestID: clientID(x.request.Header.Get("X-Request-Id")),
		Principal: x.who.Name(), KeyID: x.who.KeyID(), Tenant: x.who.Tenant(), Remote: x.request.Remote.String(),
		Operation: x.op.ID, Model: x.facts.Model, Rule: x.grant.Rule(), BytesIn: max(x.request.Length, x.facts.BodyBytes),
		ReservedTokens: x.reserved, Dropped: append(append([]string(nil), x.facts.UnknownKeys...), x.facts.Dropped...),
	}
	if x.grant.Valid() {
		r.Model = x.grant.Model()
	}
	if x.upstream != nil {
		r.Upstream = x.upstream.Name()
	}
	for _, e := range x.grant.Edits() {
		r.Edits = append(r.Edits, e.Name)
	}
	return r
}

// complete adds to the last record how it ended.
func (x *exchange) complete(r *audit.Record, u vllm.Usage, now time.Time) {
	o := x.outcome
	r.Status, r.BytesOut = o.Status, o.BytesDown
	r.TTFTMillis, r.UpstreamMillis, r.DurationMillis = audit.Millis(o.FirstByte), audit.Millis(o.Upstream), audit.Millis(now.Sub(x.request.Arrived))
	r.PromptTokens, r.CachedTokens, r.CompletionTokens = u.Prompt, u.Cached, u.Completion
	switch {
	case u.Counted:
		r.Usage = audit.UsageCounted
	case u.Prompt+u.Completion > 0:
		r.Usage = audit.UsageEstimated
	default:
		r.Usage = audit.UsageNone
	}
	r.Ended = o.Ended.String()
	if x.refused {
		r.Reason = x.verdict.Reason().String()
		r.Status = x.verdict.Reason().Status()
		if o.Ended == verdict.NotForwarded {
			r.Ended = audit.EndedRefused
		}
		r.Detail = x.detail()
	}
}

// detail is the refusal's cause. An upstream's own text is not recorded: vLLM's messages echo parts of the input.
func (x *exchange) detail() string {
	switch cause := x.verdict.Cause(); {
	case x.outcome.UpStatus >= 400:
		return fmt.Sprintf("the upstream answered %d; its text is in the daemon's log", x.outcome.UpStatus)
	case cause != nil:
		return cause.Error()
	}
	return ""
}

// clientID keeps a caller's own request id when it is at most 128 printable ASCII characters; it is never forwarded.
func clientID(id string) string {
	if len(id) > 128 || !ascii.Printable(id) {
		return ""
	}
	return id
}
