package daemon

import (
	"testing"

	"github.com/vallum/vallum/internal/upstream"
)

// A model that two servers have is told with the context that fits both, and reserved by the longer one's: either may get it.
func TestAModelOfTwoServersHasBothContexts(t *testing.T) {
	state := func(name string, length int64) upstream.State {
		return upstream.State{Name: name, Models: []upstream.Model{{Name: "m", MaxModelLen: length}}}
	}
	for _, row := range []struct{ a, b, shorter, longer int64 }{{1000, 8000, 1000, 8000}, {8000, 1000, 1000, 8000}, {0, 8000, 8000, 8000}, {8000, 0, 8000, 8000}} {
		got := modelsOf([]upstream.State{state("a", row.a), state("b", row.b)})
		if len(got) != 1 || got[0].MaxModelLen != row.shorter || got[0].LongestLen != row.longer || len(got[0].Upstreams) != 2 {
			t.Errorf("%d and %d: %+v", row.a, row.b, got)
		}
	}
}
