package vllm

import (
	"testing"
)

func TestReadUsage(t *testing.T) {
	for _, c := range []struct {
		what, op, raw string
		want          Usage
	}{
		{"chat", "chat.create", `{"id":"x","choices":[{"message":{"content":"usage"}}],"usage":{"prompt_tokens":21,"total_tokens":25,"completion_tokens":4,"prompt_tokens_details":null}}`, Usage{21, 0, 4, 0, true}},
		{"chat with cached tokens", "chat.create", `{"usage":{"prompt_tokens":431,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":384,"multimodal_tokens":null}}}`, Usage{431, 384, 2, 0, true}},
		{"the extra chunk of a stream", "chat.create", `{"choices":[],"usage":{"prompt_tokens":21,"completion_tokens":4}}`, Usage{21, 0, 4, 0, true}},
		{"responses", "responses.create", `{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":1},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":16}}`, Usage{9, 8, 7, 0, true}},
		{"response.completed", "responses.create", `{"type":"response.completed","sequence_number":9,"response":{"status":"incomplete","usage":{"input_tokens":9,"output_tokens":7}}}`, Usage{9, 0, 7, 0, true}},
		{"messages", "messages.create", `{"type":"message","usage":{"input_tokens":47,"output_tokens":5,"cache_creation_input_tokens":384,"cache_read_input_tokens":null}}`, Usage{431, 0, 5, 0, true}},
		{"messages from the cache", "messages.create", `{"usage":{"input_tokens":47,"output_tokens":5,"cache_read_input_tokens":384}}`, Usage{431, 384, 5, 0, true}},
		{"message_start", "messages.create", `{"type":"message_start","message":{"id":"m","usage":{"input_tokens":431,"output_tokens":0}}}`, Usage{431, 0, 0, 0, true}},
		{"message_delta", "messages.create", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}`, Usage{0, 0, 5, 0, true}},
		{"embeddings", "embeddings.create", `{"data":[{"embedding":[0.5,1e-9,-1]}],"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0,"prompt_tokens_details":null}}`, Usage{7, 0, 0, 0, true}},
		{"the metadata header", "embeddings.create", `{"id":"embd-1","data":[{"index":0,"shape":[32]}],"usage":{"prompt_tokens":7,"total_tokens":7}}`, Usage{7, 0, 0, 0, true}},
		{"rerank", "rerank.root", `{"id":"score-1","usage":{"prompt_tokens":12,"total_tokens":12},"results":[]}`, Usage{12, 0, 0, 0, true}},
		{"embed.v2", "embed.v2", `{"embeddings":{"float":[[0.1]]},"meta":{"api_version":{"version":"2"},"billed_units":{"input_tokens":14,"image_tokens":3}}}`, Usage{17, 0, 0, 0, true}},
		{"audio", "audio.transcriptions", `{"text":"hi","usage":{"type":"duration","seconds":3}}`, Usage{0, 0, 0, 3, false}},
		{"audio, verbose", "audio.translations", `{"text":"hi","duration":2.0001,"language":"en","segments":[{"duration":9}]}`, Usage{0, 0, 0, 3, false}},
		{"audio of an older release, verbose", "audio.transcriptions", `{"duration":"2.5","text":"\"duration\":1"}`, Usage{0, 0, 0, 3, false}},
		{"a list of replies", "chat.batch", `[{"usage":{"prompt_tokens":1,"completion_tokens":2}},{"usage":{"prompt_tokens":3,"completion_tokens":4}}]`, Usage{4, 0, 6, 0, true}},
	} {
		op, _ := ByID(c.op)
		if got, ok := ReadUsage(op, []byte(c.raw)); !ok || got != c.want {
			t.Errorf("%s: ReadUsage = %+v, %v; want %+v", c.what, got, ok, c.want)
		}
	}
}

// A number that is not believed is not counted: it would be charged to a caller, or free a reservation.
func TestReadUsageBelievesNoNonsense(t *testing.T) {
	op, _ := ByID("chat.create")
	for _, raw := range []string{
		``, `null`, `"usage"`, `[]`, `{}`, `{"usage":null}`, `{"usage":{}}`, `{"usage":[1]}`, `{"usage":{"total_tokens":5}}`,
		`{"usage":{"prompt_tokens":-1,"completion_tokens":1}}`, `{"usage":{"prompt_tokens":1.5}}`, `{"usage":{"prompt_tokens":1e3}}`,
		`{"usage":{"prompt_tokens":"7"}}`, `{"usage":{"prompt_tokens":true}}`, `{"usage":{"prompt_tokens":{}}}`,
		`{"usage":{"prompt_tokens":99999999999999999999}}`, `{"usage":{"prompt_tokens":9223372036854775807}}`,
		`{"usage":{"prompt_tokens":1,"prompt_tokens":2}}`, `{"usage":{"prompt_tokens":1}`, `{"usage":{"prompt_tokens":null}}`,
		`{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}`,
		`{"choices":[{"usage":{"prompt_tokens":1}}]}`, `[{"usage":{"prompt_tokens":1}},{}]`, `[DONE]`,
		`{"usage":{"prompt_tokens":1}, "usage":{"prompt_tokens":2}}`,
	} {
		if got, ok := ReadUsage(op, []byte(raw)); ok || got != (Usage{}) {
			t.Errorf("ReadUsage(%s) = %+v, %v; want none", raw, got, ok)
		}
	}
	audio, _ := ByID("audio.translations")
	for _, raw := range []string{
		`{"text":"hi"}`, `{"duration":null}`, `{"duration":-1}`, `{"duration":"NaN"}`, `{"duration":"Inf"}`, `{"duration":1e30}`, `{"duration":true}`, `{"duration":{}}`,
		`{"usage":{"type":"duration","seconds":1.5}}`, `{"usage":{"type":"duration","seconds":-1}}`,
	} {
		if got, ok := ReadUsage(audio, []byte(raw)); ok || got != (Usage{}) {
			t.Errorf("ReadUsage(%s) = %+v, %v; want none", raw, got, ok)
		}
	}
	if got, ok := ReadUsage(op, []byte(`{"duration":3}`)); ok {
		t.Errorf("a chat has a duration: %+v", got)
	}
	if _, ok := ReadUsage(nil, []byte(`{"usage":{"prompt_tokens":1}}`)); ok {
		t.Error("ReadUsage without an operation found usage")
	}
}

func TestMergeOfAStream(t *testing.T) {
	op, _ := ByID("messages.create")
	var u Usage
	for _, event := range []string{
		`{"type":"message_start","message":{"usage":{"input_tokens":431,"output_tokens":0}}}`,
		`{"type":"content_block_delta","delta":{"text":"x"}}`,
		`{"type":"message_delta","usage":{"input_tokens":47,"cache_read_input_tokens":384,"output_tokens":5}}`,
	} {
		if one, ok := ReadUsage(op, []byte(event)); ok {
			u = u.Merge(one)
		}
	}
	if want := (Usage{431, 384, 5, 0, true}); u != want {
		t.Errorf("the stream cost %+v, want %+v", u, want)
	}
}

func FuzzReadUsage(f *testing.F) {
	f.Add(`{"usage":{"prompt_tokens":431,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":384}}}`)
	f.Add(`{"duration":"2.5","text":"x"}`)
	f.Add(`[{"meta":{"billed_units":{"input_tokens":1}}}]`)
	f.Fuzz(func(t *testing.T, raw string) {
		for _, id := range []string{"chat.create", "messages.create", "embed.v2", "audio.translations"} {
			op, _ := ByID(id)
			u, ok := ReadUsage(op, []byte(raw))
			if u.Prompt < 0 || u.Cached < 0 || u.Cached > u.Prompt || u.Completion < 0 || u.Prompt > maxTokens || u.Seconds < 0 || u.Seconds > maxTokens || !ok && u != (Usage{}) {
				t.Fatalf("%s: ReadUsage(%q) = %+v, %v", id, raw, u, ok)
			}
		}
	})
}
