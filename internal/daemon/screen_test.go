package daemon_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vallum/vallum/internal/gatetest"
)

// The screen is read in a terminal that nobody has widened. Only a path of the operator's own may be longer than that.
func TestTheFirstScreenFitsATerminal(t *testing.T) {
	for _, o := range []gatetest.Options{{Terminal: true}, {}} {
		g := gatetest.Start(t, o)
		screen := g.Screen.String()
		if !strings.Contains(screen, "WHAT IT IS") {
			t.Fatalf("this is no screen:\n%s", screen)
		}
		for line := range strings.SplitSeq(screen, "\n") {
			if n := utf8.RuneCountInString(line); n > 80 && !strings.Contains(line, g.State) {
				t.Errorf("%d columns: %s", n, line)
			}
		}
		if n := strings.Count(screen, "\n"); n > 36 {
			t.Errorf("%d lines", n)
		}
	}
}
