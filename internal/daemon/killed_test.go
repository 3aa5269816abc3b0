package daemon_test

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// The process is killed at each step of a request's way, eight requests under way: when the log grows, when the first
// byte reaches vLLM, and while answers come. Whatever arrived is on record, and the next start goes on from there.
func TestNoArrivalWithoutARecordWhateverKillsTheProcess(t *testing.T) {
	t.Parallel()
	c := newChild(t)
	for round := range 9 {
		c.start()
		size, arrived := c.size(), c.fake.Arrived()
		var callers sync.WaitGroup
		for i := range 8 {
			callers.Go(func() {
				for {
					if status, _ := c.chat(i%2 == 0); status == 0 {
						return
					}
				}
			})
		}
		late := time.Now().Add(time.Minute)
		for reached := false; !reached && time.Now().Before(late); runtime.Gosched() { // at once, and no hindrance where there is one processor
			switch round % 3 {
			case 0:
				reached = c.size() > size
			case 1:
				reached = c.fake.Arrived() > arrived
			case 2:
				reached = c.fake.Arrived() > arrived+100
			}
		}
		c.kill()
		callers.Wait()
		c.everyArrivalIsRecorded()
	}
	if c.fake.Arrived() < 300 {
		t.Errorf("only %d requests arrived: the test shows little", c.fake.Arrived())
	}
	c.start()
	if status, reason := c.chat(false); status != 200 {
		t.Errorf("after all of them: %d %s", status, reason)
	}
}
