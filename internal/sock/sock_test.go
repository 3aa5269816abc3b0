package sock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// pair is a connection and its other end, of package net alone.
func pair(t *testing.T, network string) (ours, theirs net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if theirs, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	plain, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close(); theirs.Close() })
	return Of(plain), theirs
}

func each(t *testing.T, f func(t *testing.T, ours, theirs net.Conn)) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			ours, theirs := pair(t, network)
			f(t, ours, theirs)
		})
	}
}

func TestReadWaitsAndGivesWhatThereIs(t *testing.T) {
	each(t, func(t *testing.T, ours, theirs net.Conn) {
		go func() {
			_, _ = io.WriteString(theirs, "hello")
			_ = theirs.Close()
		}()
		got, err := io.ReadAll(ours)
		if string(got) != "hello" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
	})
}

// A write of more than the sockets hold is finished once the other side reads, and no byte is lost or sent twice.
func TestWriteIsWholeHoweverSlowTheOtherSideIs(t *testing.T) {
	each(t, func(t *testing.T, ours, theirs net.Conn) {
		sent := make([]byte, 16<<20)
		for i := range sent {
			sent[i] = byte(i * 7 >> 3)
		}
		wrote := make(chan error, 1)
		go func() {
			n, err := ours.Write(sent)
			if err == nil && n != len(sent) {
				err = errors.New("short")
			}
			_ = ours.(interface{ CloseWrite() error }).CloseWrite()
			wrote <- err
		}()
		got, err := io.ReadAll(theirs)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes arrived as they were sent, %v", len(got), len(sent), err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
	})
}

func TestDeadlinesHold(t *testing.T) {
	each(t, func(t *testing.T, ours, _ net.Conn) {
		_ = ours.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if n, err := ours.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %d, %v", n, err)
		}
		large := make([]byte, 64<<20)
		_ = ours.SetWriteDeadline(time.Now().Add(time.Second)) // a busy machine may take its time to begin
		n, err := ours.Write(large)
		if n <= 0 || n >= 64<<20 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %d, %v", n, err)
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
	})
}

func TestClosingEndsAReadThatWaits(t *testing.T) {
	each(t, func(t *testing.T, ours, _ net.Conn) {
		ended := make(chan error, 1)
		go func() {
			_, err := ours.Read(make([]byte, 1))
			ended <- err
		}()
		_ = ours.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := ours.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write after the end: %v", err)
		}
	})
}

func TestAnEndThatIsResetIsAnError(t *testing.T) {
	ours, theirs := pair(t, "tcp")
	_ = theirs.(*net.TCPConn).SetLinger(0)
	_ = theirs.Close()
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	if _, err := ours.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write: %v", err)
	}
	if _, err := ours.Read(nil); err != nil {
		t.Errorf("reading nothing: %v", err)
	}
}

func TestQuietIsAnOpenSocketWithNothingToRead(t *testing.T) {
	other, ours := pair(t, "tcp")
	system, err := ours.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	quiet := func() (is bool) {
		if err := system.Read(func(fd uintptr) bool { is = Quiet(fd); return true }); err != nil {
			t.Fatal(err)
		}
		return is
	}
	if !quiet() {
		t.Error("nothing was sent")
	}
	_, _ = io.WriteString(other, "x")
	for range 2 {
		if quiet() {
			t.Error("a byte lies there")
		}
	}
	if _, err := ours.Read(make([]byte, 1)); err != nil || !quiet() {
		t.Errorf("the byte was read: %v", err)
	}
	_ = other.Close()
	if quiet() {
		t.Error("the other side is gone")
	}
}

func TestWhatIsNoSocketStaysAsItIs(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Of(a) != a {
		t.Error("a pipe was taken for a socket")
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	theirs, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer theirs.Close()
	plain, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	go func() { _, _ = io.Copy(theirs, theirs) }()
	for name, c := range map[string]net.Conn{"net": plain, "sock": Of(plain)} {
		b.Run(name, func(b *testing.B) {
			p := make([]byte, 512)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
