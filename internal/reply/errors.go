package reply

import (
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Refusal is the body of a refusal in the dialect's form, as application/json also to a request for a stream: clients
// hang on an error that is sent as an event stream. It holds the reason's code, its sentence and what Saying added;
// never the cause. The code is always a string: async-openai and openai-go fail on vLLM's integer and on its bare
// {"error":"Unauthorized"}.
func Refusal(d vllm.Dialect, v verdict.Verdict) []byte {
	b := make([]byte, 0, 256)
	if d == vllm.Anthropic {
		return append(appendAnthropic(b, v), '\n')
	}
	b = append(b, `{"error":`...)
	b = appendOpenAI(b, v)
	return append(b, "}\n"...)
}

// endEvent is how a stream of the dialect ends early, after the last whole event: never by a bare close, which looks
// like success to every client. Chat and completions end with an error chunk and [DONE], messages with their error
// event, responses with OpenAI's error event, which has the sequence number.
func endEvent(d vllm.Dialect, v verdict.Verdict, sequence int64) []byte {
	b := errorEvent(d, v, sequence)
	if d == vllm.OpenAI {
		b = append(b, done...)
	}
	return b
}

// done is the last event of a chat or completions stream.
const done = "data: [DONE]\n\n"

// errorEvent is the dialect's error event alone. The sequence number is that of the event in a responses stream.
func errorEvent(d vllm.Dialect, v verdict.Verdict, sequence int64) []byte {
	b := make([]byte, 0, 320)
	switch d {
	case vllm.Anthropic:
		b = append(b, "event: error\ndata: "...)
		b = appendAnthropic(b, v)
	case vllm.Responses:
		// OpenAI documents the members beside type; its own SDKs raise only when there is an "error" member as well.
		b = append(b, "event: error\ndata: {\"type\":\"error\",\"code\":"...)
		b = appendString(b, v.Reason().String())
		b = append(b, `,"message":`...)
		b = appendString(b, v.Message())
		b = append(b, `,"param":`...)
		b = appendParam(b, v)
		b = append(b, `,"sequence_number":`...)
		b = strconv.AppendInt(b, sequence, 10)
		b = append(b, `,"error":`...)
		b = append(appendOpenAI(b, v), '}')
	default:
		b = append(b, `data: {"error":`...)
		b = append(appendOpenAI(b, v), '}')
	}
	return append(b, "\n\n"...)
}

// appendOpenAI appends the error object of OpenAI's form.
func appendOpenAI(b []byte, v verdict.Verdict) []byte {
	b = append(b, `{"message":`...)
	b = appendString(b, v.Message())
	b = append(b, `,"type":`...)
	b = appendString(b, v.Reason().OpenAIType())
	b = append(b, `,"param":`...)
	b = appendParam(b, v)
	b = append(b, `,"code":`...)
	b = appendString(b, v.Reason().String())
	return append(b, '}')
}

func appendParam(b []byte, v verdict.Verdict) []byte {
	if v.Param() == "" {
		return append(b, "null"...)
	}
	return appendString(b, v.Param())
}

// appendAnthropic appends the whole object of Anthropic's form, which has no code.
func appendAnthropic(b []byte, v verdict.Verdict) []byte {
	b = append(b, `{"type":"error","error":{"type":`...)
	b = appendString(b, v.Reason().AnthropicType())
	b = append(b, `,"message":`...)
	b = appendString(b, v.Message())
	if v.Reason() == verdict.ThreadUnsupported {
		// anthropic-sdk-python 2.12 tools/_beta_runner and its Node twin look for exactly these two members: they then
		// drop `thread` and send the whole history. Any other 400 ends the conversation.
		b = append(b, `,"details":{"error_code":"thread_unsupported_request","unsupported":["thread"]}`...)
	}
	return append(b, "}}"...)
}

// appendString appends s as a JSON string without HTML escapes. Bytes that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	quoted, err := jsontext.AppendQuote(b, strings.ToValidUTF8(s, "\uFFFD"))
	if err != nil {
		return append(b, `""`...)
	}
	return quoted
}
