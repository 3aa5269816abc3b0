package vllm

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/vallum/vallum/internal/golden"
	"github.com/vallum/vallum/internal/vllm/surface"
	"github.com/vallum/vallum/internal/vllm/surface/all"
)

func TestTablesParse(t *testing.T) {
	if _, err := parseTables(tableFiles); err != nil {
		t.Fatal(err)
	}
}

func TestEveryGrantableBodyHasATableAndNoOther(t *testing.T) {
	for _, op := range All() {
		table, has := FieldsOf(op.ID)
		needs := op.Grant != Never && op.Request != NoBody
		if needs && !has {
			t.Errorf("%s: can be granted and takes a body, but has no table", op.ID)
		}
		if !needs && has {
			t.Errorf("%s: cannot be granted or takes no body, but has a table", op.ID)
		}
		if !has {
			continue
		}
		if model := table.Body.Fields["model"]; op.Model != (model != nil) || model != nil && (model.Action != Write || model.Fact != FactModel) {
			t.Errorf("%s: the catalogue says that its body names a model: %t; the table says otherwise", op.ID, op.Model)
		}
		salt := table.Body.Fields["cache_salt"]
		if (op.Salt != "") != (salt != nil) || salt != nil && (salt.Action != Write || salt.Fact != FactSalt) {
			t.Errorf("%s: the catalogue says that it has a cache salt since %q; the table says otherwise", op.ID, op.Salt)
		}
		if stream := table.Body.Fields["stream"]; op.Streams != (stream != nil && stream.Fact == FactStream) {
			t.Errorf("%s: the catalogue says that it streams: %t; the table says otherwise", op.ID, op.Streams)
		}
	}
	for _, table := range Tables() {
		for _, id := range table.Operations {
			if !slices.ContainsFunc(All(), func(op *Operation) bool { return op.ID == id }) {
				t.Errorf("table %v: there is no operation %q", table.Operations, id)
			}
		}
	}
}

// everyField calls see for each row of each table, with where it stands.
func everyField(see func(at string, f *Field)) {
	set := embeddedTables()
	shapes := slices.Clone(set.shapes)
	for _, table := range set.tables {
		shapes = append(shapes, table.Body)
	}
	for _, s := range shapes {
		for name, f := range s.Fields {
			see(s.Name+"."+name, f)
		}
		for value, f := range s.Variants {
			see(s.Name+"="+value, f)
		}
	}
}

func TestEveryRowIsWhole(t *testing.T) {
	everyField(func(at string, f *Field) {
		if strings.TrimSpace(f.Why) == "" {
			t.Errorf("%s has no why", at)
		}
		if (f.Shape != nil) != (f.Action == Pass || f.Action == Write) {
			t.Errorf("%s: a shape goes with pass and write", at)
		}
		if !strings.HasSuffix(at, "."+f.Name) && !strings.HasSuffix(at, "="+f.Name) {
			t.Errorf("%s is called %q", at, f.Name)
		}
	})
}

// TestReleasesThatAreAffected holds what an advisory says of releases; the rows name theirs.
func TestReleasesThatAreAffected(t *testing.T) {
	advisory := regexp.MustCompile(`\b(CVE-\d{4}-\d+|GHSA-[0-9a-z-]+|vllm-project/vllm#\d+)`)
	rows := 0
	everyField(func(at string, f *Field) {
		if f.Affected == nil {
			return
		}
		rows++
		if !advisory.MatchString(f.Why) {
			t.Errorf("%s: %q names no advisory", at, f.Why)
		}
	})
	if rows < 10 {
		t.Errorf("%d rows are affected: too few", rows)
	}
	for _, c := range []struct {
		from, until, release string
		in                   bool
	}{
		{"0.21.0", "0.28.0", "0.20.2", false},
		{"0.21.0", "0.28.0", "0.21.0rc1", false},
		{"0.21.0", "0.28.0", "0.21.0", true},
		{"0.21.0", "0.28.0", "0.27.1", true},
		{"0.21.0", "0.28.0", "0.28.0rc2", true},
		{"0.21.0", "0.28.0", "0.28.0", false},
		{"0.21.0", "0.28.0", "0.28.0+cpu", false},
		{"0.21.0", "0.28.0", "", true},
		{"", "0.30.0", "0.8.5", true},
		{"", "0.30.0", "0.30.0", false},
		{"", "0.30.0", "", true},
	} {
		r, err := ParseRelease(c.release)
		if err != nil && c.release != "" {
			t.Fatal(err)
		}
		if a := (&Affected{From: c.from, Until: c.until}); a.In(r) != c.in {
			t.Errorf("%s..%s: %s is affected: %t", c.from, c.until, r, !c.in)
		}
	}
}

// TestEveryNamedShapeIsUsed finds shapes that no body leads to: a rule that is written down and holds nowhere.
func TestEveryNamedShapeIsUsed(t *testing.T) {
	set := embeddedTables()
	used := map[*Shape]bool{}
	var walk func(s *Shape)
	walk = func(s *Shape) {
		if s == nil || used[s] {
			return
		}
		used[s] = true
		walk(s.Elem)
		for _, arm := range s.Any {
			walk(arm)
		}
		for _, f := range s.Fields {
			walk(f.Shape)
		}
		for _, f := range s.Variants {
			walk(f.Shape)
		}
	}
	for _, table := range set.tables {
		walk(table.Body)
	}
	for _, s := range set.shapes {
		if !used[s] {
			t.Errorf("%s: no body leads to %q", set.origin[s], s.Name)
		}
	}
}

// TestWhatNeverPasses is the list, by operation: a row that turns to pass would be seen here.
func TestWhatNeverPasses(t *testing.T) {
	never := []string{
		"chat_template", "prompt_embeds", "kv_transfer_params", "ec_transfer_params", "vllm_xargs",
		"mm_processor_kwargs", "media_io_kwargs", "mm_payload", "request_id", "session_id", "priority", "uuid",
		"previous_response_id", "background", "prompt_logprobs", "return_token_ids", "return_prompt_text",
		"return_tokens_as_token_ids", "return_token_offsets", "return_mm_kwargs", "image_embeds", "audio_embeds",
		"video_embeds", "regex", "grammar", "structural_tag", "mcp", "thread",
	}
	found := map[string]int{}
	everyField(func(at string, f *Field) {
		if !slices.Contains(never, f.Name) {
			return
		}
		found[f.Name]++
		if f.Action != Refuse {
			t.Errorf("%s is not refused", at)
		}
	})
	for _, name := range never {
		if found[name] == 0 {
			t.Errorf("%q is in no table", name)
		}
	}
	everyField(func(at string, f *Field) {
		echo := strings.HasPrefix(at, "search_") // of what a server's own tool did; vLLM makes nothing of it
		if strings.HasSuffix(at, ".url") && !echo && f.Shape != nil && !f.Shape.DataURL {
			t.Errorf("%s may be an address to fetch", at)
		}
	})
	for _, id := range []string{"chat.create", "completions.create"} {
		table, _ := FieldsOf(id)
		if n := table.Body.Fields["n"].Shape; !n.Bounded || n.Min != 1 || n.Max != 4 {
			t.Errorf("%s: n is %+v", id, n)
		}
	}
	responses, _ := FieldsOf("responses.create")
	if store := responses.Body.Fields["store"]; store.Action != Write || store.Fact != FactStore {
		t.Errorf("responses.create: store is %+v", store)
	}
	messages, _ := FieldsOf("messages.create")
	if got := messages.Body.Fields["thread"].Reason; got != "thread_unsupported" {
		t.Errorf("messages.create: thread is refused as %q", got)
	}
}

// modelFor finds the request model of an operation in a release.
func modelFor(r *surface.Release, op *Operation) string {
	for _, route := range r.Routes {
		if route.Server == "api" && route.Method == op.Method && route.Path == op.Path {
			return route.RequestModel
		}
	}
	return ""
}

// TestEveryFieldOfEveryReleaseIsNamed holds the tables against what the releases read, nested models included.
func TestEveryFieldOfEveryReleaseIsNamed(t *testing.T) {
	for _, r := range all.Releases(t) {
		for _, op := range All() {
			table, ok := FieldsOf(op.ID)
			if !ok {
				continue
			}
			if model := modelFor(r, op); model != "" {
				w := &modelWalk{t: t, release: r, operation: op.ID, seen: map[string]bool{}}
				w.compare("", []string{model}, table.Body)
			}
		}
	}
}

// modelWalk compares the models of one operation in one release with its table.
type modelWalk struct {
	t         *testing.T
	release   *surface.Release
	operation string
	seen      map[string]bool
}

var modelName = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`)

// mentioned returns the models that an annotation names, with unions taken apart.
func (w *modelWalk) mentioned(annotation string, into map[string]bool) {
	for _, name := range modelName.FindAllString(annotation, -1) {
		m, ok := w.release.Models[name]
		if !ok || into[name] {
			continue
		}
		into[name] = true
		for _, member := range m.Members {
			w.mentioned(member, into)
		}
	}
}

// compare wants every field of the models to be named in one of the objects that shape may be.
func (w *modelWalk) compare(path string, models []string, shape *Shape) {
	objects := objectsOf(shape)
	if len(objects) == 0 {
		return // free, or no object at all: no field passes
	}
	set := map[string]bool{}
	for _, m := range models {
		set[m] = true
		for _, member := range w.release.Models[m].Members {
			w.mentioned(member, set)
		}
	}
	for name := range set {
		key := name + " " + objects[0].Name
		m := w.release.Models[name]
		if w.seen[key] || refusedByTag(m, choicesOf(shape)) {
			continue
		}
		w.seen[key] = true
		for _, also := range m.AlsoReads {
			w.field(path, surface.Field{Name: also}, objects)
		}
		for _, f := range m.Fields {
			w.field(path, f, objects)
		}
	}
}

func (w *modelWalk) field(path string, f surface.Field, objects []*Shape) {
	names := f.Aliases
	if len(names) == 0 {
		names = []string{f.Name}
	}
	var rows []*Field
	for _, s := range objects {
		for _, name := range names {
			if row := s.Fields[name]; row != nil {
				rows = append(rows, row)
			}
		}
	}
	if len(rows) == 0 {
		w.t.Errorf("release %s: %s: %s%s: not in the table (%s = %s)", w.release.Version, w.operation, path, names[0], f.Annotation, f.Default)
		return
	}
	inner := map[string]bool{}
	w.mentioned(f.Annotation, inner)
	for _, row := range rows {
		w.checkDefault(path+names[0], f, row)
		if row.Shape == nil || len(inner) == 0 {
			continue
		}
		var models []string
		for m := range inner {
			models = append(models, m)
		}
		slices.Sort(models)
		w.compare(path+names[0]+".", models, row.Shape)
	}
}

// checkDefault wants a refused field to be dropped when it says what vLLM takes for granted anyway.
func (w *modelWalk) checkDefault(path string, f surface.Field, row *Field) {
	literal, ok := pythonLiteral(f.Default)
	if row.Action != Refuse || !ok || slices.Contains(row.Equal, literal) {
		return
	}
	w.t.Errorf("release %s: %s: %s: refused although its default is %s", w.release.Version, w.operation, path, literal)
}

// pythonLiteral makes JSON of the defaults that a body can say.
func pythonLiteral(s string) (string, bool) {
	switch s {
	case "True":
		return "true", true
	case "False":
		return "false", true
	case "list()", "[]":
		return "[]", true
	case "dict()", "{}":
		return "{}", true
	}
	if strings.HasPrefix(s, "'") && strings.HasSuffix(s, "'") && s != "''" {
		return `"` + strings.Trim(s, "'") + `"`, true
	}
	var n json.Number
	if json.Unmarshal([]byte(s), &n) == nil && n != "" {
		return s, true
	}
	return "", false
}

// objectsOf returns the objects that a value of the shape may be or hold.
func objectsOf(s *Shape) []*Shape {
	if s == nil {
		return nil
	}
	switch s.Kind {
	case Object:
		return []*Shape{s}
	case Array, Map:
		return objectsOf(s.Elem)
	}
	var out []*Shape
	for _, arm := range s.Any {
		out = append(out, objectsOf(arm)...)
	}
	for _, f := range s.Variants {
		if f.Shape != nil {
			out = append(out, objectsOf(f.Shape)...)
		}
	}
	return out
}

var literalWord = regexp.MustCompile(`'([^']*)'`)

// refusedByTag says that a model stands for variants that do not pass, so that its fields need no names.
func refusedByTag(m surface.Model, choices []*Shape) bool {
	for _, c := range choices {
		for _, f := range m.Fields {
			if f.Name != c.Tag || !strings.HasPrefix(f.Annotation, "Literal[") {
				continue
			}
			if !slices.ContainsFunc(literalWord.FindAllStringSubmatch(f.Annotation, -1), func(word []string) bool {
				v := c.Variants[word[1]]
				return v != nil && v.Action == Pass
			}) {
				return true
			}
		}
	}
	return false
}

// choicesOf returns the choices that a value of the shape may be or hold.
func choicesOf(s *Shape) []*Shape {
	if s == nil {
		return nil
	}
	out := choicesOf(s.Elem)
	if s.Kind == Choice {
		out = append(out, s)
	}
	for _, arm := range s.Any {
		out = append(out, choicesOf(arm)...)
	}
	return out
}

// TestEqualIsADefaultOrNothing keeps equal= to values that mean "not asked for".
func TestEqualIsADefaultOrNothing(t *testing.T) {
	everyField(func(at string, f *Field) {
		for _, v := range f.Equal {
			if !slices.Contains([]string{"0", "-1", "false", "[]", "{}", `"none"`, `"auto"`, `{"type":"text"}`, `{"type":"json_object"}`, `"tensors"`}, v) && (v != "true" || f.Name != "watermarking" && f.Name != "return_mm_kwargs") && (v != "1" || f.Name != "repetition_penalty") {
				t.Errorf("%s: equal=%s asks for something", at, v)
			}
		}
	})
}

func TestFieldsMarkdown(t *testing.T) {
	golden.Check(t, "testdata/fields.golden.md", FieldsMarkdown(), *update, "go test ./internal/vllm -run TestFieldsMarkdown -update")
}

func TestParseTablesRefuses(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"a row before any heading", "  a bool pass -- x", "t.txt:1: a row without a heading"},
		{"an unknown heading", "table x", `t.txt:1: "table x" is no heading`},
		{"no why", "body o\n  a bool pass", `t.txt:2: "a" has no why`},
		{"an empty why", "body o\n  a bool pass -- ", `t.txt:2: "a" has no why`},
		{"no action", "body o\n  a bool -- x", "has 2 of the three"},
		{"an unknown action", "body o\n  a bool allow -- x", `"allow" is no action`},
		{"pass without a type", "body o\n  a - pass -- x", "need a type"},
		{"drop with a type", "body o\n  a bool drop -- x", "have - for one"},
		{"an unknown type", "body o\n  a strng pass -- x", `no type or shape "strng"`},
		{"an unknown fact", "body o\n  a int pass fact=speed -- x", `no fact "speed"`},
		{"a fact of what is dropped", "body o\n  a - drop fact=model -- x", `"fact=model" does not go with drop`},
		{"equal that is no JSON", "body o\n  a - refuse equal=nil -- x", "equal=nil"},
		{"equal of nothing", "body o\n  a - refuse equal= -- x", "commas between"},
		{"equal on pass", "body o\n  a int pass equal=1 -- x", "does not go with pass"},
		{"equal before affected", "body o\n  a int pass equal=1 affected=..0.30.0 -- x", "does not go with pass"},
		{"affected on refuse", "body o\n  a - refuse affected=..0.30.0 -- x", "does not go with refuse"},
		{"affected without an end", "body o\n  a int pass affected=0.21.0.. -- x", "is not FROM..UNTIL"},
		{"affected by no release", "body o\n  a int pass affected=x..0.30.0 -- x", "is no release before"},
		{"affected backwards", "body o\n  a int pass affected=0.30.0..0.29.0 -- x", "is no release before"},
		{"with what is not known", "body o\n  a int pass affected=..0.30.0 with=smell -- x", "is no field beside it"},
		{"known of nothing", "body o\n  a int pass known -- x", "does not go with pass"},
		{"with of nothing", "body o\n  a int pass with=audio -- x", "does not go with pass"},
		{"a variant that is affected", "shape s\n  a int pass -- x\nchoice c by t\n  \"\",* s pass affected=..0.30.0 -- x\nbody o\n  a c pass -- x", "stands twice, or has more"},
		{"a field twice", "body o\n  a int pass -- x\n  a int pass -- y", `field "a" stands twice`},
		{"a field twice by include", "rows r\n  a int pass -- x\nbody o\n  include r\n  a int pass -- y", `field "a" stands twice`},
		{"an include of nothing", "body o\n  include r", `no rows "r"`},
		{"rows that include themselves", "rows r\n  a int pass -- x\n  include r", "include themselves"},
		{"a name twice", "shape s\n  a int pass -- x\nshape s\n  a int pass -- x", "t.txt:3: \"s\" is defined twice, first at fields/t.txt:1"},
		{"an operation twice", "body o\n  a int pass -- x\nbody o\n  a int pass -- x", `"o" has two tables`},
		{"an empty body", "body o", "has no rows"},
		{"a type of itself", "type t = [t]\nbody o\n  a t pass -- x", "made of itself"},
		{"two arms of one kind", "body o\n  a [int]|[string] pass -- x", "same kind of JSON"},
		{"an open list", "body o\n  a [int pass -- x", "of the three"},
		{"an empty range", "body o\n  a int(4..1) pass -- x", "is empty"},
		{"no range", "body o\n  a int(4) pass -- x", "a range is"},
		{"a least number of a string", "body o\n  a string(1..4) pass -- x", "only a list has"},
		{"a least number above the most", "body o\n  a [int](5..4) pass -- x", "a bound is"},
		{"a least number without a most", "body o\n  a [int](5..) pass -- x", "a bound is"},
		{"a bound of 0", "body o\n  a string(0) pass -- x", "a bound is"},
		{"enum without words", "body o\n  a enum() pass -- x", "without words"},
		{"what is left over", "body o\n  a int[] pass -- x", "left over"},
		{"a choice without absent", "choice c by t\n  * - drop -- x\nbody o\n  a c pass -- x", `does not say what becomes of ""`},
		{"a choice without others", "choice c by t\n  \"\" - drop -- x\nbody o\n  a c pass -- x", `does not say what becomes of "*"`},
		{"a choice of no object", "choice c by t\n  \"\",* int pass -- x\nbody o\n  a c pass -- x", "no object"},
		{"a variant without its tag", "shape s\n  a int pass -- x\nchoice c by t\n  \"\",* s pass -- x\nbody o\n  a c pass -- x", `has no field "t"`},
		{"a variant twice", "choice c by t\n  \"\",*,* - drop -- x\nbody o\n  a c pass -- x", "stands twice"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := parseTables(fstest.MapFS{"fields/t.txt": {Data: []byte(row.text)}})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want an error with %q", err, row.want)
			}
		})
	}
}

func TestParseTablesReadsTheLanguage(t *testing.T) {
	set, err := parseTables(fstest.MapFS{"fields/t.txt": {Data: []byte(`
# a comment
type id = int(0..9)
rows r
  b - refuse equal={"x": [1, 2]},"none" reason=bad_body -- two defaults
shape s
  kind string(5) pass -- the tag
  inner [s] pass -- itself
choice c by kind
  one,two s pass -- by name
  "" - refuse reason=bad_body -- absent
  * - drop -- others
body o p
  include r
  a string|[string|id|[id]](7) pass fact=inputs -- a mixed list
  m {number: x y}(2) pass -- a map
  l [int](2..3) pass -- a list
  c c pass -- a choice
  f number(..3) write fact=salt -- written
`)}})
	if err != nil {
		t.Fatal(err)
	}
	table := set.byID["p"]
	if table == nil || table != set.byID["o"] || len(table.Body.Fields) != 6 {
		t.Fatalf("table of p: %+v", table)
	}
	a := table.Body.Fields["a"]
	if a.Fact != FactInputs || a.Shape.Kind != Union || a.Shape.Any[1].MaxLen != 7 || a.Shape.Any[1].Elem.Any[1].Max != 9 {
		t.Errorf("a: %+v", a)
	}
	if b := table.Body.Fields["b"]; !slices.Equal(b.Equal, []string{`{"x":[1,2]}`, `"none"`}) || b.Reason != "bad_body" || b.Action != Refuse {
		t.Errorf("b: %+v", b)
	}
	if m := table.Body.Fields["m"].Shape; m.Kind != Map || m.Elem.Kind != Number || m.Elem.Bounded || m.MaxLen != 2 || !slices.Equal(m.Names, []string{"x", "y"}) {
		t.Errorf("m: %+v", m)
	}
	if l := table.Body.Fields["l"].Shape; l.MinLen != 2 || l.MaxLen != 3 || a.Shape.Any[1].MinLen != 0 {
		t.Errorf("l: %+v", l)
	}
	c := table.Body.Fields["c"].Shape
	if c.Kind != Choice || c.Tag != "kind" || c.Variants["two"].Shape.Fields["inner"].Shape.Elem != c.Variants["one"].Shape || c.Variants["*"].Action != Drop {
		t.Errorf("c: %+v", c)
	}
	if f := table.Body.Fields["f"]; f.Action != Write || !f.Shape.Bounded || f.Shape.Max != 3 {
		t.Errorf("f: %+v", f)
	}
}
