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

// tags are the members that chose the shape of the object that is being read. They are read ahead from bytes that are
// not yet checked, so each is compared again when the walk comes to it.
type tags struct {
	all [2]struct {
		name  string
		value []byte // its text; nil when absent or null
	}
	n int
}

func (t tags) with(name string, value []byte) (tags, bool) {
	if t.n == len(t.all) {
		return t, false
	}
	t.all[t.n].name, t.all[t.n].value = name, value
	t.n++
	return t, true
}

// named finds the tag with a member's name.
func (t *tags) named(name []byte) (value []byte, ok bool) {
	for i := range t.n {
		if t.all[i].name == string(name) {
			return t.all[i].value, true
		}
	}
	return nil, false
}

// findTag reads ahead in the next object for the member that chooses its shape: its text, or nil when it is absent or
// null. Anything else than a string the walk refuses when it comes to it.
func (w *walker) findTag(s *vllm.Shape) []byte {
	raw := lookAhead(w.body[w.next():], s.Tag)
	if len(raw) == 0 || raw[0] != '"' {
		return nil
	}
	return unquoted(raw)
}

// variant is the row for a tag; nil when the table has none. An empty tag is not an absent one.
func variant(s *vllm.Shape, tag []byte) *vllm.Field {
	if tag == nil {
		return s.Variants[""]
	}
	if f := s.Variants[string(tag)]; f != nil && len(tag) > 0 && string(tag) != "*" {
		return f
	}
	return s.Variants["*"]
}

// lookAhead finds the value of a member in the object at b[0]: the whole literal if it is a string, else its first
// byte. It must not fail on anything, as nothing has been checked yet; what it finds in what is not JSON is never used.
func lookAhead(b []byte, name string) []byte {
	for i := 1; i < len(b); {
		i = skipSpace(b, i)
		if i >= len(b) || b[i] != '"' {
			return nil
		}
		end := skipString(b, i)
		found := string(unquoted(b[i:end])) == name
		i = skipSpace(b, end)
		if i >= len(b) {
			return nil
		}
		end = skipUnchecked(b, i)
		if found {
			return b[i:end]
		}
		i = end
	}
	return nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n' || b[i] == ',' || b[i] == ':') {
		i++
	}
	return i
}

// skipUnchecked is the index after the value at b[i]. It always moves on.
func skipUnchecked(b []byte, i int) int {
	for depth := 0; i < len(b); {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		default:
			i++
			for depth == 0 && i < len(b) && !bytes.ContainsRune([]byte(" \t\r\n,:]}"), rune(b[i])) {
				i++
			}
		}
		if depth <= 0 {
			return i
		}
	}
	return len(b)
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
