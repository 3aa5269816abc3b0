package inspect

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// document is a JSON body with what has to change in it.
type document struct {
	body  []byte
	open  int      // the index after the body's '{'
	top   []member // the members of the body, in order
	cuts  []Change // changes below the second level, in order
	facts policy.Facts
}

// walker holds one pass over a body: the decoder checks the JSON, the shapes say what may stand where.
type walker struct {
	document
	dec      *jsontext.Decoder
	limits   Limits
	kidsOpen int      // the index after the '{' of the last object that stands directly in the body
	kids     []member // its members
	caps     []outputCap
	inputs   int64
	scratch  []byte
}

// parseJSON checks a body against its shape.
func parseJSON(body []byte, shape *vllm.Shape, lim Limits) (*Doc, error) {
	if err := checkEncoding(body); err != nil {
		return nil, err
	}
	if err := checkBounds(body, lim); err != nil {
		return nil, err
	}
	w := &walker{document: document{body: body}, dec: borrowDecoder(body), limits: lim}
	defer returnDecoder(w.dec, len(body))
	if kind := w.dec.PeekKind(); kind != '{' && kind != jsontext.KindInvalid {
		return nil, w.mismatch("must be an object")
	}
	if _, err := w.value(shape, vllm.NoFact); err != nil {
		return nil, err
	}
	end := int(w.dec.InputOffset())
	if rest := bytes.TrimLeft(body[end:], " \t\r\n"); len(rest) > 0 {
		return nil, badBody("", len(body)-len(rest), "nothing may follow the JSON object")
	}
	w.settle(shape)
	return &Doc{facts: w.facts, json: &w.document}, nil
}

// decoders are kept with their stacks of names, which are most of what a short body costs.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// keptDecoder bounds the body of a decoder that is kept: a large one may have grown large.
const keptDecoder = 256 << 10

func borrowDecoder(body []byte) *jsontext.Decoder {
	dec, _ := decoders.Get().(*jsontext.Decoder)
	dec.Reset(bytes.NewBuffer(body))
	return dec
}

func returnDecoder(dec *jsontext.Decoder, size int) {
	if size > keptDecoder {
		return
	}
	dec.Reset(bytes.NewBuffer(nil)) // it must not hold on to the body
	decoders.Put(dec)
}

// checkEncoding refuses what Python's json module would detect and decode although it is not UTF-8.
func checkEncoding(body []byte) error {
	if bytes.HasPrefix(body, []byte("\xef\xbb\xbf")) {
		return badBody("", 0, "a byte order mark; plain UTF-8 is needed")
	}
	if bytes.HasPrefix(body, []byte("\xff\xfe")) || bytes.HasPrefix(body, []byte("\xfe\xff")) || bytes.IndexByte(body[:min(4, len(body))], 0) >= 0 {
		return badBody("", 0, "not UTF-8")
	}
	return nil
}

// value reads the next value against its shape. A removed value was read, but must not go up: why says the reason.
func (w *walker) value(s *vllm.Shape, fact vllm.Fact) (why string, err error) {
	kind := w.dec.PeekKind()
	if s = w.pick(s, kind); s == nil {
		return "", w.mismatch("must be absent")
	}
	if !fits(s.Kind, kind) {
		return "", w.mismatch("must be " + wanted(s))
	}
	switch s.Kind {
	case vllm.String:
		return "", w.str(s, fact)
	case vllm.Integer, vllm.Number:
		return "", w.number(s, fact)
	case vllm.Boolean:
		return "", w.boolean(fact)
	case vllm.Object, vllm.Map:
		w.learnInput(fact)
		return "", w.object(s, tags{})
	case vllm.Array:
		return "", w.array(s, fact)
	case vllm.Choice:
		w.learnInput(fact)
		return w.choice(s, tags{})
	}
	w.learnInput(fact)
	_, err = w.skip()
	return "", err
}

// fits reports whether a value of a JSON kind can have a shape of the given kind.
func fits(k vllm.Kind, json jsontext.Kind) bool {
	switch k {
	case vllm.String:
		return json == '"'
	case vllm.Integer, vllm.Number:
		return json == '0'
	case vllm.Boolean:
		return json == 't' || json == 'f'
	case vllm.Object, vllm.Map, vllm.Choice:
		return json == '{'
	case vllm.Array:
		return json == '['
	case vllm.Free:
		return json != jsontext.KindInvalid
	}
	return false
}

// pick resolves a Union by the JSON kind; for a number that could be Integer or Number, by its spelling. When nothing
// fits, the union itself is the answer, and its kind fits nothing.
func (w *walker) pick(s *vllm.Shape, json jsontext.Kind) *vllm.Shape {
	if s == nil || s.Kind != vllm.Union {
		return s
	}
	var integer *vllm.Shape
	for _, one := range s.Any {
		one = w.pick(one, json)
		if one == nil || !fits(one.Kind, json) {
			continue
		}
		if one.Kind != vllm.Integer {
			return one
		}
		at := w.next()
		if _, ok := integral(w.body[at:skipNumber(w.body, at)]); ok {
			return one
		}
		integer = one
	}
	if integer != nil {
		return integer
	}
	return s
}

// next is where the next value begins; the decoder has peeked at it.
func (w *walker) next() int {
	i := int(w.dec.InputOffset())
	for i < len(w.body) {
		switch w.body[i] {
		case ' ', '\t', '\r', '\n', ',', ':':
			i++
		default:
			return i
		}
	}
	return i
}

// skip reads a value without rules: the decoder still checks its syntax, names and encoding.
func (w *walker) skip() (jsontext.Value, error) {
	raw, err := w.dec.ReadValue()
	if err != nil {
		return nil, badSyntax(w.body, err)
	}
	return raw, nil
}

// mismatch refuses the next value for what it is; if it is not JSON, that is the refusal.
func (w *walker) mismatch(what string) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	return badBody(w.pointer(), int(w.dec.InputOffset())-len(raw), what)
}

// wrong refuses the value that was just read.
func (w *walker) wrong(raw jsontext.Value, what string) error {
	return badBody(w.pointer(), int(w.dec.InputOffset())-len(raw), what)
}

// pointer names the value that was read last.
func (w *walker) pointer() string { return printable(string(w.dec.StackPointer())) }

// checkCuts bounds the changes: each costs more memory than the bytes that it removes.
func (w *walker) checkCuts() error {
	if len(w.cuts) <= w.limits.MaxChanges {
		return nil
	}
	return badBody(w.pointer(), int(w.dec.InputOffset()), fmt.Sprintf("more than %d members would have to be removed", w.limits.MaxChanges))
}

// array reads a list. It has no place for null: an element cannot be absent.
func (w *walker) array(s *vllm.Shape, fact vllm.Fact) error {
	if integer := integerOf(s.Elem); integer != nil {
		if n, ok := plainIntegers(w.body[w.next():], integer); ok && (s.MaxLen == 0 || n <= s.MaxLen || integer != s.Elem) {
			w.learnInput(fact)
			_, err := w.skip()
			return err
		}
	}
	if _, err := w.dec.ReadToken(); err != nil {
		return badSyntax(w.body, err)
	}
	var seq sequence
	var count, numbers int64
	tokens := isTokens(s.Elem)
	for kind := w.dec.PeekKind(); kind != ']'; kind = w.dec.PeekKind() {
		if kind == 'n' && (s.Elem == nil || s.Elem.Kind != vllm.Free) {
			return w.mismatch("null cannot stand in a list")
		}
		if kind == '0' && tokens {
			numbers++
		} else if count++; s.MaxLen > 0 && count > s.MaxLen {
			return w.mismatch(fmt.Sprintf("the list may have %d elements at most", s.MaxLen))
		}
		start, mark := w.next(), len(w.cuts)
		why, err := w.value(s.Elem, vllm.NoFact)
		if err != nil {
			return err
		}
		if why != "" {
			w.cuts = w.cuts[:mark]
		}
		seq.add(&w.cuts, start, int(w.dec.InputOffset()), why)
		if err := w.checkCuts(); err != nil {
			return err
		}
	}
	if fact == vllm.FactInputs {
		if s.Elem.Kind == vllm.Integer {
			count, numbers = 0, count
		}
		w.inputs += count + min(numbers, 1)
	}
	_, err := w.dec.ReadToken()
	if err != nil {
		return badSyntax(w.body, err)
	}
	return nil
}

// isTokens reports whether a list may be one of token ids beside its other forms: such a list is one input, however long.
func isTokens(elem *vllm.Shape) bool {
	return elem != nil && elem.Kind == vllm.Union && integerOf(elem) != nil
}

// integerOf is the Integer among what an element may be.
func integerOf(elem *vllm.Shape) *vllm.Shape {
	if elem == nil || elem.Kind == vllm.Integer {
		return elem
	}
	if elem.Kind == vllm.Union {
		for _, one := range elem.Any {
			if one.Kind == vllm.Integer {
				return one
			}
		}
	}
	return nil
}

// choice reads an object whose shape one of its members chooses.
func (w *walker) choice(s *vllm.Shape, t tags) (why string, err error) {
	tag := w.findTag(s)
	f := variant(s, tag)
	if f == nil {
		return "", w.noVariant(s)
	}
	t, ok := t.with(s.Tag, tag)
	if !ok {
		return "", refuse(verdict.InternalError, fmt.Errorf("shape %q: more than %d tags on one object", s.Name, len(t.all)))
	}
	switch f.Action {
	case vllm.Pass, vllm.Write:
	case vllm.Drop:
		if _, err := w.skip(); err != nil {
			return "", err
		}
		note(&w.facts.Dropped, w.pointer())
		return "dropped", nil
	default:
		raw, err := w.skip()
		if err != nil {
			return "", err
		}
		return "", forbidden(f, w.pointer(), int(w.dec.InputOffset())-len(raw))
	}
	if f.Shape == nil {
		return "", w.noVariant(s)
	}
	switch f.Shape.Kind {
	case vllm.Object, vllm.Map:
		return "", w.object(f.Shape, t)
	case vllm.Choice:
		return w.choice(f.Shape, t)
	}
	return w.value(f.Shape, vllm.NoFact)
}
