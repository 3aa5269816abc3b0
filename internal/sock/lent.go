package sock

import (
	"bufio"
	"io"
	"net"
	"sync"
)

// Await returns when c has something to read, or when reading would fail: at its end, at its deadline. It takes nothing,
// and returns at once where a connection cannot be asked. Nobody else may read c meanwhile.
func Await(c net.Conn) { await(c) }

// size of the buffers below: it holds an ordinary request or answer whole, so that it is one system call.
const size = 4 << 10

var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, size) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, size) }}
)

// Reader reads as a bufio.Reader does, whose buffer it has from a read on until it lends it: of many connections that
// are open, hardly any has bytes that were not passed on.
type Reader struct {
	from io.Reader
	b    *bufio.Reader
}

// NewReader gives a reader without a buffer.
func NewReader(from io.Reader) Reader { return Reader{from: from} }

// Bufio is the reader itself, for whoever can read with no other. It is not to be used once Lend was called.
func (r *Reader) Bufio() *bufio.Reader {
	if r.b == nil {
		r.b = readers.Get().(*bufio.Reader)
		r.b.Reset(r.from)
	}
	return r.b
}

// Read, Peek, Discard and ReadSlice are bufio.Reader's. What they gave is valid until the next of them, or Lend.
func (r *Reader) Read(p []byte) (int, error)               { return r.Bufio().Read(p) }
func (r *Reader) Peek(n int) ([]byte, error)               { return r.Bufio().Peek(n) }
func (r *Reader) Discard(n int) (int, error)               { return r.Bufio().Discard(n) }
func (r *Reader) ReadSlice(delimiter byte) ([]byte, error) { return r.Bufio().ReadSlice(delimiter) }

// Buffered is how many bytes lie in the buffer.
func (r *Reader) Buffered() int {
	if r.b == nil {
		return 0
	}
	return r.b.Buffered()
}

// Lend gives the buffer to others, unless bytes lie in it.
func (r *Reader) Lend() {
	if r.b != nil && r.b.Buffered() == 0 {
		r.b.Reset(nil)
		readers.Put(r.b)
		r.b = nil
	}
}

// Await lends the buffer until there is something to read from c, which is where the bytes come from in the end.
func (r *Reader) Await(c net.Conn) {
	if r.Buffered() == 0 {
		r.Lend()
		await(c)
	}
}

// Writer writes as a bufio.Writer does, whose buffer it has from a write on until the next flush.
type Writer struct {
	to io.Writer
	b  *bufio.Writer
}

// NewWriter gives a writer without a buffer.
func NewWriter(to io.Writer) Writer { return Writer{to: to} }

func (w *Writer) buffer() *bufio.Writer {
	if w.b == nil {
		w.b = writers.Get().(*bufio.Writer)
		w.b.Reset(w.to)
	}
	return w.b
}

// Write and WriteString are bufio.Writer's.
func (w *Writer) Write(p []byte) (int, error)       { return w.buffer().Write(p) }
func (w *Writer) WriteString(s string) (int, error) { return w.buffer().WriteString(s) }

// Flush sends what was written.
func (w *Writer) Flush() error {
	if w.b == nil {
		return nil
	}
	if err := w.b.Flush(); err != nil {
		return err // the buffer stays: whoever writes on is told again
	}
	w.b.Reset(nil)
	writers.Put(w.b)
	w.b = nil
	return nil
}
