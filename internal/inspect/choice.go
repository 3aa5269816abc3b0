package inspect

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/inspect/scan"
	"github.com/vallum/vallum/internal/vllm"
)

// tag is the member that chose the shape of the object that is being read, or both members that did. They are read ahead
// from bytes that are not yet checked, so they are compared again when the walk comes to them.
type tag struct {
	name, first       string // "" for none
	value, firstValue []byte // the texts; nil when absent or null
}

// of is what was read ahead of a member, if it is a tag.
func (t tag) of(name []byte) (value []byte, ok bool) {
	if t.first != "" && t.first == string(name) {
		return t.firstValue, true
	}
	return t.value, t.name != "" && t.name == string(name)
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

// checkTag compares a tag with what was read ahead, now that the decoder vouches for it.
func (w *walker) checkTag(m member, chosen []byte) error {
	raw := w.body[m.value:m.end]
	if raw[0] == '"' && chosen != nil && bytes.Equal(scan.Unquoted(raw), chosen) {
		return nil
	}
	return badBody(w.pointer(), m.value, "must be a string")
}

// noVariant refuses an object whose tag is not in the table.
func (w *walker) noVariant(s *vllm.Shape) error {
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(s.Variants)), func(name string) bool { return name == "" || name == "*" })
	return w.mismatch(fmt.Sprintf("%s must be one of %s", s.Tag, strings.Join(names, ", ")))
}
