package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/reply"
	"github.com/vallum/vallum/internal/urlpath"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// exchange is one request on its way through the stages, and what each of them found out.
type exchange struct {
	gateway  *Gateway
	request  asked
	cancel   func(error)
	op       *vllm.Operation
	segments []string
	who      identity.Principal
	slot     Slot
	held     *held
	doc      *inspect.Doc
	body     inspect.Body
	facts    policy.Facts
	grant    policy.Grant
	upstream Upstream
	bounds   policy.Bounds
	reserved int64
	left     bool // the upstream has the whole body, and its memory may be another's
	admitted bool
	reply    *reply.Reply
	verdict  verdict.Verdict
	outcome  verdict.Outcome
	refused  bool // an answer of refusal was written
	release  func()
}

// admit is the data path before forwarding. Each line is a stage; the first refusal is the answer.
func (x *exchange) admit() verdict.Verdict {
	g, req := x.gateway, x.request

	// 1 match: no body, no secret; a stranger may learn the catalogue, which is public
	path, err := urlpath.Parse(req.Target)
	if err != nil {
		return verdict.Refuse(verdict.AmbiguousPath, err).Saying("There is %v.", err)
	}
	op, segments, known := vllm.Lookup(req.Method, path.String())
	if !known {
		return verdict.Refuse(verdict.UnknownOperation, nil).Saying("%s", hint(req.Method, path.String()))
	}
	x.op, x.segments = op, segments

	// 2 identify
	who, v := g.Keys.Authenticate(req.Header, req.Remote, req.Arrived)
	if v.Refused() {
		return v
	}
	x.who = who

	// 3 attempt: could any rule ever allow this? Before the body is read
	if v := g.Policy.MayAttempt(who, op); v.Refused() {
		return v
	}

	// 4 slot: rate and concurrency together, and memory for the body
	slot, v := g.Limits.Take(who.Name(), g.Policy.LimitsOf(who), req.Arrived)
	if v.Refused() {
		return v
	}
	x.slot = slot
	x.release = g.Running.Register(who.KeyID(), who.Roles(), x.cancel) // from here on a revoked key ends the request

	// 5 read: what no role can get is refused here
	if v := x.read(); v.Refused() {
		return v
	}

	// 6 decide
	grant, v := g.Policy.Decide(who, op, segments, x.facts)
	if v.Refused() {
		return v
	}
	x.grant = grant
	if v := x.choose(); v.Refused() {
		return v
	}
	x.bounds = policy.Bounds{Context: g.Policy.Context(grant.Model()), Sound: int64(math.Ceil(g.Settings.MaxSound.Seconds()))}
	x.reserved = grant.Tokens(x.bounds)
	if v := x.slot.Reserve(x.reserved, g.Now()); v.Refused() {
		return v
	}

	// 7 record: no record, no request
	if _, err := g.Records.Append(x.record(audit.Admitted)); err != nil {
		return verdict.Refuse(verdict.AuditUnavailable, err)
	}
	x.admitted = true
	g.Meter.Began(op.ID)
	return verdict.Allow()
}

// read takes memory for the body, reads it within its cap, and learns the facts.
func (x *exchange) read() verdict.Verdict {
	x.facts.Upstream = x.request.Header.Get("X-Vallum-Upstream")
	if x.request.Length == 0 && x.op.Request == vllm.NoBody {
		return verdict.Allow()
	}
	limits := x.gateway.Settings.Body
	most := limits.MaxJSONBytes
	if x.op.Request == vllm.FormBody {
		most = limits.MaxFormBytes
	}
	if x.request.Length > most {
		return verdict.Refuse(verdict.BodyTooLarge, nil).Saying("At most %d bytes are accepted.", most)
	}
	held, v := x.gateway.Memory.hold(x.request.Body, x.request.Length)
	if v.Refused() {
		return v
	}
	x.held = held
	table, _ := vllm.FieldsOf(x.op.ID)
	doc, v := inspect.Read(inspect.Request{
		Operation: x.op, Table: table, Body: held, Length: x.request.Length, SpoolDir: x.gateway.Settings.SpoolDir,
		ContentType: x.request.Header.Values("Content-Type"), ContentEncoding: x.request.Header.Values("Content-Encoding"),
		Upstream: x.facts.Upstream,
	}, limits)
	if v.Refused() {
		return v
	}
	x.doc, x.facts = doc, doc.Facts()
	return verdict.Allow()
}

// choose finds a live upstream for the grant. What Vallum answers itself needs none.
func (x *exchange) choose() verdict.Verdict {
	if x.op.Answered {
		return verdict.Allow()
	}
	up, v := x.gateway.Upstreams.Pick(x.grant, nil)
	if v.Refused() {
		return v
	}
	x.upstream = up
	return verdict.Allow()
}

// forward is stages 8 and 9: the body is rewritten by the grant's edits, sent, and the reply metered on its way.
func (x *exchange) forward(ctx context.Context, w http.ResponseWriter) {
	if names := x.dropped(); names != "" {
		w.Header().Set("X-Vallum-Dropped", names)
	}
	if x.op.Answered {
		x.answer(w)
		return
	}
	settings := x.gateway.Settings
	var err error
	if x.body, err = x.rewrite(); err != nil {
		x.refuse(w, verdict.Refuse(verdict.InternalError, fmt.Errorf("rewriting the body: %w", err)))
		return
	}
	x.reply = reply.New(reply.Options{
		Operation: x.op, Model: x.grant.Asked(), Stream: x.grant.Stream(), InjectedUsage: x.grant.UsageInjected(),
		HideCached: !settings.ShowCached, PassErrors: settings.PassErrors,
	})
	if x.held == nil {
		x.held = &held{memory: x.gateway.Memory}
	}
	x.send(ctx, w)
	if x.outcome.Ended != verdict.ClientLeft { // or a write of it may still be under way: net/http's HTTP/2, when a client resets its stream
		x.reply.Free()
	} else if cut, ok := errors.AsType[*verdict.Cut](context.Cause(ctx)); ok { // it did not take the end of it
		x.outcome.Ended = cut.Ended
	}
	if !x.outcome.Written {
		x.refuse(w, x.outcome.Refusal)
	}
}

// send gives the request to the picked upstream, and to another one only when the outcome proves that not one byte of it
// left: no connection could be made. What may have arrived anywhere is never sent again. Each upstream is tried once, and
// each is picked as the first was: the grant, the release's gates and the tenant's cache are judged anew. What the caller
// is told is how the last one ended.
func (x *exchange) send(ctx context.Context, w http.ResponseWriter) {
	var tried []string
	for {
		x.outcome = x.upstream.Send(ctx, w, Call{
			Grant: x.grant, ID: x.request.ID, Body: x.body, MaxReply: x.gateway.Memory.largest(x.gateway.Settings.MaxReply), Reply: x.reply,
			Sent: x.sent, Room: x.held.room,
		})
		if !x.outcome.Unsent || x.left || x.outcome.Written || ctx.Err() != nil {
			return
		}
		tried = append(tried, x.upstream.Name())
		next, v := x.gateway.Upstreams.Pick(x.grant, tried)
		if v.Refused() || slices.Contains(tried, next.Name()) {
			return
		}
		x.gateway.Log.Warn("an upstream could not be reached; another gets the request", "id", x.request.ID, "upstream", x.upstream.Name(), "to", next.Name(), "error", x.outcome.Cause)
		x.upstream, x.outcome = next, verdict.Outcome{}
	}
}

// sent gives the body's memory back: slow answers to large prompts would otherwise keep everybody else's bodies out. A
// spooled form is still held, by its file.
func (x *exchange) sent() {
	x.left = true
	if x.doc == nil {
		x.body.Free()
		x.held.give()
	}
}

// rewrite gives the body that goes up: the caller's bytes with the grant's named splices. The salts come from here,
// for policy holds no secret.
func (x *exchange) rewrite() (inspect.Body, error) {
	if x.doc == nil {
		return inspect.Body{}, nil
	}
	edits := append([]policy.Edit(nil), x.grant.Edits()...)
	for i := range edits {
		if edits[i].Name == "cache_salt" {
			edits[i].Value = strconv.Quote(x.gateway.Salts.Salt(x.who.Tenant()))
		}
	}
	body, err := x.doc.Rewrite(edits)
	if body.Bytes != nil {
		_ = x.doc.Close()
		x.doc = nil // nothing is spooled, and the caller's own bytes must not lie in memory for as long as a stream runs
	}
	return body, err
}

// answer serves what vLLM lacks or tells too much of: the list of this principal's models, and one of them.
func (x *exchange) answer(w http.ResponseWriter) {
	models := x.gateway.Policy.ModelsOf(x.who)
	list := make([]reply.Model, 0, len(models))
	for _, m := range models {
		list = append(list, reply.Model{ID: m.Name, Created: m.Created, MaxModelLen: m.MaxModelLen})
	}
	body := reply.ModelList(list)
	if len(x.segments) > 0 {
		one, ok := reply.OneModel(list, x.segments[0])
		if !ok {
			x.refuse(w, verdict.Refuse(verdict.UnknownOperation, fmt.Errorf("no model %q for this key", x.segments[0])).Saying("GET /v1/models lists the models of this key."))
			return
		}
		body = one
	}
	w.Header().Set("Content-Type", "application/json")
	n, err := w.Write(body)
	x.outcome = verdict.Outcome{Refusal: verdict.Allow(), Written: true, Status: http.StatusOK, Ended: verdict.Complete, BytesDown: int64(n)}
	if err != nil {
		x.outcome.Ended = verdict.ClientLeft
	}
}

// conclude settles, gives back and records; it is called once, on every way out. It is stage "always" of the data path.
func (x *exchange) conclude() {
	now := x.gateway.Now()
	x.write(now, x.settle(now))
}

// settle charges what was used and gives back what was taken, also when finding out what was used panics.
func (x *exchange) settle(now time.Time) vllm.Usage {
	defer x.giveBack(now)
	usage := x.usage()
	if x.slot != nil && x.reserved > 0 {
		x.slot.Settle(x.settlement(usage), now)
	}
	return usage
}

func (x *exchange) giveBack(now time.Time) {
	if x.slot != nil {
		x.slot.Release(now)
	}
	x.held.give()
	if x.release != nil {
		x.release()
	}
	if x.doc != nil {
		if err := x.doc.Close(); err != nil {
			x.gateway.Log.Warn("closing a body", "id", x.request.ID, "error", err)
		}
	}
}

// write makes the last record and the metrics. Refusals of nobody are counted, or a flood of strangers would fill the disk.
func (x *exchange) write(now time.Time, usage vllm.Usage) {
	reason := ""
	if x.refused {
		reason = x.verdict.Reason().String()
	}
	sample := Sample{Reason: reason, Outcome: x.outcome, Prompt: usage.Prompt, Cached: usage.Cached, Completion: usage.Completion, Duration: now.Sub(x.request.Arrived), Began: x.admitted}
	if x.op != nil {
		sample.Operation = x.op.ID
	}
	if x.grant.Valid() {
		sample.Model, sample.Role = x.grant.Model(), x.grant.Rule()
	}
	if x.upstream != nil {
		sample.Upstream = x.upstream.Name()
	}
	x.gateway.Meter.Observe(sample)
	if x.who.IsNobody() {
		x.gateway.Records.Count(x.verdict.Reason().String(), x.request.Remote)
		return
	}
	event := audit.Ended
	if !x.admitted {
		event = audit.Refused
	}
	record := x.record(event)
	x.complete(&record, usage, now)
	if _, err := x.gateway.Records.Append(record); err != nil {
		x.gateway.Log.Error("the end of a request is not recorded", "id", x.request.ID, "error", err)
	}
	if o := x.outcome; !x.refused && o.UpMessage != "" { // within a stream, or what the caller may read: `upstream_errors: pass`
		x.gateway.Log.Warn("the upstream told of an error", "id", x.request.ID, "upstream", sample.Upstream, "status", o.UpStatus, "message", o.UpMessage)
	}
}
