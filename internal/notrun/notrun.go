// Package notrun skips tests aloud where a machine lacks what they need, for tests only. It refuses to skip in CI: what
// was not tried there would count as shown.
package notrun

import (
	"fmt"
	"os"
	"testing"
)

// For skips the test for a reason, which says what is missing; where CI is set it fails the test instead.
func For(t testing.TB, format string, args ...any) {
	t.Helper()
	why := "NOT RUN: " + fmt.Sprintf(format, args...)
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
