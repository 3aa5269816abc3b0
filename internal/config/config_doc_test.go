package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	schema "github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/vallum/vallum/internal/golden"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// The pages and the schema are made of the types' tags, so that they cannot say something else than the code.

const top = "../.."

func TestConfigMarkdown(t *testing.T) { generated(t, "docs/config.md", configMarkdown()) }

func TestConfigSchema(t *testing.T) { generated(t, "vallum.schema.json", configSchema(t)) }

// generated compares a file of the tree with what it should hold, or writes it with -update.
func generated(t *testing.T, name, want string) {
	t.Helper()
	golden.Check(t, filepath.Join(top, filepath.FromSlash(name)), want, *update, "go test ./internal/config -update")
}

// --- docs/config.md -----------------------------------------------------------------------------------------------------

func configMarkdown() string {
	var b strings.Builder
	b.WriteString("# vallum.yaml\n\n" +
		"Generated from the configuration's type (`internal/config`); a test keeps the two equal: `go test ./internal/config -update`.\n\n" +
		"`vallum check` says all that is wrong with a file, where, and what would be right; `vallum check --print` prints it with every\n" +
		"default. Unknown keys, keys that stand twice, anchors, aliases and merge keys are refused. What is absent is closed. A first\n" +
		"line `# yaml-language-server: $schema=PATH/vallum.schema.json` lets an editor check and complete the file. Relative paths begin in\n" +
		"the directory that `vallum` is started in: name whole ones where it is started by others.\n\n" +
		"| written as | for example |\n|---|---|\n" +
		"| length of time | `90s`, `15m`, `24h`, `90d` |\n" +
		"| size | `1000`, `64KiB`, `8MiB`, `2GiB` |\n" +
		"| number | `600`, `200_000` |\n" +
		"| secret | `${env:NAME}`, `${credential:NAME}`; never the secret itself |\n" +
		"| operation | `chat.create`, `\"@inference\"`, `{id: server.info, acknowledge: server.info}` |\n")
	section(&b, "", reflect.TypeFor[Config]())
	return b.String()
}

// section writes the table of one mapping, then those of the mappings in it.
func section(b *strings.Builder, path string, t reflect.Type) {
	if path == "" {
		b.WriteString("\n## The file\n\n")
	} else {
		fmt.Fprintf(b, "\n## `%s`\n\n", path)
	}
	b.WriteString("| key | value | meaning |\n|---|---|---|\n")
	for i := range t.NumField() {
		f := t.Field(i)
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", f.Tag.Get("yaml"), kindWords(f.Type), strings.ReplaceAll(f.Tag.Get("jsonschema_description"), "|", "\\|"))
	}
	for i := range t.NumField() {
		f := t.Field(i)
		at := join(path, f.Tag.Get("yaml"))
		switch inner := mappingIn(f.Type); {
		case inner == nil:
		case f.Type.Kind() == reflect.Slice:
			section(b, at+"[]", inner)
		case f.Type.Kind() == reflect.Map:
			section(b, at+".NAME", inner)
		default:
			section(b, at, inner)
		}
	}
}

// mappingIn is the mapping that a key holds, or a list or mapping of such; nil for values.
func mappingIn(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Map || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[Secret]() || t == reflect.TypeFor[Operation]() {
		return nil
	}
	return t
}

func kindWords(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Duration]():
		return "length of time"
	case reflect.TypeFor[Size]():
		return "size"
	case reflect.TypeFor[Secret]():
		return "secret"
	case reflect.TypeFor[Operation]():
		return "operation"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return kindWords(t.Elem())
	case reflect.Slice:
		return "list of " + plural(kindWords(t.Elem()))
	case reflect.Map:
		return "NAME: " + kindWords(t.Elem())
	case reflect.Struct:
		return "mapping"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	}
	return "number"
}

func plural(s string) string {
	if s == "text" {
		return "texts"
	}
	return s + "s"
}

func TestEveryKeyIsDescribed(t *testing.T) {
	var walk func(path string, t2 reflect.Type)
	walk = func(path string, in reflect.Type) {
		for i := range in.NumField() {
			f := in.Field(i)
			at := join(path, f.Tag.Get("yaml"))
			if d := f.Tag.Get("jsonschema_description"); !strings.HasSuffix(d, ".") {
				t.Errorf("%s: %q is no description", at, d)
			}
			if inner := mappingIn(f.Type); inner != nil {
				walk(at, inner)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
}

// --- vallum.schema.json -------------------------------------------------------------------------------------------------

func configSchema(t *testing.T) string {
	t.Helper()
	r := schema.Reflector{
		FieldNameTag: "yaml", DoNotReference: true, ExpandedStruct: true, Anonymous: true, RequiredFromJSONSchemaTags: true, Mapper: mapped,
	}
	s := r.Reflect(&Config{})
	s.Title = "vallum.yaml"
	s.Description = "Configuration of Vallum. vallum check knows more than this schema: it also judges what the values mean together."
	s.Required = []string{"version"}
	at(s, "version").Const = 1
	words(at(s, "upstream_errors"), "replace", "pass")
	words(at(s, "audit", "sync"), "interval", "always", "none")
	words(at(s, "audit", "checkpoints"), "stdout")
	words(at(s, "roles", "*", "unknown_fields"), "drop", "refuse")
	at(s, "roles", "*").Required = []string{"operations"}
	at(s, "listen", "[]").Required = []string{"address"}
	at(s, "listen", "[]", "tls").Required = []string{"certificate", "key"}
	at(s, "upstreams", "[]").Required = []string{"name", "url"}
	at(s, "upstreams", "[]", "release").Pattern = `^([0-9]+\.[0-9]+\.[0-9]+((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?)?$`
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

// at finds the schema of a key: "[]" is the item of a list, "*" the value of any name.
func at(s *schema.Schema, path ...string) *schema.Schema {
	for _, name := range path {
		switch name {
		case "[]":
			s = s.Items
		case "*":
			s = s.AdditionalProperties
		default:
			s, _ = s.Properties.Get(name)
		}
	}
	return s
}

func words(s *schema.Schema, list ...string) {
	for _, w := range list {
		s.Enum = append(s.Enum, w)
	}
}

// mapped is the schema of what is written in a form of its own. Editors read YAML 1.2, where 200_000 is text.
func mapped(t reflect.Type) *schema.Schema {
	number := &schema.Schema{Type: "integer", Minimum: "0"}
	switch t {
	case reflect.TypeFor[Duration]():
		return &schema.Schema{Type: "string", Pattern: `^([0-9]+d|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$`, Examples: []any{"90s", "15m", "24h", "90d"}}
	case reflect.TypeFor[Size]():
		return &schema.Schema{AnyOf: []*schema.Schema{number, {Type: "string", Pattern: `^[0-9][0-9_]*( ?[KMG]iB)?$`, Examples: []any{"64KiB", "8MiB", "2GiB"}}}}
	case reflect.TypeFor[Secret]():
		return &schema.Schema{Type: "string", Pattern: `^\$\{(env|credential):[^}]+\}$`, Examples: []any{"${env:VLLM_API_KEY}"}}
	case reflect.TypeFor[Operation]():
		return operationSchema()
	case reflect.TypeFor[Count]():
		return &schema.Schema{AnyOf: []*schema.Schema{{Type: "integer", Minimum: "1"}, {Type: "string", Pattern: `^[1-9][0-9_]*$`}}}
	}
	return nil
}

// operationSchema lists what a role can be granted: ids, groups, and ids with their acknowledgement.
func operationSchema() *schema.Schema {
	plain := &schema.Schema{Type: "string", Description: "An operation's id, or a group as \"@inference\". See docs/operations.md."}
	dangerous := &schema.Schema{Type: "string", Description: "The operation's id."}
	groups := map[string]bool{}
	for role := range policy.BuiltIn {
		groups["@"+role] = true
	}
	for _, op := range vllm.All() {
		switch op.Grant {
		case vllm.ByGroup:
			words(plain, op.ID)
			groups["@"+string(op.Group)] = true
		case vllm.IDOnly:
			words(plain, op.ID)
		case vllm.Acknowledged:
			words(dangerous, op.ID)
		}
	}
	for _, name := range sortedKeys(groups) {
		words(plain, name)
	}
	ids := slices.Concat(dangerous.Enum, plain.Enum)
	properties := schema.NewProperties()
	properties.Set("id", &schema.Schema{Type: "string", Enum: ids, Description: dangerous.Description})
	properties.Set("acknowledge", &schema.Schema{Type: "string", Enum: dangerous.Enum, Description: "The id again, for operations of the groups development and profiler."})
	return &schema.Schema{AnyOf: []*schema.Schema{plain, {
		Type: "object", Properties: properties, Required: []string{"id"}, AdditionalProperties: schema.FalseSchema,
	}}}
}

func sortedKeys(m map[string]bool) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// compiled is the schema as another program reads it.
func compiled(t *testing.T) *validator.Schema {
	t.Helper()
	doc, err := validator.UnmarshalJSON(strings.NewReader(configSchema(t)))
	if err != nil {
		t.Fatal(err)
	}
	c := validator.NewCompiler()
	if err := c.AddResource("vallum.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("vallum.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// judge reads YAML as an editor does and asks the schema.
func judge(t *testing.T, s *validator.Schema, file []byte) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(file, &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := validator.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(instance)
}

func TestExamplesAreRightForTheSchemaToo(t *testing.T) {
	s := compiled(t)
	files, err := filepath.Glob(top + "/examples/*/vallum.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no example was found: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "upstreams:") { // of a node, which serves nobody: isolate reads its section alone
			if _, err := ParseNode(name, b); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err := judge(t, s, b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Parse(name, b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if first, _, _ := strings.Cut(string(b), "\n"); first != "# yaml-language-server: $schema=../../vallum.schema.json" {
			t.Errorf("%s does not name the schema for editors: %q", name, first)
		}
	}
}

// Where the schema says that something is wrong, so does Parse, and these mistakes both find.
func TestSchemaRefusesWhatParseRefuses(t *testing.T) {
	s := compiled(t)
	const right = "version: 1\nupstreams: [{name: a, url: \"http://127.0.0.1:1\", models: [m]}]\n"
	for _, row := range []struct {
		file  string
		right bool
	}{
		{right, true},
		{right + "roles: {r: {operations: [chat.create, \"@inference\", {id: server.info, acknowledge: server.info}], models: [m], limits: {tokens_per_minute: 200_000}}}\n", true},
		{right + "audit: {retain: 90d}\nbodies: {max_json: 8MiB}\ntimeouts: {drain: 1m30s}\n", true},
		{right + "rule: {}\n", false},
		{strings.Replace(right, "1", "2", 1), false},
		{strings.Replace(right, "name: a,", "", 1), false},
		{strings.Replace(right, "name: a,", "name: a, key: sk-literal,", 1), false},
		{strings.Replace(right, "name: a,", "name: a, key: \"${env:K}\",", 1), true},
		{right + "roles: {r: {operations: [chat.creat], models: [m]}}\n", false},
		{right + "roles: {r: {operations: [server.info], models: [m]}}\n", false},
		{right + "roles: {r: {operations: [\"@development\"], models: [m]}}\n", false},
		{right + "roles: {r: {operations: [invocations.create], models: [m]}}\n", false},
		{right + "audit: {sync: never}\n", false},
		{strings.Replace(right, "url:", "release: 0.11.2.post1, url:", 1), true},
		{strings.Replace(right, "url:", "release: 0.33.0rc1, url:", 1), true},
		{strings.Replace(right, "url:", "release: newest, url:", 1), false},
		{strings.Replace(right, "url:", "release: v0.32.0, url:", 1), false},
		{strings.Replace(right, "url:", "release: 0.32, url:", 1), false},
		{strings.Replace(right, "url:", "release: 0.32.0+cpu, url:", 1), false},
		{right + "roles: {r: {operations: [chat.create], models: [m], limits: {concurrent: 0}}}\n", false},
		{right + "audit: {retain: 1y}\n", false},
		{right + "bodies: {max_json: 8MB}\n", false},
		{right + "listen: [{address: \"127.0.0.1:1\", tls: {certificate: c}}]\n", false},
		{right + "listen: [{address: \"127.0.0.1:1\", insecure_plain_http: \"yes\"}]\n", false},
	} {
		if got := judge(t, s, []byte(row.file)) == nil; got != row.right {
			t.Errorf("the schema says %t of\n%s", got, row.file)
		}
		if _, err := Parse("f", []byte(row.file)); (err == nil) != row.right {
			t.Errorf("Parse says %v of\n%s", err, row.file)
		}
	}
}
