// Package gateway is the data path: admit → forward → end, one function that reads top to bottom.
// It refuses every request that any of its stages did not allow, and one that it could not record.
package gateway

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/reply"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Gateway is one configuration's data path. It is not changed while requests run: a reload makes another one, and a
// request keeps the one that it began with. What outlives a reload comes in through the interfaces.
type Gateway struct {
	Policy    *policy.Policy
	Keys      Authenticator
	Limits    Limiter
	Memory    *Memory
	Records   Recorder
	Upstreams Picker
	Salts     Salter
	Running   Registry
	Meter     Meter
	Log       *slog.Logger
	Now       func() time.Time
	Settings  Settings
}

// Settings are the values of a configuration that the data path itself uses. The zero value refuses bodies.
type Settings struct {
	Body        inspect.Limits // caps on request bodies
	BodyTimeout time.Duration  // for the whole body, from its first byte
	SpoolDir    string         // where large forms are spooled
	ShowCached  bool           // callers see cached-token counts
	PassErrors  bool           // `upstream_errors: pass`: callers see the upstream's own error text
	Origins     []string       // browser origins that may call; none by default
	MaxReply    int64          // bytes of a whole reply
	MaxSound    time.Duration  // the longest that the upstreams hear; 0 is vLLM's own bound
}

// Authenticator says who sends a request, of its headers and the address it came from.
type Authenticator interface {
	Authenticate(h http.Header, remote netip.Addr, now time.Time) (identity.Principal, verdict.Verdict)
}

// Limiter takes a place for one request of the key: rate and concurrency together. It counts by the key's name, which a
// rotation keeps: a new secret is no new budget.
type Limiter interface {
	Take(name string, l policy.Limits, now time.Time) (Slot, verdict.Verdict)
}

// Slot is the place that Take gave. Settle and Release may be called more than once; the first call counts.
type Slot interface {
	Reserve(tokens int64, now time.Time) verdict.Verdict
	Settle(tokens int64, now time.Time)
	Release(now time.Time)
}

// Recorder appends a record and returns once it is written, and counts the refusals of nobody.
type Recorder interface {
	Append(audit.Record) (uint64, error)
	Count(reason string, remote netip.Addr)
}

// Picker chooses a live upstream that may serve the grant, and none whose name is among those that were tried.
type Picker interface {
	Pick(g policy.Grant, tried []string) (Upstream, verdict.Verdict)
}

// Upstream is one vLLM server.
type Upstream interface {
	Name() string
	Send(ctx context.Context, w http.ResponseWriter, c Call) verdict.Outcome
}

// Call is one request for an upstream: nothing of it is the caller's but the body's bytes.
type Call struct {
	Grant    policy.Grant
	ID       string
	Body     inspect.Body
	MaxReply int64
	Reply    *reply.Reply
	Sent     func() // to be called once the body is up: its memory is free for others while the answer comes

	// Room takes so many bytes of the memory for all bodies, or gives them back when negative; false: there is no room.
	// What is still taken in the end is given back by the gateway.
	Room func(n int64) bool
}

// Salter makes the cache salt of a tenant: a keyed value that no tenant can compute of another.
type Salter interface{ Salt(tenant string) string }

// Registry knows the running requests of each key and cancels them when the key, or a role of it, is taken away.
type Registry interface {
	Register(keyID string, roles []string, cancel func(error)) (release func())
}

// Meter counts requests. Its labels come from the catalogue and the configuration only.
type Meter interface {
	Began(op string)
	Observe(Sample)
}

// Sample is what is counted of one request.
type Sample struct {
	Operation, Model, Role, Reason, Upstream string
	Outcome                                  verdict.Outcome
	Prompt, Cached, Completion               int64
	Duration                                 time.Duration
	Began                                    bool // Began was called for it
}

// asked is a request as its sender wrote it: nothing of it is trusted.
type asked struct {
	ID      string // ours
	Method  string
	Target  string // the request target as it stood on the request line
	Header  http.Header
	Body    io.Reader
	Length  int64 // declared; -1 when it is not known
	Remote  netip.Addr
	Arrived time.Time
}

// ServeHTTP answers one request that came straight from its caller.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.Behind(nil, w, r) }

// patience is how long a client may still take the end of its answer, or send the rest of its body, once its key was taken
// away. The promise is a second, and to see the change takes a quarter of one.
const patience = 500 * time.Millisecond

// Behind answers one request: admitted and forwarded, or refused with its reason. One request, one record. The proxies
// are those that end TLS in front of the listener: only they may connect, and only they are believed; nil for none.
func (g *Gateway) Behind(proxies []netip.Prefix, w http.ResponseWriter, r *http.Request) {
	body := g.deadlineFor(w, r)
	req := asked{ID: newID(), Method: r.Method, Target: r.RequestURI, Header: r.Header, Body: body, Length: r.ContentLength, Arrived: g.Now()}
	w.Header().Set("X-Request-Id", req.ID)
	remote, v := g.enter(proxies, r)
	if v.Refused() {
		body.done()
		g.Records.Count(v.Reason().String(), remote)
		g.Meter.Observe(Sample{Reason: v.Reason().String()})
		writeRefusal(w, vllm.OpenAI, v)
		return
	}
	req.Remote = remote
	if r.Method == http.MethodOptions {
		body.done()
	}
	if g.answerBrowser(w, r) {
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	var over sync.Once // when the request is, its connection may carry another's
	defer over.Do(func() {})
	x := &exchange{gateway: g, request: req, cancel: func(why error) {
		cancel(why)
		time.AfterFunc(patience, func() { over.Do(func() { _ = body.control.SetWriteDeadline(time.Unix(1, 0)) }) }) // one that has passed cuts, whoever waits
	}}
	defer func() {
		panicked := recover()
		body.done()
		x.end(w, panicked)
	}()
	v = x.admit()
	body.done()
	if x.op != nil && x.op.Dialect == vllm.Anthropic {
		w.Header().Set("Request-Id", req.ID) // what Anthropic's SDKs give their callers as the request's id
	}
	if v.Refused() {
		if cut, ok := errors.AsType[*verdict.Cut](context.Cause(ctx)); ok { // what else went wrong came of that
			v = verdict.Refuse(cut.Reason(), context.Cause(ctx))
		}
		x.refuse(w, v)
		return
	}
	x.forward(ctx, w)
}

// end closes the exchange on every way out: records, settles and gives back what was taken, also after a panic.
func (x *exchange) end(w http.ResponseWriter, panicked any) {
	if panicked == nil {
		x.conclude()
		return
	}
	aborted := panicked == http.ErrAbortHandler
	if x.reply != nil && x.outcome.Ended == verdict.NotForwarded { // in the middle of Send: the upstream may do the work
		x.outcome.BytesUp = max(1, x.facts.BodyBytes)
	}
	x.outcome.Ended = verdict.Panicked
	defer func() { // telling of a panic may panic for the same reason, and must not cost the key its slot
		x.conclude()
		if x.outcome.Written {
			panic(http.ErrAbortHandler) // cut the connection: a clean end would look like success
		}
	}()
	if !aborted {
		x.gateway.Log.Error("panic on the data path", "id", x.request.ID, "panic", panicked, "stack", string(debug.Stack()))
	}
	if !x.outcome.Written && !aborted {
		x.refuse(w, verdict.Refuse(verdict.InternalError, errors.New("panic")))
	}
}

// newID is 120 random bits, in an alphabet that survives every log and shell.
func newID() string {
	var b [15]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails on the systems we run on (Go 1.24 and later crash the program)
	}
	return "req_" + ids.EncodeToString(b[:])
}

var ids = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567")
