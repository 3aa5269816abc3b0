package inspect

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/textproto"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// A form is parsed whole and built anew, never passed on: Go's parser and Starlette's (python-multipart) disagree on
// duplicate parameters, name*, transfer encodings, repeated headers and line ends, so whatever bytes went up, they
// could mean something else there.

// Bounds on the parts of a form that have nothing to do with its size.
const (
	maxBoundary    = 70      // characters; RFC 2046 §5.1.1
	maxPartHeaders = 8       // fields of one part
	maxText        = 1 << 20 // bytes of all text fields together
)

// form is a multipart body as it was understood.
type form struct {
	shape  *vllm.Shape
	limits Limits
	dir    string
	size   int64 // bytes of the caller's body
	text   int64 // bytes of text fields so far
	fields []formField
	seen   map[string]bool
	file   *formFile
	facts  policy.Facts
	inputs int64
}

// formField is a text field that may go up.
type formField struct {
	name, value string
	written     bool // only an edit sends it up, with its own value
}

// readForm reads a form.
func readForm(r Request, lim Limits) (*Doc, error) {
	if r.Table == nil || r.Table.Body == nil {
		return nil, refuse(verdict.InternalError, fmt.Errorf("operation %q has no table of fields", r.Operation.ID))
	}
	boundary, err := formBoundary(r.ContentType, r.ContentEncoding)
	if err != nil {
		return nil, err
	}
	if r.Length > lim.MaxFormBytes {
		return nil, tooLarge(lim.MaxFormBytes)
	}
	if r.Body == nil || r.Length == 0 {
		return nil, badBody("", 0, "the body is empty; a form is needed")
	}
	source := &counted{body: r.Body, length: r.Length, limit: lim.MaxFormBytes}
	f := &form{shape: r.Table.Body, limits: lim, dir: r.SpoolDir, seen: map[string]bool{}}
	if err := f.read(multipart.NewReader(source, boundary), source); err != nil {
		return nil, errors.Join(source.failure(err), f.close())
	}
	f.size = source.n
	f.settle()
	return &Doc{facts: f.facts, form: f}, nil
}

// formBoundary reads the one parameter of the content type that matters.
func formBoundary(types, encodings []string) (string, error) {
	if err := identity(encodings); err != nil {
		return "", err
	}
	media, params, err := mediaType(types)
	if err != nil {
		return "", err
	}
	boundary := params["boundary"]
	switch {
	case media != "multipart/form-data":
		return "", badType(media, "multipart/form-data is needed")
	case boundary == "" || len(boundary) > maxBoundary:
		return "", badType(boundary, fmt.Sprintf("a boundary of 1 to %d characters is needed", maxBoundary))
	}
	return boundary, nil
}

// counted counts a form's bytes, and remembers why reading failed: the multipart reader hides it.
type counted struct {
	body             io.Reader
	n, length, limit int64
	err              error
}

func (c *counted) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.body.Read(p)
	c.n += int64(n)
	switch {
	case c.n > c.limit:
		n, err = 0, ErrTooLarge
	case c.length >= 0 && c.n > c.length:
		n, err = 0, errors.New("the body is longer than its Content-Length")
	case err == io.EOF && c.length >= 0 && c.n < c.length:
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

// failure is the refusal when parsing ended with err: what the connection did comes before what the form is.
func (c *counted) failure(err error) error {
	if c.err != nil && c.err != io.EOF {
		return readError(c.err)
	}
	return err
}

// read takes the parts one by one.
func (f *form) read(parts *multipart.Reader, source *counted) error {
	for n := 0; ; n++ {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return badBody("", int(source.n), "not a well-formed multipart/form-data body")
		}
		if n >= f.limits.MaxParts {
			return badBody("", int(source.n), fmt.Sprintf("the form has more than %d parts", f.limits.MaxParts))
		}
		if err := f.part(part, int(source.n)); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, source); err != nil { // what follows the last boundary is nobody's
		return readError(err)
	}
	return nil
}

// part reads one part. at is a position near it: the reader buffers.
func (f *form) part(part *multipart.Part, at int) error {
	d, err := partHead(part.Header)
	if err != nil {
		return badBody("", at, err.Error())
	}
	pointer := printable(string(jsontext.Pointer("").AppendToken(d.name)))
	field := f.shape.Fields[d.name]
	if field == nil || field.Action == vllm.Drop {
		f.leaveOut(field, pointer, d.name)
		_, err := io.Copy(io.Discard, part)
		return partFault(err, pointer, at)
	}
	list := field.Shape != nil && field.Shape.Kind == vllm.Array
	if f.seen[d.name] && !list {
		return badBody(pointer, at, "this field stands twice in the form")
	}
	f.seen[d.name] = true
	isFile := field.Shape != nil && field.Shape.Kind == vllm.File
	if isFile != d.file {
		return badBody(pointer, at, "must be "+map[bool]string{true: "a file, with a file name", false: "text, without a file name"}[isFile])
	}
	if isFile {
		f.file = &formFile{name: d.name, extension: extension(d.filename)}
		if err := f.file.fill(part, f.limits.SpoolAbove, f.dir); err != nil {
			return partFault(err, pointer, at)
		}
		return nil
	}
	value, err := io.ReadAll(io.LimitReader(part, maxText+1))
	if err != nil {
		return partFault(err, pointer, at)
	}
	if f.text += int64(len(value)); f.text > maxText {
		return badBody(pointer, at, fmt.Sprintf("the form's text fields may have %d bytes at most", maxText))
	}
	return f.value(field, string(value), pointer, at)
}

// leaveOut notes a part that does not go up.
func (f *form) leaveOut(field *vllm.Field, pointer, name string) {
	switch {
	case f.seen[name]:
	case field == nil:
		note(&f.facts.UnknownKeys, pointer)
	default:
		note(&f.facts.Dropped, pointer)
	}
	f.seen[name] = true
}

func partFault(err error, pointer string, at int) error {
	var r *refusal
	if err == nil || errors.As(err, &r) {
		return err
	}
	return badBody(pointer, at, "the part does not end with the form's boundary")
}

// disposition is what a part's Content-Disposition says.
type disposition struct {
	name, filename string
	file           bool
}

// partHead reads a part's headers. Its errors are in our words, for the caller.
func partHead(header textproto.MIMEHeader) (disposition, error) {
	if len(header) > maxPartHeaders {
		return disposition{}, fmt.Errorf("a part may have %d headers at most", maxPartHeaders)
	}
	for name, values := range header {
		if len(values) > 1 {
			return disposition{}, errors.New("a header stands twice in one part")
		}
		if name == "Content-Transfer-Encoding" {
			return disposition{}, errors.New("a part must not have a transfer encoding")
		}
	}
	if value := header.Get("Content-Type"); value != "" {
		media, params, err := mime.ParseMediaType(value)
		charset := params["charset"]
		switch {
		case err != nil:
			return disposition{}, errors.New("a part's Content-Type is no media type")
		case strings.HasPrefix(media, "multipart/"), strings.HasPrefix(media, "message/"):
			return disposition{}, errors.New("a part must not be a form itself")
		case charset != "" && !strings.EqualFold(charset, "utf-8") && !strings.EqualFold(charset, "us-ascii"):
			return disposition{}, errors.New("a part's charset must be UTF-8")
		}
	}
	return parseDisposition(header.Get("Content-Disposition"))
}

// parseDisposition reads form-data with its parameters (RFC 7578 §4.2). mime.ParseMediaType would fold name* into name.
func parseDisposition(value string) (d disposition, err error) {
	kind, rest, _ := strings.Cut(value, ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "form-data") {
		return d, errors.New("a part's Content-Disposition must be form-data")
	}
	seen := map[string]bool{}
	for rest = strings.TrimSpace(rest); rest != ""; {
		var key, text string
		var ok bool
		if key, text, rest, ok = cutParameter(rest); !ok || seen[key] {
			return d, errors.New("a part's Content-Disposition is not well formed, or repeats a parameter")
		}
		seen[key] = true
		switch key {
		case "name":
			d.name = text
		case "filename":
			d.filename, d.file = text, true
		case "filename*": // some clients' only form; the name itself is not used
			d.file = true
		default:
			if strings.HasPrefix(key, "name*") || strings.HasPrefix(key, "filename*") {
				return d, errors.New("a part's name must be given as name=")
			}
		}
	}
	if d.name == "" {
		return d, errors.New("a part needs a name")
	}
	return d, nil
}

// cutParameter takes key=value, or key="value", from the front of what follows a semicolon.
func cutParameter(s string) (key, value, rest string, ok bool) {
	key, s, ok = strings.Cut(s, "=")
	key, s = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(s)
	if !ok || key == "" || strings.ContainsAny(key, "; \t\"") {
		return "", "", "", false
	}
	if !strings.HasPrefix(s, `"`) {
		value, rest, _ = strings.Cut(s, ";")
		value = strings.TrimSpace(value)
		return key, value, strings.TrimSpace(rest), value != "" && !strings.ContainsAny(value, "\" \t")
	}
	var text strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
			text.WriteByte(s[i])
		case s[i] == '"':
			rest = strings.TrimSpace(s[i+1:])
			if rest == "" {
				return key, text.String(), "", true
			}
			after, more := strings.CutPrefix(rest, ";")
			return key, text.String(), strings.TrimSpace(after), more
		default:
			text.WriteByte(s[i])
		}
	}
	return "", "", "", false
}
