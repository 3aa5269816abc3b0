// Package reply is what may leave: refusals in each dialect, the model list, and vLLM's answers with what callers must
// not see taken out. It refuses to guess: an answer that it cannot read where it has to does not leave, and model text
// is never edited.
package reply

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Options say what is done to one answer. The zero Options refuse every whole answer: they name no operation.
type Options struct {
	Operation     *vllm.Operation
	Model         string // the name that the caller asked for; written over the answer's "model" unless empty
	InjectedUsage bool   // usage was asked for by us: the extra chunk that carries it is taken out again
	HideCached    bool   // counts of cached tokens are set to 0: they tell what others asked before
	PassErrors    bool   // `upstream_errors: pass`: the upstream's error bodies leave as they are
	Stream        bool   // a stream was asked for
}

// Reply rewrites one answer on its way out, learns what it cost and how it ended. It is for one goroutine at a time,
// and for one answer.
type Reply struct {
	op      *vllm.Operation
	options Options
	walk    walker

	usage   vllm.Usage
	final   bool  // the usage that sums everything was seen
	events  int64 // all events but comments
	content int64 // events with text in them
	pace    vllm.Pace
	ended   bool // the dialect's last event, or the whole answer, was seen
	closed  bool // Finish was called
	cause   verdict.Ended
	failed  bool   // an error event stood in the stream
	aborted bool   // the engine dropped the request
	said    string // the upstream's own error text

	line          []byte // what quick gave last
	head, headOut []byte // how the stream's events begin, up to the model's name, and with the name written over
}

// New makes the rewriting of one answer.
func New(o Options) *Reply {
	r := &Reply{op: o.Operation, options: o}
	r.walk.hide = o.HideCached
	if o.Model != "" {
		r.walk.model = string(appendString(nil, o.Model))
	}
	return r
}

func (r *Reply) dialect() vllm.Dialect {
	if r.op == nil {
		return vllm.OpenAI
	}
	return r.op.Dialect
}

// Free lets another answer have the memory of what Whole returned, which must have been written by then. What was
// learned of the answer stays.
func (r *Reply) Free() { r.walk.free() }

// Usage is what the answer said of its cost so far. Counted means that the numbers are the final ones; without it
// they are what a stream had said when it ended, and may lack output.
func (r *Reply) Usage() vllm.Usage {
	u := r.usage
	u.Counted = u.Counted && r.final
	return u
}

// Chunks is how many tokens the events with generated text had, as far as these tell: at least one each.
func (r *Reply) Chunks() int64 { return r.content + r.pace.Joined() }

// UpMessage is the upstream's own error text, for the operator only, at most 2 KiB; "" when there was none.
func (r *Reply) UpMessage() string { return r.said }

// Ended says how the answer ended, as far as its own text tells: a stream is complete only with its dialect's last
// event, whatever its status was.
func (r *Reply) Ended() verdict.Ended {
	switch {
	case r.failed:
		return verdict.UpstreamErrorEvent
	case r.aborted:
		return verdict.UpstreamAborted
	case r.ended:
		return verdict.Complete
	case r.cause != verdict.Complete && r.cause != verdict.NotForwarded:
		return r.cause
	case r.closed:
		return verdict.UpstreamEndedEarly
	}
	return verdict.NotForwarded
}

// Whole rewrites an answer that is not a stream. It is refused when JSON is due and this is none, and when it is an
// error inside a success.
func (r *Reply) Whole(status int, contentType string, body []byte) ([]byte, verdict.Verdict) {
	if r.op == nil {
		return nil, verdict.Refuse(verdict.InternalError, errors.New("an answer without an operation"))
	}
	switch media := mediaType(contentType); {
	case r.op.Response == vllm.EmptyReply:
		body = nil
	case media == "application/json":
		return r.json(status, body)
	case r.op.Response == vllm.TextReply && strings.HasPrefix(media, "text/plain"):
	case r.op.Response == vllm.BytesReply || isBytes(r.op, media):
	default:
		return nil, verdict.Refuse(verdict.UpstreamFailed, fmt.Errorf("the upstream answered %q with status %d to %s, where %q is due", media, status, r.op.ID, r.op.Response))
	}
	r.ended = true
	return body, verdict.Allow()
}

// isBytes reports whether the operation answers bytes when encoding_format asks for them (vLLM 0.32.0
// entrypoints/pooling: EmbeddingBytesResponse, PoolingBytesResponse).
func isBytes(op *vllm.Operation, media string) bool {
	return media == "application/octet-stream" && (strings.HasPrefix(op.ID, "embeddings.") || strings.HasPrefix(op.ID, "pooling."))
}

func (r *Reply) json(status int, body []byte) ([]byte, verdict.Verdict) {
	r.walk.choices = bytes.Contains(body, abort)
	if err := r.walk.walk(body); err != nil {
		return nil, verdict.Refuse(verdict.UpstreamFailed, fmt.Errorf("status %d: %w", status, err))
	}
	if r.walk.found.failed && !r.options.PassErrors {
		r.failed = true
		return nil, r.Failed(status, body)
	}
	r.ended, r.final = true, true
	r.count(body)
	// vLLM leaves out what is null in a whole message (entrypoints/anthropic/api_router.py, exclude_none)
	f := &r.walk.found
	r.aborted = f.aborted || r.nothing() || r.dialect() == vllm.Anthropic && f.kind == "message" && !f.stopped
	out := r.walk.edited()
	r.walk.text = nil // its memory is another answer's once this one was written
	return out, verdict.Allow()
}

// nothing reports whether a response is called incomplete although it has no token: its length cannot have ended it. vLLM
// says so of a harmony model's request that it dropped before the first token.
func (r *Reply) nothing() bool {
	return r.walk.found.cut && r.usage.Counted && r.usage.Completion == 0
}

// count reads the usage of the answer or event that was just walked.
func (r *Reply) count(text []byte) {
	var u vllm.Usage
	ok := false
	switch at := r.walk.found.usageAt; {
	case !at.empty():
		u, ok = vllm.ReadUsageObject(r.op, text[at.from:at.to]) // alone, so that the rest is not read twice
	case len(text) > 0 && text[0] == '[', bytes.Contains(text, billed), r.op.Request == vllm.FormBody && !r.options.Stream:
		u, ok = vllm.ReadUsage(r.op, text)
	}
	if ok {
		r.usage = r.usage.Merge(u)
	}
}

// Metadata rewrites the "metadata" header of embeddings as bytes, which is JSON with the model's name and the usage.
// What is not JSON does not leave: "" drops the header.
func (r *Reply) Metadata(value string) string {
	text := []byte(value)
	if err := r.walk.walk(text); err != nil {
		return ""
	}
	r.count(text)
	r.final = true
	return string(r.walk.edited())
}

// mediaType is the media type without its parameters, in lower case (RFC 9110 §8.3.1).
func mediaType(contentType string) string {
	media, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(media))
}

// What an event has to hold before it is looked into. Inside model text the quotes are escaped, so text is never taken
// for a member.
var (
	abort        = []byte(`"abort"`)
	billed       = []byte(`"billed_units"`)
	usageName    = []byte(`"usage"`)
	modelName    = []byte(`"model"`)
	fingerprint  = []byte(`"system_fingerprint"`)
	errorName    = []byte(`"error"`)
	transferName = []byte(`_transfer_params"`)
)
