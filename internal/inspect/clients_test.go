package inspect

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/golden"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

var update = flag.Bool("update", false, "write testdata/clients.golden anew")

// recording is one request that a client sent: one to a file in testdata/clients at the top of the tree.
type recording struct {
	Client  string            `json:"client"`
	Version string            `json:"version"`
	Case    string            `json:"case"`
	Method  string            `json:"method"`
	Path    string            `json:"path"`    // a query may follow
	Headers map[string]string `json:"headers"` // by lower-case name
	Body    string            `json:"body"`
}

// modelled are requests that clients are known to send at their defaults, in short.
var modelled = []recording{
	{Client: "openai-python echo", Path: "/v1/chat/completions", Body: `{"messages":[{"role":"user","content":"a"},{"content":null,"refusal":null,"role":"assistant","annotations":null,"audio":null,"function_call":null,"tool_calls":[{"id":"c","function":{"arguments":"{}","name":"f"},"type":"function"}],"reasoning":null},{"role":"tool","tool_call_id":"c","content":"1"}],"model":"m","tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{}},"strict":true}}],"tool_choice":"auto"}`},
	{Client: "LangChain OpenAI", Path: "/v1/completions", Body: `{"model":"m","prompt":["hi"],"frequency_penalty":0,"logprobs":null,"max_tokens":256,"n":1,"presence_penalty":0,"seed":null,"temperature":0.7,"top_p":1}`},
	{Client: "LangChain OpenAIEmbeddings", Path: "/v1/embeddings", Body: `{"input":[[6151]],"model":"m","encoding_format":"base64"}`},
	{Client: "openai-agents", Path: "/v1/responses", Body: `{"include":[],"input":[{"content":"hi","role":"user"}],"instructions":"be","model":"m","tools":[],"stream":true}`},
	{Client: "Codex", Path: "/v1/responses", Body: `{"model":"m","instructions":"x","input":[{"type":"message","role":"developer","content":[{"type":"input_text","text":"a"}]},{"type":"message","role":"user","content":[{"type":"input_text","text":"b"}],"id":"i"}],"tools":[{"type":"function","name":"shell","description":"d","strict":false,"parameters":{"type":"object"}},{"type":"namespace","name":"ns","description":"d","tools":[{"type":"function","name":"g","parameters":{}}]},{"type":"web_search","external_web_access":false}],"tool_choice":"auto","parallel_tool_calls":true,"reasoning":{"effort":"medium","summary":"auto"},"store":false,"stream":true,"include":["reasoning.encrypted_content"],"prompt_cache_key":"k","client_metadata":{"x-codex-installation-id":"u"}}`},
	{Client: "Claude Code", Path: "/v1/messages?beta=true", Body: `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi","cache_control":{"type":"ephemeral"}}]},{"role":"system","content":"s"},{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"Bash","input":{"model":null}}]},{"role":"user","content":[{"tool_use_id":"t","type":"tool_result","content":"ok","is_error":false,"cache_control":{"type":"ephemeral","ttl":"1h"}}]}],"system":[{"type":"text","text":"x-anthropic-billing-header: a"},{"type":"text","text":"b","cache_control":{"type":"ephemeral"}}],"tools":[{"name":"Bash","description":"d","input_schema":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"command":{"type":"string"}},"required":["command"],"additionalProperties":false}}],"metadata":{"user_id":"{\"device_id\":\"x\"}"},"max_tokens":32000,"thinking":{"type":"adaptive"},"context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]},"output_config":{"effort":"medium"},"stream":true}`},
	{Client: "guidellm", Path: "/v1/chat/completions", Body: `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},"max_completion_tokens":16,"max_tokens":16,"stop":null,"ignore_eos":true}`},
	{Client: "vllm bench", Path: "/tokenize", Body: `{"model":"m","prompt":"x","add_special_tokens":false}`},
	{Client: "LiteLLM", Path: "/rerank", Body: `{"model":"m","query":"q","documents":["a","b"],"top_n":1}`},
	{Client: "curl", Path: "/v1/chat/completions", Body: "{\n  \"model\": \"m\",\n  \"messages\": [{\"role\": \"user\", \"content\": \"h\\u00e9 \\ud83d\\ude00\"}]\n}\n"},
}

// recordings reads the corpus; what cannot be read is a failure, never a body less.
func recordings(t *testing.T) []recording {
	t.Helper()
	all := modelled
	files, err := filepath.Glob("../../testdata/clients/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 100 {
		t.Errorf("testdata/clients has %d recordings; a few hundred belong there", len(files))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var r recording
		if err := json.Unmarshal(text, &r); err != nil || r.Path == "" || r.Method == "" {
			t.Fatalf("%s: a request with method, path, headers and body is needed: %v", file, err)
		}
		all = append(all, r)
	}
	return all
}

// TestEveryRecordedBodyIsAccepted lists every byte range that changes, and why, in testdata/clients.golden.
func TestEveryRecordedBodyIsAccepted(t *testing.T) {
	var out strings.Builder
	count := 0
	for _, r := range recordings(t) {
		name := strings.TrimSpace(r.Client + " " + r.Version + " " + r.Case)
		path, _, _ := strings.Cut(r.Path, "?")
		op, _, ok := vllm.Lookup(cmp.Or(r.Method, "POST"), path)
		if !ok {
			continue // what is not in the catalogue never gets to this package
		}
		table, ok := vllm.FieldsOf(op.ID)
		body := r.Body
		if !ok || body == "" {
			continue
		}
		count++
		types := []string{cmp.Or(r.Headers["content-type"], "application/json")}
		d, v := Read(Request{Operation: op, Table: table, ContentType: types, Length: int64(len(body)), Body: strings.NewReader(body), SpoolDir: t.TempDir()}, Default())
		if v.Refused() {
			if isThread(body) && v.Reason().String() == "thread_unsupported" {
				fmt.Fprintf(&out, "%s %s: %d bytes\n  refused, so that the SDK sends the whole conversation\n", name, r.Path, len(body))
				continue
			}
			t.Errorf("%s %s is refused: %s at %q: %s\n%.2000s", name, r.Path, v.Reason(), v.Param(), v.Message(), body)
			continue
		}
		fmt.Fprintf(&out, "%s %s: %d bytes\n", name, r.Path, len(body))
		b := mustRewrite(t, d, policy.Edit{Name: "model", Pointer: "/model", Value: `"granted"`})
		if op.Request == vllm.JSONBody {
			checkChanges(t, body, b)
		}
		for _, c := range b.Changes {
			fmt.Fprintf(&out, "  %s [%d,%d) %s", c.Why, c.From, c.To, short(body[c.From:c.To]))
			if c.With != "" {
				fmt.Fprintf(&out, " becomes %s", short(c.With))
			}
			out.WriteByte('\n')
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d bodies of operations with a table", count)
	golden.Check(t, "testdata/clients.golden", out.String(), *update, "go test ./internal/inspect -update")
}

func isThread(body string) bool { return strings.Contains(body, `"thread"`) }

func short(s string) string {
	if len(s) > 60 {
		s = s[:40] + "…" + s[len(s)-15:]
	}
	return fmt.Sprintf("%q", s)
}
