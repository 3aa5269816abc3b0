package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

type object = map[string]any

// reply answers a request in the form of vLLM 0.32.0, or of the Anthropic API.
func reply(w http.ResponseWriter, method, path string, body []byte) {
	var in object
	_ = json.Unmarshal(body, &in) // a form, or nothing: the answer does not depend on it
	model, _ := in["model"].(string)
	switch {
	case strings.HasSuffix(path, "/chat/completions"): // also under Azure's deployments
		chat(w, in, model)
	case path == "/v1/completions":
		completion(w, in, model)
	case path == "/v1/responses":
		response(w, in, model)
	case path == "/v1/messages":
		message(w, in, model)
	case path == "/v1/messages/count_tokens":
		answer(w, object{"input_tokens": 12})
	case path == "/v1/embeddings":
		embeddings(w, in, model)
	case strings.HasSuffix(path, "/rerank"):
		answer(w, object{
			"id": "rerank-1", "model": model, "usage": object{"total_tokens": 5},
			"results": []object{{"index": 0, "document": object{"text": "a"}, "relevance_score": 0.9}},
		})
	case path == "/v1/models":
		answer(w, object{"object": "list", "data": []object{{"id": "tiny", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 32768}}})
	case strings.HasPrefix(path, "/v1/models/"):
		answer(w, object{"id": "org/tiny", "object": "model", "created": 1, "owned_by": "vllm"})
	case strings.HasPrefix(path, "/v1/audio/"):
		answer(w, object{"text": "hello", "usage": object{"type": "duration", "seconds": 1}})
	case path == "/tokenize":
		answer(w, object{"count": 3, "max_model_len": 32768, "tokens": []int{1, 2, 3}})
	case path == "/detokenize":
		answer(w, object{"prompt": "hello"})
	case path == "/health" || path == "/metrics":
		w.WriteHeader(http.StatusOK)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"error":{"message":"Not Found","type":"Not Found","param":null,"code":404}}`)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that left is no concern
}

// events sends server-sent events; name "" sends no event line.
func events(w http.ResponseWriter, send func(event func(name string, data any))) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	send(func(name string, data any) {
		if name != "" {
			fmt.Fprintf(w, "event: %s\n", name)
		}
		b, err := json.Marshal(data)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(w, "data: %s\n\n", b)
	})
}

var usage = object{"prompt_tokens": 12, "total_tokens": 15, "completion_tokens": 3}

func chat(w http.ResponseWriter, in object, model string) {
	text, tool := say(in)
	msg := object{"role": "assistant", "content": text, "refusal": nil, "annotations": nil, "audio": nil, "function_call": nil, "reasoning": nil}
	finish := "stop"
	if tool != nil {
		finish = "tool_calls"
		msg["content"] = nil
		msg["tool_calls"] = []object{{"id": "call_1", "type": "function", "index": 0, "function": object{"name": tool["name"], "arguments": encoded(dummy(tool["parameters"], nil))}}}
	}
	head := object{"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
	if in["stream"] != true {
		head["choices"] = []object{{"index": 0, "message": msg, "logprobs": nil, "finish_reason": finish, "stop_reason": nil}}
		head["usage"] = usage
		answer(w, head)
		return
	}
	head["object"] = "chat.completion.chunk"
	with := func(delta object, finish any) object {
		out := object{"choices": []object{{"index": 0, "delta": delta, "logprobs": nil, "finish_reason": finish}}}
		for k, v := range head {
			out[k] = v
		}
		return out
	}
	events(w, func(event func(string, any)) {
		event("", with(object{"role": "assistant", "content": ""}, nil))
		delete(msg, "role")
		event("", with(msg, nil))
		event("", with(object{}, finish))
		if o, _ := in["stream_options"].(object); o["include_usage"] == true {
			last := with(nil, nil)
			last["choices"], last["usage"] = []object{}, usage
			event("", last)
		}
	})
	fmt.Fprint(w, "data: [DONE]\n\n")
}

func completion(w http.ResponseWriter, in object, model string) {
	out := object{
		"id": "cmpl-1", "object": "text_completion", "created": 1, "model": model,
		"choices": []object{{"index": 0, "text": "hello", "logprobs": nil, "finish_reason": "stop"}},
	}
	if in["stream"] == true {
		events(w, func(event func(string, any)) { event("", out) })
		fmt.Fprint(w, "data: [DONE]\n\n")
		return
	}
	out["usage"] = usage
	answer(w, out)
}

func response(w http.ResponseWriter, in object, model string) {
	text, tool := say(in)
	item := object{
		"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
		"content": []object{{"type": "output_text", "text": text, "annotations": []any{}}},
	}
	if tool != nil {
		item = object{"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": tool["name"], "status": "completed", "arguments": encoded(dummy(tool["parameters"], nil))}
	}
	out := object{
		"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": model, "output": []object{item},
		"parallel_tool_calls": true, "tool_choice": "auto", "tools": []any{}, "temperature": 1.0, "top_p": 1.0, "error": nil, "incomplete_details": nil,
		"instructions": nil, "metadata": nil,
		"usage": object{"input_tokens": 12, "output_tokens": 3, "total_tokens": 15, "input_tokens_details": object{"cached_tokens": 0}, "output_tokens_details": object{"reasoning_tokens": 0}},
	}
	if in["stream"] != true {
		answer(w, out)
		return
	}
	events(w, func(event func(string, any)) {
		n := 0
		send := func(kind string, more object) {
			more["type"], more["sequence_number"] = kind, n
			n++
			event(kind, more)
		}
		send("response.created", object{"response": out})
		send("response.output_item.added", object{"output_index": 0, "item": item})
		if tool == nil {
			send("response.output_text.delta", object{"item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": text, "logprobs": []any{}})
			send("response.output_text.done", object{"item_id": "msg_1", "output_index": 0, "content_index": 0, "text": text, "logprobs": []any{}})
		}
		send("response.output_item.done", object{"output_index": 0, "item": item})
		send("response.completed", object{"response": out})
	})
}

// threadRefusal is the 400 by which the Anthropic API tells the SDKs' tool
// runner to send the whole history.
const threadRefusal = `{"type":"error","error":{"type":"invalid_request_error","message":"threads are not supported","details":{"error_code":"thread_unsupported_request","unsupported":["thread"]}}}`

func message(w http.ResponseWriter, in object, model string) {
	if in["thread"] != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, threadRefusal)
		return
	}
	text, tool := say(in)
	block, stop := object{"type": "text", "text": text}, "end_turn"
	if tool != nil {
		block, stop = object{"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": dummy(tool["input_schema"], nil)}, "tool_use"
	}
	out := object{
		"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []object{block}, "stop_reason": stop,
		"stop_sequence": nil, "usage": object{"input_tokens": 12, "output_tokens": 3},
	}
	if in["stream"] != true {
		answer(w, out)
		return
	}
	events(w, func(event func(string, any)) {
		start := object{}
		for k, v := range out {
			start[k] = v
		}
		start["content"], start["stop_reason"] = []any{}, nil
		event("message_start", object{"type": "message_start", "message": start})
		if tool != nil {
			event("content_block_start", object{"type": "content_block_start", "index": 0, "content_block": object{"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": object{}}})
			event("content_block_delta", object{"type": "content_block_delta", "index": 0, "delta": object{"type": "input_json_delta", "partial_json": encoded(block["input"])}})
		} else {
			event("content_block_start", object{"type": "content_block_start", "index": 0, "content_block": object{"type": "text", "text": ""}})
			event("content_block_delta", object{"type": "content_block_delta", "index": 0, "delta": object{"type": "text_delta", "text": text}})
		}
		event("content_block_stop", object{"type": "content_block_stop", "index": 0})
		event("message_delta", object{"type": "message_delta", "delta": object{"stop_reason": stop, "stop_sequence": nil}, "usage": object{"output_tokens": 3}})
		event("message_stop", object{"type": "message_stop"})
	})
}

func embeddings(w http.ResponseWriter, in object, model string) {
	n := 1
	if list, isList := in["input"].([]any); isList && len(list) > 0 {
		if _, isNumber := list[0].(float64); !isNumber {
			n = len(list)
		}
	}
	var data []object
	for i := range n {
		var vector any = []float64{0.5, 0.25}
		if in["encoding_format"] == "base64" {
			vector = "AAAAPwAAgD4="
		}
		data = append(data, object{"index": i, "object": "embedding", "embedding": vector})
	}
	answer(w, object{"id": "embd-1", "object": "list", "created": 1, "model": model, "data": data, "usage": object{"prompt_tokens": 2, "total_tokens": 2}})
}

// say decides what the model says: the first tool on offer if none was used
// yet and the client allows it, otherwise a text of the wanted form.
func say(in object) (text string, tool object) {
	if offered := firstFunction(in["tools"]); offered != nil && !strings.Contains(encoded(in["messages"])+encoded(in["input"]), "tool_call_id") &&
		!strings.Contains(encoded(in["messages"])+encoded(in["input"]), `"tool_result"`) &&
		!strings.Contains(encoded(in["input"]), `"function_call_output"`) && in["tool_choice"] != "none" {
		return "", offered
	}
	for _, at := range [][]string{{"response_format", "json_schema", "schema"}, {"text", "format", "schema"}, {"output_config", "format", "schema"}} {
		var v any = in
		for _, name := range at {
			o, _ := v.(object)
			v = o[name]
		}
		if v != nil {
			return encoded(dummy(v, v)), nil
		}
	}
	if o, _ := in["response_format"].(object); o["type"] == "json_object" {
		return `{"name":"x","age":1}`, nil
	}
	return "hello", nil
}

// firstFunction is the first tool that a model could call: OpenAI's nested or
// flat form, or Anthropic's. Agents' own first tools would do something to the
// machine, so theirs are not called.
func firstFunction(tools any) object {
	list, _ := tools.([]any)
	if len(list) == 0 || len(list) > 4 {
		return nil
	}
	for _, t := range list {
		o, _ := t.(object)
		if f, nested := o["function"].(object); nested {
			return f
		}
		if o["name"] != nil && (o["type"] == "function" || o["input_schema"] != nil) {
			return o
		}
	}
	return nil
}

// dummy is a value of a JSON Schema. root resolves "#/$defs/…".
func dummy(schema, root any) any {
	s, _ := schema.(object)
	if root == nil {
		root = schema
	}
	if ref, _ := s["$ref"].(string); ref != "" {
		v := root
		for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
			o, _ := v.(object)
			v = o[name]
		}
		return dummy(v, root)
	}
	if enum, _ := s["enum"].([]any); len(enum) > 0 {
		return enum[0]
	}
	if anyOf, _ := s["anyOf"].([]any); len(anyOf) > 0 {
		return dummy(anyOf[0], root)
	}
	if c, found := s["const"]; found {
		return c
	}
	switch s["type"] {
	case "string":
		return "x"
	case "integer", "number":
		return 1
	case "boolean":
		return true
	case "array":
		return []any{dummy(s["items"], root)}
	}
	out := object{}
	properties, _ := s["properties"].(object)
	for name, p := range properties {
		out[name] = dummy(p, root)
	}
	return out
}

func encoded(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}
