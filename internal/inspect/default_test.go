package inspect

import (
	"bytes"
	"slices"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"
)

// canonically is isDefault in the words of its comment.
func canonically(raw jsontext.Value, literals []string) bool {
	canonical := raw.Clone()
	if canonical.Canonicalize() != nil {
		return false
	}
	return slices.ContainsFunc(literals, func(literal string) bool {
		want := jsontext.Value(literal)
		return want.Canonicalize() == nil && bytes.Equal(canonical, want)
	})
}

func TestADefaultIsOneHoweverItIsSpelt(t *testing.T) {
	literals := []string{"0", "1", "true", "false", "null", "[]", "{}", `"none"`, `"auto"`}
	value := rapid.SampledFrom([]string{
		"0", "-0", "0.0", "0e5", "1", "1.0", "10e-1", "1e0", "01", "true", "false", "null", "[]", "{}", "[[]]", "[{}]", "{\"\":[]}", "[0]", "[ ]", "{\n}",
		`"none"`, `"\u006eone"`, `"None"`, `"none "`, `""`, `"[]"`, `"{}"`, "[", "]", "{", "[]]", "[},", "\"",
	})
	blank := rapid.StringOfN(rapid.SampledFrom([]rune(space)), 0, 3, -1)
	rapid.Check(t, func(t *rapid.T) {
		raw := jsontext.Value(blank.Draw(t, "before") + value.Draw(t, "value") + blank.Draw(t, "after"))
		some := rapid.SliceOfN(rapid.SampledFrom(literals), 0, 4).Draw(t, "literals")
		if !raw.IsValid() { // the decoder gave none such
			return
		}
		if got, want := isDefault(raw, some), canonically(raw, some); got != want {
			t.Errorf("%q is one of %q: %v, want %v", raw, some, got, want)
		}
	})
}
