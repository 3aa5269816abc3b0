package reply

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// said is what an error body of vLLM says, in any of its forms.
type said struct {
	message string
	param   string
	status  int // its "code", which in vLLM is the HTTP status; 0 when there is none
}

// Failed makes a verdict of an error that the upstream answered. Its messages echo input, paths, memory addresses and
// the names of other models (CVE-2026-22778, CVE-2026-54236, CVE-2026-73555), so none of its text leaves: what is
// recognised becomes our own sentence with numbers only, the rest is generic. The text is the cause, for the operator.
// An allowed verdict means that the body leaves as it is (`upstream_errors: pass`).
func (r *Reply) Failed(status int, body []byte) verdict.Verdict {
	s := upstreamError(body)
	r.said = bounded(s.message)
	if r.options.PassErrors && status != 401 && status != 403 {
		return verdict.Allow()
	}
	return r.classify(status, s)
}

// classify finds the reason for a status and a message.
func (r *Reply) classify(status int, s said) verdict.Verdict {
	cause := fmt.Errorf("the upstream answered %d: %s", status, bounded(s.message))
	switch {
	case status == 401:
		return verdict.Refuse(verdict.UpstreamFailed, fmt.Errorf("the upstream does not accept Vallum's key for it: %w", cause))
	case strings.Contains(s.message, "cannot schedule new futures after shutdown"):
		// a vLLM that drains answers 500 with this while its /health says 200 (measured on 0.32.0)
		return verdict.Refuse(verdict.UpstreamUnavailable, cause)
	case status == 503 || status == 429:
		return verdict.Refuse(verdict.UpstreamBusy, cause)
	case status == 501:
		return verdict.Refuse(verdict.FeatureNotEnabled, cause).Saying("The model does not support this operation.")
	case status < 400 || status >= 500:
		return verdict.Refuse(verdict.UpstreamFailed, cause)
	case (status == 404 || status == 405) && (s.message == "Not Found" || s.message == "Method Not Allowed"):
		return verdict.Refuse(verdict.FeatureNotEnabled, fmt.Errorf("this release or configuration of vLLM lacks the route: %w", cause)).
			Saying("The model server does not serve this operation.")
	}
	if v, ok := r.tooLong(s.message, cause); ok {
		return v
	}
	for _, f := range features {
		if strings.Contains(s.message, f.has) {
			return verdict.Refuse(verdict.FeatureNotEnabled, cause).Saying("%s", f.saying)
		}
	}
	if status == 403 {
		return verdict.Refuse(verdict.UpstreamFailed, fmt.Errorf("the upstream does not let Vallum do this: %w", cause))
	}
	if name := r.known(s.param); name != "" {
		return verdict.Refuse(verdict.UnsupportedByUpstream, cause).At("/"+name).Saying("The parameter is %q.", name)
	}
	return verdict.Refuse(verdict.UpstreamRefused, cause)
}

// feature is a message of vLLM that tells of something switched off, and our words for it.
type feature struct{ has, saying string }

// The messages as they stand in the sources of vLLM 0.8.5 to 0.32.0; a flag's name is stable, the words around it are not.
var features = []feature{
	{"--enable-auto-tool-choice", "Tools with automatic choice are not enabled on the model server."},
	{"--tool-call-parser", "Tools are not enabled on the model server."},
	{"--enable-prompt-embeds", "Embeddings as prompts are not enabled on the model server."},
	{"--enable-mm-embeds", "Embeddings as media are not enabled on the model server."},
	{"--trust-request-chat-template", "Chat templates in requests are not enabled on the model server."},
	{"--trust-request-mm-kwargs", "Media processing options are not enabled on the model server."},
	{"--enable-scale-out", "This operation is not enabled on the model server."},
	{"--enable-lora", "Adapters are not enabled on the model server."},
	{"VLLM_ENABLE_RESPONSES_API_STORE", "Stored responses are not enabled on the model server."},
	{"LoRA is not enabled", "Adapters are not enabled on the model server."},
	{"reasoning_config", "A thinking budget is not enabled on the model server."},
	{"is not a multimodal model", "The model takes text only."},
	{"The model does not support", "The model does not support this operation."},
	{"This model does not support", "The model does not support this operation."},
	{"does not support chat template", "The model has no chat template."},
}

// length is a wording of vLLM for a request that does not fit, with its numbers in the order of the names.
type length struct {
	match   *regexp.Regexp
	numbers string // one letter per number: l limit, n what the request has in all, p its prompt, o its output
	reason  verdict.Reason
}

// The wordings over releases, the more exact ones first. Agents cut their history by this error, so it has to be told
// apart. In parentheses: where it stands, or stood.
var lengths = []length{
	// renderers/params.py TokenizeParams, 0.16 on; also "max_output_tokens=… max_total_tokens=…"
	{regexp.MustCompile(`\b(?:max_\w*tokens)=(\d+) cannot be greater than \w+=(\d+)`), "ol", verdict.MaxTokensTooLarge},
	// entrypoints/openai/serving_engine.py, 0.8 to 0.15
	{regexp.MustCompile(`'max_tokens' or 'max_completion_tokens' is too large: (\d+)\. ?This model's maximum context length is (\d+) tokens and your request has (\d+) input tokens`), "olp", verdict.MaxTokensTooLarge},
	{regexp.MustCompile(`'max_tokens' or 'max_completion_tokens' is too large: (\d+)`), "o", verdict.MaxTokensTooLarge},
	// the same file, up to 0.7 and for completions later
	{regexp.MustCompile(`maximum context length is (\d+) tokens\. However, you requested (\d+) tokens \((\d+) in the \w+, (\d+) in the completion\)`), "lnpo", verdict.ContextLengthExceeded},
	{regexp.MustCompile(`maximum context length is (\d+) tokens\. However, you requested (\d+) tokens in the`), "lp", verdict.ContextLengthExceeded},
	// renderers/params.py, 0.16 to 0.21
	{regexp.MustCompile(`maximum context length is (\d+) tokens\. However, you requested (\d+) output tokens and your prompt contains (?:at least )?(\d+) input tokens`), "lop", verdict.ContextLengthExceeded},
	{regexp.MustCompile(`[Yy]ou passed (\d+) input tokens and requested (\d+) output tokens\. However, the model's context length is only (\d+)`), "pol", verdict.ContextLengthExceeded},
	{regexp.MustCompile(`[Yy]ou passed (\d+) input tokens?.*context length is only (\d+)`), "pl", verdict.ContextLengthExceeded},
	// renderers/params.py _token_len_check and its predecessor
	{regexp.MustCompile(`maximum context length is (\d+) tokens\. However, your (?:prompt contains|request has) (?:at least )?(\d+) input tokens`), "lp", verdict.ContextLengthExceeded},
	// renderers/params.py _text_len_check: characters, of which the number says nothing in tokens
	{regexp.MustCompile(`maximum context length is (\d+) tokens`), "l", verdict.ContextLengthExceeded},
	// v1/engine/input_processor.py (and v1/engine/processor.py before)
	{regexp.MustCompile(`prompt \(length (\d+)\).* longer than the maximum\s+model length of (\d+)`), "pl", verdict.ContextLengthExceeded},
	// entrypoints/serve/utils/api_utils.py get_max_tokens
	{regexp.MustCompile(`Input length \((\d+)\) exceeds (?:the )?model's maximum context length \((\d+)\)`), "pl", verdict.ContextLengthExceeded},
	// entrypoints/openai/responses/serving.py
	{regexp.MustCompile(`engine prompt length (\d+) exceeds the max_model_len (\d+)`), "pl", verdict.ContextLengthExceeded},
	// entrypoints/pooling/scoring/io_processor.py, and whatever a release words anew
	{regexp.MustCompile(`(?:longer|greater|larger|more) than (?:the )?max_model_len \((\d+)\)`), "l", verdict.ContextLengthExceeded},
	{regexp.MustCompile(`(?:maximum|model's) context length`), "", verdict.ContextLengthExceeded},
	// what a prompt that fills the context looked like up to 0.8: the rest for the output is below 1
	{regexp.MustCompile(`max_(?:completion_)?tokens must be at least 1, got (?:-\d+|0)\b`), "", verdict.ContextLengthExceeded},
}

// tooLong recognises a request that does not fit the context, and says so in the words that clients look for.
func (r *Reply) tooLong(message string, cause error) (verdict.Verdict, bool) {
	const longest = 4 << 10 // a longer message is an echo of input
	if len(message) > longest {
		message = message[:longest]
	}
	for _, l := range lengths {
		m := l.match.FindStringSubmatch(message)
		if m == nil {
			continue
		}
		n := map[byte]int64{}
		for i := range l.numbers {
			n[l.numbers[i]] = number(m[i+1])
		}
		return r.sayLength(verdict.Refuse(l.reason, cause), n), true
	}
	return verdict.Verdict{}, false
}

// sayLength adds the numbers. "maximum context length is N tokens" is what OpenAI's clients and agents search for,
// "prompt is too long: N tokens > M maximum" what Anthropic's do.
func (r *Reply) sayLength(v verdict.Verdict, n map[byte]int64) verdict.Verdict {
	limit, prompt, output, all := n['l'], n['p'], n['o'], n['n']
	if all == 0 {
		all = prompt + output
	}
	switch {
	case limit == 0:
		return v
	case r.dialect() == vllm.Anthropic && v.Reason() == verdict.ContextLengthExceeded && all > 0:
		return v.Saying("prompt is too long: %d tokens > %d maximum", all, limit)
	case output > 0 && prompt > 0:
		return v.Saying("This model's maximum context length is %d tokens; the request has %d (%d in the prompt, %d for the output).", limit, all, prompt, output)
	case output > 0:
		return v.Saying("This model's maximum context length is %d tokens; the request asks for %d of output.", limit, output)
	case all > 0:
		return v.Saying("This model's maximum context length is %d tokens; the request has %d.", limit, all)
	}
	return v.Saying("This model's maximum context length is %d tokens; the request has more.", limit)
}

func number(digits string) int64 {
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// known gives the parameter's name when the catalogue has it at the top of the operation's body: vLLM's own word is not
// repeated, for it may be the caller's, or a path inside its models ("body.messages.0.content").
func (r *Reply) known(param string) string {
	if r.op == nil {
		return ""
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(param, "body."), ".")
	table, ok := vllm.FieldsOf(r.op.ID)
	if !ok || name == "" || table.Body == nil {
		return ""
	}
	field, ok := table.Body.Fields[name]
	if !ok {
		return ""
	}
	return field.Name
}

// upstreamError reads an error body: OpenAI's form with vLLM's integer code, Anthropic's, the bare string of the key
// check, Starlette's detail, and the form before 0.10 with everything at the top. What is none of them is its own text.
func upstreamError(body []byte) said {
	var form struct {
		Error   json.RawMessage `json:"error"`
		Detail  json.RawMessage `json:"detail"`
		Message string          `json:"message"`
		Param   *string         `json:"param"`
		Code    json.RawMessage `json:"code"`
	}
	if json.Unmarshal(body, &form) != nil {
		return said{message: string(body[:min(len(body), 4<<10)])}
	}
	s := said{message: form.Message}
	if form.Param != nil {
		s.param = *form.Param
	}
	s.status, _ = strconv.Atoi(string(form.Code))
	var inner struct {
		Message string          `json:"message"`
		Param   *string         `json:"param"`
		Code    json.RawMessage `json:"code"`
	}
	var text string
	switch {
	case json.Unmarshal(form.Error, &inner) == nil && len(form.Error) > 0:
		s.message = inner.Message
		if inner.Param != nil {
			s.param = *inner.Param
		}
		s.status, _ = strconv.Atoi(string(inner.Code))
	case json.Unmarshal(form.Error, &text) == nil, json.Unmarshal(form.Detail, &text) == nil:
		s.message = text
	case len(form.Detail) > 0:
		s.message = string(form.Detail)
	}
	return s
}
