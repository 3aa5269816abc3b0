package inspect

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

func passing(s *vllm.Shape) *vllm.Field { return &vllm.Field{Action: vllm.Pass, Shape: s} }

func objectOf(fields map[string]*vllm.Field) *vllm.Shape {
	for name, f := range fields {
		f.Name = name
	}
	return &vllm.Shape{Kind: vllm.Object, Fields: fields}
}

// propertyTable has one field of each kind, at each level.
func propertyTable() *vllm.Table {
	integer, text := &vllm.Shape{Kind: vllm.Integer}, &vllm.Shape{Kind: vllm.String}
	inner := func() *vllm.Shape {
		return objectOf(map[string]*vllm.Field{"a": passing(integer), "b": {Action: vllm.Drop}, "c": passing(text), "type": passing(text)})
	}
	choice := &vllm.Shape{Kind: vllm.Choice, Tag: "type", Variants: map[string]*vllm.Field{
		"keep": passing(inner()), "": passing(inner()), "drop": {Action: vllm.Drop},
	}}
	return &vllm.Table{Body: objectOf(map[string]*vllm.Field{
		"model": {Action: vllm.Write, Shape: text, Fact: vllm.FactModel},
		"n":     passing(integer),
		"gone":  {Action: vllm.Drop},
		"zero":  {Action: vllm.Refuse, Equal: []string{"0", "{}"}},
		"opts":  passing(inner()),
		"list":  passing(&vllm.Shape{Kind: vllm.Array, Elem: choice}),
		"free":  passing(&vllm.Shape{Kind: vllm.Free}),
		"map":   passing(&vllm.Shape{Kind: vllm.Map, Elem: integer}),
	})}
}

// spelt writes JSON with the spaces and escapes that any client might use.
type spelt struct {
	*rapid.T
	strings.Builder
}

func (s *spelt) space() {
	s.WriteString(rapid.SampledFrom([]string{"", "", "", " ", "\n", "\t \r"}).Draw(s.T, "space"))
}

func (s *spelt) text(text string) {
	s.WriteByte('"')
	for _, r := range text {
		if rapid.IntRange(0, 9).Draw(s.T, "escape") == 0 && r < 0x10000 {
			fmt.Fprintf(s, `\u%04x`, r)
			continue
		}
		b, _ := json.Marshal(string(r))
		s.Write(b[1 : len(b)-1])
	}
	s.WriteByte('"')
}

// members writes an object whose members were drawn, and returns what of it goes up.
func (s *spelt) members(names []string, value func(name string) (up any, goes bool)) map[string]any {
	up := map[string]any{}
	names = rapid.Permutation(names).Draw(s.T, "order")
	names = names[:rapid.IntRange(0, len(names)).Draw(s.T, "members")]
	s.WriteByte('{')
	for i, name := range names {
		if i > 0 {
			s.WriteByte(',')
		}
		s.space()
		s.text(name)
		s.space()
		s.WriteByte(':')
		s.space()
		if v, goes := value(name); goes {
			up[name] = v
		}
		s.space()
	}
	s.WriteByte('}')
	return up
}

// any writes a value that no rule looks at.
func (s *spelt) any(depth int) any {
	switch rapid.IntRange(0, 6-min(depth, 2)).Draw(s.T, "kind") {
	case 0:
		s.WriteString("null")
		return nil
	case 1:
		text := rapid.StringN(0, 8, 20).Draw(s.T, "text")
		s.text(text)
		return text
	case 2:
		number := rapid.SampledFrom([]string{"0", "-1", "2.50", "1e3", "123456789012345678901234567890"}).Draw(s.T, "number")
		s.WriteString(number)
		return json.Number(number)
	case 3, 4:
		s.WriteString("true")
		return true
	case 5:
		s.WriteByte('[')
		list := []any{}
		for i := range rapid.IntRange(0, 3).Draw(s.T, "elements") {
			if i > 0 {
				s.WriteByte(',')
			}
			list = append(list, s.any(depth+1))
		}
		s.WriteByte(']')
		return list
	}
	return s.members([]string{"a", "b", "model", "ü"}, func(string) (any, bool) { return s.any(depth + 1), true })
}

func (s *spelt) integer() any {
	n := rapid.IntRange(-5, 5).Draw(s.T, "integer")
	s.WriteString(fmt.Sprint(n) + rapid.SampledFrom([]string{"", ".0", ".00"}).Draw(s.T, "fraction"))
	return json.Number(fmt.Sprint(n))
}

// null writes null now and then.
func (s *spelt) null() bool {
	if rapid.IntRange(0, 5).Draw(s.T, "null") > 0 {
		return false
	}
	s.WriteString("null")
	return true
}

func (s *spelt) inner(tag string) map[string]any {
	names := []string{"a", "b", "c", "A", "x"}
	if tag != "" {
		names = append(names, "type")
	}
	up := s.members(names, func(name string) (any, bool) {
		switch {
		case name == "type":
			s.text(tag)
			return tag, true
		case s.null():
			return nil, false
		case name == "a":
			return s.integer(), true
		case name == "c":
			s.text("c")
			return "c", true
		}
		s.any(0)
		return nil, false
	})
	return up
}

// body writes a whole body, and returns what of it goes up without edits.
func (s *spelt) body() map[string]any {
	return s.members([]string{"model", "n", "gone", "zero", "opts", "list", "free", "map", "Model", "x", "y"}, func(name string) (any, bool) {
		if s.null() {
			return nil, false
		}
		switch name {
		case "model":
			s.text("theirs")
			return nil, false
		case "n":
			return s.integer(), true
		case "zero":
			s.WriteString(rapid.SampledFrom([]string{"0", "0.0", "{ }", "-0e5"}).Draw(s.T, "default"))
			return nil, false
		case "opts":
			return s.inner(""), true
		case "list":
			return s.list(), true
		case "free":
			v := s.any(0)
			return v, v != nil // a field that is null is absent, whatever its shape
		case "map":
			return s.members([]string{"1", "2", "ü"}, func(string) (any, bool) {
				if s.null() {
					return nil, false
				}
				return s.integer(), true
			}), true
		}
		s.any(0)
		return nil, false
	})
}

func (s *spelt) list() any {
	list := []any{}
	s.WriteByte('[')
	for i := range rapid.IntRange(0, 4).Draw(s.T, "elements") {
		if i > 0 {
			s.WriteByte(',')
		}
		s.space()
		switch rapid.IntRange(0, 2).Draw(s.T, "variant") {
		case 0:
			s.WriteString(rapid.SampledFrom([]string{`{"type":"drop","a":"x"}`, `{"zz":[1],"type":"drop"}`}).Draw(s.T, "dropped"))
		case 1:
			list = append(list, s.inner("keep"))
		case 2:
			list = append(list, s.inner(""))
		}
		s.space()
	}
	s.WriteByte(']')
	return list
}

func TestRewriteGivesWhatTheOracleSays(t *testing.T) {
	table := propertyTable()
	rapid.Check(t, func(t *rapid.T) {
		s := &spelt{T: t}
		s.space()
		want := s.body()
		s.space()
		body := s.String()
		d, v := Read(jsonRequest(table, body), Default())
		if v.Refused() {
			t.Fatalf("%s: %s", body, v.Message())
		}
		var edits []policy.Edit
		for _, e := range []policy.Edit{
			{Name: "model", Pointer: "/model", Value: `"ours"`},
			{Name: "salt", Pointer: "/salt", Value: `"s\u0000"`},
			{Name: "n", Pointer: "/n", Value: "7"},
			{Name: "gone", Pointer: "/gone", Value: "[1]"},
			{Name: "a", Pointer: "/opts/a", Value: "8"},
			{Name: "b", Pointer: "/opts/b", Value: "true"},
			{Name: "c", Pointer: "/more/c", Value: "{}"},
		} {
			if rapid.Bool().Draw(t, e.Name) {
				edits = append(edits, e)
				apply(want, e)
			}
		}
		b, err := d.Rewrite(edits)
		if err != nil {
			t.Fatalf("%s %v: %v", body, edits, err)
		}
		dec := json.NewDecoder(strings.NewReader(string(b.Bytes)))
		dec.UseNumber()
		var got map[string]any
		if err := dec.Decode(&got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\nwith %v\ngoes up as %s (%v)\nwant %v", body, edits, b.Bytes, err, want)
		}
		checkChanges(t, body, b)
	})
}

// apply is the oracle's edit.
func apply(to map[string]any, e policy.Edit) {
	dec := json.NewDecoder(strings.NewReader(e.Value))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		panic(err)
	}
	names := strings.Split(e.Pointer, "/")[1:]
	if len(names) == 2 {
		inner, ok := to[names[0]].(map[string]any)
		if inner = maps.Clone(inner); !ok {
			inner = map[string]any{}
		}
		to[names[0]] = inner
		to = inner
	}
	to[names[len(names)-1]] = v
}

// failing is what both testing and rapid have.
type failing interface{ Fatalf(string, ...any) }

// checkChanges holds that the changes are in order, apart, have a reason, and are all that differs.
func checkChanges(t failing, body string, b Body) {
	var out strings.Builder
	end := 0
	for _, c := range b.Changes {
		if c.From < end || c.To < c.From || c.To > len(body) || c.Why == "" {
			t.Fatalf("change %+v after %d, in %v", c, end, b.Changes)
		}
		out.WriteString(body[end:c.From] + c.With)
		end = c.To
	}
	if out.WriteString(body[end:]); out.String() != string(b.Bytes) {
		t.Fatalf("the changes %v of %s make %s, not %s", b.Changes, body, out.String(), b.Bytes)
	}
}

func TestChangesSayWhy(t *testing.T) {
	body := `{"model":"x","zz":1,"store":true,"stop":null,"n":1.0,"priority":0,"max_tokens":9,"max_completion_tokens":99,"messages":[{"role":"user","content":"a","refusal":null}]}`
	b := mustRewrite(t, mustRead(t, request(t, "chat.create", body)), policy.Edit{Name: "cache_salt", Pointer: "/cache_salt", Value: `"s"`})
	var why []string
	for _, c := range b.Changes {
		why = append(why, c.Why+" "+body[c.From:c.To]+" "+c.With)
	}
	want := []string{
		`cache_salt  "cache_salt":"s",`, `written "model":"x", `, `unknown "zz":1, `, `dropped "store":true, `, `null "stop":null, `, `integer .0 `,
		`default ,"priority":0 `, `smallest cap 99 9`, `null ,"refusal":null `,
	}
	if !slices.Equal(why, want) {
		t.Errorf("changes\n%q, want\n%q", why, want)
	}
}
