package daemon

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestHeapGrowsByTheSlackOrAsGoHasIt(t *testing.T) {
	for _, row := range []struct {
		live    uint64
		percent uint64
	}{
		{0, 600},        // of Go's least heap: 24 MB
		{2 << 20, 600},  // a gateway at work
		{8 << 20, 300},  // to 32 MB
		{24 << 20, 100}, // hundreds of streams: from here on it is Go's rule
		{1 << 30, 100},
	} {
		if got := heapPercent(row.live); got != row.percent {
			t.Errorf("%d bytes live: GOGC %d, want %d", row.live, got, row.percent)
		}
	}
}

func gcPercent() uint64 {
	now := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(now)
	return now[0].Value.Uint64()
}

func TestHeapSlackFollowsWhatIsLive(t *testing.T) {
	t.Setenv("GOGC", "")
	before := gcPercent()
	t.Cleanup(func() { debug.SetGCPercent(int(before)) })
	until := func(what string, reached func(uint64) bool) {
		t.Helper()
		// Finalizers run some time after a collection: a bounded number of those, not of seconds.
		for range 1000 {
			runtime.GC()
			if reached(gcPercent()) {
				return
			}
		}
		t.Errorf("GOGC is %d with %s", gcPercent(), what)
	}
	slackenHeap()
	until("little live", func(percent uint64) bool { return percent > 300 })
	live := make([]byte, 64<<20)
	until("64 MB live", func(percent uint64) bool { return percent == 100 })
	runtime.KeepAlive(live)
	until("little live again", func(percent uint64) bool { return percent > 300 })
}

func TestHeapSlackLeavesTheOperatorsGOGC(t *testing.T) {
	before := gcPercent()
	t.Cleanup(func() { debug.SetGCPercent(int(before)) })
	t.Setenv("GOGC", "50")
	debug.SetGCPercent(50)
	slackenHeap()
	if got := gcPercent(); got != 50 {
		t.Errorf("GOGC is %d, the operator said 50", got)
	}
}
