package reply

import (
	"bytes"
	"errors"
	"strings"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// event is one server-sent event, taken apart.
type event struct {
	name   []byte // of its "event:" line
	data   []byte // its data; several lines joined by a space, which in JSON means the same as the line end
	prefix []byte // what stands before the one data line, byte for byte
	suffix []byte // what stands after it
	isData bool   // it has a data line
	isOdd  bool   // it has a line that is no field of an event
}

// Event rewrites one event, given with its blank line: byte for byte unless something in it must not leave. It returns
// nil for the usage chunk that only we asked for; what it gave is valid until the next call. After an error nothing
// leaves any more that would look like a success: what still comes is counted.
func (r *Reply) Event(raw []byte) []byte {
	failed, ended := r.failed, r.ended
	out := r.event(raw)
	if failed {
		r.ended = ended
		return nil
	}
	return out
}

func (r *Reply) event(raw []byte) []byte {
	e := parse(raw)
	if e.isOdd {
		return r.garbage(errors.New("a line is neither a field of an event nor a comment"))
	}
	if !e.isData {
		return raw // comments are keep-alives
	}
	r.events++
	if bytes.Equal(e.data, doneData) {
		r.ended = true
		return raw
	}
	if len(e.data) == 0 || e.data[0] != '{' {
		return r.garbage(errors.New("an event's data is not a JSON object"))
	}
	r.observe(e)
	if out, ok := r.quick(e); ok {
		if out == nil {
			return raw
		}
		return out
	}
	return r.slow(raw, e)
}

var doneData = []byte("[DONE]")

// observe counts what has text in it.
func (r *Reply) observe(e event) {
	if r.dialect() == vllm.OpenAI || bytes.HasSuffix(e.name, []byte(".delta")) || string(e.name) == "content_block_delta" {
		r.content++
		r.pace.Event(e.data)
	}
}

// keptLine is up to what size an event's memory is the next one's: less than any writer writes without a copy of its own,
// so that nobody still has it.
const keptLine = 2 << 10

// quick passes the events that hold nothing of interest, and those whose model's name stands where it stood in the
// first one: bytes that begin alike are read alike. A nil result means that the event passes as it is.
func (r *Reply) quick(e event) ([]byte, bool) {
	rest := e.data
	known := len(r.head) > 0 && bytes.HasPrefix(e.data, r.head)
	if known {
		rest = e.data[len(r.head):]
	}
	if r.interesting(e, rest) {
		return nil, false
	}
	if !known || r.walk.model == "" {
		return nil, true
	}
	out := append(append(append(append(r.line[:0], e.prefix...), r.headOut...), rest...), e.suffix...)
	if r.line = out; cap(out) > keptLine {
		r.line = nil
	}
	return out, true
}

// interesting reports whether the event has to be read. The dialects' last events always are.
func (r *Reply) interesting(e event, rest []byte) bool {
	switch r.dialect() {
	case vllm.Anthropic:
		if !bytes.HasPrefix(e.name, []byte("content_block")) && !bytes.Equal(e.name, []byte("ping")) {
			return true
		}
	case vllm.Responses:
		if !bytes.Contains(e.name, []byte(".delta")) {
			return true
		}
	}
	if r.walk.model != "" && bytes.Contains(rest, modelName) {
		return true
	}
	return bytes.Contains(rest, usageName) || bytes.Contains(rest, fingerprint) || bytes.Contains(rest, errorName) ||
		bytes.Contains(rest, abort) || bytes.Contains(rest, transferName)
}

// slow reads the event's JSON and makes the splices.
func (r *Reply) slow(raw []byte, e event) []byte {
	r.walk.choices = bytes.Contains(e.data, abort)
	if err := r.walk.walk(e.data); err != nil {
		return r.garbage(err)
	}
	f := &r.walk.found
	if f.kind == "error" || f.kind == "response.failed" || f.failed {
		return r.failure(raw, e.data)
	}
	r.aborted = r.aborted || f.aborted
	r.count(e.data)
	switch r.dialect() {
	case vllm.Anthropic:
		if f.kind == "message_delta" {
			// vLLM has no stop_reason for an abort (entrypoints/anthropic/serving.py, _to_anthropic_stop_reason)
			r.final, r.aborted = r.final || !f.usageAt.empty(), r.aborted || !f.stopped
		}
		r.ended = r.ended || f.kind == "message_stop"
	case vllm.Responses:
		// response.incomplete is the last event of one that was cut from 0.33.0 on; before it is response.completed
		if f.kind == "response.completed" || f.kind == "response.incomplete" {
			r.ended, r.final = true, !f.usageAt.empty()
			r.aborted = r.aborted || r.nothing()
		}
	default:
		if f.noChoices && !f.usageAt.empty() {
			r.final, r.content, r.pace = true, r.content-1, vllm.Pace{} // no estimate is needed any more
			if r.options.InjectedUsage {
				return nil
			}
		}
		r.remember(e)
	}
	if len(r.walk.splices) == 0 {
		return raw
	}
	out := append(make([]byte, 0, len(raw)+64), e.prefix...)
	out = append(append(out, r.walk.edited()...), e.suffix...)
	r.walk.free() // few events come here, and a stream may run for an hour
	return out
}

// remember keeps how the events of this stream begin. All of vLLM's chunks of one answer have the same id, time and
// model in front of what differs.
func (r *Reply) remember(e event) {
	at := r.walk.found.modelAt
	if r.walk.model == "" || at.empty() || len(r.head) > 0 {
		return
	}
	if front := e.data[:at.from]; bytes.Contains(front, fingerprint) || bytes.Contains(front, usageName) {
		return // more than the name has to be looked at
	}
	r.head = bytes.Clone(e.data[:at.to])
	r.headOut = append(bytes.Clone(e.data[:at.from]), r.walk.model...)
}

// failure replaces an error event of the upstream by ours: its text is the upstream's, with paths and addresses.
func (r *Reply) failure(raw, data []byte) []byte {
	r.failed = true
	said := upstreamError(data)
	r.said = bounded(said.message)
	if r.options.PassErrors {
		return raw
	}
	status := said.status
	if status == 0 {
		status = 500
	}
	return errorEvent(r.dialect(), r.classify(status, said), r.events-1)
}

// garbage takes the place of an event that cannot be read.
func (r *Reply) garbage(cause error) []byte {
	r.failed = true
	r.said = "unreadable event: " + bounded(cause.Error())
	return errorEvent(r.dialect(), verdict.Refuse(verdict.UpstreamFailed, cause), r.events-1)
}

// Finish says how the connection ended and returns what ends the stream in its dialect; nil when it has its end, or
// when nobody is left to read it.
func (r *Reply) Finish(cause verdict.Ended) []byte {
	r.closed, r.cause = true, cause
	if r.ended || cause == verdict.ClientLeft || r.dialect() == vllm.Anthropic && r.failed {
		return nil
	}
	if r.failed { // the error event left already
		if r.dialect() == vllm.OpenAI {
			return []byte(done)
		}
		return nil
	}
	return endEvent(r.dialect(), verdict.Refuse(cause.Reason(), nil), r.events)
}

// parse takes an event apart. Line ends are CRLF, LF or CR (WHATWG HTML §9.2.6).
func parse(raw []byte) event {
	var e event
	lines := 0
	for rest := raw; len(rest) > 0; {
		line, next := cutLine(rest)
		begin := len(raw) - len(rest)
		switch {
		case bytes.HasPrefix(line, []byte("data:")):
			value := bytes.TrimPrefix(line[len("data:"):], []byte(" "))
			end := begin + len(line)
			if lines++; lines == 1 {
				e.isData, e.data = true, value
				e.prefix, e.suffix = raw[:end-len(value)], raw[end:]
				break
			}
			// Rare, never vLLM: the lines become one. Within a JSON string there is no raw line end.
			e.data = append(append(bytes.Clone(e.data), ' '), value...)
			e.suffix = []byte("\n\n")
		case bytes.HasPrefix(line, []byte("event:")):
			e.name = bytes.TrimPrefix(line[len("event:"):], []byte(" "))
		case len(line) > 0 && line[0] != ':' && !bytes.HasPrefix(line, []byte("id:")) && !bytes.HasPrefix(line, []byte("retry:")):
			e.isOdd = true
		}
		rest = next
	}
	return e
}

// cutLine gives the first line without its end, and what follows it.
func cutLine(b []byte) (line, rest []byte) {
	end, after := bytes.IndexByte(b, '\n'), 1
	if end < 0 {
		end, after = len(b), 0
	}
	if i := bytes.IndexByte(b[:end], '\r'); i >= 0 {
		if i+1 < end || after == 0 { // a CR alone
			return b[:i], b[i+1:]
		}
		return b[:i], b[end+1:]
	}
	return b[:end], b[end+after:]
}

func bounded(s string) string {
	const most = 2 << 10
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}
