package inspect

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/inspect/media"
	"github.com/vallum/vallum/internal/inspect/upload"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// A form is parsed whole and built anew, never passed on: Go's parser and Starlette's (python-multipart) disagree on
// duplicate parameters, name*, transfer encodings, repeated headers and line ends, so whatever bytes went up, they
// could mean something else there. In between its text fields are a JSON object, so that one set of rules holds.

// Bounds on the parts of a form that have nothing to do with its size.
const (
	maxBoundary = 70      // characters; RFC 2046 §5.1.1
	maxText     = 1 << 20 // bytes of all text fields together
)

// form is a multipart body as it was understood.
type form struct {
	*document              // its text fields
	file      *upload.File // nil when there is none
	size      int64        // bytes of the caller's body
}

// formReader reads a form.
type formReader struct {
	form
	request Request
	limits  Limits
	source  *counted
	text    int64    // bytes of text fields so far
	names   []string // of text fields, in order
	values  map[string]jsontext.Value
}

func readForm(r Request, lim Limits) (*Doc, error) {
	source, err := count(r, "multipart/form-data", lim.MaxFormBytes)
	if err != nil {
		return nil, err
	}
	if source.boundary == "" || len(source.boundary) > maxBoundary {
		return nil, badBody("Content-Type", -1, fmt.Sprintf("a boundary of 1 to %d characters is needed", maxBoundary))
	}
	f := &formReader{request: r, limits: lim, source: source, values: map[string]jsontext.Value{}}
	if err := f.read(multipart.NewReader(source, source.boundary)); err != nil {
		return nil, errors.Join(source.failure(err), f.close())
	}
	w, err := parseJSON(f.object(), r.Table.Body, lim)
	if err != nil {
		var in *refusal
		if errors.As(err, &in) {
			in.at = -1 // a position in our own object would say nothing
		}
		return nil, errors.Join(err, f.close())
	}
	w.facts.Shared, w.facts.BodyBytes = w.facts.BodyBytes, source.n // its text goes with every piece of the sound
	if f.file != nil && !media.Known(vllm.Sound, f.file) {
		w.facts.Endanger(vllm.Sound.Strange(), "/"+f.file.Field)
	}
	return &Doc{facts: w.facts, form: &form{document: &w.document, file: f.file, size: source.n}}, nil
}

// read takes the parts one by one.
func (f *formReader) read(parts *multipart.Reader) error {
	for n := 0; ; n++ {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return f.fault("", "not a well-formed multipart/form-data body")
		}
		if n >= f.limits.MaxParts {
			return f.fault("", fmt.Sprintf("the form has more than %d parts", f.limits.MaxParts))
		}
		if err := f.part(part); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, f.source) // what follows the last boundary is nobody's
	return err
}

// fault refuses the form. The position is near the fault: the reader buffers.
func (f *formReader) fault(pointer, what string) error {
	return badBody(pointer, int(f.source.n), what)
}

// part reads one part.
func (f *formReader) part(part *multipart.Part) error {
	name, filename, isFile, fault := upload.Head(part.Header)
	if fault != "" {
		return f.fault("", fault)
	}
	pointer := printable(string(jsontext.Pointer("").AppendToken(name)))
	field := f.request.Table.Body.Fields[name]
	known := field != nil && field.Action != vllm.Drop
	wantsFile := known && field.Shape != nil && field.Shape.Kind == vllm.File
	switch {
	case wantsFile && f.file != nil, known && !f.isList(name) && f.values[name] != nil:
		return f.fault(pointer, "this field stands twice in the form")
	case wantsFile && !isFile:
		return f.fault(pointer, "must be a file, with a file name")
	case wantsFile:
		f.file = &upload.File{Field: name, Ending: upload.Extension(filename)}
		return f.partFault(f.file.Fill(part, f.limits.SpoolAbove, f.request.SpoolDir), pointer)
	case !known:
		f.add(name, jsontext.Value(`""`))
		_, err := io.Copy(io.Discard, part)
		return f.partFault(err, pointer)
	case isFile:
		return f.fault(pointer, "must be text, without a file name")
	}
	text, err := io.ReadAll(io.LimitReader(part, maxText+1))
	if f.text += int64(len(text)); err != nil {
		return f.partFault(err, pointer)
	}
	if f.text > maxText || !utf8.Valid(text) {
		return f.fault(pointer, fmt.Sprintf("text must be UTF-8, and all text of the form together at most %d bytes", maxText))
	}
	f.add(name, literal(field.Shape, string(text)))
	return nil
}

// partFault is the refusal for a part that could not be read to its end; a full disk is not the caller's fault.
func (f *formReader) partFault(err error, pointer string) error {
	var disk *fs.PathError
	if err == nil {
		return nil
	}
	if errors.As(err, &disk) {
		return refuse(verdict.Busy, fmt.Errorf("spooling a form: %w", err))
	}
	return f.fault(pointer, "the part does not end with the form's boundary")
}

// isList reports whether a field may stand several times.
func (f *formReader) isList(name string) bool {
	field := f.request.Table.Body.Fields[name]
	return field != nil && field.Shape != nil && field.Shape.Kind == vllm.Array
}

// add remembers a text field, for object. What does not go up anyway is kept once.
func (f *formReader) add(name string, value jsontext.Value) {
	before, again := f.values[name]
	list := f.isList(name)
	switch {
	case list && value.Kind() == 'n', again && !list:
		return
	case list && again:
		value = append(append(before, ','), value...)
	case list:
		value = append(jsontext.Value{'['}, value...)
	}
	if f.values[name] = value; !again {
		f.names = append(f.names, name)
	}
}

// object is the text fields as a JSON object.
func (f *formReader) object() []byte {
	all := []byte{'{'}
	for i, name := range f.names {
		if i > 0 {
			all = append(all, ',')
		}
		all = append(append(quoted(all, name), ':'), f.values[name]...)
		if f.isList(name) {
			all = append(all, ']')
		}
	}
	return append(all, '}')
}

// literal is a form's text as the JSON that its field's shape expects; what does not look like it becomes a string,
// which the shape then refuses. An empty text counts as absent, as in FastAPI's forms.
func literal(s *vllm.Shape, text string) jsontext.Value {
	if s != nil && s.Kind == vllm.Array {
		s = s.Elem
	}
	if text == "" {
		return jsontext.Value("null")
	}
	as := jsontext.Value(text)
	if lower := strings.ToLower(text); lower == "true" || lower == "false" {
		as = jsontext.Value(lower) // requests sends str(True)
	}
	if as.IsValid() && as.Kind() != 'n' && as.Kind() != '"' && (s == nil || fits(pick(s, as.Kind()).Kind, as.Kind())) {
		return as
	}
	return quoted(nil, text)
}
