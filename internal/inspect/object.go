package inspect

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/vllm"
)

// member is a member of the body, or of an object that stands directly in it: what an edit can reach.
type member struct {
	start, nameEnd int      // the name's literal
	value, end     int      // the value
	why            string   // not "": it is removed, for this reason; or replaced, when with is not ""
	with           string   // the value that replaces it
	needed         bool     // the object needs it, and it goes up
	open           int      // the index after the value's '{', when its members are in kids; else 0
	kids           []member // the members of an object that has field rules
}

// maxRecorded bounds the members of one object that has field rules and no bound of its own: the largest table has
// fewer than a hundred rows.
const maxRecorded = 1024

// sequence makes the cuts that take members or elements out and leave valid JSON: what follows a kept one goes with the
// comma before it, what comes before the first kept one goes with the comma after it.
type sequence struct {
	end  int  // where the last one ended
	kept bool // one was kept
	lead int  // 1 + the index of a cut that has to reach to where the next one begins
}

func (q *sequence) add(cuts *[]Change, start, end int, why string) {
	if q.lead > 0 {
		(*cuts)[q.lead-1].To, q.lead = start, 0
	}
	from := start
	if q.kept {
		from = q.end
	}
	q.end = end
	if why == "" {
		q.kept = true
		return
	}
	*cuts = append(*cuts, Change{From: from, To: end, Why: why})
	if !q.kept {
		q.lead = len(*cuts)
	}
}

// object reads an object member by member.
func (w *walker) object(s *vllm.Shape, fact vllm.Fact, t tag) error {
	if err := w.enter(); err != nil {
		return err
	}
	depth := w.dec.StackDepth()
	open := int(w.dec.InputOffset())
	var list []member
	if depth == 1 {
		list = w.top // empty; its room is of a body before
	}
	most := int64(maxRecorded)
	if s.Kind == vllm.Map && s.MaxLen > 0 {
		most = s.MaxLen
	}
	var seq sequence
	var count int64
	var needed int
	for w.dec.PeekKind() != '}' {
		if count++; count > most {
			return w.mismatch(fmt.Sprintf("the object may have %d members at most", most))
		}
		m, err := w.member(s, t)
		if err != nil {
			return err
		}
		if m.needed {
			needed++
		}
		if depth <= 2 {
			list = append(list, m)
			continue
		}
		if err := w.take(&seq, m.start, m.why); err != nil {
			return err
		}
	}
	if s.Kind == vllm.Map {
		w.counts[fact] += count
	}
	switch depth {
	case 1:
		w.open, w.top = open, list
	case 2:
		w.kidsOpen, w.kids = open, list
	}
	if _, err := w.dec.ReadToken(); err != nil {
		return badSyntax(w.body, err)
	}
	if needed < len(s.Needed) {
		return badBody(w.pointer(), open-1, "the object needs "+strings.Join(s.Needed, ", "))
	}
	return nil
}

// member reads one member: its name decides what becomes of its value.
func (w *walker) member(s *vllm.Shape, t tag) (m member, err error) {
	raw, err := w.read()
	if err != nil {
		return m, err
	}
	m.nameEnd = int(w.dec.InputOffset())
	m.start = m.nameEnd - len(raw)
	name := w.text(raw)
	kind := w.dec.PeekKind()
	m.value = w.next()
	if err := w.countMember(m.value - 1); err != nil {
		return m, err
	}
	w.kidsOpen, w.kids = 0, nil
	chosen, isTag := t.of(name)
	f := row(s, name)
	if f == nil && isTag {
		f = tagField
	}
	if kind == 'n' && (s.Kind != vllm.Map || s.Elem == nil || s.Elem.Kind != vllm.Free) {
		_, err = w.skip()
		m.why, isTag = "null", false
	} else {
		m.why, err = w.field(f, tag{})
		m.needed = f != nil && f.Needed && m.why == ""
	}
	if err != nil {
		return m, err
	}
	m.end, m.open, m.kids = int(w.dec.InputOffset()), w.kidsOpen, w.kids
	if isTag {
		return m, w.checkTag(m, chosen)
	}
	return m, nil
}

// text is a name's text, valid until the next call.
func (w *walker) text(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	w.scratch, _ = jsontext.AppendUnquote(w.scratch[:0], raw) // the decoder has accepted it
	return w.scratch
}

// tagField is the row of a tag that its shape does not name.
var tagField = &vllm.Field{Action: vllm.Pass, Shape: &vllm.Shape{Kind: vllm.String}}

// row is what the shape says about a member; nil when it names none.
func row(s *vllm.Shape, name []byte) *vllm.Field {
	if s.Kind != vllm.Map {
		return s.Fields[string(name)]
	}
	if len(s.Names) > 0 && !slices.Contains(s.Names, string(name)) {
		return nil
	}
	return &vllm.Field{Action: vllm.Pass, Shape: s.Elem}
}

// field reads a value as its row of the table says; no row is an unknown field.
func (w *walker) field(f *vllm.Field, t tag) (why string, err error) {
	if f != nil && (f.Action == vllm.Pass || f.Action == vllm.Write) {
		return w.passed(f, t)
	}
	raw, err := w.skip()
	switch {
	case err != nil:
		return "", err
	case f == nil:
		note(&w.facts.UnknownKeys, w.pointer())
		return "unknown", nil
	case f.Action == vllm.Drop:
		note(&w.facts.Dropped, w.pointer())
		return "dropped", nil
	case !isDefault(raw, f.Equal):
		return "", forbidden(f, w.pointer(), int(w.dec.InputOffset())-len(raw))
	}
	return "default", nil
}

// passed reads a field whose value counts; the gateway writes its own over what is Write.
func (w *walker) passed(f *vllm.Field, t tag) (why string, err error) {
	before, start, count := len(w.caps), w.next(), w.counts[f.Fact]
	why, err = w.value(f.Shape, f.Fact, t)
	if f.Affected != nil && err == nil && !isDefault(w.body[start:w.dec.InputOffset()], f.Equal) {
		w.facts.Endanger(f, w.pointer())
	}
	size := w.dec.InputOffset() - int64(start)
	if f.Fact == vllm.FactQueries {
		size /= max(w.counts[f.Fact]-count, 1)
	}
	w.sizes[f.Fact] += size
	if len(w.caps) > before && f.Fact == vllm.FactOutputCap {
		w.caps[before].field, w.caps[before].end = f.Name, int(w.dec.InputOffset())
	}
	if f.Action == vllm.Write {
		why = "written"
	}
	return why, err
}

// maxDefault bounds the literals that are compared with a default: none is longer.
const maxDefault = 4 << 10

const space = " \t\r\n" // between the tokens of JSON (RFC 8259 §2)

// isDefault reports whether a value, which is JSON, is one of the literals, however it is spelt (RFC 8785).
func isDefault(raw jsontext.Value, literals []string) bool {
	if len(literals) == 0 || len(raw) > maxDefault {
		return false
	}
	return slices.ContainsFunc(literals, func(literal string) bool {
		want := jsontext.Value(literal)
		switch {
		case raw.Kind() != want.Kind():
			return false
		case literal == "[]", literal == "{}": // the canonical form of a list of tools costs more than all else about it
			within := bytes.Trim(raw, space)
			return len(within) >= 2 && len(bytes.Trim(within[1:len(within)-1], space)) == 0
		}
		is := raw.Clone()
		return is.Canonicalize() == nil && want.Canonicalize() == nil && bytes.Equal(is, want)
	})
}
