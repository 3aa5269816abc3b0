package inspect

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// refusal carries a Verdict up the walk as an error.
type refusal struct{ v verdict.Verdict }

func (r *refusal) Error() string { return r.v.Err().Error() }

// asVerdict is the way back. An error that is no refusal is a defect, and refuses.
func asVerdict(err error) verdict.Verdict {
	var r *refusal
	if errors.As(err, &r) {
		return r.v
	}
	return verdict.Refuse(verdict.InternalError, err)
}

func refuse(r verdict.Reason, cause error) error { return &refusal{verdict.Refuse(r, cause)} }

// badBody refuses with bad_body. what is a clause of our words, catalogue names and numbers that says what would be right.
func badBody(pointer string, at int, what string) error {
	return &refusal{verdict.Refuse(verdict.BadBody, fmt.Errorf("byte %d, %q: %s", at, pointer, what)).At(pointer).Saying("%s", where(pointer, at, what))}
}

// where puts position and pointer before a clause. The pointer is the caller's own, bounded and printable.
func where(pointer string, at int, what string) string {
	if pointer == "" {
		return fmt.Sprintf("At byte %d: %s.", at, what)
	}
	return fmt.Sprintf("At byte %d, %q: %s.", at, pointer, what)
}

// forbidden refuses a field that the table refuses, with the table's own reason and sentence.
func forbidden(f *vllm.Field, pointer string, at int) error {
	reason := verdict.ForbiddenParameter
	if f.Reason != "" {
		var ok bool
		if reason, ok = verdict.ReasonOf(f.Reason); !ok {
			return refuse(verdict.InternalError, fmt.Errorf("field %q: no reason %q", f.Name, f.Reason))
		}
	}
	what := strings.TrimSuffix(f.Why, ".")
	if what == "" {
		what = "this value is not accepted"
	}
	if len(f.Equal) > 0 {
		what += " (accepted: absent, null, " + strings.Join(f.Equal, ", ") + ")"
	}
	return &refusal{verdict.Refuse(reason, fmt.Errorf("byte %d, %q: %s", at, pointer, what)).At(pointer).Saying("%s", where(pointer, at, what))}
}

// badSyntax translates the decoder's errors: its own texts quote the caller's bytes.
func badSyntax(body []byte, err error) error {
	var s *jsontext.SyntacticError
	if !errors.As(err, &s) {
		return badBody("", len(body), "the JSON ends too early")
	}
	at := min(int(s.ByteOffset), len(body))
	return badBody(printable(string(s.JSONPointer)), at, syntaxFault(body, at, s))
}

func syntaxFault(body []byte, at int, s *jsontext.SyntacticError) string {
	switch {
	case errors.Is(s, jsontext.ErrDuplicateName):
		return "this member name stands twice in its object"
	case errors.Is(s, jsontext.ErrNonStringName):
		return "a member name must be a string"
	case at >= len(body):
		return "the JSON ends too early"
	case body[at] == '\\':
		return "not a valid escape sequence, or half of a surrogate pair"
	case body[at] >= 0x80:
		return "not valid UTF-8"
	case body[at] < ' ':
		return "a control character stands unescaped"
	case body[at] == 'N', body[at] == 'I', body[at] == '-':
		return "not a JSON number: NaN and Infinity are not accepted"
	}
	return "not strict JSON"
}

const maxPointer = 128 // bytes of a pointer in facts and messages

// printable bounds a JSON pointer and replaces what a header or a log line could stumble over: the names in it are
// the caller's.
func printable(pointer string) string {
	if len(pointer) > maxPointer {
		pointer = pointer[:maxPointer-len("…")] + "…"
	}
	clean := true
	for i := 0; i < len(pointer); i++ {
		clean = clean && pointer[i] > ' ' && pointer[i] < 0x7f
	}
	if clean {
		return pointer
	}
	return strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f || r == '…' {
			return r
		}
		return '?'
	}, pointer)
}
