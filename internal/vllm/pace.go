package vllm

import "bytes"

// Pace estimates how many tokens stand in a stream's events beyond one in each. vLLM joins the tokens for which its caller has no room yet
// (v1/engine/output_processor.py of 0.32.0, RequestOutputCollector): who reads slowly on purpose and leaves before the end would otherwise get
// them for nothing. The zero Pace has seen no event. It is told of those that have text in them.
type Pace struct {
	least  [3]int64 // bytes of the shortest event of each kind: an event without text, nearly
	joined int64
}

// What an event may be longer than the shortest of its kind and still be one token, and how long one more is. Tokens of other languages and of code are
// shorter or longer: it is an estimate, and near for four bytes a token.
const (
	oneToken = 24
	perToken = 4
)

// Event learns from the data of one event. Where there are log probabilities they make the length, so that half the shortest event counts as one token.
func (p *Pace) Event(data []byte) {
	kind, one, per := 0, int64(oneToken), int64(perToken)
	size := int64(len(data))
	if least := p.least[0]; size >= least && size <= least+oneToken && least > 0 {
		return // nearly all events: they need not be looked into
	}
	switch {
	case bytes.Contains(data, []byte(`"logprobs":{`)):
		kind = 2
	case bytes.Contains(data, []byte(`"tool_calls"`)):
		kind = 1
	}
	if least := &p.least[kind]; *least == 0 || size < *least {
		*least = size
	}
	if kind == 2 {
		one = max(p.least[kind]/2, 1)
		per = one
	}
	p.joined += max(size-p.least[kind]-one, 0) / per
}

// Joined is how many tokens more than events there were.
func (p *Pace) Joined() int64 { return p.joined }
