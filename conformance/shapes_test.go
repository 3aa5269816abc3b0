//go:build conformance

package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vallum/vallum/conformance/report"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/vllm"
)

// copies is how often a value stands in a list: enough to tell a mistake that counts once from one that counts each time.
const copies = 10

// vLLM may keep so many errors for a body, and so many for each object or list in it. An item of responses that it does
// not know takes 230.
const (
	errorsOfBody  = 300
	errorsOfValue = 3
)

// bodies are of the operations that take lists, each with what vLLM needs beside.
var bodies = map[string]map[string]string{
	"chat.create":               {"messages": `[{"role":"user","content":"a"}]`},
	"chat.batch":                {"messages": `[[{"role":"user","content":"a"}]]`},
	"completions.create":        {"prompt": `"a"`},
	"responses.create":          {"input": `"a"`},
	"messages.create":           {"model": `"m"`, "max_tokens": "5", "messages": `[{"role":"user","content":"a"}]`},
	"messages.count_tokens":     {"model": `"m"`, "messages": `[{"role":"user","content":"a"}]`},
	"embeddings.create":         {"input": `"a"`},
	"pooling.create":            {"input": `"a"`},
	"classify.create":           {"input": `"a"`},
	"score.create":              {"queries": `"a"`, "documents": `"b"`},
	"rerank.v1":                 {"query": `"a"`, "documents": `["a"]`},
	"embed.v2":                  {"model": `"m"`, "input_type": `"search_query"`, "texts": `["a"]`},
	"tokenize.create":           {"prompt": `"a"`},
	"systemone.create":          {"state": `"a"`, "questions": `{"a":{"type":"x"}}`},
	"generative_scoring.create": {"query": `"a"`, "items": `["b"]`, "label_token_ids": "[1]"},
}

// fewErrors gives what passes Vallum to vLLM's own request models. A list whose every element they take for nothing that
// they know fills the memory with errors: the server ends.
func fewErrors(p *report.Proof, _ *stand) {
	var lines []string
	for _, id := range slices.Sorted(maps.Keys(bodies)) {
		op, _ := vllm.ByID(id)
		table, _ := vllm.FieldsOf(id)
		for _, name := range slices.Sorted(maps.Keys(table.Body.Fields)) {
			if f := table.Body.Fields[name]; f.Action == vllm.Pass {
				for _, value := range shapesOf(f.Shape, 0) {
					lines = append(lines, passing(p, op, table, name, value)...)
				}
			}
		}
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	known := 0
	for i, answer := range reader(p, "readers/errors.py", lines) {
		n, err := strconv.Atoi(answer)
		if err == nil {
			known++
		}
		values := strings.Count(lines[i], "{") + strings.Count(lines[i], "[")
		if n > errorsOfBody+errorsOfValue*values {
			p.Errorf("%d errors for %d objects and lists: %.600s", n, values, lines[i])
		}
	}
	if known < len(lines)*9/10 || known < 1000 {
		p.Errorf("vLLM read %d of %d bodies only", known, len(lines))
	}
}

// passing is the line for a body with one field of so and so, as Vallum sends it up; none when Vallum refuses it.
func passing(p *report.Proof, op *vllm.Operation, table *vllm.Table, name, value string) []string {
	p.Helper()
	with := maps.Clone(bodies[op.ID])
	with[name] = value
	var members []string
	for _, name := range slices.Sorted(maps.Keys(with)) {
		members = append(members, quoted(name)+":"+with[name])
	}
	body := "{" + strings.Join(members, ",") + "}"
	d, v := inspect.Read(inspect.Request{Operation: op, Table: table, ContentType: []string{"application/json"}, Length: int64(len(body)), Body: strings.NewReader(body)}, inspect.Default())
	if v.Refused() {
		return nil
	}
	defer func() {
		if err := d.Close(); err != nil {
			p.Error(err)
		}
	}()
	up, err := d.Rewrite(nil)
	if err != nil {
		p.Fatal(err)
	}
	return []string{op.Path + "\t" + string(up.Bytes)}
}

// shapesOf makes values that a shape takes, each at least in part otherwise than the others: absent members, lists that are
// long, words that only vLLM judges. The deeper, the fewer.
func shapesOf(s *vllm.Shape, depth int) []string {
	if s == nil || depth > 7 {
		return nil
	}
	switch s.Kind {
	case vllm.String:
		switch {
		case len(s.Enum) > 0:
			return quotedAll(s.Enum)
		case s.DataURL && s.Medium == vllm.Sound:
			return []string{`"data:audio/wav;base64,AAAA"`}
		case s.DataURL:
			return []string{`"data:image/png;base64,AAAA"`}
		}
		return []string{`"x"`}
	case vllm.Integer, vllm.Number:
		n := int64(1)
		if s.Bounded {
			n = max(n, s.Min)
		}
		return []string{fmt.Sprint(n)}
	case vllm.Boolean:
		return []string{"true"}
	case vllm.Free:
		return []string{`{}`, `{"a":1}`, `7`, `["a"]`}
	case vllm.Map:
		var all []string
		name := "a"
		if len(s.Names) > 0 {
			name = s.Names[0]
		}
		for _, v := range shapesOf(s.Elem, depth+1) {
			all = append(all, `{"`+name+`":`+v+`}`)
		}
		return append(all, "{}")
	case vllm.Array:
		return listsOf(s, depth)
	case vllm.Union:
		var all []string
		for _, one := range s.Any {
			all = append(all, shapesOf(one, depth)...)
		}
		return all
	case vllm.Object:
		return objectsOf(s, "", "", depth)
	case vllm.Choice:
		var all []string
		for _, tag := range slices.Sorted(maps.Keys(s.Variants)) {
			f := s.Variants[tag]
			if f.Action != vllm.Pass {
				continue
			}
			value := tag
			if tag == "*" {
				value = "other"
			}
			all = append(all, objectsOf(f.Shape, s.Tag, value, depth)...)
		}
		return all
	}
	return nil
}

func quotedAll(words []string) []string {
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = quoted(w)
	}
	return all
}

// listsOf makes a list of copies of each element.
func listsOf(s *vllm.Shape, depth int) []string {
	n := copies
	if s.MaxLen > 0 {
		n = min(n, int(s.MaxLen))
	}
	var all []string
	elements := shapesOf(s.Elem, depth+1)
	for _, v := range elements {
		all = append(all, "["+strings.TrimSuffix(strings.Repeat(v+",", n), ",")+"]")
	}
	if s.Elem.Kind == vllm.Union && n > 1 { // one of each kind of JSON before many of another
		for _, first := range s.Elem.Any {
			for _, rest := range s.Elem.Any {
				a, b := shapesOf(first, depth+1), shapesOf(rest, depth+1)
				if first != rest && len(a) > 0 && len(b) > 0 {
					all = append(all, "["+a[0]+strings.Repeat(","+b[0], n-1)+"]")
				}
			}
		}
	}
	if s.MinLen == 0 {
		all = append(all, "[]")
	}
	return all
}

// objectsOf makes objects: with all members, with each of the members missing, and with each shape of each.
func objectsOf(s *vllm.Shape, tag, value string, depth int) []string {
	var names []string
	values := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(s.Fields)) {
		f := s.Fields[name]
		if f.Action != vllm.Pass {
			continue
		}
		switch {
		case name == tag && value != "":
			values[name] = []string{quoted(value)}
		case name == tag:
			continue
		default:
			values[name] = shapesOf(f.Shape, depth+1)
		}
		if len(values[name]) > 0 {
			names = append(names, name)
		}
	}
	object := func(without, other, as string) string {
		var b strings.Builder
		for _, name := range names {
			v := values[name][0]
			switch name {
			case without:
				continue
			case other:
				v = as
			}
			b.WriteString(`,` + quoted(name) + `:` + v)
		}
		return "{" + strings.TrimPrefix(b.String(), ",") + "}"
	}
	all := []string{object("", "", "")}
	if tag != "" && value != "" {
		all = append(all, `{`+quoted(tag)+`:`+quoted(value)+`}`)
	}
	for _, name := range names {
		if name != tag {
			all = append(all, object(name, "", ""))
		}
		for _, v := range values[name][1:] {
			all = append(all, object("", name, v))
		}
	}
	return all
}
