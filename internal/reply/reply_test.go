package reply

import (
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

func operation(t testing.TB, id string) *vllm.Operation {
	t.Helper()
	op, ok := vllm.ByID(id)
	if !ok {
		t.Fatalf("no operation %q", id)
	}
	return op
}

// What vLLM 0.32.0 answers, shortened.
const (
	chatWhole     = `{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"the \"model\": \"usage\" \u0041"},"finish_reason":"stop"}],"system_fingerprint":"vllm-0.32.0-abc","usage":{"prompt_tokens":21,"total_tokens":25,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":16,"created_cache_tokens":5,"multimodal_tokens":null}},"kv_transfer_params":null}`
	messagesWhole = `{"id":"m","type":"message","role":"assistant","content":[{"type":"text","text":"x"}],"model":"tiny","stop_reason":"end_turn","usage":{"input_tokens":47,"output_tokens":5,"cache_creation_input_tokens":0,"cache_read_input_tokens":384}}`
)

func TestWholeTakesOutWhatMustNotLeave(t *testing.T) {
	for _, c := range []struct {
		what, op string
		o        Options
		in, out  string
		usage    vllm.Usage
	}{
		{
			"chat: fingerprint, cached tokens and the model's name; not one byte of text", "chat.create",
			Options{Model: "gpt-\"4\"", HideCached: true},
			chatWhole,
			`{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"gpt-\"4\"","choices":[{"index":0,"message":{"role":"assistant","content":"the \"model\": \"usage\" \u0041"},"finish_reason":"stop"}],"usage":{"prompt_tokens":21,"total_tokens":25,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":0,"multimodal_tokens":null}},"kv_transfer_params":null}`,
			vllm.Usage{Prompt: 21, Cached: 16, Completion: 4, Counted: true},
		},
		{
			"chat with cached tokens shown", "chat.create",
			Options{},
			chatWhole, strings.Replace(chatWhole, `,"system_fingerprint":"vllm-0.32.0-abc"`, "", 1),
			vllm.Usage{Prompt: 21, Cached: 16, Completion: 4, Counted: true},
		},
		{
			"a fingerprint in front takes its comma along", "chat.create",
			Options{},
			`{ "system_fingerprint": null , "system_fingerprint":"x", "id":"1","usage":null}`, `{ "id":"1","usage":null}`,
			vllm.Usage{},
		},
		{
			"addresses of the engine", "chat.create",
			Options{},
			`{"id":"1","kv_transfer_params":{"remote_host":"10.0.0.7"},"ec_transfer_params": [1]}`,
			`{"id":"1","kv_transfer_params":null,"ec_transfer_params": null}`,
			vllm.Usage{},
		},
		{"nothing but a fingerprint", "chat.create", Options{}, `{"system_fingerprint":"x"}`, `{}`, vllm.Usage{}},
		{
			"messages: the sum stands in input_tokens, or the difference tells", "messages.create",
			Options{HideCached: true},
			messagesWhole,
			`{"id":"m","type":"message","role":"assistant","content":[{"type":"text","text":"x"}],"model":"tiny","stop_reason":"end_turn","usage":{"input_tokens":431,"output_tokens":5,"cache_creation_input_tokens":0,"cache_read_input_tokens":0}}`,
			vllm.Usage{Prompt: 431, Cached: 384, Completion: 5, Counted: true},
		},
		{
			"responses always tell cached tokens, with or without the flag", "responses.create",
			Options{HideCached: true, Model: "a"},
			`{"id":"resp_1","model":"tiny","error":null,"status":"completed","usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":1,"input_tokens_per_turn":[9],"cached_tokens_per_turn":[8]},"output_tokens":7,"total_tokens":16}}`,
			`{"id":"resp_1","model":"a","error":null,"status":"completed","usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0,"input_tokens_per_turn":[9],"cached_tokens_per_turn":[]},"output_tokens":7,"total_tokens":16}}`,
			vllm.Usage{Prompt: 9, Cached: 8, Completion: 7, Counted: true},
		},
		{"embed.v2 bills units", "embed.v2", Options{}, `{"meta":{"billed_units":{"input_tokens":14}}}`, `{"meta":{"billed_units":{"input_tokens":14}}}`, vllm.Usage{Prompt: 14, Counted: true}},
		{"a list", "chat.batch", Options{}, `[1,{"usage":1}]`, `[1,{"usage":1}]`, vllm.Usage{}},
	} {
		c.o.Operation = operation(t, c.op)
		r := New(c.o)
		out, v := r.Whole(200, "application/json; charset=utf-8", []byte(c.in))
		if v.Refused() || string(out) != c.out {
			t.Errorf("%s:\n got %s (%v)\nwant %s", c.what, out, v.Err(), c.out)
		}
		if got := r.Usage(); got != c.usage {
			t.Errorf("%s: usage is %+v, want %+v", c.what, got, c.usage)
		}
		if r.Ended() != verdict.Complete {
			t.Errorf("%s: ended %s", c.what, r.Ended())
		}
	}
}

func TestWholeRefusesWhatItCannotRead(t *testing.T) {
	for _, c := range []struct{ what, op, media, body string }{
		{"HTML where JSON is due", "chat.create", "text/html", "<html>"},
		{"an event stream where JSON is due", "chat.create", "text/event-stream", "data: {}\n\n"},
		{"no media type", "chat.create", "", "{}"},
		{"half an object", "chat.create", "application/json", `{"id":"x"`},
		{"two objects", "chat.create", "application/json", `{}{}`},
		{"nothing", "chat.create", "application/json", ``},
		{"a page where text is due", "metrics.read", "text/html", "<html>"},
		{"bytes of an operation that has none", "chat.create", "application/octet-stream", "\x00"},
		{"an error inside a success", "chat.create", "application/json", `{"error":{"message":"canary /srv/model","code":500}}`},
	} {
		r := New(Options{Operation: operation(t, c.op)})
		out, v := r.Whole(200, c.media, []byte(c.body))
		if !v.Refused() || v.Reason() != verdict.UpstreamFailed || out != nil {
			t.Errorf("%s: %q, %v", c.what, out, v.Err())
		}
		if strings.Contains(string(Refusal(vllm.OpenAI, v)), "canary") {
			t.Errorf("%s: the caller reads the upstream's text", c.what)
		}
		if r.Ended() == verdict.Complete {
			t.Errorf("%s: ended as complete", c.what)
		}
	}
	if _, v := New(Options{}).Whole(200, "application/json", []byte("{}")); !v.Refused() {
		t.Error("the zero Options let an answer out")
	}
}

func TestWholePassesWhatIsNotJSON(t *testing.T) {
	for _, c := range []struct{ op, media, in, out string }{
		{"metrics.read", "text/plain; version=0.0.4", "a 1\n", "a 1\n"},
		{"embeddings.create", "application/octet-stream", "\x00\xff", "\x00\xff"},
		{"health.read", "", "", ""},
	} {
		out, v := New(Options{Operation: operation(t, c.op)}).Whole(200, c.media, []byte(c.in))
		if v.Refused() || string(out) != c.out {
			t.Errorf("%s: %q, %v", c.op, out, v.Err())
		}
	}
}

func TestMetadataIsRewrittenAndCounted(t *testing.T) {
	r := New(Options{Operation: operation(t, "embeddings.create"), Model: "asked"})
	got := r.Metadata(`{"id":"e","model":"served","data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}`)
	if got != `{"id":"e","model":"asked","data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}` {
		t.Errorf("metadata: %s", got)
	}
	if u := r.Usage(); u != (vllm.Usage{Prompt: 7, Counted: true}) {
		t.Errorf("usage: %+v", u)
	}
	if got := r.Metadata("not JSON"); got != "" {
		t.Errorf("metadata that cannot be read left: %q", got)
	}
}

func TestAbortedAnswersAreToldFromSuccess(t *testing.T) {
	for _, c := range []struct{ op, body string }{
		{"chat.create", `{"choices":[{"index":0,"finish_reason":"stop"},{"finish_reason" : "abort"}]}`},
		{"completions.create", `{"choices":[{"text":"x","finish_reason":"abort"}]}`},
		{"messages.create", strings.Replace(messagesWhole, `"end_turn"`, "null", 1)},
		{"messages.create", strings.Replace(messagesWhole, `"stop_reason":"end_turn",`, "", 1)},
		{"responses.create", `{"status":"cancelled","error":null}`},
		{"responses.create", `{"status":"failed","error":null}`},
		{"responses.create", `{"status":"incomplete","error":null,"usage":{"input_tokens":9,"output_tokens":0}}`},
	} {
		r := New(Options{Operation: operation(t, c.op)})
		if _, v := r.Whole(200, "application/json", []byte(c.body)); v.Refused() || r.Ended() != verdict.UpstreamAborted {
			t.Errorf("%s: ended %s, %v", c.body, r.Ended(), v.Err())
		}
	}
	for _, c := range []struct{ op, body string }{
		{"messages.create", messagesWhole},
		{"messages.count_tokens", `{"input_tokens":9}`},
		{"responses.create", `{"status":"completed","error":null,"usage":{"input_tokens":9,"output_tokens":0}}`},
		{"responses.create", `{"status":"incomplete","error":null,"usage":{"input_tokens":9,"output_tokens":1}}`},
		{"responses.create", `{"status":"incomplete","error":null,"usage":null,"output":[{"status":"cancelled"}]}`},
	} {
		r := New(Options{Operation: operation(t, c.op)})
		if _, v := r.Whole(200, "application/json", []byte(c.body)); v.Refused() || r.Ended() != verdict.Complete {
			t.Errorf("%s: ended %s, %v", c.body, r.Ended(), v.Err())
		}
	}
	r := New(Options{Operation: operation(t, "chat.create")})
	text := `{"choices":[{"message":{"content":"\"finish_reason\":\"abort\"","x":{"finish_reason":"abort"}},"finish_reason":"stop"}]}`
	if _, v := r.Whole(200, "application/json", []byte(text)); v.Refused() || r.Ended() != verdict.Complete {
		t.Errorf("model text was taken for an end: %s", r.Ended())
	}
}
