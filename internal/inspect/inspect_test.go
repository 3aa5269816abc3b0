package inspect

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// request is a JSON body for an operation of the catalogue, with the operation's real table.
func request(t testing.TB, operation, body string) Request {
	t.Helper()
	table, ok := vllm.FieldsOf(operation)
	if !ok {
		t.Fatalf("no table for %q", operation)
	}
	return jsonRequest(table, body)
}

func jsonRequest(table *vllm.Table, body string) Request {
	return Request{
		Operation:   &vllm.Operation{ID: "test", Request: vllm.JSONBody},
		Table:       table,
		ContentType: []string{"application/json"},
		Length:      int64(len(body)),
		Body:        strings.NewReader(body),
	}
}

func mustRead(t testing.TB, r Request) *Doc {
	t.Helper()
	d, v := Read(r, Default())
	if v.Refused() {
		t.Fatalf("refused: %v at %q: %s", v.Reason(), v.Param(), v.Message())
	}
	return d
}

func mustRewrite(t testing.TB, d *Doc, edits ...policy.Edit) Body {
	t.Helper()
	b, err := d.Rewrite(edits)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAttackBodiesAreRefusedWhereTheyAttack(t *testing.T) {
	brackets := `{"type":"string","pattern":"` + strings.Repeat("(", 30000) + "a" + strings.Repeat(")", 30000) + `"}`
	for _, row := range []struct {
		operation, body string
		reason          verdict.Reason
		param           string
	}{
		// What Python reads differently, or not at all.
		{"chat.create", ``, verdict.BadBody, ""},
		{"chat.create", `null`, verdict.BadBody, ""},
		{"chat.create", `[]`, verdict.BadBody, ""},
		{"chat.create", `"x"`, verdict.BadBody, ""},
		{"chat.create", "\xef\xbb\xbf{}", verdict.BadBody, ""},
		{"chat.create", "{\x00}\x00", verdict.BadBody, ""},
		{"chat.create", "\xff\xfe{\x00}\x00", verdict.BadBody, ""},
		{"chat.create", `{} {}`, verdict.BadBody, ""},
		{"chat.create", "{}\x00", verdict.BadBody, ""},
		{"chat.create", `{} // comment`, verdict.BadBody, ""},
		{"chat.create", `{"n":1,}`, verdict.BadBody, ""},
		{"chat.create", `{'n':1}`, verdict.BadBody, ""},
		{"chat.create", `{"n":01}`, verdict.BadBody, "/n"},
		{"chat.create", `{"temperature":NaN}`, verdict.BadBody, "/temperature"},
		{"chat.create", `{"temperature":-Infinity}`, verdict.BadBody, "/temperature"},
		{"chat.create", `{"temperature":1e400}`, verdict.BadBody, "/temperature"},
		{"chat.create", `{"zz":{"deep":[-1e999]}}`, verdict.BadBody, "/zz/deep/0"},
		{"chat.create", `{"seed":` + strings.Repeat("9", 5000) + `}`, verdict.BadBody, "/seed"},
		{"chat.create", `{"model":"a","model":"b"}`, verdict.BadBody, "/model"},
		{"chat.create", `{"max_tokens":1,"\u006dax_tokens":9}`, verdict.BadBody, "/max_tokens"},
		{"chat.create", `{"tools":[{"type":"function","function":{"name":"f","parameters":{"a":{"b":1,"\u0062":2}}}}]}`, verdict.BadBody, "/tools/0/function/parameters/a/b"},
		{"chat.create", `{"unknown":{"a":1,"a":2}}`, verdict.BadBody, "/unknown/a"},
		{"chat.create", `{"model":"` + "\xff" + `"}`, verdict.BadBody, "/model"},
		{"chat.create", `{"model":"` + "\xed\xa0\x80" + `"}`, verdict.BadBody, "/model"},
		{"chat.create", `{"stop":"\ud800"}`, verdict.BadBody, "/stop"},
		{"chat.create", `{"stop":"\ud800\ud800"}`, verdict.BadBody, "/stop"},
		{"chat.create", `{"\udc00":1}`, verdict.BadBody, ""},
		{"chat.create", "{\"stop\":\"a\nb\"}", verdict.BadBody, "/stop"},
		{"chat.create", `{"zz":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, verdict.BadBody, "/zz" + strings.Repeat("/0", 63)},
		{"chat.create", `{"zz":` + strings.Repeat("[", 10000), verdict.BadBody, "/zz" + strings.Repeat("/0", 63)},
		{"chat.create", `{"messages":`, verdict.BadBody, "/messages"},

		// What pydantic would coerce.
		{"chat.create", `{"stream":"yes"}`, verdict.BadBody, "/stream"},
		{"chat.create", `{"stream":1}`, verdict.BadBody, "/stream"},
		{"chat.create", `{"max_tokens":"3"}`, verdict.BadBody, "/max_tokens"},
		{"chat.create", `{"max_tokens":true}`, verdict.BadBody, "/max_tokens"},
		{"chat.create", `{"max_tokens":1e0}`, verdict.BadBody, "/max_tokens"},
		{"chat.create", `{"max_tokens":1.5}`, verdict.BadBody, "/max_tokens"},
		{"chat.create", `{"temperature":"1"}`, verdict.BadBody, "/temperature"},
		{"chat.create", `{"top_k":1000000000000000000000000000000}`, verdict.BadBody, "/top_k"},
		{"chat.create", `{"model":5}`, verdict.BadBody, "/model"},
		{"chat.create", `{"model":"` + strings.Repeat("m", 1<<20) + `"}`, verdict.BadBody, "/model"},
		{"chat.create", `{"n":5}`, verdict.BadBody, "/n"},
		{"chat.create", `{"messages":[null]}`, verdict.BadBody, "/messages/0"},
		{"chat.create", `{"messages":{}}`, verdict.BadBody, "/messages"},
		{"chat.create", `{"messages":[{"content":"no role"}]}`, verdict.BadBody, "/messages/0"},
		{"chat.create", `{"messages":[{"role":7}]}`, verdict.BadBody, "/messages/0"},
		{"chat.create", `{"stream_options":{"include_usage":"on"}}`, verdict.BadBody, "/stream_options/include_usage"},

		// What no role can get.
		{"chat.create", `{"chat_template":"{{ x }}"}`, verdict.ForbiddenParameter, "/chat_template"},
		{"chat.create", `{"chat_template_kwargs":{"chat_template":"x"}}`, verdict.ForbiddenParameter, "/chat_template_kwargs/chat_template"},
		{"chat.create", `{"kv_transfer_params":{"a":1}}`, verdict.ForbiddenParameter, "/kv_transfer_params"},
		{"chat.create", `{"vllm_xargs":{"kv_transfer_params":{}}}`, verdict.ForbiddenParameter, "/vllm_xargs"},
		{"chat.create", `{"mm_processor_kwargs":{"code_revision":"x"}}`, verdict.ForbiddenParameter, "/mm_processor_kwargs"},
		{"chat.create", `{"request_id":""}`, verdict.ForbiddenParameter, "/request_id"},
		{"chat.create", `{"priority":-1}`, verdict.ForbiddenParameter, "/priority"},
		{"chat.create", `{"prompt_logprobs":5}`, verdict.ForbiddenParameter, "/prompt_logprobs"},
		{"chat.create", `{"structured_outputs":{"regex":"(a+)+$"}}`, verdict.ForbiddenParameter, "/structured_outputs/regex"},
		{"chat.create", `{"response_format":{"structural_tag":{},"type":"structural_tag"}}`, verdict.ForbiddenParameter, "/response_format"},
		{"chat.create", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]}`, verdict.ForbiddenParameter, "/messages/0/content/0/image_url/url"},
		{"chat.create", `{"messages":[{"role":"user","content":[{"image_url":{"url":" data:,"},"type":"image_url"}]}]}`, verdict.ForbiddenParameter, "/messages/0/content/0/image_url/url"},
		{"chat.create", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"},"uuid":"u"}]}]}`, verdict.ForbiddenParameter, "/messages/0/content/0/uuid"},
		{"chat.create", `{"messages":[{"role":"user","content":[{"type":"prompt_embeds","data":"x"}]}]}`, verdict.ForbiddenParameter, "/messages/0/content/0"},
		{"completions.create", `{"prompt_embeds":"x"}`, verdict.ForbiddenParameter, "/prompt_embeds"},
		{"responses.create", `{"previous_response_id":"resp_1"}`, verdict.ForbiddenParameter, "/previous_response_id"},
		{"responses.create", `{"background":true}`, verdict.ForbiddenParameter, "/background"},
		{"responses.create", `{"tools":[{"type":"mcp","server_label":"x"}]}`, verdict.ForbiddenParameter, "/tools/0"},
		{"messages.create", `{"thread":{"type":"create"}}`, verdict.ThreadUnsupported, "/thread"},
		{"messages.create", `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"https://x/"}}]}]}`, verdict.ForbiddenParameter, "/messages/0/content/0/source/url"},
		{"chat.create", `{"structured_outputs":{"choice":[]}}`, verdict.BadBody, "/structured_outputs/choice"},                          // CVE-2026-105757
		{"chat.create", `{"min_tokens":1,"stop_token_ids":[1` + strings.Repeat(",1", 64) + `]}`, verdict.BadBody, "/stop_token_ids/64"}, // with the model's own more than 128
		// What vLLM keeps hundreds of errors for, of 5 kB each, when it takes it for nothing that it knows.
		{"responses.create", `{"input":[{"role":"user"}]}`, verdict.BadBody, "/input/0"},
		{"responses.create", `{"input":[{"role":"user","content":null}]}`, verdict.BadBody, "/input/0"},
		{"responses.create", `{"input":[{"role":"tool","content":"a"}]}`, verdict.BadBody, "/input/0"},
		{"responses.create", `{"input":[{"type":"message","content":"a"}]}`, verdict.BadBody, "/input/0"},
		{"responses.create", `{"input":[{"role":"user","content":["a"]}]}`, verdict.BadBody, "/input/0/content/0"},
		{"responses.create", `{"input":[{"role":"user","content":[{"type":"input_text"}]}]}`, verdict.BadBody, "/input/0/content/0"},
		{"responses.create", `{"input":[{"role":"user","content":[{"type":"output_text","text":"a"}]}]}`, verdict.ForbiddenParameter, "/input/0/content/0"},
		{"responses.create", `{"input":[{"type":"message","role":"assistant","content":[{"type":"input_text","text":"a"}]}]}`, verdict.ForbiddenParameter, "/input/0/content/0"},
		{"responses.create", `{"input":[{"role":"user","content":[{"type":"input_image","detail":"none"}]}]}`, verdict.BadBody, "/input/0/content/0/detail"},
		{"responses.create", `{"input":[{"type":"function_call","call_id":"a","name":"f"}]}`, verdict.BadBody, "/input/0"},
		{"responses.create", `{"input":[{"type":"function_call_output","call_id":"a"}]}`, verdict.BadBody, "/input/0"},
		{"responses.create", `{"input":[{"type":"reasoning"}]}`, verdict.BadBody, "/input/0"},
		{"responses.create", `{"input":[{"type":"web_search_call","id":"a","status":"completed","action":{"type":"find"}}]}`, verdict.ForbiddenParameter, "/input/0/action"},
		{"responses.create", `{"input":"a","tools":[{"type":"function","name":"f","parameters":7}]}`, verdict.BadBody, "/tools/0/parameters"},
		{"responses.create", `{"input":"a","tools":[{"type":"function","name":"f","parameters":"{}"}]}`, verdict.BadBody, "/tools/0/parameters"},
		{"responses.create", `{"input":"a","tools":[` + strings.TrimSuffix(strings.Repeat(`{"type":"function","name":"f"},`, 1025), ",") + `]}`, verdict.BadBody, "/tools/1024"},
		{"chat.create", `{"messages":[{"role":"developer","content":"a","tools":[{"function":{}}]}]}`, verdict.BadBody, "/messages/0/tools/0/function"},
		{"completions.create", `{"prompt":["a",1]}`, verdict.BadBody, "/prompt/1"},
		{"classify.create", `{"input":["a",[1]]}`, verdict.BadBody, "/input/1"},
		{"embeddings.create", `{"input":[1,"a"]}`, verdict.BadBody, "/input/1"},
		{"embeddings.create", `{"input":[[{"role":"user","content":"a"},1]]}`, verdict.BadBody, "/input/0/1"},
		{"score.create", `{"queries":"a","documents":[{"content":[{"type":"thinking","thinking":"a"}]}]}`, verdict.ForbiddenParameter, "/documents/0/content/0"},
		{"score.create", `{"queries":"a","documents":[{"content":[{"type":"text"}]}]}`, verdict.BadBody, "/documents/0/content/0"},
		// What ends the process that makes a grammar of it.
		{"chat.create", `{"response_format":{"type":"json_schema","json_schema":{"schema":` + brackets + `}}}`, verdict.BadBody, "/response_format/json_schema/schema"},
		{"chat.create", `{"structured_outputs":{"json":` + brackets + `}}`, verdict.BadBody, "/structured_outputs/json"},
		{"chat.batch", `{"structured_outputs":{"json":` + strconv.Quote(brackets) + `}}`, verdict.BadBody, "/structured_outputs/json"},
		{"completions.create", `{"guided_json":` + brackets + `}`, verdict.BadBody, "/guided_json"},
		{"completions.create", `{"response_format":{"json_schema":{"schema":` + brackets + `},"type":"json_schema"}}`, verdict.BadBody, "/response_format/json_schema/schema"},
		{"responses.create", `{"text":{"format":{"type":"json_schema","schema":` + brackets + `}}}`, verdict.BadBody, "/text/format/schema"},
		{"messages.create", `{"output_config":{"format":{"type":"json_schema","schema":` + brackets + `}}}`, verdict.BadBody, "/output_config/format/schema"},
		{"chat.create", `{"tools":[{"type":"function","function":{"name":"f","parameters":` + brackets + `}}]}`, verdict.BadBody, "/tools/0/function/parameters"},
		{"responses.create", `{"tools":[{"type":"function","name":"f","parameters":` + brackets + `}]}`, verdict.BadBody, "/tools/0/parameters"},
		{"messages.create", `{"tools":[{"name":"f","input_schema":` + brackets + `}]}`, verdict.BadBody, "/tools/0/input_schema"},
		{"completions.create", `{"guided_choice":[ ]}`, verdict.BadBody, "/guided_choice"},
		{"decisions.create", `{"questions":[]}`, verdict.BadBody, "/questions"},
		{"decisions.create", `{"questions":[{"type":"score","levels":[{"label":"a"}]}]}`, verdict.BadBody, "/questions/0/levels/0"},
	} {
		name := row.operation + " " + row.body[:min(len(row.body), 60)]
		d, v := Read(request(t, row.operation, row.body), Default())
		switch {
		case !v.Refused() || d != nil:
			t.Errorf("%s: was accepted", name)
		case v.Reason() != row.reason:
			t.Errorf("%s: %v, want %v (%s)", name, v.Reason(), row.reason, v.Message())
		case v.Param() != row.param && v.Param() != printable(row.param):
			t.Errorf("%s: at %q, want %q (%s)", name, v.Param(), row.param, v.Message())
		}
	}
}

func TestBodiesThatClientsSendAreAccepted(t *testing.T) {
	for _, row := range []struct{ operation, body, up string }{
		{"chat.create", "{}\n", "{}\n"},
		{"chat.create", `{"model":"m","seed":9223372036854775807,"temperature":0}`, `{"seed":9223372036854775807,"temperature":0}`},
		{"chat.create", `{"max_tokens":5.0}`, `{"max_tokens":5}`},
		{"chat.create", `{ "temperature" : null , "stop" : null }`, `{  }`},
		{"chat.create", `{"stop":null,"top_p":1}`, `{"top_p":1}`},
		{"chat.create", `{"top_p":1, "stop":null}`, `{"top_p":1}`},
		{"chat.create", `{"Model":"x","MAX_TOKENS":5,"top_p":1}`, `{"top_p":1}`},
		{"chat.create", `{"priority":0,"vllm_xargs":{ },"top_p":1}`, `{"top_p":1}`},
		{
			"chat.create", `{"messages":[{"refusal":null,"role":"assistant","content":null,"tool_calls":null},{"role":"user","content":"\ud83d\ude00"}]}`,
			`{"messages":[{"role":"assistant"},{"role":"user","content":"\ud83d\ude00"}]}`,
		},
		{
			"chat.create", `{"messages":[{"role":"user","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}},"b"]}]}`,
			`{"messages":[{"role":"user","content":[{"type":"text","text":"a"},"b"]}]}`,
		},
		{
			"chat.create", `{"messages":[{"content":[{"image_url":{"url":"DATA:image/png;base64,AA"},"type":"image_url"}],"\u0072ole":"user"}]}`,
			`{"messages":[{"content":[{"image_url":{"url":"DATA:image/png;base64,AA"},"type":"image_url"}],"\u0072ole":"user"}]}`,
		},
		{
			"chat.create", `{"tools":[{"type":"function","function":{"name":"f","parameters":{"properties":{"model":null,"x":[null,1e0]}},"strict":null}}]}`,
			`{"tools":[{"type":"function","function":{"name":"f","parameters":{"properties":{"model":null,"x":[null,1e0]}}}}]}`,
		},
		{
			"chat.create", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"\u0064at\u0061:,"}}]}]}`,
			`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"\u0064at\u0061:,"}}]}]}`,
		},
		{
			"messages.create", `{"tools":[{"type":"bash_20250124"},{"name":"f","input_schema":{}},{"type":"web_search_20250305"}],"max_tokens":1}`,
			`{"tools":[{"name":"f","input_schema":{}}],"max_tokens":1}`,
		},
		{"chat.create", `{"max_tokens":10,"max_completion_tokens":1000}`, `{"max_tokens":10,"max_completion_tokens":10}`},
	} {
		d := mustRead(t, request(t, row.operation, row.body))
		if got := string(mustRewrite(t, d).Bytes); got != row.up {
			t.Errorf("%s\n goes up as %s\n want       %s", row.body, got, row.up)
		}
	}
}

func TestFactsAreWhatTheBodySays(t *testing.T) {
	d := mustRead(t, request(t, "chat.create", `{"model":"m\u00e9","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":false},
		"n":3,"max_tokens":20,"max_completion_tokens":30,"messages":[{"role":"user","content":"hi","zz":1}],"zz":1,"user":"u","store":true}`))
	f := d.Facts()
	want := policy.Facts{
		Model: "mé", Stream: true, Usage: true, OutputCap: 20, CapField: "max_completion_tokens", Choices: 3, Inputs: 1,
		BodyBytes: f.BodyBytes, HasSalt: true, HasOptions: true,
		UnknownKeys: []string{"/messages/0/zz", "/zz"}, Dropped: []string{"/store"},
	}
	if !equalFacts(f, want) {
		t.Errorf("facts\n %+v, want\n %+v", f, want)
	}
	for _, row := range []struct {
		operation, body string
		inputs          int64
	}{
		{"completions.create", `{"prompt":"a"}`, 1},
		{"completions.create", `{"prompt":["a","b","c"]}`, 3},
		{"completions.create", `{"prompt":[1,2,3]}`, 1},
		{"completions.create", `{"prompt":[[1,2],[3]]}`, 2},
		{"completions.create", `{"prompt":[]}`, 1},
		{"completions.create", `{}`, 1},
		{"embeddings.create", `{"input":[[6151]]}`, 1},
		{"embeddings.create", `{"input":["a","b"]}`, 2},
	} {
		if f := mustRead(t, request(t, row.operation, row.body)).Facts(); f.Inputs != row.inputs || f.Choices != 1 {
			t.Errorf("%s: %d inputs, %d choices; want %d and 1", row.body, f.Inputs, f.Choices, row.inputs)
		}
	}
	for _, body := range []string{`{"n":4,"best_of":2}`, `{"best_of":4}`, `{"best_of":2,"n":4}`, `{"n":2,"best_of":4}`} {
		if f := mustRead(t, request(t, "completions.create", body)).Facts(); f.Choices != 4 {
			t.Errorf("%s: %d choices, want 4", body, f.Choices)
		}
	}
	if f := mustRead(t, request(t, "messages.create", `{"max_tokens":7}`)).Facts(); f.CapField != "max_tokens" || f.OutputCap != 7 {
		t.Errorf("messages: cap %d in %q", f.OutputCap, f.CapField)
	}
	if f := mustRead(t, request(t, "responses.create", `{}`)).Facts(); f.CapField != "max_output_tokens" || f.OutputCap != 0 || !f.HasStore {
		t.Errorf("responses: cap %d in %q, store %v", f.OutputCap, f.CapField, f.HasStore)
	}
}

// What a body costs beyond its bytes: inputs that are answered singly, text that goes with each of them, and media.
func TestWhatCostsMoreThanItsBytesIsTold(t *testing.T) {
	picture := `{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}`
	for _, row := range []struct {
		operation, body string
		inputs, shared  int64
		media           int64
	}{
		{"rerank.v1", `{"query":"12345678","documents":["a","b","c"]}`, 4, 10, 0},
		{"rerank.v1", `{"query":"12345678","instruction":"1234","documents":["a"]}`, 2, 16, 0},
		{"score.create", `{"text_1":"12345678","text_2":["a","b","c"]}`, 4, 10, 0},
		{"score.create", `{"text_1":["12345678"],"text_2":["a","b"]}`, 3, 12, 0},
		{"score.create", `{"queries":["12","34","56"],"documents":["a","b","c"]}`, 6, 5, 0},             // pairs: each with one other
		{"score.create", `{"queries":["","",""],"text_1":"12345678","text_2":["a","b","c"]}`, 7, 13, 0}, // whichever vLLM reads
		{"generative_scoring.create", `{"query":[11,12],"items":["a","b"],"label_token_ids":[1]}`, 2, 7, 0},
		{"systemone.create", `{"state":{"a":1},"questions":{"x":{"type":"choice"},"y":{"type":"choice"}}}`, 2, 7, 0},
		{"decisions.create", `{"input":[{"role":"user","content":"1"},{"role":"user","content":"2"}],"questions":[{"type":"predicate","name":"a"},{"type":"predicate","name":"b"}]}`, 2, 61, 0},
		{"chat.batch", `{"messages":[[{"role":"user","content":"a"}],[{"role":"user","content":"b"}]],"documents":[{"a":"1"}]}`, 2, 11, 0},
		{"chat.create", `{"messages":[{"role":"user","content":[` + picture + `,` + picture + `,{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]}]}`, 1, 0, 3},
		{"messages.create", `{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]}]}`, 1, 0, 1},
		{"messages.create", `{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"data:image/png;base64,AAAA"}}]}]}`, 1, 0, 1},
		{"responses.create", `{"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,AAAA"},{"type":"input_text","text":"data:"}]}]}`, 1, 0, 1},
		{"embed.v2", `{"images":["data:image/png;base64,AAAA","data:image/png;base64,AAAA"]}`, 2, 0, 2},
	} {
		f := mustRead(t, request(t, row.operation, row.body)).Facts()
		if f.Inputs != row.inputs || f.Shared != row.shared || f.Media != row.media {
			t.Errorf("%s %s: %d inputs, %d shared bytes, %d media; want %d, %d and %d", row.operation, row.body, f.Inputs, f.Shared, f.Media, row.inputs, row.shared, row.media)
		}
	}
	table, _ := vllm.FieldsOf("rerank.v1")
	w, err := parseJSON([]byte(`{"query":"12345678","documents":["a"]}`), table.Body, Default())
	if err != nil || w.sizes[vllm.FactQueries] != 10 {
		t.Fatalf("%v, %v", err, w.sizes)
	}
	if w.giveBack(); w.counts != [vllm.FactEnd]int64{} || w.sizes != [vllm.FactEnd]int64{} {
		t.Errorf("the next body finds the counts of the one before: %v %v", w.counts, w.sizes)
	}
}

func equalFacts(a, b policy.Facts) bool {
	keys := slices.Equal(a.UnknownKeys, b.UnknownKeys) && slices.Equal(a.Dropped, b.Dropped)
	a.UnknownKeys, a.Dropped, b.UnknownKeys, b.Dropped = nil, nil, nil, nil
	return keys && a.Model == b.Model && a.Stream == b.Stream && a.Usage == b.Usage &&
		a.OutputCap == b.OutputCap && a.CapField == b.CapField && a.Choices == b.Choices && a.Inputs == b.Inputs &&
		a.BodyBytes == b.BodyBytes && a.HasSalt == b.HasSalt && a.HasOptions == b.HasOptions && a.HasUsage == b.HasUsage && a.HasStore == b.HasStore
}

func TestWhatIsNotedIsBounded(t *testing.T) {
	var body strings.Builder
	body.WriteString(`{"` + strings.Repeat("x", 500) + `":1,"with space\u0000\n":1`)
	for i := range 100 {
		body.WriteString(`,"k` + strings.Repeat("i", i) + `":1`)
	}
	body.WriteString(`}`)
	keys := mustRead(t, request(t, "chat.create", body.String())).Facts().UnknownKeys
	if len(keys) != maxNoted+1 || keys[maxNoted] != "…" {
		t.Errorf("%d keys, the last %q", len(keys), keys[len(keys)-1])
	}
	for _, k := range keys {
		if len(k) > maxPointer || strings.ContainsAny(k, " \n\x00") {
			t.Errorf("key %q is longer than %d bytes or not printable", k, maxPointer)
		}
	}
}

func TestHeadersOfABody(t *testing.T) {
	for _, row := range []struct {
		types, encodings []string
		reason           verdict.Reason
	}{
		{[]string{"application/json"}, nil, verdict.Unanswered},
		{[]string{"Application/JSON; charset=UTF-8"}, []string{"identity"}, verdict.Unanswered},
		{[]string{"application/json;charset=utf-16"}, nil, verdict.BadBody},
		{[]string{"text/plain"}, nil, verdict.BadBody},
		{[]string{"application/jsonp"}, nil, verdict.BadBody},
		{nil, nil, verdict.BadBody},
		{[]string{"application/json", "application/json"}, nil, verdict.BadHeaders},
		{[]string{"application/json"}, []string{"gzip"}, verdict.BadBody},
		{[]string{"application/json"}, []string{"br"}, verdict.BadBody},
	} {
		r := request(t, "chat.create", "{}")
		r.ContentType, r.ContentEncoding = row.types, row.encodings
		if _, v := Read(r, Default()); v.Refused() != (row.reason != verdict.Unanswered) || v.Refused() && v.Reason() != row.reason {
			t.Errorf("%q %q: %v, want %v", row.types, row.encodings, v.Reason(), row.reason)
		}
	}
}

// broken is a reader that fails after some bytes.
type broken struct {
	io.Reader
	err error
}

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = b.err
	}
	return n, err
}

type timeout struct{}

func (timeout) Error() string { return "slow" }
func (timeout) Timeout() bool { return true }

func TestBodiesThatDoNotArrive(t *testing.T) {
	for _, row := range []struct {
		length int64
		err    error
		reason verdict.Reason
	}{
		{-1, timeout{}, verdict.BodyTimeout},
		{10, timeout{}, verdict.BodyTimeout},
		{-1, ErrTooLarge, verdict.BodyTooLarge},
		{-1, ErrBusy, verdict.Busy},
		{-1, io.ErrUnexpectedEOF, verdict.BadBody},
		{-1, errors.New("connection reset"), verdict.BadBody},
		{3, io.EOF, verdict.BadBody},
		{1, io.EOF, verdict.BadBody},
		{8<<20 + 1, io.EOF, verdict.BodyTooLarge},
	} {
		r := request(t, "chat.create", "{}")
		r.Body, r.Length = broken{r.Body, row.err}, row.length
		if _, v := Read(r, Default()); !v.Refused() || v.Reason() != row.reason {
			t.Errorf("length %d, %v: %v, want %v", row.length, row.err, v.Reason(), row.reason)
		}
	}
	r := request(t, "chat.create", `{"zz":"`+strings.Repeat("x", 100)+`"}`)
	r.Length = -1
	if _, v := Read(r, Limits{MaxJSONBytes: 50, MaxDepth: 9, MaxMembers: 9, MaxChanges: 9}); v.Reason() != verdict.BodyTooLarge {
		t.Errorf("over the cap: %v", v.Reason())
	}
	if _, v := Read(request(t, "chat.create", `{}`), Limits{}); !v.Refused() {
		t.Error("zero limits accept a body")
	}
	if _, v := Read(Request{}, Default()); !v.Refused() {
		t.Error("the zero request is accepted")
	}
}

func TestOperationsWithoutBodyTakeNone(t *testing.T) {
	none := Request{Operation: &vllm.Operation{ID: "health"}}
	for _, row := range []struct {
		length int64
		body   io.Reader
		ok     bool
	}{
		{0, nil, true},
		{-1, strings.NewReader(""), true},
		{2, strings.NewReader("{}"), false},
		{-1, strings.NewReader("{}"), false},
	} {
		r := none
		r.Length, r.Body = row.length, row.body
		if d, v := Read(r, Default()); v.Refused() == row.ok {
			t.Errorf("length %d: %v", row.length, v.Reason())
		} else if row.ok {
			if b := mustRewrite(t, d); b.Length != 0 || b.ContentType != "" {
				t.Errorf("a body goes up: %+v", b)
			}
		}
	}
}

func TestEditsAreSplices(t *testing.T) {
	model := policy.Edit{Name: "model", Pointer: "/model", Value: `"llama"`}
	usage := policy.Edit{Name: "include_usage", Pointer: "/stream_options/include_usage", Value: `true`}
	salt := policy.Edit{Name: "cache_salt", Pointer: "/cache_salt", Value: `"s"`}
	for _, row := range []struct {
		body  string
		edits []policy.Edit
		up    string
	}{
		{`{"model":"x","n":1}`, []policy.Edit{model}, `{"model":"llama","n":1}`},
		{`{"m\u006fdel":"x"}`, []policy.Edit{model}, `{"m\u006fdel":"llama"}`},
		{`{"n":1}`, []policy.Edit{model, salt}, `{"model":"llama","cache_salt":"s","n":1}`},
		{`{}`, []policy.Edit{model, salt}, `{"model":"llama","cache_salt":"s"}`},
		{`{"model":null}`, []policy.Edit{model}, `{"model":"llama"}`},
		{`{"cache_salt":"mine","zz":1}`, []policy.Edit{salt}, `{"cache_salt":"s"}`},
		{`{"zz":1,"cache_salt":"mine","yy":2}`, []policy.Edit{salt}, `{"cache_salt":"s"}`},
		{`{"zz":1,"yy":2}`, []policy.Edit{salt}, `{"cache_salt":"s"}`},
		{`{"zz":1,"n":1}`, []policy.Edit{salt}, `{"cache_salt":"s","n":1}`},
		{`{}`, []policy.Edit{usage}, `{"stream_options":{"include_usage":true}}`},
		{`{"stream_options":{}}`, []policy.Edit{usage}, `{"stream_options":{"include_usage":true}}`},
		{`{"stream_options":null,"n":1}`, []policy.Edit{usage}, `{"stream_options":{"include_usage":true},"n":1}`},
		{`{"stream_options":{"include_usage":false}}`, []policy.Edit{usage}, `{"stream_options":{"include_usage":true}}`},
		{`{"stream_options":{"include_usage":null}}`, []policy.Edit{usage}, `{"stream_options":{"include_usage":true}}`},
		{`{"stream_options":{"zz":1,"continuous_usage_stats":true}}`, []policy.Edit{usage}, `{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
	} {
		d := mustRead(t, request(t, "chat.create", row.body))
		b := mustRewrite(t, d, row.edits...)
		if string(b.Bytes) != row.up || b.Length != int64(len(row.up)) || b.ContentType != "application/json" {
			t.Errorf("%s\n goes up as %s\n want       %s", row.body, b.Bytes, row.up)
		}
		if again, err := io.ReadAll(b.Reader); err != nil || string(again) != row.up {
			t.Errorf("%s: the reader gives %q, %v", row.body, again, err)
		}
	}
	d := mustRead(t, request(t, "chat.create", `{"model":"x"}`))
	for _, bad := range []policy.Edit{{}, {Pointer: "/a/b/c", Value: "1"}, {Pointer: "/a", Value: "{"}, {Pointer: "a", Value: "1"}} {
		if b, err := d.Rewrite([]policy.Edit{bad}); err == nil {
			t.Errorf("edit %+v gives %s", bad, b.Bytes)
		}
	}
}

// TestStrangeFilesAreNoted holds every place in which a picture or sound may stand.
func TestStrangeFilesAreNoted(t *testing.T) {
	const program, picture, sound = "JSFQUy1BZG9iZS0zLjAK", "iVBORw0KGgoAAAANSUhEUg==", "T2dnUwAAAAAAAAAA"
	for _, row := range []struct{ operation, body, usual, pointer string }{
		{"chat.create", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,%"}}]}]}`, picture, "/messages/0/content/0/image_url/url"},
		{"chat.create", `{"messages":[{"role":"user","content":[{"image_url":"data:image/png;base64,%"}]}]}`, picture, "/messages/0/content/0/image_url"},
		{"chat.create", `{"messages":[{"role":"user","content":[{"audio_url":{"url":"data:;base64,%"}}]}]}`, sound, "/messages/0/content/0/audio_url/url"},
		{"chat.create", `{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"%","format":"ogg"}}]}]}`, sound, "/messages/0/content/0/input_audio/data"},
		{"messages.create", `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"%"}}]}]}`, picture, "/messages/0/content/0/source/data"},
		{"messages.create", `{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"url","url":"data:;base64,%"}}]}]}]}`, picture, "/messages/0/content/0/content/0/source/url"},
		{"responses.create", `{"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:;base64,%"}]}]}`, picture, "/input/0/content/0/image_url"},
		{"embed.v2", `{"images":["data:;base64,%"]}`, picture, "/images/0"},
		{"embeddings.create", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:;base64,%"}}]}]}`, picture, "/messages/0/content/0/image_url/url"},
		{"score.create", `{"queries":{"content":[{"type":"image_url","image_url":{"url":"data:;base64,%"}}]}}`, picture, "/queries/content/0/image_url/url"},
		{"tokenize.create", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:;base64,%"}}]}]}`, picture, "/messages/0/content/0/image_url/url"},
		{"systemone.create", `{"audios":["data:;base64,%"]}`, sound, "/audios/0"},
	} {
		d := mustRead(t, request(t, row.operation, strings.ReplaceAll(row.body, "%", row.usual)))
		if got := d.Facts().Hazards; len(got) > 0 {
			t.Errorf("%s: what is usual is noted: %+v", row.operation, got)
		}
		d = mustRead(t, request(t, row.operation, strings.ReplaceAll(row.body, "%", program)))
		if got := d.Facts().Hazards; len(got) != 1 || got[0].Pointer != row.pointer {
			t.Errorf("%s: %s: noted %+v, want %s", row.operation, row.body, got, row.pointer)
		}
	}
}
