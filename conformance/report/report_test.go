package report

import (
	"bytes"
	"strings"
	"testing"
)

func TestEmptyTableIsNotGood(t *testing.T) {
	if New(&bytes.Buffer{}).Good() {
		t.Error("a table without rows is good: nothing was shown")
	}
}

func TestZeroRowIsNotRun(t *testing.T) {
	var out bytes.Buffer
	table := New(&out)
	table.Add(Row{Property: "p", Part: "x", Why: "no server"})
	if table.Good() {
		t.Error("a proof that did not run counts as shown")
	}
	if got, want := out.String(), "NOT RUN: p: no server\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestProofIsShownOnlyIfItPasses(t *testing.T) {
	table := New(&bytes.Buffer{})
	table.Prove(t, "vLLM A", "1", "holds", func(*Proof) {})
	if !table.Good() {
		t.Error("a passing proof is not shown")
	}
	var w bytes.Buffer
	if err := table.Write(&w); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PROPERTY", "holds", "vLLM A", "shown", "1 shown, 0 failed, 0 not run"} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, w.String())
		}
	}
}

func TestMissingProofIsNotRun(t *testing.T) {
	table := New(&bytes.Buffer{})
	table.Add(Row{Property: "p", Part: "x", Result: Shown})
	table.Missing([]Row{{Property: "p", Part: "x"}})
	if !table.Good() {
		t.Error("a proof that reported is called missing")
	}
	table.Missing([]Row{{Property: "q", Part: "x"}})
	if table.Good() {
		t.Error("a proof that never reported is not seen")
	}
}
