package inspect

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// refusal is a Verdict on its way up the walk.
type refusal struct {
	reason verdict.Reason
	cause  error  // for the operator; nil when what says it all
	param  string // a JSON pointer, or a header's name
	at     int    // the position in bytes; -1 for none
	what   string // for the caller: our words, catalogue names and numbers, saying what would be right; "" for nothing
}

func (r *refusal) Error() string { return r.verdict().Err().Error() }

func (r *refusal) verdict() verdict.Verdict {
	where := r.what
	if r.param != "" {
		where = fmt.Sprintf("%q: %s", r.param, where)
	}
	if r.at >= 0 {
		where = fmt.Sprintf("At byte %d: %s", r.at, where)
	}
	if r.what == "" {
		return verdict.Refuse(r.reason, r.cause).At(r.param)
	}
	if r.cause == nil {
		r.cause = errors.New(where)
	}
	return verdict.Refuse(r.reason, r.cause).At(r.param).Saying("%s.", where)
}

// asVerdict is what Read answers. An error that is no refusal is a defect, and refuses.
func asVerdict(err error) verdict.Verdict {
	var r *refusal
	if errors.As(err, &r) {
		return r.verdict()
	}
	return verdict.Refuse(verdict.InternalError, err)
}

func refuse(r verdict.Reason, cause error) error { return &refusal{reason: r, cause: cause, at: -1} }

func badBody(pointer string, at int, what string) error {
	return &refusal{reason: verdict.BadBody, param: pointer, at: at, what: what}
}

// forbidden refuses a field that the table refuses, with the table's own reason and sentence.
func forbidden(f *vllm.Field, pointer string, at int) error {
	r := &refusal{reason: verdict.ForbiddenParameter, param: pointer, at: at, what: strings.TrimSuffix(f.Why, ".")}
	if f.Reason != "" {
		var ok bool
		if r.reason, ok = verdict.ReasonOf(f.Reason); !ok {
			return fmt.Errorf("field %q: the table names a reason %q that does not exist", f.Name, f.Reason)
		}
	}
	if len(f.Equal) > 0 {
		r.what += " (accepted: absent, null, " + strings.Join(f.Equal, ", ") + ")"
	}
	return r
}

// badSyntax translates the decoder's errors: its own texts quote the caller's bytes.
func badSyntax(body []byte, err error) error {
	var s *jsontext.SyntacticError
	if !errors.As(err, &s) {
		return badBody("", len(body), "the JSON ends too early")
	}
	at := min(int(s.ByteOffset), len(body))
	what := "not strict JSON"
	switch {
	case errors.Is(s, jsontext.ErrDuplicateName):
		what = "this member name stands twice in its object"
	case at == len(body):
		what = "the JSON ends too early"
	case body[at] == '\\':
		what = "not a valid escape sequence, or half of a surrogate pair"
	case body[at] >= 0x80 || body[at] == 0: // Python would detect UTF-16 and UTF-32, with a byte order mark or by the zeros
		what = "not plain UTF-8"
	case body[at] < ' ':
		what = "a control character stands unescaped"
	case body[at] == 'N', body[at] == 'I', body[at] == '-':
		what = "not a JSON number: NaN and Infinity are not accepted"
	}
	return badBody(printable(string(s.JSONPointer)), at, what)
}

const maxPointer = 128 // bytes of a pointer in facts and messages

// printable bounds a JSON pointer and replaces what a header or a log line could stumble over: the names in it are
// the caller's.
func printable(pointer string) string {
	if len(pointer) > maxPointer {
		pointer = pointer[:maxPointer-len("…")] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f || r == '…' {
			return r
		}
		return '?'
	}, pointer)
}
