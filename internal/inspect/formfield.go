package inspect

import (
	"cmp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/vllm"
)

// value types a text field by its table. An empty one counts as absent, as it does for FastAPI's forms.
func (f *form) value(field *vllm.Field, text, pointer string, at int) error {
	if text == "" {
		return nil
	}
	if !utf8.ValidString(text) {
		return badBody(pointer, at, "not valid UTF-8")
	}
	switch field.Action {
	case vllm.Pass, vllm.Write:
	default:
		if isDefaultText(text, field.Equal) {
			return nil
		}
		return forbidden(field, pointer, at)
	}
	shape := field.Shape
	if shape != nil && shape.Kind == vllm.Array {
		if shape.MaxLen > 0 && f.count(field.Name) >= shape.MaxLen {
			return badBody(pointer, at, "the field may stand "+strconv.FormatInt(shape.MaxLen, 10)+" times at most")
		}
		shape = shape.Elem
	}
	sent, ok := typed(shape, text)
	if !ok {
		return badBody(pointer, at, "must be "+wantedText(shape))
	}
	if err := f.learn(field, sent, pointer, at); err != nil {
		return err
	}
	f.fields = append(f.fields, formField{name: field.Name, value: sent, written: field.Action == vllm.Write})
	return nil
}

// count is how often a field stands so far.
func (f *form) count(name string) (n int64) {
	for _, field := range f.fields {
		if field.name == name {
			n++
		}
	}
	return n
}

// isDefaultText compares a text with JSON literals: with or without their quotes.
func isDefaultText(text string, literals []string) bool {
	raw := jsontext.Value(text)
	if raw.IsValid() && isDefault(raw, literals) {
		return true
	}
	return isDefault(quoted(nil, text), literals)
}

// typed is a text as the table wants it spelt, when it is of the shape's type.
func typed(s *vllm.Shape, text string) (string, bool) {
	if s == nil {
		return "", false
	}
	switch s.Kind {
	case vllm.String:
		return text, checkString(s, quoted(nil, text)) == ""
	case vllm.Integer:
		_, digits, ok := checkInteger(s, []byte(text))
		return string(digits), ok && jsontext.Value(digits).IsValid()
	case vllm.Number:
		raw := jsontext.Value(text)
		number := raw.IsValid() && raw.Kind() == '0' && strings.TrimSpace(text) == text
		return text, number && !overflows(raw) && checkNumber(s, raw)
	case vllm.Boolean:
		on := strings.ToLower(text) // requests sends str(True)
		return on, on == "true" || on == "false"
	case vllm.Union:
		for _, one := range s.Any {
			if sent, ok := typed(one, text); ok {
				return sent, true
			}
		}
	}
	return "", false
}

func wantedText(s *vllm.Shape) string {
	if s == nil {
		return "absent"
	}
	return wanted(s)
}

// learn takes the facts from a field that was typed.
func (f *form) learn(field *vllm.Field, text, pointer string, at int) error {
	switch field.Fact {
	case vllm.FactModel:
		if len(text) > maxModel {
			return badBody(pointer, at, "must have "+strconv.Itoa(maxModel)+" bytes at most")
		}
		f.facts.Model = text
	case vllm.FactStream, vllm.FactIncludeUsage, vllm.FactContinuous:
		learnBoolean(&f.facts, text == "true", field.Fact)
	case vllm.FactInputs:
		f.inputs++
	case vllm.FactChoices:
		f.facts.Choices, _ = strconv.ParseInt(text, 10, 64) // typed as an integer
	case vllm.FactOutputCap:
		if f.facts.CapField != "" {
			return badBody(pointer, at, "the output may be limited by one field only")
		}
		f.facts.CapField = field.Name
		f.facts.OutputCap, _ = strconv.ParseInt(text, 10, 64) // typed as an integer
	}
	return nil
}

// settle completes the facts when the whole form was read.
func (f *form) settle() {
	f.facts.BodyBytes = f.size
	f.facts.Inputs = max(f.inputs, 1)
	f.facts.Choices = cmp.Or(f.facts.Choices, 1)
	describe(&f.facts, f.shape)
}
