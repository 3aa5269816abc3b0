package reply

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/spare"
)

// place is where in an answer an object stands: which of its members mean something depends on it.
type place uint8

const (
	top     place = iota // the whole answer or event
	nested               // "response" of a responses event, "message" of message_start
	usage                // "usage"
	details              // "prompt_tokens_details", "input_tokens_details"
	delta                // "delta" of message_delta
	choice               // one of "choices"
)

// splice replaces the bytes from..to of an answer.
type splice struct {
	from, to int
	with     string
}

// walker reads one JSON answer from front to back and notes what to change in it. It never looks into model text.
type walker struct {
	dec     *jsontext.Decoder // while walk runs
	text    []byte
	hide    bool   // cached-token details must not leave
	model   string // quoted; written over the model's name; "" to leave it
	choices bool   // look for finish reasons

	splices []splice
	found   found
	room    [4]splice     // for splices: most answers have no more
	out     *spare.Buffer // what edited made last lies in it
}

// found is what an answer says that is not for the caller.
type found struct {
	usageAt   span // the last usage object
	tokens    tokens
	noChoices bool   // "choices": []
	failed    bool   // an "error" that is not null, at the top
	aborted   bool   // a finish_reason "abort", or a response that was cancelled or failed
	cut       bool   // a response that is incomplete: of its length, or of an abort before its first token
	kind      string // "type" at the top
	stopped   bool   // a "stop_reason" that is not null: without it Anthropic's form tells of an abort
	modelAt   span   // the value of the first "model" that was found
}

// tokens are what hiding Anthropic's cached tokens needs. Usage itself is read by vllm.ReadUsage.
type tokens struct {
	input         int64 // input_tokens: what was neither cached nor is cached now
	read, created int64 // cache_read_input_tokens, cache_creation_input_tokens
	inputAt       span
}

type span struct{ from, to int }

func (s span) empty() bool { return s.to == 0 }

// Duplicate names need no refusal here: each of them is edited. Bytes that are not UTF-8 pass as they came.
var lenient = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

var errTrailing = errors.New("bytes after the JSON value")

// walk reads the whole text: one JSON value and nothing after it.
func (w *walker) walk(text []byte) error {
	w.text, w.splices, w.found = text, w.splices[:0], found{}
	if w.splices == nil {
		w.splices = w.room[:0]
	}
	r := spare.Decode(text, lenient...)
	w.dec = &r.Decoder
	defer func() {
		r.GiveBack()
		w.dec = nil
	}()
	var err error
	if w.dec.PeekKind() == '{' {
		err = w.object(top)
	} else {
		err = w.dec.SkipValue()
	}
	if err != nil {
		return fmt.Errorf("reading the upstream's JSON: %w", err)
	}
	if _, err := w.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errTrailing
	}
	return nil
}

// object reads one object, of which place says what its members mean.
func (w *walker) object(p place) error {
	if _, err := w.dec.ReadToken(); err != nil {
		return err
	}
	kept := false
	for first := true; w.dec.PeekKind() != '}'; first = false {
		begin := int(w.dec.InputOffset())
		name, err := w.dec.ReadValue()
		if err != nil {
			return err
		}
		if p == top && string(name) == `"system_fingerprint"` {
			// vllm-<version>-<layout>-<hash>: it discloses the release (entrypoints/serve/utils/fingerprint.py)
			if err := w.dec.SkipValue(); err != nil {
				return err
			}
			w.splices = append(w.splices, splice{begin, int(w.dec.InputOffset()), ""})
			continue
		}
		if !kept && !first { // what was taken out in front left a comma behind
			at := begin + bytes.IndexByte(w.text[begin:], ',')
			w.splices = append(w.splices, splice{at, at + 1, ""})
		}
		kept = true
		if err := w.member(p, name); err != nil {
			return err
		}
	}
	_, err := w.dec.ReadToken()
	return err
}

// member reads the value of one member.
func (w *walker) member(p place, name []byte) error {
	kind := w.dec.PeekKind()
	if in, ok := w.inside(p, name, kind); ok {
		if in == choice {
			return w.choicesOf()
		}
		return w.enter(in)
	}
	value, err := w.dec.ReadValue()
	if err != nil {
		return err
	}
	end := int(w.dec.InputOffset())
	at := span{end - len(value), end}
	switch p {
	case top, nested:
		w.header(p, name, value, at)
	case usage:
		w.count(name, value, at)
	case details:
		w.detail(name, value, at)
	case delta:
		if string(name) == `"stop_reason"` {
			w.found.stopped = kind != 'n'
		}
	case choice:
		if string(name) == `"finish_reason"` && string(value) == `"abort"` {
			w.found.aborted = true
		}
	}
	return nil
}

// inside says whether the member is an object that has to be entered, and as what.
func (w *walker) inside(p place, name []byte, kind jsontext.Kind) (place, bool) {
	if kind == '[' {
		return choice, p == top && string(name) == `"choices"`
	}
	if kind != '{' {
		return 0, false
	}
	switch string(name) {
	case `"usage"`:
		return usage, p == top || p == nested
	case `"response"`, `"message"`:
		return nested, p == top
	case `"delta"`:
		return delta, p == top
	case `"prompt_tokens_details"`, `"input_tokens_details"`:
		return details, p == usage
	}
	return 0, false
}

func (w *walker) enter(p place) error {
	if p != usage {
		return w.object(p)
	}
	w.found.tokens = tokens{}
	begin := int(w.dec.InputOffset())
	begin += bytes.IndexByte(w.text[begin:], '{')
	if err := w.object(usage); err != nil {
		return err
	}
	w.found.usageAt = span{begin, int(w.dec.InputOffset())}
	if t := w.found.tokens; w.hide && !t.inputAt.empty() && t.read+t.created > 0 {
		// input_tokens leaves the cached ones out, so the sum has to be written: the difference would tell
		sum := strconv.FormatInt(t.input+t.read+t.created, 10)
		w.splices = append(w.splices, splice{t.inputAt.from, t.inputAt.to, sum})
	}
	return nil
}

// choicesOf reads "choices", entering its elements only when a finish reason is looked for.
func (w *walker) choicesOf() error {
	if _, err := w.dec.ReadToken(); err != nil {
		return err
	}
	w.found.noChoices = w.dec.PeekKind() == ']'
	for w.dec.PeekKind() != ']' {
		var err error
		if w.choices && w.dec.PeekKind() == '{' {
			err = w.object(choice)
		} else {
			err = w.dec.SkipValue()
		}
		if err != nil {
			return err
		}
	}
	_, err := w.dec.ReadToken()
	return err
}

// header notes a member of the answer itself, or of the response or message in an event.
func (w *walker) header(p place, name, value []byte, at span) {
	switch string(name) {
	case `"model"`:
		if value[0] != '"' {
			return
		}
		if w.found.modelAt.empty() {
			w.found.modelAt = at
		}
		if w.model != "" {
			w.splices = append(w.splices, splice{at.from, at.to, w.model})
		}
	case `"type"`:
		if p == top {
			w.found.kind = unquoted(value)
		}
	case `"status"`:
		// entrypoints/openai/responses/serving.py, responses_full_generator: an abort is "cancelled" for harmony models,
		// "completed" for all others, which nothing tells from success
		w.found.aborted = w.found.aborted || string(value) == `"cancelled"` || string(value) == `"failed"`
		w.found.cut = string(value) == `"incomplete"`
	case `"error"`:
		if p == top && value[0] != 'n' {
			w.found.failed = true
		}
	case `"stop_reason"`:
		w.found.stopped = value[0] != 'n'
	case `"kv_transfer_params"`, `"ec_transfer_params"`:
		// with a connector these are the engine's addresses and block ids (CVE-2026-94622), for a router of vLLM's own
		if value[0] != 'n' {
			w.splices = append(w.splices, splice{at.from, at.to, "null"})
		}
	}
}

// count notes a number of a usage object.
func (w *walker) count(name, value []byte, at span) {
	t := &w.found.tokens
	switch string(name) {
	case `"input_tokens"`:
		t.input, t.inputAt = integer(value), at
	case `"cache_read_input_tokens"`:
		t.read = integer(value)
		w.zero(value, at)
	case `"cache_creation_input_tokens"`:
		t.created = integer(value)
		w.zero(value, at)
	}
}

// detail notes a number of the details of the prompt's tokens. What is hidden becomes 0 or [], never absent: official
// clients' types require cached_tokens where OpenAI always sends it.
func (w *walker) detail(name, value []byte, at span) {
	switch string(name) {
	case `"cached_tokens"`, `"cache_write_tokens"`, `"created_cache_tokens"`:
		w.zero(value, at)
	case `"cached_tokens_per_turn"`:
		if w.hide && value[0] == '[' {
			w.splices = append(w.splices, splice{at.from, at.to, "[]"})
		}
	}
}

func (w *walker) zero(value []byte, at span) {
	if w.hide && value[0] != 'n' && string(value) != "0" {
		w.splices = append(w.splices, splice{at.from, at.to, "0"})
	}
}

// free lets another answer have the memory of what edited made.
func (w *walker) free() {
	w.out.GiveBack()
	w.out = nil
}

// edited is the text with the splices made, valid until the next one is or until free; the text itself when there are none.
func (w *walker) edited() []byte {
	if len(w.splices) == 0 {
		return w.text
	}
	slices.SortFunc(w.splices, func(a, b splice) int { return a.from - b.from })
	if most := len(w.text) + 64; w.out == nil || cap(w.out.B) < most {
		w.free()
		w.out = spare.Borrow(most)
	}
	out := w.out.B[:0]
	end := 0
	for _, s := range w.splices {
		out = append(out, w.text[end:s.from]...)
		out = append(out, s.with...)
		end = s.to
	}
	w.out.B = append(out, w.text[end:]...)
	return w.out.B
}

// integer is a JSON number as vLLM writes counts; anything else, or less than nothing, is 0.
func integer(value []byte) int64 {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil || n < 0 || n > maxTokens {
		return 0
	}
	return n
}

// maxTokens bounds what an upstream may claim, far from overflow.
const maxTokens = 1 << 50

func unquoted(value []byte) string {
	s, err := jsontext.AppendUnquote(nil, value)
	if err != nil {
		return ""
	}
	return string(s)
}
