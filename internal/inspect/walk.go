package inspect

import (
	"bytes"
	"fmt"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/inspect/scan"
	"github.com/vallum/vallum/internal/inspect/schema"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/spare"
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
	own      spare.Decoder // what dec points to
	limits   Limits
	kidsOpen int      // the index after the '{' of the last object that stands directly in the body
	kids     []member // its members
	caps     []outputCap
	counts   [vllm.FactEnd]int64 // of values, by what they tell: the elements of lists and maps, all token ids of a list as one
	sizes    [vllm.FactEnd]int64 // their bytes; of one query, where there are several
	members  int                 // so far
	scratch  []byte
}

// parseJSON checks a body against its shape. The walker that is returned holds the document.
func parseJSON(body []byte, shape *vllm.Shape, lim Limits) (*walker, error) {
	w := walkers.Get().(*walker)
	w.body, w.limits = body, lim
	w.own.Begin(body)
	_, err := w.value(shape, vllm.NoFact, tag{})
	end := int(w.dec.InputOffset())
	w.own.Begin(nil) // it must not hold on to the body
	if rest := bytes.TrimLeft(body[end:], " \t\r\n"); err == nil && len(rest) > 0 {
		err = badBody("", len(body)-len(rest), "nothing may follow the JSON object")
	}
	if err != nil {
		w.giveBack()
		return nil, err
	}
	w.settle(shape)
	return w, nil
}

// walkers are kept with their decoders, whose stacks of names are most of what a short body costs.
var walkers = sync.Pool{New: func() any {
	w := new(walker)
	w.dec = &w.own.Decoder
	return w
}}

// What a walker may be kept with: after a large body it may have grown large.
const (
	keptBody    = 256 << 10 // bytes
	keptMembers = 64        // of the body; and as many changes
)

// giveBack lets another body be read with the walker. Of this one only what the decoder needs is kept: room.
func (w *walker) giveBack() {
	if len(w.body) > keptBody || cap(w.top) > keptMembers || cap(w.cuts) > keptMembers {
		return
	}
	clear(w.top)
	clear(w.cuts)
	clear(w.caps)
	top, cuts, caps, scratch := w.top[:0], w.cuts[:0], w.caps[:0], w.scratch[:0]
	w.document = document{top: top, cuts: cuts}
	w.kidsOpen, w.kids, w.members, w.caps, w.scratch, w.counts, w.sizes = 0, nil, 0, caps, scratch, [vllm.FactEnd]int64{}, [vllm.FactEnd]int64{}
	walkers.Put(w)
}

// value reads the next value against its shape. A removed value was read, but must not go up: why says the reason.
func (w *walker) value(s *vllm.Shape, fact vllm.Fact, t tag) (why string, err error) {
	kind := w.dec.PeekKind()
	if s = pick(s, kind); s == nil {
		return "", w.mismatch("must be absent")
	}
	if !fits(s.Kind, kind) {
		return "", w.mismatch("must be " + s.Wanted())
	}
	if s.Kind != vllm.Array && s.Kind != vllm.Map {
		w.counts[fact]++
	}
	switch s.Kind {
	case vllm.String:
		return "", w.str(s, fact)
	case vllm.Integer, vllm.Number:
		return "", w.number(s, fact)
	case vllm.Boolean:
		return "", w.boolean(fact)
	case vllm.Object, vllm.Map:
		return "", w.object(s, fact, t)
	case vllm.Array:
		return "", w.array(s, fact)
	case vllm.Choice:
		return w.choice(s, t)
	}
	raw, err := w.skip()
	if err == nil && s.Schema {
		if what := schema.Check(raw, w.limits.MaxDepth, s.Text); what != "" {
			return "", w.wrong(raw, what)
		}
	}
	return "", err
}

// starts are the JSON kinds that a value of each shape can be of.
var starts = [...]string{
	vllm.String: `"`, vllm.Integer: "0", vllm.Number: "0", vllm.Boolean: "tf", vllm.Object: "{", vllm.Map: "{", vllm.Choice: "{",
	vllm.Array: "[", vllm.Free: `"0tfn{[`, vllm.Union: "", vllm.File: "",
}

func fits(k vllm.Kind, json jsontext.Kind) bool {
	return int(k) < len(starts) && strings.IndexByte(starts[k], byte(json)) >= 0
}

// pick resolves a Union by the JSON kind. When nothing fits, the union itself is the answer, and its kind fits nothing.
func pick(s *vllm.Shape, json jsontext.Kind) *vllm.Shape {
	if s == nil || s.Kind != vllm.Union {
		return s
	}
	for _, one := range s.Any {
		if fits(one.Kind, json) {
			return one
		}
	}
	return s
}

// next is where the next value begins; the decoder has peeked at it.
func (w *walker) next() int { return scan.Space(w.body, int(w.dec.InputOffset())) }

// skip reads a value without rules: the decoder still checks its syntax, names and encoding.
func (w *walker) skip() (jsontext.Value, error) {
	kind := w.dec.PeekKind()
	if kind == '{' || kind == '[' {
		if err := w.within(w.next()); err != nil {
			return nil, err
		}
	}
	raw, err := w.read()
	if err == nil && kind == '0' {
		if end, plain := scan.Number(raw, 0); !plain && scan.Overflows(raw[:end]) {
			return nil, outOfBounds(w.body, int(w.dec.InputOffset())-len(raw), hugeNumber)
		}
	}
	return raw, err
}

// read is skip for a value that is known to be within the bounds.
func (w *walker) read() (jsontext.Value, error) {
	raw, err := w.dec.ReadValue()
	if err != nil {
		return nil, badSyntax(w.body, err)
	}
	return raw, nil
}

// enter begins the next object or list.
func (w *walker) enter() error {
	if _, err := w.dec.ReadToken(); err != nil {
		return badSyntax(w.body, err)
	}
	if w.dec.StackDepth() > w.limits.MaxDepth {
		return w.tooDeep(int(w.dec.InputOffset()) - 1)
	}
	return nil
}

// mismatch refuses the next value for what it is; if it is not JSON, that is the refusal.
func (w *walker) mismatch(what string) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	return w.wrong(raw, what)
}

// wrong refuses the value that was just read.
func (w *walker) wrong(raw jsontext.Value, what string) error {
	return badBody(w.pointer(), int(w.dec.InputOffset())-len(raw), what)
}

// pointer names the value that was read last.
func (w *walker) pointer() string { return printable(string(w.dec.StackPointer())) }

// take keeps a member or an element below the second level, or cuts it out. The changes are bounded: each costs more
// memory than the bytes that it removes.
func (w *walker) take(seq *sequence, start int, why string) error {
	seq.add(&w.cuts, start, int(w.dec.InputOffset()), why)
	if len(w.cuts) <= w.limits.MaxChanges {
		return nil
	}
	return badBody(w.pointer(), start, fmt.Sprintf("more than %d members would have to be removed", w.limits.MaxChanges))
}

// array reads a list. It has no place for null, unless its elements are free: an element cannot be absent.
func (w *walker) array(s *vllm.Shape, fact vllm.Fact) error {
	integer := integerOf(s.Elem)
	tokens := integer != nil && integer != s.Elem // then the bound is on the other elements
	if integer != nil && w.dec.StackDepth() < w.limits.MaxDepth {
		if n, ok := scan.PlainIntegers(w.body[w.next():], integer); ok && n >= s.MinLen && (tokens || s.MaxLen == 0 || n <= s.MaxLen) {
			w.counts[fact] += min(n, 1)
			_, err := w.read()
			return err
		}
	}
	if err := w.enter(); err != nil {
		return err
	}
	var seq sequence
	var count int64
	first := w.dec.PeekKind()
	for kind := first; kind != ']'; kind = w.dec.PeekKind() {
		if count++; s.MaxLen > 0 && count > s.MaxLen && (!tokens || kind != '0') {
			return w.mismatch(fmt.Sprintf("the list may have %d elements at most", s.MaxLen))
		}
		if tokens && kind != first { // vLLM tries each kind of list, and keeps several errors for each token
			return w.mismatch("a list of texts or of token ids holds nothing else")
		}
		start := w.next()
		why, err := w.value(s.Elem, vllm.NoFact, tag{})
		if err != nil {
			return err
		}
		if err := w.take(&seq, start, why); err != nil {
			return err
		}
	}
	if count < s.MinLen {
		return badBody(w.pointer(), int(w.dec.InputOffset()), fmt.Sprintf("the list must have %d elements at least", s.MinLen))
	}
	if first == '0' {
		count = min(count, 1)
	}
	w.counts[fact] += count
	if _, err := w.dec.ReadToken(); err != nil {
		return badSyntax(w.body, err)
	}
	return nil
}

// integerOf is the Integer among what an element may be.
func integerOf(elem *vllm.Shape) *vllm.Shape {
	if one := pick(elem, '0'); one != nil && one.Kind == vllm.Integer {
		return one
	}
	return nil
}

// choice reads an object whose shape one of its members chooses.
func (w *walker) choice(s *vllm.Shape, t tag) (why string, err error) {
	chosen := scan.Member(w.body[w.next():], s.Tag)
	f := variant(s, chosen)
	if f == nil || t.first != "" { // a shape that is chosen by three members is in no table
		return "", w.noVariant(s)
	}
	return w.field(f, tag{s.Tag, t.name, chosen, t.value})
}
