package sock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// Await takes no byte, and returns when there is one, at the end, at the deadline, and when the connection is closed.
func TestAwaitReturnsWhenReadingNeedNotWait(t *testing.T) {
	each(t, func(t *testing.T, ours, theirs net.Conn) {
		b := make([]byte, 8)
		for range 2 { // once waiting for it, once when it lies there
			go func() { _, _ = io.WriteString(theirs, "hello") }()
			Await(ours)
			Await(ours)
			if n, err := io.ReadFull(ours, b[:5]); n != 5 || err != nil {
				t.Fatalf("%q, %v", b[:n], err)
			}
		}
		_ = ours.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		Await(ours)
		if _, err := ours.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past the deadline: %v", err)
		}
		_ = ours.SetReadDeadline(time.Time{})
		_ = theirs.(interface{ CloseWrite() error }).CloseWrite()
		Await(ours)
		if _, err := ours.Read(b); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
		_ = ours.Close()
		Await(ours)
	})
}

func TestAReaderHasItsBufferWhileBytesLieInIt(t *testing.T) {
	each(t, func(t *testing.T, ours, theirs net.Conn) {
		r := NewReader(ours)
		for _, want := range []string{"first\n", "second\n"} {
			go func() { _, _ = io.WriteString(theirs, want+"rest") }()
			if r.Await(ours); r.b != nil {
				t.Error("it waited with a buffer")
			}
			line, err := r.ReadSlice('\n')
			if string(line) != want || err != nil {
				t.Fatalf("%q, %v", line, err)
			}
			if _, err := r.Peek(4); err != nil {
				t.Fatal(err)
			}
			if r.Lend(); r.b == nil || r.Buffered() < 4 {
				t.Fatal("bytes that were not read are lent away")
			}
			r.Await(ours) // they are something to read
			if n, err := r.Discard(4); n != 4 || err != nil {
				t.Fatal(n, err)
			}
			if r.Lend(); r.b != nil || r.Buffered() != 0 {
				t.Error("it keeps a buffer of which all was read")
			}
		}
	})
}

// failing takes so many writes.
type failing struct {
	bytes.Buffer
	takes int
}

var errFull = errors.New("full")

func (f *failing) Write(p []byte) (int, error) {
	if f.takes--; f.takes < 0 {
		return 0, errFull
	}
	return f.Buffer.Write(p)
}

func TestAWriterHasItsBufferUntilItIsFlushed(t *testing.T) {
	f := &failing{takes: 2}
	w := NewWriter(f)
	if err := w.Flush(); err != nil || w.b != nil {
		t.Errorf("nothing was written: %v", err)
	}
	for range 2 {
		_, _ = w.WriteString("a")
		_, _ = w.Write([]byte("b"))
		if w.b == nil || strings.HasSuffix(f.String(), "b") && f.takes == 2 {
			t.Error("what is not flushed lies nowhere, or is out")
		}
		if err := w.Flush(); err != nil || w.b != nil {
			t.Errorf("it keeps its buffer behind a flush: %v", err)
		}
	}
	if f.String() != "abab" || f.takes != 0 {
		t.Errorf("%q, in %d writes", f.String(), 2-f.takes)
	}
	_, _ = w.WriteString("c")
	for range 2 {
		if err := w.Flush(); !errors.Is(err, errFull) {
			t.Errorf("a write that failed is told of once: %v", err)
		}
	}
}
