// Package forward makes one round trip to a vLLM server: the request is built, the answer is read strictly and relayed.
// It refuses to send without a valid Grant, to send anything twice, and to pass on an answer that is not HTTP.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/vallum/vallum/internal/ascii"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/spare"
	"github.com/vallum/vallum/internal/verdict"
)

// Call is one request for the upstream. Its method and path are the grant's. The zero Call is refused.
type Call struct {
	Grant       policy.Grant
	RequestID   string    // ours: it becomes X-Request-Id, the engine's request id and the id in the answer
	ContentType string    // of the body; ours, as far as it is not the plain media type
	Body        []byte    // the body, when it is in memory
	Reader      io.Reader // the body, when Body is nil
	Length      int64     // bytes of Reader
	Stream      bool      // events are expected
	MaxReply    int64     // bytes of an answer that is not a stream; 0 is 64 MiB
	Rewriter    Rewriter  // what may leave of the answer
	Sent        func()    // called once the body is up and nothing here refers to it any more; may be nil

	// Room takes so many bytes of the memory that all requests share, or gives them back when there are less than none;
	// false: there is no room. What is taken when Send returns is the caller's to give back. Nil: no bound over all.
	Room func(n int64) bool
}

// Rewriter decides what leaves of an answer. It is used by one goroutine, for one answer.
type Rewriter interface {
	// Whole rewrites an answer that is no stream; refused: nothing of it leaves. When what it gave was written, the
	// body's memory is another answer's.
	Whole(status int, contentType string, body []byte) ([]byte, verdict.Verdict)
	// Event rewrites one server-sent event, given with its blank line; nil: it does not leave. What it gave is valid
	// until the next call.
	Event(event []byte) []byte
	// Metadata rewrites the "metadata" header of embeddings as bytes; "": it does not leave.
	Metadata(value string) string
	// Failed makes a verdict of an error status; allowed: the body leaves as it is.
	Failed(status int, body []byte) verdict.Verdict
	// Finish is told how the connection ended, Complete when as HTTP has it, and gives what ends the stream.
	Finish(cause verdict.Ended) []byte
	// Ended is how the answer ended, as far as its text tells.
	Ended() verdict.Ended
	// UpMessage is the upstream's own error text, for the operator.
	UpMessage() string
}

const (
	defaultMaxReply = 64 << 20
	maxErrorBody    = 64 << 10
	maxEvent        = 8 << 20 // one event: a chunk of log-probabilities is large, more is no event
)

// Send makes the round trip and writes the answer. When nothing was written the outcome's Refusal says why; after the
// status line nothing can be refused any more, and Ended says how it went. The upstream's connection is closed as soon
// as ctx is done: vLLM drops a request when its connection goes.
func (u *Upstream) Send(ctx context.Context, w http.ResponseWriter, c Call) verdict.Outcome {
	x := &exchange{up: u, ctx: ctx, w: w, call: &c, start: time.Now()}
	if v := x.check(); v.Refused() {
		x.out.Refusal = v
		return x.out
	}
	h, v := x.ask()
	if v.Refused() {
		return x.refuse(v)
	}
	defer x.release()
	x.out.UpStatus = h.status
	switch {
	case h.status < 200 || h.status > 299:
		v = x.failed(h)
	case c.Stream && isEvents(h.contentType):
		return x.stream(h)
	default:
		v = x.whole(h)
	}
	if v.Refused() {
		return x.refuse(v)
	}
	return x.out
}

// exchange is one round trip.
type exchange struct {
	up     *Upstream
	ctx    context.Context
	w      http.ResponseWriter
	call   *Call
	conn   *conn
	unhook func() bool   // stops watching ctx
	memory *spare.Buffer // the answer's body lies in it, or what is read of a stream; nil when nothing does
	clean  bool          // the answer was read to its end: the connection can serve again
	start  time.Time
	out    verdict.Outcome
}

// check refuses a call that must not be sent: this is where "no grant, nothing goes out" is held.
func (x *exchange) check() verdict.Verdict {
	c := x.call
	switch {
	case !c.Grant.Valid():
		return verdict.Refuse(verdict.InternalError, errors.New("a request without a valid grant"))
	case c.Rewriter == nil:
		return verdict.Refuse(verdict.InternalError, errors.New("a request without a rewriter of its answer"))
	case !isPath(c.Grant.Path()) || !isToken(c.Grant.Method()):
		return verdict.Refuse(verdict.InternalError, fmt.Errorf("operation %q gives the target %q", c.Grant.Operation().ID, c.Grant.Path()))
	case !ascii.Printable(c.RequestID) || !ascii.Printable(c.ContentType):
		return verdict.Refuse(verdict.InternalError, errors.New("a header of ours holds a byte that no header may hold"))
	case c.Body == nil && c.Reader == nil && c.Length != 0 || c.Length < 0:
		return verdict.Refuse(verdict.InternalError, fmt.Errorf("a body of %d bytes that is not there", c.Length))
	}
	return verdict.Allow()
}

// ask takes a connection, sends the request and reads the answer's head. A request of which one byte may have arrived
// is never sent again: only a pooled connection that took nothing at all is replaced, once, by a fresh one.
func (x *exchange) ask() (head, verdict.Verdict) {
	for fresh := false; ; fresh = true {
		if v := x.connect(fresh); v.Refused() {
			return head{}, v
		}
		sent, err := x.conn.send(x.up, x.call)
		if err == nil {
			break
		}
		again := !fresh && x.conn.used && sent == 0 && !x.conn.secure && x.ctx.Err() == nil && !isTimeout(err)
		x.out.BytesUp = max(0, sent-x.conn.headSize)
		x.release()
		if !again {
			return head{}, x.broken(fmt.Errorf("sending the request: %w", err))
		}
	}
	x.out.BytesUp = x.call.length()
	x.call.Body, x.call.Reader = nil, nil // a stream may run for an hour: its prompt must not lie in memory as long
	if x.call.Sent != nil {
		x.call.Sent()
	}
	h, err := x.conn.readHead(x.call.Grant.Method())
	if err != nil {
		x.release()
		return head{}, x.broken(err)
	}
	return h, verdict.Allow()
}

// connect takes a connection from the pool, or makes a new one, and ties it to the request's context. It is called only
// while no connection has taken a byte of the request, so that its failure means: nothing left. A failed write never does.
func (x *exchange) connect(fresh bool) verdict.Verdict {
	c, err := x.up.connection(x.ctx, fresh)
	if err != nil {
		if x.ctx.Err() != nil {
			return x.cancelled(err)
		}
		x.out.Ended, x.out.Unsent = verdict.UpstreamError, true
		return verdict.Refuse(verdict.UpstreamUnavailable, err)
	}
	x.conn, x.clean = c, false
	x.unhook = context.AfterFunc(x.ctx, c.abort)
	c.within(x.start, x.up.timeouts.FirstByte)
	return verdict.Allow()
}

// release gives the connection back when it can serve again, and closes it otherwise.
func (x *exchange) release() {
	if x.conn == nil {
		return
	}
	if x.unhook() && x.clean && x.conn.reusable() {
		x.up.pool.put(x.conn)
	} else {
		x.conn.abort()
	}
	x.conn = nil
}

// broken is the refusal for a connection that failed before anything was written to the caller.
func (x *exchange) broken(err error) verdict.Verdict {
	switch {
	case x.ctx.Err() != nil:
		return x.cancelled(err)
	case isTimeout(err):
		x.out.Ended = verdict.TimedOut
		return verdict.Refuse(verdict.UpstreamTimeout, err)
	case errors.Is(err, errNoRoom):
		x.out.Ended = verdict.NoMemory
		return verdict.Refuse(verdict.Busy, err)
	}
	x.out.Ended = verdict.UpstreamError
	return verdict.Refuse(verdict.UpstreamFailed, err)
}

// cancelled is the refusal for a context that was cancelled before anything was written.
func (x *exchange) cancelled(err error) verdict.Verdict {
	x.out.Ended = causeOf(x.ctx)
	cause := fmt.Errorf("%w (%w)", context.Cause(x.ctx), err)
	if cut, ok := errors.AsType[*verdict.Cut](context.Cause(x.ctx)); ok {
		return verdict.Refuse(cut.Reason(), cause)
	}
	return verdict.Refuse(verdict.CallerLeft, cause)
}

// causeOf says how a cancelled context ended the request: by a cause of the gateway's own, or because the client left.
func causeOf(ctx context.Context) verdict.Ended {
	if cut, ok := errors.AsType[*verdict.Cut](context.Cause(ctx)); ok {
		return cut.Ended
	}
	return verdict.ClientLeft
}

// refuse completes an outcome of which nothing was written.
func (x *exchange) refuse(v verdict.Verdict) verdict.Outcome {
	x.release()
	x.out.Refusal, x.out.Cause = v, v.Cause()
	x.out.UpMessage = x.call.Rewriter.UpMessage()
	if x.out.Upstream == 0 {
		x.out.Upstream = time.Since(x.start)
	}
	if x.out.Ended == verdict.NotForwarded {
		x.out.Ended = verdict.UpstreamError
	}
	return x.out
}

func (c *Call) length() int64 {
	if c.Body != nil {
		return int64(len(c.Body))
	}
	if c.Reader != nil {
		return c.Length
	}
	return 0
}
