//go:build linux && (amd64 || arm64) && !race

package sock

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// A call that waited would hold its processor, and no collection of garbage could begin: none does, whatever mode
// somebody has put the socket in.
func TestNoCallWaitsEvenIfTheSocketWould(t *testing.T) {
	each(t, func(t *testing.T, ours, theirs net.Conn) {
		if err := ours.(*conn).system.Control(func(fd uintptr) {
			if err := syscall.SetNonblock(int(fd), false); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		ended, large := make(chan error, 2), make([]byte, 64<<20) // here: beside a call that waits it might wait for a collection
		_ = ours.SetDeadline(time.Now().Add(50 * time.Millisecond))
		go func() {
			_, err := ours.Read(make([]byte, 1))
			ended <- err
		}()
		go func() {
			_, err := ours.Write(large)
			ended <- err
		}()
		for range 2 {
			select {
			case err := <-ended:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				_ = theirs.Close() // what waits in the kernel ends only so
				t.Fatal("a call waits")
			}
		}
	})
}
