package reply

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Each wording of vLLM over the releases; the caller reads numbers and our words.
func TestErrorsAreRecognised(t *testing.T) {
	const max, feature, context = verdict.MaxTokensTooLarge, verdict.FeatureNotEnabled, verdict.ContextLengthExceeded
	for _, c := range []struct {
		status  int
		message string
		reason  verdict.Reason
		says    string
	}{
		{400, "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=1025)", context, "This model's maximum context length is 1024 tokens; the request has 1025."},
		{400, "This model's maximum context length is 1024 tokens. However, your prompt contains 99999 characters (more than 8192 characters, which is the upper bound for 1024 input tokens).", context, "This model's maximum context length is 1024 tokens; the request has more."},
		{400, "This model's maximum context length is 128000 tokens. However, you requested 65535 output tokens and your prompt contains at least 62466 input tokens, for a total of at least 128001 tokens.", context, "128000 tokens; the request has 128001 (62466 in the prompt, 65535 for the output)."},
		{400, "This model's maximum context length is 4096 tokens. However, you requested 5060 tokens (4036 in the messages, 1024 in the completion). Please reduce the length of the messages or completion.", context, "4096 tokens; the request has 5060 (4036 in the prompt, 1024 for the output)."},
		{400, "This model's maximum context length is 4096 tokens. However, you requested 5060 tokens in the messages, Please reduce the length of the messages.", context, "4096 tokens; the request has 5060."},
		{400, "This model's maximum context length is 1000 tokens. However, your request has 1200 input tokens. Please reduce the length of the input messages.", context, "1000 tokens; the request has 1200."},
		{400, "You passed 1025 input tokens and requested 16 output tokens. However, the model's context length is only 1024 tokens, resulting in a maximum input length of 1008 tokens.", context, "1024 tokens; the request has 1041 (1025 in the prompt, 16 for the output)."},
		{400, "The decoder prompt (length 15083) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens.", context, "8192 tokens; the request has 15083."},
		{400, "The decoder prompt (length 8192) plus the number of requested output tokens (at least 1) is longer than the maximum model length of 8192. Make sure", context, "8192 tokens; the request has 8192."},
		{400, "Input length (2000) exceeds model's maximum context length (1024).", context, "1024 tokens; the request has 2000."},
		{400, "The engine prompt length 1100 exceeds the max_model_len 1024. Please reduce prompt.", context, "1024 tokens; the request has 1100."},
		{400, "max_tokens must be at least 1, got -27", context, ""},
		{400, "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length is 4096 tokens and your request has 10 input tokens (32000 > 4096 - 10). None", max, "4096 tokens; the request has 32010 (10 in the prompt, 32000 for the output)."},
		{400, "max_completion_tokens=5000 cannot be greater than max_model_len=1024. Please request fewer output tokens. (parameter=max_tokens, value=5000)", max, "1024 tokens; the request asks for 5000 of output."},
		{400, `"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set`, feature, "Tools with automatic choice"},
		{400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.", feature, "Embeddings as prompts"},
		{400, "canary/tiny is not a multimodal model", feature, "The model takes text only."},
		{403, "Endpoint off. Start with --enable-scale-out to enable them.", feature, "This operation"},
		{501, "The model does not support Chat Completions API", feature, ""},
		{404, "The model `canary` does not exist. Valid aliases: other-tenant.", verdict.UpstreamRefused, ""},
		{400, "1 validation error:\n canary", verdict.UpstreamRefused, ""},
		{422, "Invalid URL canary", verdict.UpstreamRefused, ""},
		{503, "The engine is currently busy", verdict.UpstreamBusy, ""},
		{500, "canary at 0x7fff", verdict.UpstreamFailed, ""},
		{500, "cannot schedule new futures after shutdown", verdict.UpstreamUnavailable, ""},
		{403, "canary", verdict.UpstreamFailed, ""},
		{307, "", verdict.UpstreamFailed, ""},
	} {
		r := New(Options{Operation: operation(t, "chat.create")})
		body := fmt.Sprintf(`{"error":{"message":%s,"type":"BadRequestError","param":null,"code":%d}}`, appendString(nil, c.message), c.status)
		v := r.Failed(c.status, []byte(body))
		if !v.Refused() || v.Reason() != c.reason || !strings.Contains(v.Message(), c.says) {
			t.Errorf("%q:\n got %s %q\nwant %s %q", c.message, v.Reason(), v.Message(), c.reason, c.says)
		}
		for _, d := range []vllm.Dialect{vllm.OpenAI, vllm.Anthropic} {
			if out := string(Refusal(d, v)); strings.Contains(out, "canary") || strings.Contains(out, "tenant") || strings.Contains(out, "0x") {
				t.Errorf("the upstream's words left: %s", out)
			}
		}
		if c.message != "" && !strings.Contains(v.Cause().Error(), c.message) || r.UpMessage() != c.message {
			t.Errorf("the operator does not read %q: %v", c.message, v.Cause())
		}
	}
}

func TestErrorsOfEveryFormAreRead(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		reason verdict.Reason
		said   string
	}{
		{401, `{"error":"Unauthorized"}`, verdict.UpstreamFailed, "Unauthorized"},
		{404, `{"detail":"Not Found"}`, verdict.FeatureNotEnabled, "Not Found"},
		{405, `{"detail":"Method Not Allowed"}`, verdict.FeatureNotEnabled, "Method Not Allowed"},
		{503, `{"error":"The model is currently scaling. Please try again later."}`, verdict.UpstreamBusy, "The model is currently scaling. Please try again later."},
		{400, `{"object":"error","message":"Input length (3) exceeds model's maximum context length (2).","code":400}`, verdict.ContextLengthExceeded, "Input length (3) exceeds model's maximum context length (2)."},
		{400, `{"type":"error","error":{"type":"BadRequestError","message":"x"}}`, verdict.UpstreamRefused, "x"},
		{400, `{"detail":[{"loc":["body"]}]}`, verdict.UpstreamRefused, `[{"loc":["body"]}]`},
		{502, "<html>", verdict.UpstreamFailed, "<html>"},
		{400, "", verdict.UpstreamRefused, ""},
		{400, "null", verdict.UpstreamRefused, ""},
	} {
		r := New(Options{Operation: operation(t, "chat.create")})
		if v := r.Failed(c.status, []byte(c.body)); v.Reason() != c.reason || !v.Refused() || r.UpMessage() != c.said {
			t.Errorf("%d %s: %s, said %q", c.status, c.body, v.Reason(), r.UpMessage())
		}
	}
}

func TestUnsupportedParameterIsNamedByTheCatalogue(t *testing.T) {
	r := New(Options{Operation: operation(t, "chat.create")})
	v := r.Failed(400, []byte(`{"error":{"message":"canary","param":"body.temperature.0"}}`))
	if v.Reason() != verdict.UnsupportedByUpstream || v.Param() != "/temperature" || !strings.Contains(v.Message(), `"temperature"`) {
		t.Errorf("%s at %q: %s", v.Reason(), v.Param(), v.Message())
	}
	if v := r.Failed(400, []byte(`{"error":{"message":"m","param":"canary"}}`)); v.Reason() != verdict.UpstreamRefused || v.Param() != "" {
		t.Errorf("a name that is in no table was repeated: %s %q", v.Reason(), v.Param())
	}
}

func TestAnthropicClientsFindTheirWords(t *testing.T) {
	r := New(Options{Operation: operation(t, "messages.create")})
	v := r.Failed(400, []byte(`{"error":{"message":"Input length (2000) exceeds model's maximum context length (1024)."}}`))
	if !strings.Contains(v.Message(), "prompt is too long: 2000 tokens > 1024 maximum") {
		t.Error(v.Message())
	}
}

func TestErrorsPassWhenTheOperatorSaysSo(t *testing.T) {
	r := New(Options{Operation: operation(t, "chat.create"), PassErrors: true})
	if v := r.Failed(400, []byte(`{"error":{"message":"x"}}`)); v.Refused() {
		t.Error("upstream_errors: pass refused")
	}
	if v := r.Failed(401, []byte(`{"error":"Unauthorized"}`)); !v.Refused() {
		t.Error("the upstream's 401 would tell the caller that its own key is wrong")
	}
}

func TestTheOperatorsTextIsBounded(t *testing.T) {
	r := New(Options{Operation: operation(t, "chat.create")})
	v := r.Failed(400, []byte(strings.Repeat("é", 5000)))
	if len(r.UpMessage()) > 2<<10 || len(v.Cause().Error()) > 3<<10 {
		t.Errorf("%d and %d bytes", len(r.UpMessage()), len(v.Cause().Error()))
	}
}
