package vllm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// judge is the least reading of a table that tells pass, drop and refuse apart; the inspection proper is another
// package's. It returns the pointers of what is dropped and of what is refused.
type judge struct{ dropped, refused []string }

func (j *judge) value(at string, s *Shape, v any) {
	if s == nil || v == nil {
		return
	}
	switch s.Kind {
	case Object:
		j.object(at, s, v)
	case Choice:
		j.choice(at, s, v)
	case Array:
		list, ok := v.([]any)
		j.want(at, ok)
		for i, e := range list {
			j.value(fmt.Sprintf("%s/%d", at, i), s.Elem, e)
		}
	case Map:
		m, ok := v.(map[string]any)
		j.want(at, ok)
		for k, e := range m {
			j.value(at+"/"+k, s.Elem, e)
		}
	case Union:
		for _, arm := range s.Any {
			if fits(arm, v) {
				j.value(at, arm, v)
				return
			}
		}
		j.want(at, false)
	case Free:
	default:
		j.want(at, fits(s, v))
	}
}

func (j *judge) want(at string, ok bool) {
	if !ok {
		j.refused = append(j.refused, at)
	}
}

func (j *judge) object(at string, s *Shape, v any) {
	m, ok := v.(map[string]any)
	j.want(at, ok)
	for k, e := range m {
		if e == nil {
			continue
		}
		f := s.Fields[k]
		if f == nil {
			j.dropped = append(j.dropped, at+"/"+k+"?")
			continue
		}
		j.field(at+"/"+k, f, e)
	}
}

func (j *judge) choice(at string, s *Shape, v any) {
	m, ok := v.(map[string]any)
	tag, _ := m[s.Tag].(string)
	f := s.Variants[tag]
	if f == nil {
		f = s.Variants["*"]
	}
	j.want(at, ok)
	j.field(at, f, v)
}

func (j *judge) field(at string, f *Field, v any) {
	text, _ := json.Marshal(v)
	switch {
	case f.Action == Refuse && !slices.Contains(f.Equal, string(text)):
		j.refused = append(j.refused, at)
	case f.Action == Refuse, f.Action == Drop:
		j.dropped = append(j.dropped, at)
	default:
		j.value(at, f.Shape, v)
	}
}

// fits compares the JSON kind, and what bounds a scalar.
func fits(s *Shape, v any) bool {
	switch v := v.(type) {
	case string:
		return s.Kind == String && (!s.DataURL || strings.HasPrefix(v, "data:")) && (s.Enum == nil || slices.Contains(s.Enum, v)) && (s.MaxLen == 0 || int64(len(v)) <= s.MaxLen)
	case bool:
		return s.Kind == Boolean
	case float64:
		return s.Kind == Number || s.Kind == Integer && v == float64(int64(v)) && int64(v) >= s.Min && int64(v) <= s.Max
	case []any:
		return s.Kind == Array
	}
	return s.Kind == Object || s.Kind == Choice || s.Kind == Map
}

// judged reads a body against its operation's table.
func judged(t *testing.T, operation, body string) *judge {
	t.Helper()
	table, ok := FieldsOf(operation)
	if !ok {
		t.Fatalf("%s has no table", operation)
	}
	var v any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%s: %v: %s", operation, err, body)
	}
	var j judge
	j.value("", table.Body, v)
	slices.Sort(j.dropped)
	return &j
}

// TestWhatClientsSendIsNeverRefused holds the bodies that clients send at their defaults, by client; what is dropped of
// them is listed.
func TestWhatClientsSendIsNeverRefused(t *testing.T) {
	for _, row := range []struct{ client, operation, body, dropped string }{
		{"openai-python, feeding the reply back", "chat.create", `{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":null,"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"42"}],"temperature":null,"stop":null,"max_tokens":null}`, ""},
		{"openai-python, echoed annotations", "chat.create", `{"messages":[{"role":"assistant","content":"a","annotations":[],"refusal":"no"}]}`, "/messages/0/annotations /messages/0/refusal"},
		{"Vercel, opencode", "chat.create", `{"model":"m","max_tokens":32000,"stream":true,"stream_options":{"include_usage":true},"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{},"$schema":"x"},"strict":false}}],"tool_choice":"auto","messages":[]}`, ""},
		{"smolagents", "chat.create", `{"model":"m","stop":["a","b"],"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false}`, ""},
		{"haystack, LangChain", "chat.create", `{"n":1,"stream":false,"temperature":0,"top_p":1,"presence_penalty":0.0,"frequency_penalty":1,"tools":[],"messages":[{"role":"developer","content":"d"}],"seed":null}`, ""},
		{"instructor", "chat.create", `{"messages":[],"response_format":{"type":"json_schema","json_schema":{"name":"n","description":"d","strict":true,"schema":{"type":"object","additionalProperties":false,"properties":{"request_id":{"const":null}}}}}}`, ""},
		{"anybody, JSON", "chat.create", `{"messages":[],"response_format":{"type":"json_object"},"seed":1,"logit_bias":{"5":1},"logprobs":true,"top_logprobs":5,"user":"u","reasoning_effort":"low"}`, ""},
		{"Dify, Open WebUI", "chat.create", `{"messages":[{"role":"user","content":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]}],"chat_template_kwargs":{"enable_thinking":true,"thinking":false},"thinking":{},"enable_thinking":true,"reasoning":{"effort":"low"},"metadata":{"a":"b"},"store":true,"service_tier":"auto"}`, "/enable_thinking /messages/0/content/0/cache_control /metadata /reasoning /service_tier /store /thinking"},
		{"guidellm, vllm bench", "chat.create", `{"messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}],"max_completion_tokens":5,"ignore_eos":true,"repetition_penalty":1.0,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`, ""},
		{"defaults of vLLM, said aloud", "chat.create", `{"messages":[],"priority":0,"echo":false,"bad_words":[],"vllm_xargs":{},"mm_processor_kwargs":{},"mm_payload":"tensors","thinking_token_budget":-1,"return_token_ids":false}`, "/bad_words /echo /mm_payload /mm_processor_kwargs /priority /return_token_ids /vllm_xargs"},
		{"LangChain's OpenAI", "completions.create", `{"model":"m","prompt":["a"],"n":1,"top_p":1,"presence_penalty":0,"frequency_penalty":0,"seed":null,"logprobs":null,"max_tokens":256,"temperature":0.7}`, ""},
		{"vllm bench", "completions.create", `{"prompt":[[1,2],[3]],"logprobs":null,"repetition_penalty":1.0,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}`, ""},
		{"LlamaIndex", "completions.create", `{"prompt":"x","temperature":0.1,"stream":false}`, ""},
		{"LangChain's embeddings", "embeddings.create", `{"model":"m","input":[[6151]],"encoding_format":"base64"}`, ""},
		{"everybody's embeddings", "embeddings.create", `{"input":["a","b"],"encoding_format":"float"}`, ""},
		{"Codex", "responses.create", `{"model":"m","instructions":"i","input":[{"type":"message","role":"developer","id":"msg_1","content":[{"type":"input_text","text":"x"}]},{"type":"function_call","id":"f","call_id":"c","name":"n","arguments":"{}","status":"completed"},{"type":"function_call_output","call_id":"c","output":"o"}],"tools":[{"type":"function","name":"shell","description":"d","strict":false,"parameters":{"type":"object"}},{"type":"namespace","name":"n","description":"d","tools":[{"type":"function","name":"f","parameters":{}}]},{"type":"web_search","external_web_access":false}],"tool_choice":"auto","parallel_tool_calls":false,"reasoning":{"effort":"medium","summary":"auto"},"store":false,"stream":true,"include":["reasoning.encrypted_content"],"prompt_cache_key":"k","client_metadata":{"session_id":"s"}}`, "/client_metadata"},
		{"openai-agents", "responses.create", `{"input":[{"role":"user","content":"x"}],"tools":[],"include":[],"instructions":"i","text":{"format":{"type":"json_schema","name":"n","strict":true,"schema":{}}}}`, ""},
		{"openai-python's responses", "responses.create", `{"input":[{"role":"user","content":[{"type":"input_text","text":"x"},{"type":"input_image","image_url":"data:image/png;base64,AA=="}]},{"type":"message","role":"assistant","id":"m","content":[{"type":"output_text","text":"y","annotations":[]}]}]}`, "/input/1/content/0/annotations"},
		{"Claude Code", "messages.create", `{"model":"m","max_tokens":32000,"stream":true,"system":[{"type":"text","text":"x-anthropic-billing-header: x"},{"type":"text","text":"s","cache_control":{"type":"ephemeral","ttl":"1h"}}],"messages":[{"role":"user","content":[{"type":"text","text":"u","cache_control":{"type":"ephemeral"}}]},{"role":"system","content":"s"},{"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"s"},{"type":"tool_use","id":"t","name":"n","input":{"uuid":"1","a":null}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","is_error":false,"content":[{"type":"text","text":"r"}]}]}],"tools":[{"name":"n","description":"d","input_schema":{"$schema":"x","type":"object"},"eager_input_streaming":true}],"tool_choice":{"type":"auto","disable_parallel_tool_use":true},"thinking":{"type":"adaptive"},"output_config":{"effort":"high"},"metadata":{"user_id":"u"},"context_management":{"edits":[]}}`, "/context_management /messages/0/content/0/cache_control /metadata /system/1/cache_control /tools/0/eager_input_streaming"},
		{"anthropic-python, counting", "messages.count_tokens", `{"model":"m","messages":[{"role":"user","content":"x"}],"system":"s","thinking":{"type":"enabled","budget_tokens":2000},"output_config":{"format":{"type":"json_schema","schema":{}}}}`, ""},
		{"vllm bench, aligning", "tokenize.create", `{"model":"m","prompt":"x","add_special_tokens":false}`, ""},
		{"LiteLLM, Dify", "rerank.root", `{"model":"m","query":"q","documents":["a","b"],"top_n":2,"return_documents":true}`, "/return_documents"},
		{"a cross-encoder with pictures", "score.create", `{"queries":"q","documents":[{"content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"data:,x"}}]}]}`, ""},
		{"openai-python's decisions", "decisions.create", `{"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"x"}]}],"questions":[{"type":"predicate","name":"a","instructions":"i"},{"type":"choice","instructions":"i","choices":[{"value":"x","description":"d"},{"value":true}]},{"type":"score","instructions":"i","levels":[{"label":"low"},{"label":"high","description":"d"}]}],"joint":true,"safety_identifier":"s"}`, "/safety_identifier"},
		{"Cohere", "embed.v2", `{"model":"m","texts":["a"],"input_type":"search_query","embedding_types":["float"],"truncate":"END"}`, ""},
	} {
		j := judged(t, row.operation, row.body)
		if len(j.refused) > 0 {
			t.Errorf("%s: %s: refused: %q", row.client, row.operation, j.refused)
		}
		if got := strings.Join(j.dropped, " "); got != row.dropped {
			t.Errorf("%s: %s: dropped %s, want %s", row.client, row.operation, got, row.dropped)
		}
	}
}

// TestWhatAttackersSendIsRefused has a body for each of the fields that may not reach vLLM from anybody.
func TestWhatAttackersSendIsRefused(t *testing.T) {
	part := func(p string) string { return `{"messages":[{"role":"user","content":[` + p + `]}]}` }
	for _, row := range []struct{ operation, body, refused string }{
		{"chat.create", part(`{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}`), "/messages/0/content/0/image_url/url"},
		{"chat.create", part(`{"type":"image_url","image_url":"https://x/"}`), "/messages/0/content/0/image_url"},
		{"chat.create", part(`{"image_url":"file:///etc/passwd"}`), "/messages/0/content/0/image_url"},
		{"chat.create", part(`{"type":"image_url","image_url":null,"uuid":"theirs"}`), "/messages/0/content/0/uuid"},
		{"chat.create", part(`{"type":"video_url","video_url":{"url":"ftp://x"}}`), "/messages/0/content/0/video_url/url"},
		{"chat.create", part(`{"type":"audio_url","audio_url":{"url":"gopher://x"}}`), "/messages/0/content/0/audio_url/url"},
		{"chat.create", part(`{"type":"prompt_embeds","data":"AA"}`), "/messages/0/content/0"},
		{"chat.create", part(`{"image_embeds":"AA"}`), "/messages/0/content/0/image_embeds"},
		{"chat.create", `{"messages":[{"role":"critic","content":[{"type":"input_image","image_url":"http://x"}]}]}`, "/messages/0/content/0/image_url"},
		{"chat.create", `{"n":5}`, "/n"},
		{"chat.create", `{"n":16384}`, "/n"},
		{"chat.create", `{"stream":"yes"}`, "/stream"},
		{"chat.create", `{"max_tokens":"3"}`, "/max_tokens"},
		{"chat.create", `{"max_tokens":0}`, "/max_tokens"},
		{"chat.create", `{"vllm_xargs":{"kv_transfer_params":"x"}}`, "/vllm_xargs"},
		{"chat.create", `{"chat_template_kwargs":{"chat_template":"{{x}}"}}`, "/chat_template_kwargs/chat_template"},
		{"chat.create", `{"chat_template_kwargs":{"enable_thinking":"yes"}}`, "/chat_template_kwargs/enable_thinking"},
		{"chat.create", `{"structured_outputs":{"regex":"(a+)+$"}}`, "/structured_outputs/regex"},
		{"chat.create", `{"response_format":{"type":"structural_tag"}}`, "/response_format"},
		{"chat.create", `{"tools":[{"type":"mcp","server_url":"http://x"}]}`, "/tools/0"},
		{"chat.create", `{"messages":[{"role":"developer","tools":[{"type":"mcp"}]}]}`, "/messages/0/tools/0"},
		{"chat.batch", `{"messages":[[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]]}`, "/messages/0/0/content/0/image_url/url"},
		{"completions.create", `{"prompt_embeds":"AA"}`, "/prompt_embeds"},
		{"completions.create", `{"prompt":[[-1]]}`, "/prompt/0/0"},
		{"completions.create", `{"echo":true,"logprobs":1}`, "/echo"},
		{"responses.create", `{"previous_response_id":"resp_theirs"}`, "/previous_response_id"},
		{"responses.create", `{"request_id":"resp_theirs"}`, "/request_id"},
		{"responses.create", `{"input":[{"role":"user","content":[{"type":"input_file","file_url":"http://x"}]}]}`, "/input/0/content/0"},
		{"responses.create", `{"input":[{"type":"function_call_output","call_id":"c","output":[{"type":"input_image","image_url":"http://x"}]}]}`, "/input/0/output/0/image_url"},
		{"responses.create", `{"input":[{"type":"additional_tools","role":"developer","tools":[{"type":"mcp"}]}]}`, "/input/0"},
		{"responses.create", `{"tools":[{"type":"namespace","name":"n","tools":[{"type":"mcp"}]}]}`, "/tools/0/tools/0"},
		{"responses.create", `{"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}`, "/tools/0"},
		{"messages.create", `{"thread":{"type":"create"}}`, "/thread"},
		{"messages.create", `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"http://x"}}]}]}`, "/messages/0/content/0/source/url"},
		{"messages.create", `{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"url","url":"http://x"}}]}]}]}`, "/messages/0/content/0/content/0/source/url"},
		{"embeddings.create", `{"input":[-1]}`, "/input/0"},
		{"embeddings.create", `{"input":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]}`, "/input/0/content/0/image_url/url"},
		{"embeddings.create", `{"encoding_format":"bytes_only"}`, "/encoding_format"},
		{"embed.v2", `{"images":["http://x"]}`, "/images/0"},
		{"pooling.create", `{"data":{"data":"http://x/t.tif"},"task":"plugin"}`, "/data"},
		{"rerank.v1", `{"chat_template_kwargs":{"chat_template":"x"}}`, "/chat_template_kwargs/chat_template"},
		{"score.root", `{"text_1":{"content":[{"type":"image_url","image_url":{"url":"http://x"}}]}}`, "/text_1/content/0/image_url/url"},
		{"tokenize.create", `{"mm_processor_kwargs":{"code_revision":"x"}}`, "/mm_processor_kwargs"},
		{"detokenize.create", `{"tokens":[-1]}`, "/tokens/0"},
		{"systemone.create", `{"images":["http://x"]}`, "/images/0"},
		{"decisions.create", `{"input":[{"role":"user","content":[{"type":"input_image","image_url":"http://x"}]}]}`, "/input/0/content/0"},
		{"decisions.create", `{"input":[{"role":"system","content":"x"}]}`, "/input/0/role"},
		{"decisions.create", `{"questions":[{"type":"mcp"}]}`, "/questions/0"},
		{"decisions.create", `{"questions":[{"type":"choice","choices":[{"value":1}]}]}`, "/questions/0/choices/0/value"},
		{"decisions.create", `{"joint":"yes"}`, "/joint"},
	} {
		j := judged(t, row.operation, row.body)
		if !slices.Equal(j.refused, []string{row.refused}) {
			t.Errorf("%s %s: refused %q, want %q", row.operation, row.body, j.refused, row.refused)
		}
	}
}
