// Package inspect reads a bounded request body into a Doc and its Facts, and later makes the body that vLLM sees from
// the caller's bytes and the Grant's edits.
// It refuses every body that could mean one thing to Vallum and another to vLLM, and sends up no field that the
// operation's table does not name.
package inspect

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/spare"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Limits bound what one body may cost. The zero value refuses every body.
type Limits struct {
	MaxJSONBytes int64 // bytes of a JSON body
	MaxFormBytes int64 // bytes of a multipart body
	SpoolAbove   int64 // bytes of a form's file that stay in memory; more goes to SpoolDir
	MaxDepth     int   // objects and arrays inside each other; vLLM's parser gives up near 990
	MaxMembers   int   // object members in a whole body: the duplicate check remembers each name
	MaxChanges   int   // splices in one body
	MaxParts     int   // parts of a form
}

// Default is the limits of a gateway whose configuration says nothing else.
func Default() Limits {
	return Limits{
		MaxJSONBytes: 8 << 20,
		MaxFormBytes: 32 << 20,
		SpoolAbove:   1 << 20,
		MaxDepth:     64,
		MaxMembers:   1 << 18,
		MaxChanges:   1 << 16,
		MaxParts:     64,
	}
}

// Request is a body that has not been read, and what is known about it.
type Request struct {
	Operation       *vllm.Operation // what the caller wants to do
	Table           *vllm.Table     // the fields of the operation; nil only when it takes no body
	ContentType     []string        // every value of the header, in order
	ContentEncoding []string        // every value of the header, in order
	Length          int64           // declared bytes; -1 when unknown
	Body            io.Reader       // nil is an empty body; ErrTooLarge, ErrBusy and Timeout() among its errors have their own reasons
	SpoolDir        string          // where a large form's file is kept until Close; "" refuses such forms
	Upstream        string          // the X-Vallum-Upstream header, which only passes through to Facts
}

// Doc is a body that was read, checked and understood. Read makes it; its owner calls Close.
type Doc struct {
	facts  policy.Facts
	json   *document     // nil unless the operation takes JSON
	form   *form         // nil unless the operation takes a form
	walker *walker       // whose document json is, when it can be used again
	buffer *spare.Buffer // what the caller's bytes lie in, likewise
	closed bool
}

// Body is what goes up to vLLM.
type Body struct {
	ContentType string        // "" when there is no body
	Bytes       []byte        // the whole body; nil when part of it is in the spool
	Reader      io.Reader     // the whole body again, from its beginning; valid until Close
	Length      int64         // bytes
	Changes     []Change      // what differs from the caller's bytes, in their order
	buffer      *spare.Buffer // what Bytes lies in, when it can be used again
}

// Free lets another request have the memory of the bytes, and empties the body. It is called once at most, when nothing
// refers to Bytes or Reader any more; who never calls it leaves them to the garbage collector.
func (b *Body) Free() {
	b.buffer.GiveBack()
	*b = Body{}
}

// Change is one byte range of the caller's body that does not go up as it came.
type Change struct {
	From, To int    // the range in the caller's body; empty for an insertion
	With     string // what stands there instead
	Why      string // "null", "unknown", "dropped", "default", "written", "integer", "smallest cap", "form", or the name of an edit
}

// Read reads the body whole within its limit, checks it, and learns from it. A refusal names the field by its JSON
// pointer and the position in bytes; it leaves nothing behind that has to be closed.
func Read(r Request, lim Limits) (*Doc, verdict.Verdict) {
	if r.Operation == nil {
		return nil, verdict.Refuse(verdict.UnknownOperation, fmt.Errorf("no operation was given"))
	}
	var d *Doc
	var err error
	switch known := r.Table != nil && r.Table.Body != nil; {
	case r.Operation.Request == vllm.NoBody:
		d, err = readNothing(r)
	case r.Operation.Request == vllm.JSONBody && known:
		d, err = readJSON(r, lim)
	case r.Operation.Request == vllm.FormBody && known:
		d, err = readForm(r, lim)
	default:
		err = fmt.Errorf("operation %q has no table of fields for its %q body", r.Operation.ID, r.Operation.Request)
	}
	if err != nil {
		return nil, asVerdict(err)
	}
	d.facts.Upstream = r.Upstream
	return d, verdict.Allow()
}

// Facts is what a decision may hang on.
func (d *Doc) Facts() policy.Facts { return d.facts }

// Rewrite makes the body for vLLM: the caller's bytes without what must not pass, and with the edits. The caller's
// bytes stay as they were, so it can be called again. An error means that an edit does not fit the document, which is
// a defect of Vallum.
func (d *Doc) Rewrite(edits []policy.Edit) (Body, error) {
	switch {
	case d.closed:
		return Body{}, errors.New("the document was closed before it was rewritten")
	case d.json != nil:
		return d.json.rewrite(edits)
	case d.form != nil:
		return d.form.rewrite(edits)
	case len(edits) > 0:
		return Body{}, fmt.Errorf("edit %q: the operation has no body", edits[0].Name)
	}
	return Body{Reader: strings.NewReader("")}, nil
}

// Close removes what was spooled, and lets other requests have the memory of the caller's bytes; what Rewrite made and
// the Facts stay. It may be called more than once.
func (d *Doc) Close() error {
	d.closed = true
	if d.walker != nil {
		d.walker.giveBack()
		d.buffer.GiveBack()
		d.json, d.walker, d.buffer = nil, nil, nil
	}
	if d.form == nil {
		return nil
	}
	return d.form.close()
}

// readNothing accepts the absence of a body: vLLM reads none here, so any byte could only be meant for somebody else.
func readNothing(r Request) (*Doc, error) {
	if r.Length == 0 || r.Body == nil {
		return &Doc{}, nil
	}
	source := &counted{body: r.Body, length: -1, limit: 1}
	switch n, err := io.ReadFull(source, make([]byte, 1)); {
	case n > 0:
		return nil, badBody("", -1, "this operation takes no body")
	case err != io.EOF:
		return nil, source.failure(err)
	}
	return &Doc{}, nil
}

// readJSON reads a JSON body.
func readJSON(r Request, lim Limits) (*Doc, error) {
	body, err := readAll(r, lim.MaxJSONBytes)
	if err != nil {
		return nil, err
	}
	w, err := parseJSON(body.B, r.Table.Body, lim)
	if err != nil {
		body.GiveBack()
		return nil, err
	}
	return &Doc{facts: w.facts, json: &w.document, walker: w, buffer: body}, nil
}
