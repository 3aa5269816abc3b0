package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapSlack is how much garbage may lie about before it is collected, in bytes. Go's rule, as much as is live, is made
// for large heaps: a gateway's live heap is 2 MB, and at 10,000 requests a second it would collect 80 times a second,
// which costs as much as all the rest of its work.
const heapSlack = 24 << 20

// heapMark is garbage from the start: its finalizer runs after each collection.
type heapMark struct{ _ [16]byte } // not empty: objects of no size share an address, and a finalizer on it may never run

// slackenHeap keeps the garbage collector at heapSlack, or at Go's rule where more than that is live. An operator who
// sets GOGC decides instead; GOMEMLIMIT holds in any case.
func slackenHeap() {
	if os.Getenv("GOGC") != "" {
		return
	}
	now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/gogc:percent"}}
	metrics.Read(now)
	want, is := heapPercent(now[0].Value.Uint64()), now[1].Value.Uint64()
	if want < is*7/8 || want > is*9/8 { // each change stops the world
		debug.SetGCPercent(int(want))
	}
	runtime.SetFinalizer(&heapMark{}, func(*heapMark) { slackenHeap() })
}

// heapPercent is GOGC for so many live bytes. Go's own least heap, 4 MB, is scaled by it too.
func heapPercent(live uint64) uint64 { return max(100, 100*heapSlack/max(live, 4<<20)) }
