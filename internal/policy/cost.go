package policy

import (
	"cmp"

	"github.com/vallum/vallum/internal/vllm"
)

// cost is what bounds the tokens of one request.
type cost struct {
	bytes   int64 // of the body
	shared  int64 // of it, what each run of the model gets
	prompts int64 // runs of the model, each with its own input
	choices int64 // answers of each
	media   int64 // pictures, films and sounds in JSON
	output  int64 // most tokens of one answer; 0 has no cap, less than 0 generates nothing
	heard   bool  // a form: sound
}

func costOf(op *vllm.Operation, f Facts) cost {
	return cost{
		bytes: f.BodyBytes, shared: f.Shared, prompts: max(f.Inputs, 1), choices: max(f.Choices, 1), media: f.Media,
		output: -1, heard: op.Request == vllm.FormBody,
	}
}

// Bounds are what a site's servers take at the most.
type Bounds struct {
	Context int64 // tokens of one run of the model, input and output; 0 is not known, and counts as unknownContext
	Sound   int64 // seconds of sound that vLLM decodes (VLLM_MAX_AUDIO_DECODE_DURATION_S); 0 is its default
}

const (
	// unknownContext stands in for a context that a server does not tell. Not known is not none: without a bound a request
	// that names none would be free until it ends.
	unknownContext = 1 << 17
	// decodedSound is vLLM's own bound on sound, in seconds. All of its decoders hold it, whatever a file says of itself
	// (multimodal/media/audio.py of 0.28.0 to 0.32.0).
	decodedSound = 600
	// SoundTokens is what a second of sound costs: 100, the most that any model of vLLM counts for it (a frame each 10 ms:
	// get_num_audio_tokens of Whisper, FunASR and FireRedASR2 in 0.32.0), and what it tells in the usage of a stream.
	SoundTokens = 100
	// soundPiece is how many seconds further each piece begins into which vLLM cuts sound at the least: max_audio_clip_s is 30 or more in all
	// models of 0.32.0 that cut, and pieces overlap by 1. Each piece is a run of the model.
	soundPiece = 29
)

// Tokens bounds what the request can use: what is reserved for it. A token is at least one byte of a byte-level
// vocabulary, so the body's bytes bound its text; what every run of the model gets counts for each. The cap on the output counts
// for every prompt and choice. Prompt and output of one choice fit the context together, so where nothing caps the output, or
// there are pictures, whose tokens no count of bytes bounds, the context is all there is.
func (g Grant) Tokens(b Bounds) int64 {
	c, context := g.cost, cmp.Or(b.Context, unknownContext)
	if c.heard {
		return c.sound(b, cmp.Or(b.Sound, decodedSound), maxTokens)
	}
	runs, input := times(c.prompts, c.choices), add(c.bytes, times(c.shared, c.prompts-1))
	whole := times(context, runs)
	switch {
	case c.output < 0 && c.media > 0: // each in a prompt of its own, or one in all of them
		return add(input, times(context, max(c.media, c.prompts)))
	case c.output < 0: // what chunks a long text may take more than its context
		return add(input, c.prompts)
	case c.output == 0:
		return max(whole, input)
	case c.media > 0:
		return whole
	case b.Context == 0:
		return add(input, times(c.output, runs))
	}
	return min(add(input, times(c.output, runs)), whole)
}

// Heard is what a request with sound costs in the end, when vLLM told its length in seconds and no tokens: what a second
// costs, and the text that came back, whose bytes bound its tokens, as far as the model can have made it. It is never 0.
func (g Grant) Heard(b Bounds, seconds, text int64) (prompt, completion int64) {
	seconds = max(min(seconds, maxTokens), 1)
	prompt = times(seconds, SoundTokens)
	return prompt, max(g.cost.sound(b, seconds, text)-prompt, 1)
}

// sound bounds the tokens of so many seconds of sound with text of at most so many bytes.
func (c cost) sound(b Bounds, seconds, text int64) int64 {
	each := times(cmp.Or(b.Context, unknownContext), c.choices)
	if c.output > 0 {
		each = min(each, add(c.shared, times(c.output, c.choices)))
	}
	return add(times(seconds, SoundTokens), min(times(each, seconds/soundPiece+1), text))
}

// add sums numbers from 0, up to maxTokens.
func add(a, b int64) int64 { return min(min(a, maxTokens)+min(b, maxTokens), maxTokens) }

// times multiplies numbers from 0, up to maxTokens.
func times(a, b int64) int64 {
	if a > 0 && b > maxTokens/a {
		return maxTokens
	}
	return a * b
}

// maxTokens keeps a reservation far from overflow.
const maxTokens = 1 << 50
