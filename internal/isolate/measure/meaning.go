package measure

import (
	"errors"
	"fmt"
	"time"
)

// Result is what was measured towards one peer.
type Result struct {
	Peer        string   `json:"peer"`
	Address     string   `json:"address"` // in the overlay
	Overlay     Figures  `json:"overlay"`
	Bare        *Figures `json:"bare,omitempty"`
	BareMissing string   `json:"bare_missing,omitempty"` // why there is no bare figure
	Means       []string `json:"means"`                  // for tensor, pipeline and data parallelism, in words
}

// NewResult says what the rounds mean. bare is empty when missing says why.
func NewResult(peer, address string, overlay, bare []Round, missing error) (Result, error) {
	r := Result{Peer: peer, Address: address, Overlay: Sum(overlay...)}
	if !r.Overlay.whole() {
		return r, errors.New("nothing was measured over the overlay")
	}
	if missing != nil {
		r.BareMissing = missing.Error()
	} else if f := Sum(bare...); f.whole() {
		r.Bare = &f
	}
	r.Means = r.means()
	return r, nil
}

func (f Figures) whole() bool {
	return f.RoundTripMicros > 0 && f.MessageMicros > 0 && f.SentPerSecond > 0 && f.ReceivedPerSecond > 0
}

// The model by which the figures are put into words: one of the 70B class. Per token and layer tensor parallelism adds up
// twice (the attention's output and the MLP's), pipeline parallelism hands two tensors over once a stage (hidden states and
// residual; vllm 0.32.0: vllm/model_executor/models/llama.py).
const (
	layers = 80
	prompt = 1000 // tokens
	waits  = 2 * layers
)

// cost is what a path adds to a deployment, in seconds.
type cost struct{ tpToken, tpPrompt, ppToken, ppPrompt, request float64 }

func (f Figures) cost() cost {
	wait, rate := f.MessageMicros/1e6, min(f.SentPerSecond, f.ReceivedPerSecond)
	return cost{
		tpToken: waits * wait, tpPrompt: waits * prompt * message / rate,
		ppToken: wait, ppPrompt: 2 * prompt * message / rate,
		request: f.RoundTripMicros / 1e6,
	}
}

// means puts the figures into words: what waiting for the network costs two nodes, computing left out.
func (r Result) means() []string {
	say := func(of func(cost) float64) string {
		text := seconds(of(r.Overlay.cost()))
		if r.Bare != nil {
			text += " (bare " + seconds(of(r.Bare.cost())) + ")"
		}
		return text
	}
	return []string{
		fmt.Sprintf("tensor parallel across: a model of %d layers and hidden size %d waits %d times a token: %s a token; %s for a prompt of %d tokens. Keep tensor parallel inside a node.",
			layers, message/2, waits, say(func(c cost) float64 { return c.tpToken }), say(func(c cost) float64 { return c.tpPrompt }), prompt),
		fmt.Sprintf("pipeline parallel across: it waits once a token and stage: %s a token; %s for that prompt. It can go across.",
			say(func(c cost) float64 { return c.ppToken }), say(func(c cost) float64 { return c.ppPrompt })),
		fmt.Sprintf("data parallel across: a dense model sends requests and answers only: %s a message. It goes across best. With experts spread over nodes every layer waits, as in tensor parallel.",
			say(func(c cost) float64 { return c.request })),
	}
}

// Lines are the result as text: what was measured, how the paths compare, what it means.
func (r Result) Lines() []string {
	list := []string{"over the overlay: " + r.Overlay.text()}
	switch {
	case r.Bare != nil:
		o, b := r.Overlay, *r.Bare
		list = append(list, "the bare path:    "+b.text(), fmt.Sprintf("overlay to bare:  round trip %s, 16 KiB %s, out %s, in %s",
			times(o.RoundTripMicros, b.RoundTripMicros), times(o.MessageMicros, b.MessageMicros), times(o.SentPerSecond, b.SentPerSecond), times(o.ReceivedPerSecond, b.ReceivedPerSecond)))
	case r.BareMissing != "":
		list = append(list, "the bare path was not measured: "+r.BareMissing)
	}
	return append(list, r.Means...)
}

func (f Figures) text() string {
	return fmt.Sprintf("round trip %s, of 16 KiB %s (of a hundred the slowest but one %s); one connection %s out, %s in",
		seconds(f.RoundTripMicros/1e6), seconds(f.MessageMicros/1e6), seconds(f.MessageWorst/1e6), rate(f.SentPerSecond), rate(f.ReceivedPerSecond))
}

// times is a ratio with two digits that mean something.
func times(a, b float64) string {
	digits := 2
	for r := a / b; r >= 1 && digits > 0; r /= 10 {
		digits--
	}
	return fmt.Sprintf("%.*f×", digits, a/b)
}

func rate(bytesPerSecond float64) string {
	if bytesPerSecond >= 1e9 {
		return fmt.Sprintf("%.2f GB/s", bytesPerSecond/1e9)
	}
	return fmt.Sprintf("%.3g MB/s", bytesPerSecond/1e6)
}

// seconds is a duration with two or three digits that mean something.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	for unit := time.Second; unit > time.Nanosecond; unit /= 10 {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}
