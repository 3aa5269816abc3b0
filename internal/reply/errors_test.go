package reply

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

var errSecret = errors.New("canary-cause")

func TestRefusalSpeaksTheDialect(t *testing.T) {
	v := verdict.Refuse(verdict.NotPermitted, errSecret).At("/model").Saying(`<b> & "quoted" %d`, 7)
	want := `{"error":{"message":"This key is not permitted to do this. <b> & \"quoted\" 7","type":"permission_error","param":"/model","code":"not_permitted"}}` + "\n"
	if got := string(Refusal(vllm.OpenAI, v)); got != want {
		t.Errorf("openai:\n got %s\nwant %s", got, want)
	}
	if got := string(Refusal(vllm.Responses, v)); got != want {
		t.Errorf("responses refuse in OpenAI's form:\n got %s\nwant %s", got, want)
	}
	want = `{"type":"error","error":{"type":"permission_error","message":"This key is not permitted to do this. <b> & \"quoted\" 7"}}` + "\n"
	if got := string(Refusal(vllm.Anthropic, v)); got != want {
		t.Errorf("anthropic:\n got %s\nwant %s", got, want)
	}
}

func TestRefusalOfThreadIsWhatTheSDKLooksFor(t *testing.T) {
	var body struct {
		Type  string
		Error struct {
			Type    string
			Details struct {
				Code        string `json:"error_code"`
				Unsupported []string
			}
		}
	}
	decode(t, Refusal(vllm.Anthropic, verdict.Refuse(verdict.ThreadUnsupported, nil)), &body)
	d := body.Error.Details
	if body.Type != "error" || body.Error.Type != "invalid_request_error" || d.Code != "thread_unsupported_request" ||
		len(d.Unsupported) != 1 || d.Unsupported[0] != "thread" {
		t.Errorf("thread's refusal is %+v", body)
	}
}

// Every reason in every dialect: valid JSON, a string for a code, and no cause.
func TestEveryReasonIsWellFormedAndHidesItsCause(t *testing.T) {
	for _, r := range verdict.Reasons() {
		v := verdict.Refuse(r, errSecret)
		for _, d := range []vllm.Dialect{vllm.OpenAI, vllm.Anthropic, vllm.Responses} {
			body := Refusal(d, v)
			var all map[string]any
			decode(t, body, &all)
			inner, ok := all["error"].(map[string]any)
			if !ok || inner["message"] == "" || inner["type"] == "" {
				t.Errorf("%s in %q: %s", r, d, body)
			}
			if d != vllm.Anthropic && inner["code"] != r.String() {
				t.Errorf("%s in %q: code is %v", r, d, inner["code"])
			}
			if strings.Contains(string(body), "canary") || strings.Contains(string(endEvent(d, v, 0)), "canary") {
				t.Errorf("%s in %q shows its cause", r, d)
			}
		}
	}
}

func TestEndEventEndsAsTheDialectDoes(t *testing.T) {
	v := verdict.Refuse(verdict.Revoked, errSecret)
	chat := string(endEvent(vllm.OpenAI, v, 0))
	if !strings.HasPrefix(chat, `data: {"error":{"message":`) || !strings.HasSuffix(chat, "}}\n\ndata: [DONE]\n\n") {
		t.Errorf("chat ends with %q", chat)
	}
	messages := string(endEvent(vllm.Anthropic, v, 0))
	if !strings.HasPrefix(messages, "event: error\ndata: {\"type\":\"error\",\"error\":{") || !strings.HasSuffix(messages, "}}\n\n") {
		t.Errorf("messages ends with %q", messages)
	}
	responses, ok := strings.CutPrefix(string(endEvent(vllm.Responses, v, 0)), "event: error\ndata: ")
	if !ok || strings.Contains(responses, "[DONE]") {
		t.Fatalf("responses ends with %q", responses)
	}
	var event struct {
		Type, Code, Message string
		Error               struct{ Code string }
	}
	decode(t, []byte(responses), &event)
	if event.Type != "error" || event.Code != "revoked" || event.Message == "" || event.Error.Code != "revoked" {
		t.Errorf("responses' error event is %+v", event)
	}
}

func TestRefusalSurvivesBytesThatAreNotUTF8(t *testing.T) {
	var all map[string]any
	decode(t, Refusal(vllm.OpenAI, verdict.Refuse(verdict.BadBody, nil).At("/\xff\x00\n")), &all)
}

func TestModelListShowsNothingOfTheDisk(t *testing.T) {
	got := string(ModelList([]Model{{ID: "org/llama", Created: 5, MaxModelLen: 1024, OwnedBy: "vllm"}, {ID: `q"w`}}))
	want := `{"object":"list","data":[{"id":"org/llama","object":"model","created":5,"owned_by":"vllm","max_model_len":1024},` +
		`{"id":"q\"w","object":"model","created":0,"owned_by":"vllm"}]}` + "\n"
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if got := string(ModelList(nil)); got != `{"object":"list","data":[]}`+"\n" {
		t.Errorf("no models: %s", got)
	}
	got2, ok := OneModel([]Model{{ID: "b"}, {ID: "a"}}, "a")
	if want := `{"id":"a","object":"model","created":0,"owned_by":"vllm"}` + "\n"; !ok || string(got2) != want {
		t.Errorf("one model: %s", got2)
	}
	if _, ok := OneModel([]Model{{ID: "b"}}, "a"); ok {
		t.Error("a model that is not in the list was answered")
	}
}

func decode(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, b)
	}
}
