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

// A socket that something else is kept with is read and written here too, and closed by what keeps it.
func TestASocketWithinAnotherIsOne(t *testing.T) {
	each(t, func(t *testing.T, ours, _ net.Conn) {
		kept := &keeper{Conn: ours.(*conn).Conn, system: ours.(*conn).Conn.(syscall.Conn)}
		again, ok := Of(kept).(*conn)
		if !ok {
			t.Fatalf("%T is not read here", Of(kept))
		}
		if err := again.Close(); err != nil || !kept.closed || again.NetConn() != net.Conn(kept) {
			t.Errorf("closed %v, of %T: %v", kept.closed, again.NetConn(), err)
		}
	})
}

type keeper struct {
	net.Conn
	system syscall.Conn
	closed bool
}

func (k *keeper) SyscallConn() (syscall.RawConn, error) { return k.system.SyscallConn() }

func (k *keeper) Close() error {
	k.closed = true
	return k.Conn.Close()
}
