package inspect

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// maxModel bounds a model's name when its table does not: names go into the record.
const maxModel = 1024

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
	switch n := len(*list); {
	case n < maxNoted:
		*list = append(*list, pointer)
	case n == maxNoted:
		*list = append(*list, "…")
	}
}

// str reads a string.
func (w *walker) str(s *vllm.Shape, fact vllm.Fact) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	if fault := checkString(s, raw); fault != "" {
		return w.wrong(raw, fault)
	}
	if s.DataURL && !isDataURL(raw) {
		return forbidden(dataURL, w.pointer(), int(w.dec.InputOffset())-len(raw))
	}
	w.learnInput(fact)
	if fact != vllm.FactModel {
		return nil
	}
	if len(raw) > maxModel {
		return w.wrong(raw, "must have "+strconv.Itoa(maxModel)+" bytes at most")
	}
	w.facts.Model = string(unquoted(raw))
	return nil
}

// dataURL is the refusal of media that vLLM would have to fetch: from wherever the caller points it to.
var dataURL = &vllm.Field{Action: vllm.Refuse, Why: "media must be a data: URL; nothing is fetched"}

// isDataURL wants the scheme at the very first byte: Python's urllib strips spaces and control characters before it.
func isDataURL(raw jsontext.Value) bool {
	const scheme = "data:"
	text := []byte(raw[1 : len(raw)-1])
	if bytes.IndexByte(text[:min(len(text), 6*len(scheme))], '\\') >= 0 {
		text = unquoted(raw)
	}
	return len(text) >= len(scheme) && strings.EqualFold(string(text[:len(scheme)]), scheme)
}

// checkString says what is wrong with a string literal, or "".
func checkString(s *vllm.Shape, raw jsontext.Value) string {
	if s.MaxLen > 0 && int64(len(raw)-2) > s.MaxLen && int64(len(unquoted(raw))) > s.MaxLen {
		return "must have " + strconv.FormatInt(s.MaxLen, 10) + " bytes at most"
	}
	if len(s.Enum) > 0 && !slices.Contains(s.Enum, string(unquoted(raw))) {
		return "must be " + wantedString(s)
	}
	return ""
}

// number reads an Integer or a Number; an integer written as N.0 goes up as N.
func (w *walker) number(s *vllm.Shape, fact vllm.Fact) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	if s.Kind == vllm.Number {
		w.learnInput(fact)
		if !checkNumber(s, raw) {
			return w.wrong(raw, "must be "+wanted(s))
		}
		return nil
	}
	value, digits, ok := checkInteger(s, raw)
	if !ok {
		return w.wrong(raw, "must be "+wanted(s))
	}
	if end := int(w.dec.InputOffset()); len(digits) < len(raw) {
		w.cuts = append(w.cuts, Change{From: end - len(raw) + len(digits), To: end, Why: "integer"})
	}
	w.learnInteger(value, fact)
	return nil
}

func (w *walker) learnInteger(value int64, fact vllm.Fact) {
	switch fact {
	case vllm.FactChoices:
		w.facts.Choices = value
	case vllm.FactOutputCap:
		w.caps = append(w.caps, outputCap{value: value})
	case vllm.FactInputs:
		w.inputs++
	}
}

// boolean reads true or false.
func (w *walker) boolean(fact vllm.Fact) error {
	raw, err := w.skip()
	if err != nil {
		return err
	}
	learnBoolean(&w.facts, raw[0] == 't', fact)
	return nil
}

func learnBoolean(f *policy.Facts, on bool, fact vllm.Fact) {
	switch fact {
	case vllm.FactStream:
		f.Stream = on
	case vllm.FactIncludeUsage:
		f.Usage = on
	case vllm.FactContinuous:
		f.Continuous = on
	}
}

// learnInput counts a value that is one input by itself.
func (w *walker) learnInput(fact vllm.Fact) {
	if fact == vllm.FactInputs {
		w.inputs++
	}
}

// settle completes the facts when the whole body was read.
func (w *walker) settle(shape *vllm.Shape) {
	f := &w.facts
	f.BodyBytes = int64(len(w.body))
	f.Inputs = max(w.inputs, 1)
	f.Choices = max(f.Choices, 1)
	describe(f, shape)
	w.settleCaps()
}

// settleCaps makes the smallest of several output caps hold for all: vLLM obeys max_completion_tokens although
// max_tokens may be smaller, and what is counted must be what can happen.
func (w *walker) settleCaps() {
	if len(w.caps) == 0 {
		return
	}
	least := slices.MinFunc(w.caps, func(a, b outputCap) int { return cmp.Compare(a.value, b.value) }).value
	w.facts.OutputCap = least
	w.facts.CapField = ""
	for _, c := range w.caps {
		if w.facts.CapField == "" || rank(c.field) < rank(w.facts.CapField) {
			w.facts.CapField = c.field
		}
		if c.value == least {
			continue
		}
		for i := range w.top {
			if w.top[i].end == c.end {
				w.top[i].with, w.top[i].why = strconv.FormatInt(least, 10), "smallest cap"
			}
		}
	}
}

// rank orders the names of caps; a name that is not known comes last.
func rank(field string) int {
	if i := slices.Index(capFields, field); i >= 0 {
		return i
	}
	return len(capFields)
}

// describe adds what the table says, whatever the request is.
func describe(f *policy.Facts, shape *vllm.Shape) {
	has := func(name string) bool {
		field := shape.Fields[name]
		return field != nil && (field.Action == vllm.Pass || field.Action == vllm.Write)
	}
	f.HasSalt, f.HasOptions, f.HasStore = has("cache_salt"), has("stream_options"), has("store")
	for _, name := range capFields {
		if f.CapField == "" && has(name) && shape.Fields[name].Fact == vllm.FactOutputCap {
			f.CapField = name
		}
	}
}
