package apply_test

import (
	"os"
	"strings"
	"testing"
)

// Who confirms writes what is confirmed, and then removes what was pending. When it is killed in between, or the power
// goes before the removal is on the disk, the next boot has both files, and nobody who confirms.
func TestAConfirmationThatWasInterruptedIsOne(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	before := a.state(t)
	a.up(t)
	interrupt := func() {
		b, err := os.ReadFile(a.file("confirmed.json"))
		must(t, err)
		must(t, os.WriteFile(a.file("pending.json"), b, 0o600))
	}
	interrupt()
	if out, _ := a.must(t, "status"); strings.Contains(out, "not confirmed yet") {
		t.Errorf("status: %s", out)
	}
	a.forget(t)
	out, said := a.must(t, "up", "--hosts", a.file("hosts"), "--accept-cut", "--confirm", "1s")
	if !strings.Contains(out, "holds") || strings.Contains(said, "applied; confirm") {
		t.Errorf("up asks again: %s%s", out, said)
	}
	if out, _ := a.must(t, "status"); strings.Contains(out, "not confirmed yet") {
		t.Errorf("status after a repair: %s", out)
	}
	interrupt()
	a.must(t, "down")
	if a.exists("pending.json") || a.exists("confirmed.json") || a.state(t) != before {
		t.Error("down left something")
	}
	a.up(t)
}
