package inspect

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// edgeTable has shapes that the catalogue may come to use, in their corners.
func edgeTable() *vllm.Table {
	text := &vllm.Shape{Kind: vllm.String, MaxLen: 4}
	small := &vllm.Shape{Kind: vllm.Integer, Bounded: true, Min: 1, Max: 4}
	one := objectOf(map[string]*vllm.Field{"kind": passing(text), "v": passing(small)})
	untagged := objectOf(map[string]*vllm.Field{"v": passing(text)})
	needing := objectOf(map[string]*vllm.Field{
		"a": {Action: vllm.Pass, Needed: true, Shape: text}, "b": passing(text),
		"c": {Action: vllm.Pass, Needed: true, Shape: &vllm.Shape{Kind: vllm.Choice, Tag: "kind", Variants: map[string]*vllm.Field{"": passing(untagged), "gone": {Action: vllm.Drop}}}},
	})
	needing.Needed = []string{"a", "c"}
	return &vllm.Table{Body: objectOf(map[string]*vllm.Field{
		"choice": passing(&vllm.Shape{Kind: vllm.Choice, Tag: "kind", Variants: map[string]*vllm.Field{
			"a": passing(one), "": passing(untagged), "no": {Action: vllm.Refuse, Why: "it is forbidden"}, "gone": {Action: vllm.Drop},
		}}),
		"twice": passing(&vllm.Shape{Kind: vllm.Choice, Tag: "type", Variants: map[string]*vllm.Field{
			"m": passing(&vllm.Shape{Kind: vllm.Choice, Tag: "kind", Variants: map[string]*vllm.Field{"a": passing(one), "": passing(untagged)}}),
			"n": passing(&vllm.Shape{Kind: vllm.Choice, Tag: "kind", Variants: map[string]*vllm.Field{"a": passing(&vllm.Shape{Kind: vllm.Choice, Tag: "v", Variants: map[string]*vllm.Field{"x": passing(untagged)}})}}),
		}}),
		"needs":  passing(needing),
		"star":   passing(&vllm.Shape{Kind: vllm.Choice, Tag: "kind", Variants: map[string]*vllm.Field{"*": passing(untagged)}}),
		"names":  passing(&vllm.Shape{Kind: vllm.Map, Names: []string{"x", "y"}, Elem: &vllm.Shape{Kind: vllm.Boolean}}),
		"few":    passing(&vllm.Shape{Kind: vllm.Map, MaxLen: 2, Elem: &vllm.Shape{Kind: vllm.Free}}),
		"short":  passing(text),
		"word":   passing(&vllm.Shape{Kind: vllm.String, Enum: []string{"up", "down"}}),
		"list":   passing(&vllm.Shape{Kind: vllm.Array, MaxLen: 2, Elem: small}),
		"mixed":  {Action: vllm.Pass, Fact: vllm.FactInputs, Shape: &vllm.Shape{Kind: vllm.Array, MaxLen: 2, Elem: &vllm.Shape{Kind: vllm.Union, Any: []*vllm.Shape{text, small}}}},
		"ratio":  passing(&vllm.Shape{Kind: vllm.Number, Bounded: true, Min: 0, Max: 2}),
		"broken": passing(nil),
		"zero":   {},
		"salt":   {Action: vllm.Write, Shape: text},
		"reason": {Action: vllm.Refuse, Reason: "no_such_reason"},
	})}
}

func TestEdgesOfShapes(t *testing.T) {
	for _, row := range []struct{ body, up, param string }{
		{`{"choice":{"kind":"a","v":1}}`, `{"choice":{"kind":"a","v":1}}`, ""},
		{`{"choice":{"v":1,"k\u0069nd":"\u0061"}}`, `{"choice":{"v":1,"k\u0069nd":"\u0061"}}`, ""},
		{`{"choice":{"v":"x"}}`, `{"choice":{"v":"x"}}`, ""},
		{`{"choice":{"kind":null,"v":"x"}}`, `{"choice":{"v":"x"}}`, ""},
		{`{"choice":{"v":{"kind":"a"}}}`, ``, "/choice/v"},
		{`{"choice":{"v":"kind","kind":"a"}}`, ``, "/choice/v"},
		{`{"choice":{"kind":"","v":"x"}}`, ``, "/choice"},
		{`{"choice":{"kind":"b"}}`, ``, "/choice"},
		{`{"choice":{"kind":"*"}}`, ``, "/choice"},
		{`{"choice":{"kind":7,"v":"x"}}`, ``, "/choice/kind"},
		{`{"choice":{"kind":["a"],"v":"x"}}`, ``, "/choice/kind"},
		{`{"choice":{"kind":"a","v":1,"kind":"no"}}`, ``, "/choice/kind"},
		{`{"choice":{"kind":"no"}}`, ``, "/choice"},
		{`{"choice":{"kind":"gone"}}`, `{}`, ""},
		{`{"twice":{"type":"m","kind":"a","v":1}}`, `{"twice":{"type":"m","kind":"a","v":1}}`, ""},
		{`{"twice":{"v":1,"kind":"\u0061","type":"m"}}`, `{"twice":{"v":1,"kind":"\u0061","type":"m"}}`, ""},
		{`{"twice":{"type":"m","v":"x"}}`, `{"twice":{"type":"m","v":"x"}}`, ""},
		{`{"twice":{"type":"m","kind":null,"v":"x"}}`, `{"twice":{"type":"m","v":"x"}}`, ""},
		{`{"twice":{"type":"m","kind":"a","v":"x"}}`, ``, "/twice/v"},
		{`{"twice":{"type":"m","kind":"b"}}`, ``, "/twice"},
		{`{"twice":{"type":"o","kind":"a"}}`, ``, "/twice"},
		{`{"twice":{"type":"m","kind":7,"v":"x"}}`, ``, "/twice/kind"},
		{`{"twice":{"kind":"a","v":1,"type":"m","type":"n"}}`, ``, "/twice/type"},
		{`{"twice":{"type":"n","kind":"a","v":"x"}}`, ``, "/twice"},
		{`{"needs":{"a":"x","c":{"v":"x"}}}`, `{"needs":{"a":"x","c":{"v":"x"}}}`, ""},
		{`{"needs":{"a":"x","b":"x"}}`, ``, "/needs"},
		{`{"needs":{"a":null,"c":{"v":"x"}}}`, ``, "/needs"},
		{`{"needs":{"a":"x","c":{"kind":"gone"}}}`, ``, "/needs"},
		{`{"needs":{}}`, ``, "/needs"},
		{`{"star":{"kind":"anything","v":"x"}}`, `{"star":{"kind":"anything","v":"x"}}`, ""},
		{`{"star":{"v":"x"}}`, ``, "/star"},
		{`{"names":{"x":true,"z":{"y":1},"y":null}}`, `{"names":{"x":true}}`, ""},
		{`{"names":{"x":1}}`, ``, "/names/x"},
		{`{"few":{"a":null,"b":[null]}}`, `{"few":{"a":null,"b":[null]}}`, ""},
		{`{"few":{"a":1,"b":2,"c":3}}`, ``, "/few/c"},
		{`{"short":"\u0061bcd"}`, `{"short":"\u0061bcd"}`, ""},
		{`{"short":"abcé"}`, ``, "/short"},
		{`{"word":"up"}`, `{"word":"up"}`, ""},
		{`{"word":"UP"}`, ``, "/word"},
		{`{"list":[ 1,4.0]}`, `{"list":[ 1,4]}`, ""},
		{`{"list":[1,2 , 3]}`, ``, "/list/2"},
		{`{"list":[1,2,3]}`, ``, "/list/2"},
		{`{"list":[1,5]}`, ``, "/list/1"},
		{`{"list":[-0]}`, ``, "/list/0"},
		{`{"list":[1,]}`, ``, "/list"},
		{`{"list":[01]}`, ``, "/list/0"},
		{`{"mixed":[1,2,3,4,1,2]}`, `{"mixed":[1,2,3,4,1,2]}`, ""},
		{`{"mixed":["a",1,2,3,"b"]}`, ``, "/mixed/1"},
		{`{"mixed":[1,2,"b"]}`, ``, "/mixed/2"},
		{`{"mixed":[1.0,2.0,3.0,"b"]}`, ``, "/mixed/3"},
		{`{"mixed":["a","b","c"]}`, ``, "/mixed/2"},
		{`{"mixed":[[1]]}`, ``, "/mixed/0"},
		{`{"ratio":2.0}`, `{"ratio":2.0}`, ""},
		{`{"ratio":2.0000001}`, ``, "/ratio"},
		{`{"broken":1}`, ``, "/broken"},
		{`{"zero":1}`, ``, "/zero"},
		{`{"salt":5}`, ``, "/salt"},
	} {
		d, v := Read(jsonRequest(edgeTable(), row.body), Default())
		switch {
		case row.up == "" && (!v.Refused() || v.Param() != row.param):
			t.Errorf("%s: %v at %q, want a refusal at %q: %s", row.body, v.Reason(), v.Param(), row.param, v.Message())
		case row.up != "" && v.Refused():
			t.Errorf("%s: %v at %q: %s", row.body, v.Reason(), v.Param(), v.Message())
		case row.up != "":
			if got := string(mustRewrite(t, d).Bytes); got != row.up {
				t.Errorf("%s goes up as %s, want %s", row.body, got, row.up)
			}
		}
	}
	if _, v := Read(jsonRequest(edgeTable(), `{"reason":1}`), Default()); v.Reason() != verdict.InternalError {
		t.Errorf("a reason that does not exist: %v", v.Reason())
	}
	for body, inputs := range map[string]int64{`{"mixed":["a","b"]}`: 2, `{"mixed":[1,2,3]}`: 1, `{"mixed":[1,2.0,3]}`: 1} {
		if f := mustRead(t, jsonRequest(edgeTable(), body)).Facts(); f.Inputs != inputs {
			t.Errorf("%s: %d inputs, want %d", body, f.Inputs, inputs)
		}
	}
}

func TestWorkIsBounded(t *testing.T) {
	lim := Default()
	many := strings.Repeat(`"a":null,`, 1) // one name may stand once in an object
	for name, row := range map[string]struct {
		body  string
		limit func(*Limits)
	}{
		"members of an object with rules": {`{` + numbered(maxRecorded+1) + `}`, func(*Limits) {}},
		"members of all objects":          {`{"few":{"a":{` + numbered(50) + `}}}`, func(l *Limits) { l.MaxMembers = 51 }},
		"changes":                         {`{"list2":[` + many + `],"choice":{"kind":"a","v":1}}`, func(l *Limits) { l.MaxDepth = 1 }},
	} {
		l := lim
		row.limit(&l)
		if _, v := Read(jsonRequest(edgeTable(), row.body), l); v.Reason() != verdict.BadBody {
			t.Errorf("%s: refused %v, %v", name, v.Refused(), v.Reason())
		}
	}
	deep := `{"messages":[` + strings.Repeat(`{"role":"user","content":"x","refusal":null,"name":null},`, 40) + `{"role":"user"}]}`
	lim.MaxChanges = 79
	if _, v := Read(request(t, "chat.create", deep), lim); v.Reason() != verdict.BadBody {
		t.Errorf("80 changes: refused %v, %v", v.Refused(), v.Reason())
	}
	lim.MaxChanges = 80
	if _, v := Read(request(t, "chat.create", deep), lim); v.Refused() {
		t.Errorf("80 changes of 80: %s", v.Message())
	}
	if _, v := Read(request(t, "chat.create", `{"zz":`+strings.Repeat("[", 63)+strings.Repeat("]", 63)+`}`), lim); v.Refused() {
		t.Errorf("64 levels: %s", v.Message())
	}
}

func numbered(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = `"n` + strings.Repeat("x", i) + `":1`
	}
	return strings.Join(all, ",")
}

func TestRefusalsSayWhatWouldBeRight(t *testing.T) {
	for _, row := range []struct{ body, says string }{
		{`{"n":9}`, `At byte 5: "/n": must be an integer from 1 to 4.`},
		{`{"max_tokens":0}`, `At byte 14: "/max_tokens": must be an integer of at least 1.`},
		{`{"stream":1}`, `At byte 10: "/stream": must be true or false.`},
		{`{"stop":{}}`, `At byte 8: "/stop": must be a string or a list.`},
		{`{"model":"a","model":"b"}`, `At byte 13: "/model": this member name stands twice in its object.`},
		{
			`{"messages":[{"role":"user","content":[{"type":"text"},{"type":"image_url","image_url":{"url":"https://x"}}]}]}`,
			`At byte 94: "/messages/0/content/1/image_url/url": media must be a data: URL; nothing is fetched.`,
		},
		{`{"response_format":{"type":"xml"}}`, `"/response_format": vLLM has no other.`},
		{`{"secret` + "\n" + `":1}`, `At byte 8: a control character stands unescaped.`},
	} {
		_, v := Read(request(t, "chat.create", row.body), Default())
		if !v.Refused() || !strings.HasSuffix(v.Message(), row.says) {
			t.Errorf("%s: says %q, want %q", row.body, v.Message(), row.says)
		}
	}
	_, v := Read(request(t, "chat.create", `{"model":"top-secret","model":"top-secret"}`), Default())
	if strings.Contains(v.Message(), "top-secret") || strings.Contains(v.Err().Error(), "top-secret") {
		t.Errorf("a value of the caller is repeated: %q, %v", v.Message(), v.Err())
	}
}

// What was read ahead agrees with the decoder on all JSON; should it ever not, the object is refused.
func TestATagIsReadTwice(t *testing.T) {
	body := []byte(`{"kind":"b"}`)
	w := &walker{document: document{body: body}, dec: jsontext.NewDecoder(bytes.NewBuffer(body))}
	m := member{value: 8, end: 11}
	for _, chosen := range [][]byte{nil, []byte("a"), []byte("")} {
		if w.checkTag(m, chosen) == nil {
			t.Errorf("the tag %q passes for b", chosen)
		}
	}
	if err := w.checkTag(m, []byte("b")); err != nil {
		t.Error(err)
	}
}

func TestEditsThatDoNotFitAreErrors(t *testing.T) {
	d := mustRead(t, jsonRequest(edgeTable(), `{"short":"a","list":[1]}`))
	for _, pointer := range []string{"/short/x", "/list/0"} {
		if b, err := d.Rewrite([]policy.Edit{{Name: "x", Pointer: pointer, Value: "1"}}); err == nil {
			t.Errorf("%s: goes up as %s", pointer, b.Bytes)
		}
	}
}

func TestTheCallersBytesStayAsTheyWere(t *testing.T) {
	const body = `{"model":"x","zz":1,"n":2.0,"messages":[{"role":"user","content":null}]}`
	d := mustRead(t, request(t, "chat.create", body))
	edit := policy.Edit{Name: "model", Pointer: "/model", Value: `"m"`}
	first := string(mustRewrite(t, d, edit).Bytes)
	mustRewrite(t, d)
	if again := string(mustRewrite(t, d, edit).Bytes); again != first || string(d.json.body) != body {
		t.Errorf("%s, then %s; the body is %s", first, again, d.json.body)
	}
}
