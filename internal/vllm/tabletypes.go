package vllm

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// typeReader reads one type from left to right.
type typeReader struct {
	p    *tableParser
	text string
	at   string // file:line
	pos  int
}

// parseType reads the whole of text as a type. After a mistake, which is noted, the result may be nil.
func (p *tableParser) parseType(text, at string) *Shape {
	t := &typeReader{p: p, text: text, at: at}
	s, err := t.union()
	if err == nil && t.pos != len(text) {
		err = fmt.Errorf("%q is left over", text[t.pos:])
	}
	if err != nil {
		p.fail(at, "type %q: %w", text, err)
		return nil
	}
	return s
}

// union reads arms between bars. A named type that is a union gives its arms, so that no union is inside another.
func (t *typeReader) union() (*Shape, error) {
	var arms []*Shape
	for {
		s, err := t.arm()
		if err != nil {
			return nil, err
		}
		switch {
		case s.Kind == Union:
			arms = append(arms, s.Any...)
		default:
			arms = append(arms, s)
		}
		if !t.eat('|') {
			break
		}
	}
	if len(arms) == 1 {
		return arms[0], nil
	}
	seen := map[string]bool{}
	for _, s := range arms {
		k := jsonKind(s.Kind)
		if k == "" || seen[k] {
			return nil, errors.New("two of the alternatives are the same kind of JSON, so which holds could not be told")
		}
		seen[k] = true
	}
	return &Shape{Kind: Union, Any: arms}, nil
}

// jsonKind is the kind of JSON value that tells the arms of a union apart; "" for what fits several.
func jsonKind(k Kind) string {
	switch k {
	case String:
		return "string"
	case Integer, Number:
		return "number"
	case Boolean:
		return "boolean"
	case Object, Map, Choice:
		return "object"
	case Array:
		return "array"
	}
	return ""
}

func (t *typeReader) arm() (*Shape, error) {
	switch {
	case t.eat('['):
		return t.list()
	case t.eat('{'):
		return t.members()
	}
	name := t.word()
	switch name {
	case "":
		return nil, fmt.Errorf("a type is missing at %q", t.text[t.pos:])
	case "string":
		n, err := t.most()
		return &Shape{Kind: String, MaxLen: n}, err
	case "data":
		return &Shape{Kind: String, DataURL: true}, nil
	case "picture", "sound":
		return &Shape{Kind: String, DataURL: true, Medium: Medium(name)}, nil
	case "base64":
		words, err := t.words('(', ')')
		if err == nil && (len(words) != 1 || Medium(words[0]).Strange() == nil) {
			err = fmt.Errorf("base64 is of a picture or of sound, not of %q", words)
		}
		return &Shape{Kind: String, Medium: Medium(strings.Join(words, " "))}, err
	case "enum":
		words, err := t.words('(', ')')
		return &Shape{Kind: String, Enum: words}, err
	case "bool":
		return &Shape{Kind: Boolean}, nil
	case "free", "schema", "schematext":
		return &Shape{Kind: Free, Schema: name != "free", Text: name == "schematext"}, nil
	case "file":
		return &Shape{Kind: File}, nil
	case "int":
		s := &Shape{Kind: Integer, Bounded: true, Min: math.MinInt64, Max: math.MaxInt64}
		return s, t.bounds(s)
	case "number":
		s := &Shape{Kind: Number, Min: math.MinInt64, Max: math.MaxInt64}
		return s, t.bounds(s)
	}
	if s := t.p.named(name, t.at); s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("%q is not known here", name)
}

func (t *typeReader) list() (*Shape, error) {
	elem, err := t.union()
	if err != nil {
		return nil, err
	}
	if !t.eat(']') {
		return nil, errors.New("[ has no ]")
	}
	s := &Shape{Kind: Array, Elem: elem}
	s.MinLen, s.MaxLen, err = t.leastMost()
	return s, err
}

func (t *typeReader) members() (*Shape, error) {
	elem, err := t.union()
	if err != nil {
		return nil, err
	}
	s := &Shape{Kind: Map, Elem: elem}
	if t.pos < len(t.text) && t.text[t.pos] == ':' {
		if s.Names, err = t.words(':', '}'); err != nil {
			return nil, err
		}
	} else if !t.eat('}') {
		return nil, errors.New("{ has no }")
	}
	s.MaxLen, err = t.most()
	return s, err
}

func (t *typeReader) eat(c byte) bool {
	if t.pos < len(t.text) && t.text[t.pos] == c {
		t.pos++
		return true
	}
	return false
}

// word reads a name: letters, digits and underscores.
func (t *typeReader) word() string {
	start := t.pos
	for t.pos < len(t.text) {
		c := t.text[t.pos]
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		t.pos++
	}
	return t.text[start:t.pos]
}

// words reads a list of words between two characters.
func (t *typeReader) words(open, end byte) ([]string, error) {
	if !t.eat(open) {
		return nil, fmt.Errorf("%q with the words is missing", open)
	}
	inside, _, ok := strings.Cut(t.text[t.pos:], string(end))
	words := strings.Fields(inside)
	if !ok || len(words) == 0 {
		return nil, fmt.Errorf("%q without words, or without %q", open, end)
	}
	t.pos += len(inside) + 1
	return words, nil
}

// most reads the bound (N) after a string or a map, if there is one.
func (t *typeReader) most() (int64, error) {
	least, n, err := t.leastMost()
	if err == nil && least > 0 {
		err = errors.New("only a list has a least number")
	}
	return n, err
}

// leastMost reads the bound (N) or (LEAST..N) after a list, if there is one.
func (t *typeReader) leastMost() (least, most int64, err error) {
	if !t.eat('(') {
		return 0, 0, nil
	}
	if most, err = strconv.ParseInt(t.word(), 10, 64); err == nil && t.eat('.') && t.eat('.') {
		least = most
		most, err = strconv.ParseInt(t.word(), 10, 64)
	}
	if err != nil || least < 0 || most < max(least, 1) || !t.eat(')') {
		return 0, 0, errors.New("a bound is a number above 0 in parentheses, of a list also (LEAST..MOST)")
	}
	return least, most, nil
}

// bounds reads (LOW..HIGH) after int or number, if it is there.
func (t *typeReader) bounds(s *Shape) error {
	if !t.eat('(') {
		return nil
	}
	inside, _, ok := strings.Cut(t.text[t.pos:], ")")
	low, high, two := strings.Cut(inside, "..")
	if !ok || !two || low == "" && high == "" {
		return errors.New("a range is (LOW..HIGH), (LOW..) or (..HIGH)")
	}
	for _, end := range []struct {
		text string
		to   *int64
	}{{low, &s.Min}, {high, &s.Max}} {
		if end.text == "" {
			continue
		}
		n, err := strconv.ParseInt(end.text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no end of a range", end.text)
		}
		*end.to = n
	}
	if s.Min > s.Max {
		return fmt.Errorf("the range %s is empty", inside)
	}
	t.pos += len(inside) + 1
	s.Bounded = true
	return nil
}
