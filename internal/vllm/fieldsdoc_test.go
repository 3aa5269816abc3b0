package vllm

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// actionWords are what the documents say of an action, in the order in which they list them.
var actionWords = map[Action]string{Pass: "passes", Write: "is written", Refuse: "is refused", Drop: "is dropped"}

var actionOrder = []Action{Pass, Write, Refuse, Drop}

// FieldsMarkdown returns the tables as Markdown: a section for each body, then one for each named shape. Headings are
// of the third and fourth level, so that a document about operations can hold them.
func FieldsMarkdown() string {
	set := embeddedTables()
	var b strings.Builder
	b.WriteString("### Bodies\n\nA field that is not listed never reaches vLLM. null always counts as absent.\n\n")
	for _, m := range []Medium{Picture, Sound} {
		fmt.Fprintf(&b, "¹ A %s is refused %s, when it is %s.\n", m, affectedWords(m.Strange().Affected), m.Strange().Why)
	}
	for _, t := range set.tables {
		fmt.Fprintf(&b, "\n#### Body of %s\n\n", strings.Join(t.Operations, ", "))
		writeFields(&b, "field", t.Body.Fields)
	}
	b.WriteString("\n### Shapes\n")
	for _, s := range set.shapes {
		fmt.Fprintf(&b, "\n#### %s\n\n", s.Name)
		if s.Kind == Choice {
			fmt.Fprintf(&b, "The member `%s` chooses.\n\n", s.Tag)
			writeFields(&b, s.Tag, s.Variants)
			continue
		}
		writeFields(&b, "field", s.Fields)
	}
	return b.String()
}

// writeFields writes one table: what passes first, then by name.
func writeFields(b *strings.Builder, first string, fields map[string]*Field) {
	fmt.Fprintf(b, "| %s | may be | becomes | why |\n|---|---|---|---|\n", first)
	rows := slices.SortedFunc(maps.Values(fields), func(x, y *Field) int {
		return cmp.Or(cmp.Compare(slices.Index(actionOrder, x.Action), slices.Index(actionOrder, y.Action)), cmp.Compare(x.Name, y.Name))
	})
	for _, f := range rows {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", fieldWords(f.Name), cell(shapeWords(f.Shape)), cell(becomes(f)), cell(f.Why))
	}
}

func fieldWords(name string) string {
	switch name {
	case "":
		return "(absent)"
	case "*":
		return "(any other)"
	}
	return "`" + name + "`"
}

func becomes(f *Field) string {
	words := actionWords[f.Action]
	if f.Needed {
		words += " and has to be there"
	}
	switch {
	case f.Affected != nil:
		words += ", but is refused " + affectedWords(f.Affected)
		if len(f.Equal) > 0 {
			words += ", unless it is `" + strings.Join(f.Equal, "` or `") + "`"
		}
	case len(f.Equal) > 0:
		words += ", unless it is `" + strings.Join(f.Equal, "` or `") + "`: then dropped"
	}
	if f.Reason != "" {
		words += " as `" + f.Reason + "`"
	}
	return words
}

func affectedWords(a *Affected) string {
	words := "before vLLM " + a.Until
	if a.From != "" {
		words = "from vLLM " + a.From + " to before " + a.Until
	}
	if a.WithAudio {
		words = "beside sound " + words
	}
	if a.With != "" {
		words = "beside `" + a.With + "` " + words
	}
	if a.Known {
		return words
	}
	return words + " and where the release is not known"
}

// cell keeps a text inside its column.
func cell(s string) string {
	return strings.ReplaceAll(s, "|", `\|`)
}

// shapeWords says in words what a value may be.
func shapeWords(s *Shape) string {
	if s == nil {
		return ""
	}
	switch s.Kind {
	case String:
		return stringWords(s)
	case Integer:
		return "integer" + rangeWords(s)
	case Number:
		return "number" + rangeWords(s)
	case Boolean:
		return "boolean"
	case Object, Choice:
		return fmt.Sprintf("[%s](#%s)", s.Name, s.Name)
	case Array:
		return "list" + leastWords(s.MinLen) + mostWords(s.MaxLen, "") + " of (" + shapeWords(s.Elem) + ")"
	case Map:
		return "object" + mostWords(s.MaxLen, "") + " of (" + shapeWords(s.Elem) + ")" + nameWords(s.Names)
	case Union:
		var arms []string
		for _, arm := range s.Any {
			arms = append(arms, shapeWords(arm))
		}
		return strings.Join(arms, " or ")
	case Free:
		switch {
		case s.Text:
			return "JSON schema, or its text"
		case s.Schema:
			return "JSON schema"
		}
		return "any JSON"
	case File:
		return "file"
	}
	return "nothing"
}

func stringWords(s *Shape) string {
	switch {
	case s.Medium != "" && s.DataURL:
		return fmt.Sprintf("`data:` URL of a %s¹", s.Medium)
	case s.Medium != "":
		return fmt.Sprintf("base64 of a %s¹", s.Medium)
	case s.DataURL:
		return "`data:` URL"
	case s.Enum != nil:
		return "`" + strings.Join(s.Enum, "`, `") + "`"
	}
	return "string" + mostWords(s.MaxLen, " bytes")
}

func mostWords(n int64, unit string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (at most %d%s)", n, unit)
}

func leastWords(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (at least %d)", n)
}

func nameWords(names []string) string {
	if names == nil {
		return ""
	}
	return " named `" + strings.Join(names, "`, `") + "`"
}

func rangeWords(s *Shape) string {
	low, high := s.Min > math.MinInt64, s.Max < math.MaxInt64
	switch {
	case low && high:
		return fmt.Sprintf(" %d … %d", s.Min, s.Max)
	case low:
		return fmt.Sprintf(" from %d", s.Min)
	case high:
		return fmt.Sprintf(" up to %d", s.Max)
	}
	return ""
}
