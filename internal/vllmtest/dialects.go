package vllmtest

import (
	"fmt"
	"strings"
)

func responses(x *exchange) {
	if !x.object() {
		return
	}
	if x.body["input"] == nil {
		x.missing("input")
		return
	}
	g, ok := x.start("resp", flat([]any{x.body["instructions"], x.body["input"]}), "max_output_tokens")
	if !ok {
		return
	}
	status := "completed" // also of what was aborted: only harmony models' answers tell (serving.py, responses_full_generator)
	switch {
	case g.finish == "length":
		status = "incomplete"
	case x.b.Kind == FinishAbortHarmony:
		status = "cancelled"
	}
	if !g.stream {
		x.json("%s", x.response(g, status))
		return
	}
	x.streamResponse(g, status)
}

// response is the Responses object; before it is "completed" it holds no output.
func (x *exchange) response(g *generation, status string) string {
	output, usage, details := "", "null", "null"
	if status != "in_progress" {
		output = x.responseItem(g, "completed", x.responsePart(g, true))
		// cached tokens are always told here (measured)
		usage = fmt.Sprintf(`{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d,"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]},"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":0,"tool_output_tokens":0},"total_tokens":%d}`,
			g.prompt, g.cached, g.completion(), g.prompt+g.completion())
	}
	if x.b.Kind == NoUsage {
		usage = "null"
	}
	if status == "incomplete" {
		details = `{"reason":"max_output_tokens"}`
	}
	return fmt.Sprintf(`{"id":%s,"created_at":%d,"incomplete_details":%s,"instructions":null,"metadata":null,"model":%s,"object":"response","output":[%s],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"auto","tools":[],"top_p":1.0,"background":false,"max_output_tokens":%d,"max_tool_calls":null,"previous_response_id":null,"prompt":null,"reasoning":null,"service_tier":"auto","status":%s,"text":null,"top_logprobs":null,"truncation":"disabled","usage":%s,"user":null}`,
		quote(g.id), g.created, details, quote(g.model), output, len(g.words), quote(status), usage)
}

func (x *exchange) responseItem(g *generation, status, content string) string {
	return fmt.Sprintf(`{"id":"msg_%d","type":"message","status":%s,"role":"assistant","content":[%s]}`, g.created, quote(status), content)
}

func (x *exchange) responsePart(g *generation, whole bool) string {
	text := ""
	if whole {
		text = g.text()
	}
	return fmt.Sprintf(`{"type":"output_text","text":%s,"annotations":[],"logprobs":null}`, quote(text))
}

func (x *exchange) streamResponse(g *generation, status string) {
	x.stream()
	sequence := 0
	send := func(kind, rest string, args ...any) bool {
		ok := x.event(fmt.Sprintf("event: %s\ndata: {%s,\"sequence_number\":%d,\"type\":%s}\n\n", kind, fmt.Sprintf(rest, args...), sequence, quote(kind)))
		sequence++
		return ok
	}
	at := fmt.Sprintf(`"content_index":0,"item_id":"msg_%d","output_index":0`, g.created)
	ok := send("response.created", `"response":%s`, x.response(g, "in_progress")) &&
		send("response.in_progress", `"response":%s`, x.response(g, "in_progress")) &&
		send("response.output_item.added", `"item":%s,"output_index":0`, x.responseItem(g, "in_progress", "")) &&
		send("response.content_part.added", `%s,"part":%s`, at, x.responsePart(g, false))
	for _, word := range g.words {
		ok = ok && send("response.output_text.delta", `%s,"delta":%s,"logprobs":[]`, at, quote(word))
	}
	last := "response.completed"
	if status == "incomplete" {
		last = "response.incomplete" // from 0.33.0 on
	}
	ok = ok && send("response.output_text.done", `%s,"logprobs":[],"text":%s`, at, quote(g.text())) &&
		send("response.content_part.done", `%s,"part":%s`, at, x.responsePart(g, true)) &&
		send("response.output_item.done", `"item":%s,"output_index":0`, x.responseItem(g, "completed", x.responsePart(g, true))) &&
		send(last, `"response":%s`, x.response(g, status))
	if ok {
		x.endStream()
	}
}

func messages(x *exchange) {
	if !x.object() {
		return
	}
	if x.body["messages"] == nil {
		x.missing("messages")
		return
	}
	if x.body["max_tokens"] == nil {
		x.missing("max_tokens")
		return
	}
	g, ok := x.start("msg", flat([]any{x.body["system"], x.body["messages"]}), "max_tokens")
	if !ok {
		return
	}
	// _to_anthropic_stop_reason of vLLM 0.32.0 has no word for an abort: null in a stream, and left out of a whole
	// message, as all that is null there (entrypoints/anthropic/api_router.py, exclude_none)
	stop, whole := "null", ""
	if word := map[string]string{"stop": "end_turn", "length": "max_tokens"}[g.finish]; word != "" {
		stop, whole = quote(word), fmt.Sprintf(`"stop_reason":%s,`, quote(word))
	}
	if g.stream {
		x.streamMessage(g, stop)
		return
	}
	x.json(`{"id":%s,"type":"message","role":"assistant","content":[{"type":"text","text":%s}],"model":%s,%s"usage":%s}`,
		quote(g.id), quote(g.text()), quote(g.model), whole, x.messageUsage(g))
}

// messageUsage excludes cached tokens from input_tokens where they are told (measured).
func (x *exchange) messageUsage(g *generation) string {
	switch {
	case x.b.Kind == NoUsage:
		return "null"
	case g.details:
		return fmt.Sprintf(`{"input_tokens":%d,"output_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":%d}`, g.prompt-g.cached, g.completion(), g.cached)
	}
	if !g.stream {
		return fmt.Sprintf(`{"input_tokens":%d,"output_tokens":%d}`, g.prompt, g.completion())
	}
	return fmt.Sprintf(`{"input_tokens":%d,"output_tokens":%d,"cache_creation_input_tokens":null,"cache_read_input_tokens":null}`, g.prompt, g.completion())
}

func (x *exchange) streamMessage(g *generation, stop string) {
	x.stream()
	send := func(kind, rest string, args ...any) bool {
		return x.event(fmt.Sprintf("event: %s\ndata: {\"type\":%s%s}\n\n", kind, quote(kind), fmt.Sprintf(rest, args...)))
	}
	ok := send("message_start", `,"message":{"id":%s,"type":"message","role":"assistant","content":[],"model":%s,"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":%d,"output_tokens":0}}`, quote(g.id), quote(g.model), g.prompt) &&
		send("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`)
	for _, word := range g.words {
		ok = ok && send("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":%s}`, quote(word))
	}
	ok = ok && send("content_block_stop", `,"index":0`) &&
		send("message_delta", `,"delta":{"stop_reason":%s,"stop_sequence":null},"usage":%s`, stop, x.messageUsage(g)) &&
		send("message_stop", "")
	if ok {
		x.endStream()
	}
}

func countTokens(x *exchange) {
	if !x.object() {
		return
	}
	if _, ok := x.model(); ok {
		x.json(`{"input_tokens":%d,"context_management":null}`, tokens(flat(x.body["messages"])))
	}
}

// errorEvent is how the dialect tells of an error in a stream that has begun.
func (x *exchange) errorEvent() {
	const message = "EngineCore encountered an issue at 0x7f12ab34cd56"
	switch {
	case strings.HasPrefix(x.r.Path, "/v1/responses"):
		// responses_stream_generator reads the error as an event of its own, which it is not: uvicorn cuts the stream
		x.broken = true
		return
	case strings.HasPrefix(x.r.Path, "/v1/messages"):
		x.chunk("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"InternalServerError\",\"message\":" + quote(message) + "}}\n\n")
	default:
		x.chunk(`data: {"error": {"message":` + quote(message) + `,"type":"InternalServerError","param":null,"code":500}}` + "\n\n")
		x.chunk("data: [DONE]\n\n")
	}
	x.endStream()
}
