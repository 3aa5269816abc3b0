package inspect

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/vllm"
)

// tag is the member that chose the shape of the object that is being read. It is read ahead from bytes that are not
// yet checked, so it is compared again when the walk comes to it.
type tag struct {
	name  string // "" for none
	value []byte // its text; nil when absent or null
}

// lookAhead finds the text of a string member in the object at b[0]; nil when it is absent or no string, which the walk
// refuses when it comes to it. It must not fail on anything, as nothing has been checked yet; what it finds in what is
// not JSON is never used.
func lookAhead(b []byte, name string) []byte {
	for i, depth := 0, 0; i < len(b); {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return nil
			}
		case '"':
			end := skipString(b, i)
			rest := bytes.TrimLeft(b[end:], " \t\r\n")
			if depth > 1 || len(rest) == 0 || rest[0] != ':' || string(unquoted(b[i:end])) != name {
				i = end
				continue
			}
			if rest = rest[skipSpace(rest, 0):]; len(rest) == 0 || rest[0] != '"' {
				return nil
			}
			return unquoted(rest[:skipString(rest, 0)])
		}
		i++
	}
	return nil
}

// skipSpace is the index after white space and separators.
func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n' || b[i] == ',' || b[i] == ':') {
		i++
	}
	return i
}

// variant is the row for a tag; nil when the table has none. An empty tag is not an absent one.
func variant(s *vllm.Shape, value []byte) *vllm.Field {
	if value == nil {
		return s.Variants[""]
	}
	if f := s.Variants[string(value)]; f != nil && len(value) > 0 && string(value) != "*" {
		return f
	}
	return s.Variants["*"]
}

// unquoted is a string literal's text; the literal's own bytes when it has no escapes.
func unquoted(raw []byte) []byte {
	if len(raw) < 2 {
		return nil
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	text, err := jsontext.AppendUnquote([]byte{}, raw)
	if err != nil {
		return nil
	}
	return text
}

// checkTag compares a tag with what was read ahead, now that the decoder vouches for it.
func (w *walker) checkTag(m member, chosen []byte) error {
	raw := w.body[m.value:m.end]
	if raw[0] == '"' && chosen != nil && bytes.Equal(unquoted(raw), chosen) {
		return nil
	}
	return badBody(w.pointer(), m.value, "must be a string")
}

// noVariant refuses an object whose tag is not in the table.
func (w *walker) noVariant(s *vllm.Shape) error {
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(s.Variants)), func(name string) bool { return name == "" || name == "*" })
	return w.mismatch(fmt.Sprintf("%s must be one of %s", s.Tag, strings.Join(names, ", ")))
}
