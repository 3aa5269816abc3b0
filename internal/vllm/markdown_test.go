package vllm

import (
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/golden"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestOperationsMarkdown(t *testing.T) {
	name := filepath.Join("..", "..", "docs", "operations.md")
	want := Markdown()
	golden.Check(t, name, want, *update, "go test ./internal/vllm -run TestOperationsMarkdown -update")
	for _, op := range All() {
		if !strings.Contains(want, "\n### "+op.ID+"\n") || !strings.Contains(want, "| ["+op.ID+"](") {
			t.Errorf("the document leaves %s out", op.ID)
		}
	}
	for _, g := range Groups() {
		if groupTitles[g] == "" {
			t.Errorf("group %s has no title", g)
		}
	}
}

// groupTitles are the headings of the groups, with what the group is.
var groupTitles = map[Group]string{
	Inference:         "Inference: under a prefix that vLLM's key covers, today",
	InferenceUnprefix: "Inference without a prefix: open, although a key is set",
	Probing:           "Utility",
	TokenizerInfo:     "Tokenizer information",
	Metrics:           "Metrics",
	Control:           "Operational control",
	LoRA:              "LoRA administration",
	Development:       "Development",
	Profiler:          "Profiler",
	Documentation:     "Documentation",
	Plugin:            "Scale-out, and vLLM's other servers",
}

// grantWords say how a role gets an operation.
var grantWords = map[Grantable]string{
	Never: "never", ByGroup: "by id or group", IDOnly: "by id", Acknowledged: "by id, acknowledged",
}

// Markdown is docs/operations.md: a table for each group, then every operation, then the fields of every body.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# Operations\n\n" +
		"Generated from the catalogue (`internal/vllm`); a test keeps the two equal: `go test ./internal/vllm -run TestOperationsMarkdown -update`.\n\n" +
		"Every route of vLLM 0.8.5 to 0.33.0. What is not named here does not exist for Vallum: it is refused as `unknown_operation`.\n" +
		"A role gets an operation by its id, or with `\"@group\"`; `acknowledged` means by its id with `acknowledge:` and the id again beside it.\n")
	for _, g := range Groups() {
		fmt.Fprintf(&b, "\n## %s\n\n`@%s`\n\n| operation | route | vLLM's own key | granted |\n|---|---|---|---|\n", groupTitles[g], g)
		for _, op := range InGroup(g) {
			fmt.Fprintf(&b, "| [%s](#%s) | %s | %s | %s |\n", op.ID, anchor(op.ID), op.route(), op.guardWords(), grantWords[op.Grant])
		}
	}
	b.WriteString("\n## Each operation\n")
	for _, op := range All() {
		op.markdown(&b)
	}
	b.WriteString("\n## Fields\n\n" + FieldsMarkdown())
	return b.String()
}

// anchor is the fragment that GitHub makes of a heading.
func anchor(heading string) string { return strings.ReplaceAll(heading, ".", "") }

// route is the method and path, and the server when it is not the API port's.
func (op *Operation) route() string {
	s := "`" + op.Method + " " + op.Path + "`"
	if op.Server != "" {
		s += " (" + op.Server + ")"
	}
	return s
}

// guardWords say whether vLLM's key check covers the operation in the newest release that serves it.
func (op *Operation) guardWords() string {
	switch {
	case op.Ours:
		return "not vLLM's"
	case op.Guarded[len(op.Guarded)-1].Guarded:
		return "covers it"
	}
	return "**open**"
}

func (op *Operation) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "\n### %s\n\n%s %s\n\n", op.ID, op.route(), op.Allows)
	line := func(what, value string) {
		if value != "" {
			fmt.Fprintf(b, "- %s: %s\n", what, value)
		}
	}
	line("granted", strings.TrimSuffix(grantWords[op.Grant]+"; "+op.Why, "; "))
	line("served", releases(op.Since, op.Until))
	for _, o := range op.Opens {
		line("opened "+releases(o.From, o.To), "`"+o.Condition+"`")
	}
	for _, g := range op.Guarded {
		line("vLLM's key "+releases(g.From, g.To), map[bool]string{true: "covers it", false: "does not cover it"}[g.Guarded])
	}
	line("body", string(op.Request))
	line("answer", op.answerWords())
	line("query keys, never forwarded", strings.Join(op.Query, ", "))
	line("cache salt", map[bool]string{true: "from " + op.Salt}[op.Salt != ""])
}

func (op *Operation) answerWords() string {
	words := string(op.Response)
	if op.Streams {
		words += ", or server-sent events"
	}
	if op.Answered {
		words += ", by Vallum itself"
	}
	return strings.TrimPrefix(words, ", ")
}

// releases is a range in words.
func releases(from, to string) string {
	switch {
	case from == "" && to == "":
		return "in every release"
	case from == "":
		return "until " + to
	case to == "":
		return "from " + from
	case from == to:
		return "in " + from
	}
	return from + " to " + to
}
