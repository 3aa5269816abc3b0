package forward

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/vallum/vallum/internal/sock"
)

// conn is one connection to an upstream. One request at a time uses it.
type conn struct {
	rw        net.Conn // what is read and written: TLS, or raw itself
	raw       net.Conn
	secure    bool
	br        sock.Reader
	out       []byte // the request's head, kept for the next one
	line      []byte // a header line that was longer than br's buffer
	headSize  int64  // bytes of the head that was sent
	used      bool   // it served a request before
	idleSince time.Time
	by        time.Time       // the deadline that is set
	system    syscall.RawConn // of raw; nil when it has none
	look      func(fd uintptr) bool
	open      bool // what look saw
}

func newConn(rw, raw net.Conn) *conn {
	_, secure := rw.(*tls.Conn)
	c := &conn{rw: rw, raw: raw, secure: secure, br: sock.NewReader(rw)}
	if sc, ok := raw.(syscall.Conn); ok {
		c.system, _ = sc.SyscallConn() // nil with an error
	}
	c.look = func(fd uintptr) bool {
		c.open = sock.Quiet(fd)
		return true
	}
	return c
}

// abort closes the connection at once and wakes whoever reads or writes it. It may be called at any time, more than once.
func (c *conn) abort() { _ = c.raw.Close() }

// deadline bounds reading and writing from now on.
func (c *conn) deadline(by time.Time) {
	c.by = by
	_ = c.raw.SetDeadline(by) // fails only when closed, which reading tells
}

// within is deadline, so long from now. A deadline costs a microsecond: one that is a little sooner is left alone.
func (c *conn) within(from time.Time, long time.Duration) {
	if by := from.Add(long); c.by.After(by) || by.Sub(c.by) > min(time.Second, long/16) {
		c.deadline(by)
	}
}

// reusable reports whether nothing but the answer was sent: bytes beyond it would be taken for the next answer.
func (c *conn) reusable() bool { return c.br.Buffered() == 0 }

// smallBody is copied behind the head, so that head and body leave in one packet and one system call.
const smallBody = 8 << 10

// send writes the request with one framing, Content-Length. It returns how many bytes of head and body were taken.
func (c *conn) send(u *Upstream, call *Call) (int64, error) {
	length := call.length()
	b := append(c.out[:0], call.Grant.Method()...)
	b = append(append(b, ' '), call.Grant.Path()...)
	b = append(b, " HTTP/1.1\r\n"...)
	b = append(b, u.fixed...)
	b = append(b, u.keyLine...)
	if call.Stream {
		b = append(b, "Accept: text/event-stream\r\n"...)
	} else {
		b = append(b, "Accept: application/json\r\n"...)
	}
	if call.RequestID != "" {
		b = append(append(append(b, "X-Request-Id: "...), call.RequestID...), "\r\n"...)
	}
	if length > 0 || call.Grant.Method() != "GET" {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, length, 10), "\r\n"...)
	}
	if length > 0 && call.ContentType != "" {
		b = append(append(append(b, "Content-Type: "...), call.ContentType...), "\r\n"...)
	}
	b = append(b, "\r\n"...)
	c.headSize = int64(len(b))
	switch {
	case call.Body == nil && call.Reader != nil:
		c.out = b
		return c.copy(b, call)
	case len(call.Body) <= smallBody:
		b = append(b, call.Body...)
		c.out = b
		n, err := c.rw.Write(b)
		return int64(n), err
	}
	c.out = b
	parts := net.Buffers{b, call.Body}
	if c.secure {
		return parts.WriteTo(c.rw)
	}
	return parts.WriteTo(c.raw) // package net's own has writev(2)
}

// copy sends a head and a body that is not in memory, exactly as long as declared.
func (c *conn) copy(head []byte, call *Call) (int64, error) {
	n, err := c.rw.Write(head)
	if err != nil {
		return int64(n), err
	}
	m, err := io.CopyN(c.rw, call.Reader, call.Length)
	if err == io.EOF {
		err = fmt.Errorf("the body ended after %d of %d bytes", m, call.Length)
	}
	return int64(n) + m, err
}

// isTimeout reports whether a deadline of ours passed.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// alive reports whether a pooled connection can be written to: not closed by the other side, and no bytes that nobody
// asked for. It costs one system call and waits for nothing. Where it cannot be asked, the connection counts as dead.
func (c *conn) alive() bool {
	c.open = false
	return c.system != nil && c.system.Read(c.look) == nil && c.open && (!c.secure || c.drained())
}

// drained reports whether TLS holds nothing either: bytes decrypted along with the answer's, or records that it read ahead
// of the socket, would be taken for the next answer.
func (c *conn) drained() bool {
	c.by = longAgo // so that the next request sets its own
	if c.raw.SetReadDeadline(longAgo) != nil {
		return false
	}
	var b [1]byte
	n, err := c.rw.Read(b[:])
	return n == 0 && isTimeout(err)
}

// longAgo makes a read return at once.
var longAgo = time.Unix(1, 0)
