package inspect

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/inspect/media"
	"github.com/vallum/vallum/internal/inspect/scan"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// maxNoted bounds the pointers that Facts carries.
const maxNoted = 32

// outputCap is a field that limits the output, as it stands in the body.
type outputCap struct {
	field string
	value int64
	end   int // the index after the value, which finds its member
}

// capFields are the names of output caps, the one first that vLLM obeys when several stand.
var capFields = []string{"max_completion_tokens", "max_tokens", "max_output_tokens"}

// note remembers a pointer, within bounds.
func note(list *[]string, pointer string) {
	if len(*list) == maxNoted {
		pointer = "…"
	}
	if len(*list) <= maxNoted {
		*list = append(*list, pointer)
	}
}

// str reads a string.
func (w *walker) str(s *vllm.Shape, fact vllm.Fact) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	if s.DataURL {
		w.facts.Media++
	}
	switch most := s.MaxLen; {
	case most > 0 && int64(len(raw)-2) > most && int64(len(scan.Unquoted(raw))) > most:
		return w.wrong(raw, fmt.Sprintf("must have %d bytes at most", most))
	case len(s.Enum) > 0 && !slices.Contains(s.Enum, string(scan.Unquoted(raw))):
		return w.wrong(raw, "must be "+s.Wanted())
	case s.DataURL && !isDataURL(raw):
		return forbidden(dataURL, w.pointer(), int(w.dec.InputOffset())-len(raw))
	case s.Medium != "":
		w.medium(s, raw)
	case fact == vllm.FactModel:
		w.facts.Model = string(scan.Unquoted(raw))
	}
	return nil
}

// medium notes a file that is none of its medium's usual kinds.
func (w *walker) medium(s *vllm.Shape, raw jsontext.Value) {
	text := raw[1 : len(raw)-1]
	if bytes.IndexByte(text[:min(len(text), 1<<10)], '\\') >= 0 { // as PHP writes slashes
		text = scan.Unquoted(raw)
	}
	file := media.Base64(text)
	if s.DataURL {
		file = media.DataURL(text)
	}
	if !media.Known(s.Medium, file) {
		w.facts.Endanger(s.Medium.Strange(), w.pointer())
	}
}

// dataURL is the refusal of media that vLLM would have to fetch: from wherever the caller points it to.
var dataURL = &vllm.Field{Action: vllm.Refuse, Why: "media must be a data: URL; nothing is fetched"}

// isDataURL wants the scheme at the very first byte: Python's urllib strips spaces and control characters before it.
func isDataURL(raw jsontext.Value) bool {
	const scheme = "data:"
	text := []byte(raw[1 : len(raw)-1])
	if bytes.IndexByte(text[:min(len(text), 6*len(scheme))], '\\') >= 0 {
		text = scan.Unquoted(raw)
	}
	return len(text) >= len(scheme) && strings.EqualFold(string(text[:len(scheme)]), scheme)
}

// number reads an Integer or a Number; an integer written as N.0 goes up as N.
func (w *walker) number(s *vllm.Shape, fact vllm.Fact) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	value, digits, ok := checkInteger(s, raw)
	if s.Kind == vllm.Number {
		digits, ok = raw, checkNumber(s, raw)
	}
	if !ok {
		return w.wrong(raw, "must be "+s.Wanted())
	}
	if end := int(w.dec.InputOffset()); len(digits) < len(raw) {
		w.cuts = append(w.cuts, Change{From: end - len(raw) + len(digits), To: end, Why: "integer"})
	}
	switch fact {
	case vllm.FactChoices:
		w.facts.Choices = max(w.facts.Choices, value) // of n and best_of
	case vllm.FactOutputCap:
		w.caps = append(w.caps, outputCap{value: value})
	}
	return nil
}

// boolean reads true or false.
func (w *walker) boolean(fact vllm.Fact) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	switch on := raw[0] == 't'; fact {
	case vllm.FactStream:
		w.facts.Stream = on
	case vllm.FactIncludeUsage:
		w.facts.Usage = on
	}
	return nil
}

// settle completes the facts when the whole body was read.
func (w *walker) settle(shape *vllm.Shape) {
	f := &w.facts
	f.Inputs, f.Shared = max(w.counts[vllm.FactInputs]+w.counts[vllm.FactQueries], 1), w.sizes[vllm.FactQueries]+w.sizes[vllm.FactShared]
	f.Audio, f.Media = w.counts[vllm.FactAudio] > 0, f.Media+w.counts[vllm.FactAudio]+w.counts[vllm.FactMedia]
	f.BodyBytes, f.Choices = int64(len(w.body)), max(f.Choices, 1)
	has := func(name string) bool {
		field := shape.Fields[name]
		return field != nil && (field.Action == vllm.Pass || field.Action == vllm.Write)
	}
	f.Hazards = slices.DeleteFunc(f.Hazards, func(h policy.Hazard) bool { return !w.says(h.Field.Affected.With) })
	f.HasSalt, f.HasOptions, f.HasUsage, f.HasStore = has("cache_salt"), has("stream_options"), has("stream_include_usage"), has("store")
	if len(w.caps) > 0 {
		w.settleCaps()
		return
	}
	if i := slices.IndexFunc(capFields, func(name string) bool { return has(name) && shape.Fields[name].Fact == vllm.FactOutputCap }); i >= 0 {
		f.CapField = capFields[i]
	}
}

// says reports whether a field of the body says anything but 0; "" always does.
func (w *walker) says(name string) bool {
	return name == "" || slices.ContainsFunc(w.top, func(m member) bool {
		return m.why == "" && w.isNamed(m, name) && !isDefault(w.body[m.value:m.end], []string{"0"})
	})
}

// settleCaps makes the smallest of several output caps hold for all: vLLM obeys max_completion_tokens although
// max_tokens may be smaller, and what is counted must be what can happen.
func (w *walker) settleCaps() {
	w.facts.OutputCap, w.facts.CapField = w.caps[0].value, w.caps[0].field
	for _, c := range w.caps[1:] {
		w.facts.OutputCap = min(w.facts.OutputCap, c.value)
		if slices.Index(capFields, c.field) < slices.Index(capFields, w.facts.CapField) {
			w.facts.CapField = c.field
		}
	}
	for _, c := range w.caps {
		i := slices.IndexFunc(w.top, func(m member) bool { return m.end == c.end })
		if i >= 0 && c.value > w.facts.OutputCap {
			w.top[i].with, w.top[i].why = strconv.FormatInt(w.facts.OutputCap, 10), "smallest cap"
		}
	}
}
