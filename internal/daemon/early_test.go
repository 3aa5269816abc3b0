package daemon_test

import (
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/gatetest"
)

// A file that changes after it was read and before it is watched has changed all the same: whoever writes it while the
// gateway starts would otherwise wait for ever.
func TestAChangeDuringTheStartIsSeen(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{
		Config: team("one", "3"), Keys: teamKeys(),
		Loaded: func(g *gatetest.Gate) {
			g.Configure(strings.Replace(g.Yaml(), team("one", "3"), team("two", "4"), 1))
		},
	})
	g.Eventually("the changed file", func() bool { return names(t, g) == "tiny two" })
}
