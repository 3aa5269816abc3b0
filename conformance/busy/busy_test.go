package busy

import (
	"testing"
	"time"
)

// Work is counted, soon after it was done: the kernel counts in ticks.
func TestWorkIsCounted(t *testing.T) {
	before := Time()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if Time() > before {
			return
		}
	}
	t.Error("this loop is no work")
}
