package vllm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// block is a heading of a table file and the rows under it.
type block struct {
	kind  string   // type, rows, shape, body, choice
	names []string // what it defines: one name, or the operations of a body
	rest  string   // type: the text of the type; choice: the tag
	at    string   // file:line
	rows  []row
}

// row is one line of a block, taken apart but not yet understood.
type row struct {
	at, name, typ, action, why string
	include                    bool
	attrs                      []string
}

// tableParser reads the files first and resolves names afterwards, so that the order of files does not matter.
type tableParser struct {
	blocks []*block
	byName map[string]*block // type, rows, shape, choice
	shapes map[string]*Shape // types, shapes and choices; a type's is nil while it is being resolved
	set    *tableSet
	errs   []error
}

func newTableParser() *tableParser {
	return &tableParser{
		byName: map[string]*block{},
		shapes: map[string]*Shape{},
		set:    &tableSet{byID: map[string]*Table{}, origin: map[*Shape]string{}},
	}
}

func (p *tableParser) fail(at, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s: %w", at, fmt.Errorf(format, args...)))
}

// read takes one file apart into blocks.
func (p *tableParser) read(file, text string) {
	var current *block
	for i, line := range strings.Split(text, "\n") {
		at := fmt.Sprintf("%s:%d", file, i+1)
		bare := strings.TrimSpace(line)
		if bare == "" || strings.HasPrefix(bare, "#") {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			current = p.heading(at, bare)
			continue
		}
		if current == nil {
			p.fail(at, "a row without a heading above it")
			continue
		}
		if r, ok := p.row(at, bare); ok {
			current.rows = append(current.rows, r)
		}
	}
}

// heading reads a line that begins a block. After a bad heading nil is returned, and its rows are reported too.
func (p *tableParser) heading(at, line string) *block {
	words := strings.Fields(line)
	b := &block{kind: words[0], at: at}
	switch {
	case b.kind == "type" && len(words) > 3 && words[2] == "=":
		b.names, b.rest = words[1:2], strings.TrimSpace(line[strings.Index(line, "=")+1:])
	case (b.kind == "rows" || b.kind == "shape") && len(words) == 2:
		b.names = words[1:]
	case b.kind == "choice" && len(words) == 4 && words[2] == "by":
		b.names, b.rest = words[1:2], words[3]
	case b.kind == "body" && len(words) > 1:
		b.names = words[1:]
	default:
		p.fail(at, "%q is no heading; one is: type NAME = TYPE, rows NAME, shape NAME, choice NAME by TAG, body OPERATION …", line)
		return nil
	}
	p.blocks = append(p.blocks, b)
	if b.kind == "body" {
		return b
	}
	if before, twice := p.byName[b.names[0]]; twice {
		p.fail(at, "%q is defined twice, first at %s", b.names[0], before.at)
		return b
	}
	p.byName[b.names[0]] = b
	return b
}

// row reads an indented line.
func (p *tableParser) row(at, line string) (row, bool) {
	left, why, hasWhy := strings.Cut(line, " -- ")
	words := tableWords(left)
	if words[0] == "include" && len(words) == 2 && !hasWhy {
		return row{at: at, name: words[1], include: true}, true
	}
	why = strings.TrimSpace(why)
	if why == "" {
		p.fail(at, "%q has no why: every row ends in -- and its reason", words[0])
		return row{}, false
	}
	if len(words) < 3 {
		p.fail(at, "a row is: FIELD TYPE ACTION [attributes] -- why; %q has %d of the three", left, len(words))
		return row{}, false
	}
	return row{at: at, name: words[0], typ: words[1], action: words[2], attrs: words[3:], why: why}, true
}

// tableWords splits at spaces that stand outside brackets and quotes.
func tableWords(s string) []string {
	var words []string
	depth, start, quoted := 0, -1, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"':
			quoted = !quoted
		case quoted:
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		}
		if c == ' ' && depth == 0 && !quoted {
			if start >= 0 {
				words = append(words, s[start:i])
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		words = append(words, s[start:])
	}
	return words
}

// resolve turns the blocks into shapes and tables.
func (p *tableParser) resolve() (*tableSet, error) {
	for _, b := range p.blocks {
		if b.kind == "shape" || b.kind == "choice" {
			s := &Shape{Name: b.names[0], Kind: Object}
			if b.kind == "choice" {
				s.Kind, s.Tag = Choice, b.rest
			}
			p.shapes[b.names[0]] = s
			p.set.shapes = append(p.set.shapes, s)
			p.set.origin[s] = b.at
		}
	}
	for _, b := range p.blocks {
		switch b.kind {
		case "type":
			p.named(b.names[0], b.at)
		case "rows":
			p.fields(b) // for its mistakes
		case "shape":
			s := p.shapes[b.names[0]]
			s.Fields = p.fields(b)
			s.Needed = needed(s.Fields)
		case "choice":
			p.choice(b, p.shapes[b.names[0]])
		case "body":
			p.body(b)
		}
	}
	p.checkTags()
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return p.set, nil
}

// named returns the shape that a name stands for; types are resolved when first used.
func (p *tableParser) named(name, at string) *Shape {
	if s, done := p.shapes[name]; done {
		if s == nil {
			p.fail(at, "type %q is made of itself", name)
		}
		return s
	}
	b, ok := p.byName[name]
	if !ok || b.kind == "rows" {
		p.fail(at, "there is no type or shape %q", name)
		return nil
	}
	p.shapes[name] = nil
	s := p.parseType(b.rest, b.at)
	p.shapes[name] = s
	return s
}

func (p *tableParser) body(b *block) {
	t := &Table{Operations: b.names, Body: &Shape{Name: b.names[0], Kind: Object, Fields: p.fields(b)}}
	t.Body.Needed = needed(t.Body.Fields)
	p.set.tables = append(p.set.tables, t)
	p.set.origin[t.Body] = b.at
	for _, id := range b.names {
		if _, twice := p.set.byID[id]; twice {
			p.fail(b.at, "operation %q has two tables", id)
		}
		p.set.byID[id] = t
	}
}

// fields makes the rows of a block, and of what it includes, into fields.
func (p *tableParser) fields(b *block) map[string]*Field {
	fields := map[string]*Field{}
	if len(b.rows) == 0 {
		p.fail(b.at, "%s %q has no rows", b.kind, b.names[0])
	}
	for _, r := range p.included(b, nil) {
		if before, twice := fields[r.name]; twice {
			p.fail(r.at, "field %q stands twice in %s %q; the other says: %s", r.name, b.kind, b.names[0], before.Why)
			continue
		}
		if f, ok := p.field(r); ok {
			fields[r.name] = f
		}
	}
	for _, f := range fields {
		if a := f.Affected; a != nil && a.With != "" && b.kind == "body" && fields[a.With] == nil {
			p.fail(b.at, "field %q: with=%s is no field beside it", f.Name, a.With)
		}
	}
	return fields
}

// needed are the names of the fields that have to be there.
func needed(fields map[string]*Field) []string {
	var names []string
	for name, f := range fields {
		if f.Needed {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// included returns the rows of a block with the includes filled in; open are the blocks being filled in.
func (p *tableParser) included(b *block, open []*block) []row {
	if slices.Contains(open, b) {
		p.fail(b.at, "rows %q include themselves", b.names[0])
		return nil
	}
	var rows []row
	for _, r := range b.rows {
		if !r.include {
			rows = append(rows, r)
			continue
		}
		of, ok := p.byName[r.name]
		if !ok || of.kind != "rows" {
			p.fail(r.at, "there are no rows %q to include", r.name)
			continue
		}
		rows = append(rows, p.included(of, append(open, b))...)
	}
	return rows
}

// field understands one row of a shape.
func (p *tableParser) field(r row) (*Field, bool) {
	action, ok := actionNames[r.action]
	if !ok {
		p.fail(r.at, "field %q: %q is no action; one is pass, write, drop or refuse", r.name, r.action)
		return nil, false
	}
	f := &Field{Name: r.name, Action: action, Why: r.why}
	typed := action == Pass || action == Write
	if typed == (r.typ == "-") {
		p.fail(r.at, "field %q: pass and write need a type, drop and refuse have - for one", r.name)
		return nil, false
	}
	if typed {
		f.Shape = p.parseType(r.typ, r.at)
	}
	for _, attr := range r.attrs {
		p.attribute(r, f, attr)
	}
	return f, true
}

func (p *tableParser) attribute(r row, f *Field, attr string) {
	name, value, _ := strings.Cut(attr, "=")
	switch {
	case name == "fact" && (f.Action == Pass || f.Action == Write):
		fact, ok := factNames[value]
		if !ok {
			p.fail(r.at, "field %q: there is no fact %q", r.name, value)
		}
		f.Fact = fact
	case name == "affected" && f.Action == Pass:
		var err error
		if f.Affected, err = affected(value); err != nil {
			p.fail(r.at, "field %q: affected=%s: %w", r.name, value, err)
		}
	case attr == "known" && f.Affected != nil:
		f.Affected.Known = true
	case name == "with" && value != "" && f.Affected != nil:
		if f.Affected.WithAudio = value == "audio"; !f.Affected.WithAudio {
			f.Affected.With = value
		}
	case name == "equal" && (f.Action == Refuse || f.Affected != nil):
		equal, err := jsonList(value)
		if err != nil {
			p.fail(r.at, "field %q: equal=%s: %w", r.name, value, err)
		}
		f.Equal = equal
	case attr == "needed" && f.Action == Pass:
		f.Needed = true
	case name == "reason" && f.Action == Refuse && value != "":
		f.Reason = value
	default:
		p.fail(r.at, "field %q: attribute %q does not go with %s; fact= goes with pass and write, needed and affected= with pass, equal= with refuse and affected=, reason= with refuse", r.name, attr, r.action)
	}
}

// affected reads FROM..UNTIL.
func affected(s string) (*Affected, error) {
	from, until, ok := strings.Cut(s, "..")
	last, err := ParseRelease(until)
	if !ok || err != nil {
		return nil, errors.New("is not FROM..UNTIL, with a release for UNTIL")
	}
	if from != "" {
		first, err := ParseRelease(from)
		if err != nil || first.Compare(last) >= 0 {
			return nil, fmt.Errorf("%q is no release before %q", from, until)
		}
	}
	return &Affected{From: from, Until: until}, nil
}

// jsonList compacts JSON values that are separated by commas.
func jsonList(s string) ([]string, error) {
	d := json.NewDecoder(strings.NewReader("[" + s + "]"))
	var values []json.RawMessage
	if err := d.Decode(&values); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || len(values) == 0 {
		return nil, errors.New("is not JSON values with commas between them")
	}
	var list []string
	for _, v := range values {
		var b bytes.Buffer
		if err := json.Compact(&b, v); err != nil {
			return nil, err
		}
		list = append(list, b.String())
	}
	return list, nil
}

// choice makes the rows of a choice into variants.
func (p *tableParser) choice(b *block, s *Shape) {
	s.Variants = map[string]*Field{}
	for _, r := range b.rows {
		if r.include {
			p.fail(r.at, "a choice includes nothing")
			continue
		}
		for _, value := range strings.Split(r.name, ",") {
			if value == `""` {
				value = ""
			}
			one := r
			one.name = value
			f, ok := p.field(one)
			if !ok {
				continue
			}
			if _, twice := s.Variants[value]; twice || f.Action == Write || f.Fact != NoFact || f.Equal != nil || f.Affected != nil || f.Needed {
				p.fail(r.at, "choice %q: %q stands twice, or has more than pass, drop, refuse and reason=", b.names[0], value)
			}
			s.Variants[value] = f
		}
	}
	for _, must := range []string{"", "*"} {
		if s.Variants[must] == nil {
			p.fail(b.at, "choice %q does not say what becomes of %q", b.names[0], must)
		}
	}
}

// checkTags sees to it that every variant lists the member that chose it, or it would be lost as unknown.
func (p *tableParser) checkTags() {
	for _, s := range p.set.shapes {
		for value, f := range s.Variants {
			if f.Action != Pass {
				continue
			}
			for _, shape := range p.chosen(s, f) {
				switch {
				case shape == nil || shape.Kind != Object:
					p.fail(p.set.origin[s], "choice %q: %q is to pass as something that is no object", s.Name, value)
				case value != "" && shape.Fields[s.Tag] == nil:
					p.fail(p.set.origin[s], "choice %q: %q passes as %q, which has no field %q", s.Name, value, shape.Name, s.Tag)
				}
			}
		}
	}
}

// chosen are the shapes as which a variant may pass: its own, or those of a choice by another member.
func (p *tableParser) chosen(s *Shape, f *Field) []*Shape {
	if f.Shape == nil || f.Shape.Kind != Choice {
		return []*Shape{f.Shape}
	}
	if f.Shape.Tag == s.Tag {
		p.fail(p.set.origin[s], "choice %q: %q passes as a choice by the same member", s.Name, f.Name)
	}
	var shapes []*Shape
	for _, inner := range f.Shape.Variants {
		if inner.Action == Pass {
			shapes = append(shapes, inner.Shape)
		}
	}
	return shapes
}
