package vllm

import (
	"bytes"
	"math"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/spare"
)

// Usage is what a reply says it cost.
type Usage struct {
	Prompt     int64 // input tokens, cached ones included; each prompt counted once, not times n
	Cached     int64 // of Prompt, those that came from the prefix cache
	Completion int64 // output tokens, of all choices
	Seconds    int64 // of sound, rounded up, where vLLM counts time and no tokens: audio's usage of type "duration", or its "duration" without usage
	Counted    bool  // the tokens are vLLM's own numbers
}

// maxTokens is far above what a reply can hold; a larger number is an upstream that lies, and counts as none.
const maxTokens = 1 << 40

// ReadUsage finds the usage in a whole JSON reply, in the data of one streamed event, or in the "metadata" header of
// embeddings as bytes (http.md of vLLM 0.32.0: EmbeddingBytesResponse). It reports whether there was any. Null,
// negative, fractional and absurd numbers, duplicate members and whatever is not JSON count as no usage at all:
// a number that is not believed must not be charged, and the caller falls back to its reservation.
//
// In a stream the events add up by Merge: the numbers are of the whole answer, except that continuous_usage_stats
// are of one choice and only the last event sums (measured on 0.32.0).
func ReadUsage(op *Operation, raw []byte) (Usage, bool) {
	if op == nil {
		return Usage{}, false
	}
	r := spare.Decode(raw)
	defer r.GiveBack()
	if r.PeekKind() == '[' {
		return readEach(op, &r.Decoder)
	}
	f := usageFields{heard: op.Request == FormBody}
	if !f.object(&r.Decoder, 0) {
		return Usage{}, false
	}
	return f.usage(op.Dialect)
}

// ReadUsageObject is ReadUsage for the value of a reply's "usage" alone.
func ReadUsageObject(op *Operation, usage []byte) (Usage, bool) {
	if op == nil {
		return Usage{}, false
	}
	r := spare.Decode(usage)
	defer r.GiveBack()
	var f usageFields
	if !f.members(&r.Decoder) {
		return Usage{}, false
	}
	return f.usage(op.Dialect)
}

// readEach sums the usage of a list of replies.
func readEach(op *Operation, d *jsontext.Decoder) (Usage, bool) {
	if _, err := d.ReadToken(); err != nil {
		return Usage{}, false
	}
	var sum Usage
	for d.PeekKind() == '{' {
		var f usageFields
		if !f.object(d, 0) {
			return Usage{}, false
		}
		one, ok := f.usage(op.Dialect)
		if !ok || !one.Counted {
			return Usage{}, false
		}
		sum.Prompt += one.Prompt
		sum.Cached += one.Cached
		sum.Completion += one.Completion
		sum.Counted = true
	}
	if d.PeekKind() != ']' || sum.Prompt > maxTokens || sum.Completion > maxTokens {
		return Usage{}, false
	}
	return sum, sum.Counted
}

// Merge is the usage of a stream so far and of a later event of it. Later events say more, never less: message_delta
// has no input in some releases, and a choice's own count is below the sum. So each number is the larger one.
func (u Usage) Merge(later Usage) Usage {
	return Usage{
		Prompt:     max(u.Prompt, later.Prompt),
		Cached:     max(u.Cached, later.Cached),
		Completion: max(u.Completion, later.Completion),
		Seconds:    max(u.Seconds, later.Seconds),
		Counted:    u.Counted || later.Counted,
	}
}

// usageFields are the members of all forms of usage; -1 marks a number that is not believed.
type usageFields struct {
	heard                                  bool // sound: a "duration" beside the usage counts
	seen                                   bool
	input, output, cached                  count
	cacheCreation, cacheRead, billed, secs count
}

type count struct {
	n   int64
	has bool
	bad bool
}

// members reads one JSON object at the decoder and gives each of its names to value, which reads what follows. It
// reports whether the JSON was whole.
func members(d *jsontext.Decoder, value func(name []byte) bool) bool {
	if tok, err := d.ReadToken(); err != nil || tok.Kind() != '{' {
		return false
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadValue()
		if err != nil || !value(textOf(name)) {
			return false
		}
	}
	_, err := d.ReadToken()
	return err == nil
}

// textOf is the text of a name that the decoder has accepted.
func textOf(literal []byte) []byte {
	if bytes.IndexByte(literal, '\\') < 0 {
		return literal[1 : len(literal)-1]
	}
	text, err := jsontext.AppendUnquote(nil, literal)
	if err != nil {
		return nil
	}
	return text
}

// object reads a reply and everything in it that can hold usage: "usage"; "response" (Responses' response.completed),
// "message" (Anthropic's message_start) and "meta" (Cohere's billed_units). It descends into no other names.
func (f *usageFields) object(d *jsontext.Decoder, depth int) bool {
	return members(d, func(name []byte) bool {
		if d.PeekKind() == '{' {
			switch string(name) {
			case "usage":
				if depth <= 1 {
					return f.members(d)
				}
			case "billed_units":
				if depth == 1 {
					return f.members(d)
				}
			case "response", "message", "meta":
				if depth == 0 {
					return f.object(d, depth+1)
				}
			}
		}
		if f.heard && depth == 0 && string(name) == "duration" {
			return f.duration(d)
		}
		return d.SkipValue() == nil
	})
}

// duration reads how long a sound is: seconds, with a fraction. vLLM's verbose_json has it and no usage (0.32.0,
// entrypoints/speech_to_text/transcription/protocol.py), older ones as a string.
func (f *usageFields) duration(d *jsontext.Decoder) bool {
	raw, err := d.ReadValue()
	if err != nil || raw.Kind() == 'n' {
		return err == nil
	}
	seconds, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	f.seen = true
	f.secs = count{n: int64(math.Ceil(min(seconds, maxTokens))), has: true, bad: err != nil || !(seconds >= 0 && seconds <= maxTokens)}
	return true
}

// members reads a usage object.
func (f *usageFields) members(d *jsontext.Decoder) bool {
	f.seen = true
	return members(d, func(name []byte) bool { return f.number(d, name) })
}

// number reads one member of a usage object. The names of all dialects are apart, but for input_tokens, which three
// share.
func (f *usageFields) number(d *jsontext.Decoder, name []byte) bool {
	switch string(name) {
	case "prompt_tokens", "input_tokens":
		return f.input.read(d)
	case "completion_tokens", "output_tokens":
		return f.output.read(d)
	case "cache_creation_input_tokens":
		return f.cacheCreation.read(d)
	case "cache_read_input_tokens":
		return f.cacheRead.read(d)
	case "image_tokens":
		return f.billed.read(d) // Cohere bills them beside input_tokens
	case "seconds":
		return f.secs.read(d)
	case "prompt_tokens_details", "input_tokens_details":
		if d.PeekKind() == '{' {
			return members(d, func(name []byte) bool {
				if string(name) == "cached_tokens" {
					return f.cached.read(d)
				}
				return d.SkipValue() == nil
			})
		}
	}
	return d.SkipValue() == nil
}

// read takes one number. null is absent; anything that is not a count is bad. It reports whether the JSON was whole.
func (c *count) read(d *jsontext.Decoder) bool {
	raw, err := d.ReadValue()
	if err != nil || raw.Kind() == 'n' {
		return err == nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	c.n, c.has = n, true
	c.bad = c.bad || err != nil || n < 0 || n > maxTokens
	return true
}

// usage puts the numbers together.
func (f *usageFields) usage(dialect Dialect) (Usage, bool) {
	for _, c := range []*count{&f.input, &f.output, &f.cached, &f.cacheCreation, &f.cacheRead, &f.billed, &f.secs} {
		if c.bad {
			return Usage{}, false
		}
	}
	if !f.seen {
		return Usage{}, false
	}
	u := Usage{Prompt: f.input.n, Cached: f.cached.n, Completion: f.output.n, Seconds: f.secs.n}
	if dialect == Anthropic {
		// With prompt token details on, input_tokens excludes what was cached or is cached now (measured on 0.32.0).
		u.Prompt += f.cacheCreation.n + f.cacheRead.n
		u.Cached = f.cacheRead.n
	}
	u.Prompt += f.billed.n
	u.Counted = f.input.has || f.output.has
	if u.Cached > u.Prompt || u.Prompt > maxTokens {
		return Usage{}, false
	}
	return u, u.Counted || f.secs.has
}
