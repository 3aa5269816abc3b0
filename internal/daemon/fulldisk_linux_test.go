package daemon_test

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/vallum/vallum/internal/gatetest"
)

// limitFiles lets the process write no file beyond so many bytes: to its writer a full disk. 0 takes the limit away.
func (c *child) limitFiles(bytes uint64) {
	c.t.Helper()
	const fsize = 1 // RLIMIT_FSIZE
	limit := syscall.Rlimit{Cur: bytes, Max: ^uint64(0)}
	if bytes == 0 {
		limit.Cur = ^uint64(0)
	}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(c.cmd.Process.Pid), fsize, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
		c.t.Fatalf("prlimit: %v", errno)
	}
}

// No record, no request: where a line cannot be written nothing is forwarded, not even what is under way is lost, and
// it goes on once there is room again.
func TestWithAFullDiskNothingIsForwarded(t *testing.T) {
	t.Parallel()
	c := newChild(t)
	c.start()
	if status, reason := c.chat(false); status != 200 {
		t.Fatalf("%d %s", status, reason)
	}
	c.limitFiles(uint64(c.size()))
	arrived := c.fake.Arrived()
	for range 3 {
		if status, reason := c.chat(false); status != 503 || reason != "audit_unavailable" {
			t.Errorf("%d %s, want audit_unavailable", status, reason)
		}
	}
	if n := c.fake.Arrived() - arrived; n != 0 {
		t.Errorf("%d requests were forwarded without a record", n)
	}
	c.limitFiles(0)
	gatetest.Eventually(t, "the recovery", func() bool {
		status, _ := c.chat(false)
		return status == 200
	})
	if !strings.Contains(c.log.String(), "audit") {
		t.Errorf("the operator reads nothing of it: %s", &c.log)
	}
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	c.kill()
	c.everyArrivalIsRecorded()
}
