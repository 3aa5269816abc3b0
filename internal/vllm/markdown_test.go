package vllm

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var updateDocs = flag.Bool("update", false, "rewrite docs/operations.md")

func TestOperationsMarkdown(t *testing.T) {
	name := filepath.Join("..", "..", "docs", "operations.md")
	want := Markdown()
	if *updateDocs {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the catalogue says; rewrite it by: go test ./internal/vllm -run TestOperationsMarkdown -update", name)
	}
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
