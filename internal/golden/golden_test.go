package golden

import (
	"os"
	"path/filepath"
	"testing"
)

// seen is a test that is looked at instead of failing.
type seen struct {
	testing.TB
	failed bool
}

func (s *seen) Helper()               {}
func (s *seen) Errorf(string, ...any) { s.failed = true }

func TestCheckRewritesOnlyWhenAsked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(file, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		want   string
		update bool
		fails  bool
		holds  string
	}{
		{"new\n", false, true, "old\n"},
		{"old\n", false, false, "old\n"},
		{"new\n", true, false, "new\n"},
	} {
		s := &seen{TB: t}
		Check(s, file, row.want, row.update, "make golden")
		if b, err := os.ReadFile(file); err != nil || string(b) != row.holds || s.failed != row.fails {
			t.Errorf("%+v: failed %t, the file holds %q, %v", row, s.failed, b, err)
		}
	}
}
