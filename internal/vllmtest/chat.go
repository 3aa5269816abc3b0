package vllmtest

import (
	"encoding/json"
	"fmt"
	"strings"
)

// flat is the text of a JSON value, for counting and for the cache.
func flat(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

func (x *exchange) missing(field string) {
	x.fail(400, "Bad Request", fmt.Sprintf("[{'type': 'missing', 'loc': ('body', '%s'), 'msg': 'Field required'}]", field))
}

func chat(x *exchange) {
	if !x.object() {
		return
	}
	messages, ok := x.body["messages"].([]any)
	if !ok {
		x.missing("messages")
		return
	}
	g, ok := x.start("chatcmpl", flat(messages), "max_completion_tokens", "max_tokens")
	if !ok {
		return
	}
	if g.stream {
		x.streamChat(g)
		return
	}
	var choices []string
	for i := range g.n {
		choices = append(choices, fmt.Sprintf(`{"index":%d,"message":{"role":"assistant","content":%s,"refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning":null},"logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":null}`,
			i, quote(g.text()), quote(g.finish)))
	}
	x.json(`{"id":%s,"object":"chat.completion","created":%d,"model":%s,"choices":[%s],"service_tier":null,"system_fingerprint":%s,"usage":%s,"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}`,
		quote(g.id), g.created, quote(g.model), strings.Join(choices, ","), quote(x.s.fingerprint()), x.usageJSON(g, -1))
}

// streamChat is chat's stream: a role, the words, the finish, the usage if asked, [DONE].
func (x *exchange) streamChat(g *generation) {
	x.stream()
	send := func(choice, finger string, done int) bool {
		usage := ""
		if g.continuous && done >= 0 {
			usage = `,"usage":` + x.usageJSON(g, done)
		}
		return x.event(fmt.Sprintf("data: {\"id\":%s,\"object\":\"chat.completion.chunk\",\"created\":%d,\"model\":%s,\"choices\":[%s]%s%s}\n\n",
			quote(g.id), g.created, quote(g.model), choice, finger, usage))
	}
	for i := range g.n {
		if !send(fmt.Sprintf(`{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}`, i), `,"prompt_token_ids":null`, 0) {
			return
		}
	}
	for w, word := range g.words {
		for i := range g.n {
			finish, finger := "null", ""
			if w == len(g.words)-1 {
				finish, finger = quote(g.finish), `,"system_fingerprint":`+quote(x.s.fingerprint())
			}
			if !send(fmt.Sprintf(`{"index":%d,"delta":{"content":%s},"logprobs":null,"finish_reason":%s,"token_ids":null}`, i, quote(word), finish), finger, w+1) {
				return
			}
		}
	}
	x.finishOpenAI(g, "chat.completion.chunk")
}

// finishOpenAI sends the usage chunk, if it was asked for, and [DONE].
func (x *exchange) finishOpenAI(g *generation, object string) {
	if g.usage && x.b.Kind != NoUsage {
		x.event(fmt.Sprintf("data: {\"id\":%s,\"object\":%s,\"created\":%d,\"model\":%s,\"choices\":[],\"usage\":%s}\n\n",
			quote(g.id), quote(object), g.created, quote(g.model), x.usageJSON(g, -1)))
	}
	x.event("data: [DONE]\n\n")
	x.endStream()
}

// prompts are the prompts of a completion: a text, token ids, or a list of either.
func prompts(v any) []string {
	list, ok := v.([]any)
	if !ok {
		if s, ok := v.(string); ok {
			return []string{s}
		}
		return nil
	}
	var out []string
	for _, one := range list {
		switch one := one.(type) {
		case string:
			out = append(out, one)
		case []any:
			out = append(out, flat(one))
		default:
			return []string{flat(list)} // one prompt of token ids
		}
	}
	return out
}

func completions(x *exchange) {
	if !x.object() {
		return
	}
	texts := prompts(x.body["prompt"])
	if len(texts) == 0 {
		x.missing("prompt")
		return
	}
	if x.body["max_tokens"] == nil {
		x.body["max_tokens"] = json.Number("16")
	}
	g, ok := x.start("cmpl", strings.Join(texts, "\n"), "max_tokens")
	if !ok {
		return
	}
	g.prompts = len(texts)
	choice := func(i int, text, finish string) string {
		return fmt.Sprintf(`{"index":%d,"text":%s,"logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null}`, i, quote(text), finish)
	}
	total := g.n * g.prompts
	if !g.stream {
		var choices []string
		for i := range total {
			choices = append(choices, choice(i, g.text(), quote(g.finish)))
		}
		x.json(`{"id":%s,"object":"text_completion","created":%d,"model":%s,"choices":[%s],"service_tier":null,"system_fingerprint":%s,"usage":%s,"kv_transfer_params":null}`,
			quote(g.id), g.created, quote(g.model), strings.Join(choices, ","), quote(x.s.fingerprint()), x.usageJSON(g, -1))
		return
	}
	x.stream()
	for w, word := range g.words {
		for i := range total {
			finish, usage := "null", ""
			if w == len(g.words)-1 {
				finish = quote(g.finish)
			}
			if g.continuous {
				usage = `,"usage":` + x.usageJSON(g, w+1)
			}
			if !x.event(fmt.Sprintf("data: {\"id\":%s,\"object\":\"text_completion\",\"created\":%d,\"model\":%s,\"choices\":[%s]%s}\n\n",
				quote(g.id), g.created, quote(g.model), choice(i, word, finish), usage)) {
				return
			}
		}
	}
	x.finishOpenAI(g, "text_completion")
}

// batch answers many conversations; its stream field is ignored (measured).
func batch(x *exchange) {
	if !x.object() {
		return
	}
	rows, ok := x.body["messages"].([]any)
	if !ok || len(rows) == 0 {
		x.missing("messages")
		return
	}
	g, ok := x.start("chatcmpl", flat(rows), "max_completion_tokens", "max_tokens")
	if !ok {
		return
	}
	g.prompts = len(rows)
	var choices []string
	for i := range g.n * g.prompts {
		choices = append(choices, fmt.Sprintf(`{"index":%d,"message":{"role":"assistant","content":%s},"logprobs":null,"finish_reason":%s}`, i, quote(g.text()), quote(g.finish)))
	}
	g.details = false // the batch reports no cached tokens (measured)
	x.json(`{"id":%s,"object":"chat.completion","created":%d,"model":%s,"choices":[%s],"usage":%s}`,
		quote(g.id), g.created, quote(g.model), strings.Join(choices, ","), x.usageJSON(g, -1))
}

// invocations guesses what is meant (SageMaker's route).
func invocations(x *exchange) {
	if !x.object() {
		return
	}
	switch {
	case x.body["messages"] != nil:
		chat(x)
	case x.body["prompt"] != nil:
		completions(x)
	default:
		embeddings(x)
	}
}
