// Package golden compares what the code makes with the file in the tree that shows it, for tests only. It refuses to rewrite
// a file that nobody asked it to rewrite.
package golden

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Check fails the test when the file does not hold what is wanted, with the difference and with the command that rewrites
// it. With update, which is the test's own flag, it writes the file first.
func Check(t testing.TB, file, want string, update bool, command string) {
	t.Helper()
	if update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), want); diff != "" {
		t.Errorf("%s is not what the code says; look at the difference and rewrite it by: %s\n%s", file, command, diff)
	}
}
