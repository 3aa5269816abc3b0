package schema

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// chain is a schema in which each of n definitions leads to the next, levels objects below its own beginning.
func chain(n, levels int) string {
	var b strings.Builder
	b.WriteString(`{"$ref":"#/$defs/a0","$defs":{`)
	for i := range n {
		b.WriteString(fmt.Sprintf(`"a%d":`, i) + strings.Repeat(`{"type":"object","properties":{"x":`, levels) + fmt.Sprintf(`{"$ref":"#/$defs/a%d"}`, i+1) + strings.Repeat("}}", levels) + ",")
	}
	return b.String() + fmt.Sprintf(`"a%d":{"type":"string"}}}`, n)
}

func members(n int) string {
	var b strings.Builder
	b.WriteString(`{"type":"object","properties":{"p":{}`)
	for i := range n {
		fmt.Fprintf(&b, `,"p%d":{"enum":["a"]}`, i)
	}
	return b.String() + "}}"
}

func quoted(t *testing.T, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSchemasThatEndTheServerAreRefused(t *testing.T) {
	brackets := strings.Repeat("(", 30000) + "a" + strings.Repeat(")", 30000)
	long := strings.Repeat("x", 5000)
	for name, row := range map[string]struct{ schema, what string }{
		"brackets in a pattern":        {`{"type":"string","pattern":"` + brackets + `"}`, "a pattern in a schema"},
		"in an escaped one":            {`{"properties":{"a":{"\u0070attern":"` + brackets + `"}}}`, "a pattern in a schema"},
		"as a name":                    {`{"patternProperties":{"a":{},"` + brackets + `":{}}}`, "a pattern in a schema"},
		"as a name after inner ones":   {`{"patternProperties":{"a":{"patternProperties":{"b":{}}},"` + brackets + `":{}}}`, "a pattern in a schema"},
		"of property names":            {`{"propertyNames":{"pattern":"` + brackets + `"}}`, "a pattern in a schema"},
		"in a list":                    {`{"anyOf":[{"type":"null"},{"pattern":"` + brackets + `"}]}`, "a pattern in a schema"},
		"in a schema as text":          {quoted(t, `{"pattern":"`+brackets+`"}`), "a pattern in a schema"},
		"references that lead on":      {chain(2000, 1), "refers to"},
		"few references, deep objects": {chain(49, 28), "refers to"},
		"references in text":           {quoted(t, chain(2000, 1)), "refers to"},
		"names that are required":      {`{"type":"object","multipleOf":1,"required":["a"` + strings.Repeat(`,"a"`, 5000) + `]}`, "may require"},
		"members without end":          {members(3000), "members at most"},
		"branches without end":         {`{"anyOf":[{}` + strings.Repeat(`,{"const":1}`, 9000) + `]}`, "objects at most"},
		"items that are counted out":   {`{"type":"array","maxItems":1000000000}`, "maxItems in a schema"},
		"with an exponent":             {`{"type":"array","minItems":1e9}`, "minItems in a schema"},
		"with an escape":               {`{"type":"array","min\u0049tems":1000000000}`, "minItems in a schema"},
		"in text":                      {`"{\"minItems\":1000000000}"`, "minItems in a schema"},
		"members that are counted out": {`{"type":"object","minProperties":1500}`, "minProperties in a schema"},
		"at most":                      {`{"type":"object","maxProperties":1500}`, "maxProperties in a schema"},
		"text that is deep":            {quoted(t, strings.Repeat(`{"items":`, 500)+`{"a":"`+long+`"}`+strings.Repeat("}", 500)), "nested deeper"},
		"text that Python reads":       {quoted(t, `{"a":NaN,"b":"`+long+`"}`), "strict JSON"},
		"text with a name twice":       {quoted(t, `{"pattern":"`+long+`","pattern":"a"}`), "strict JSON"},

		"a long text elsewhere":          {`{"description":"` + long + `","enum":["` + long + `"],"const":"` + long + `"}`, ""},
		"a property called pattern":      {`{"properties":{"pattern":{"type":"string","description":"` + long + `"}}}`, ""},
		"what follows patternProperties": {`{"patternProperties":{"^x-":{}},"properties":{"` + long + `":{}}}`, ""},
		"a pattern in a list":            {`{"enum":["pattern","` + long + `"]}`, ""},
		"many small definitions":         {chain(100, 3), ""},
		"as text":                        {quoted(t, chain(100, 3)), ""},
		"one definition, many times":     {`{"$defs":{"a":{}},"anyOf":[{}` + strings.Repeat(`,{"properties":{"x":{"$ref":"#/$defs/a"}}}`, 1000) + `]}`, ""},
		"many members":                   {members(2000), ""},
		"usual counts":                   {`{"type":"array","minItems":1,"maxItems":1000,"items":{"minProperties":1,"maxLength":9007199254740991,"required":["a"]}}`, ""},
		"a property called minItems":     {`{"properties":{"minItems":{"type":"integer","maximum":1000000000}}}`, ""},
		"a long list after required":     {`{"required":["a"],"enum":["a"` + strings.Repeat(`,"a"`, 5000) + `]}`, ""},
		"many branches":                  {`{"enum":["` + strings.Repeat(`a","`, 9000) + `"],"anyOf":[{}` + strings.Repeat(`,{"const":1}`, 8000) + `]}`, ""},
		"many short lists":               {`{"anyOf":[{}` + strings.Repeat(`,{"required":["a","b"]}`, 4000) + `]}`, ""},
		"a short text of anything":       {`"nonsense"`, ""},
		"true":                           {`true`, ""},
		"a number":                       {`7`, "must be an object"},
		"a list":                         {`[{}]`, "must be an object"},
	} {
		what := Check([]byte(row.schema), 64, true)
		if row.what == "" && what != "" || !strings.Contains(what, row.what) {
			t.Errorf("%s: %q, want %q", name, what, row.what)
		}
	}
}

func TestATextIsASchemaWhereItIsSaidSo(t *testing.T) {
	for _, text := range []string{`"{}"`, quoted(t, chain(10, 1))} {
		if what := Check([]byte(text), 64, false); !strings.Contains(what, "not its text") {
			t.Errorf("%.30s: %q", text, what)
		}
		if what := Check([]byte(text), 64, true); what != "" {
			t.Errorf("%.30s: %q", text, what)
		}
	}
}
