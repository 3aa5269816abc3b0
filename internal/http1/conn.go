package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/sock"
)

// What a connection is doing, as Shutdown and whoever lends places to connections see it. Above active it is idle since so
// many nanoseconds of Unix time: no byte of a request has arrived, and it may be closed at once.
const (
	closed int64 = -1
	active int64 = 0 // a request arrives or runs
)

// linger is how long, and lingerBytes how much, is still read and thrown away of what a client sends after its answer:
// one that writes first and reads then would not see the answer if the connection were reset (RFC 9112 §9.6).
const (
	linger      = 500 * time.Millisecond
	lingerBytes = 16 << 20  // behind an answer
	lingerHead  = 1 << 20   // behind what was no request
	maxDiscard  = 256 << 10 // of an unread body, for the sake of the next request on the connection
)

// errHeadTooLarge is a request whose header block passes the bound.
var errHeadTooLarge = errors.New("the header block is too large")

// errClientLeft is the cause of a context that ended because its client closed the connection.
var errClientLeft = errors.New("the client closed the connection")

// conn is one connection and the request that runs on it.
type conn struct {
	server *Server
	raw    net.Conn // as it was accepted: what others than the connection's own goroutine may close
	rwc    net.Conn // what is read and written: raw, or TLS over it
	remote string
	tls    *tls.ConnectionState
	ctx    context.Context
	cancel context.CancelCauseFunc
	state  *atomic.Int64
	since  time.Time   // when it fell idle
	br     sock.Reader // lent while nothing of a request is left to read
	bw     sock.Writer
	watch  watch

	headLeft int64     // bytes that may still be read of a header block; -1 while none is read
	readErr  error     // of the last read, which the parser may hide behind the line that it cut off
	readBy   time.Time // when the next read has to be over
	slack    time.Duration
	readSet  time.Time // the deadline that is set
	writeSet time.Time
	ownWrite bool // the handler set the write deadline

	blank    *http.Request // with the connection's context, and nothing of a request
	request  http.Request  // the one that runs, if its head was plain
	plain    plain
	response response
	body     body
}

// serve is the life of a connection.
func (c *conn) serve() {
	handedOver := false
	defer func() {
		c.cancel(errClientLeft)
		if !handedOver {
			_ = c.rwc.Close()
		}
	}()
	if c.server.TLS != nil {
		secure, ok := c.handshake()
		if !ok {
			return
		}
		if c.tls.NegotiatedProtocol == "h2" && c.server.HTTP2 != nil {
			handedOver = true
			c.server.HTTP2(secure)
			return
		}
	}
	c.br, c.bw = sock.NewReader(source{c}), sock.NewWriter(sink{c})
	c.watch.conn = c
	for c.next() {
	}
	c.watch.stop()
	c.br.Lend()
}

func (c *conn) handshake() (*tls.Conn, bool) {
	plain := c.rwc
	secure := tls.Server(plain, c.server.TLS)
	_ = plain.SetDeadline(time.Now().Add(c.server.HeaderTimeout))
	if err := secure.HandshakeContext(c.ctx); err != nil {
		if not, ok := errors.AsType[tls.RecordHeaderError](err); ok && not.Conn != nil && looksLikeHTTP(not.RecordHeader) {
			_, _ = io.WriteString(not.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nThis port speaks TLS: the URL begins with https://\n")
		}
		c.server.Log.Debug("TLS handshake", "remote", c.remote, "error", err)
		if !errors.Is(err, io.EOF) && c.ctx.Err() == nil { // a load balancer's look whether the port is open is no attempt at anything
			c.server.malformed()
		}
		return nil, false
	}
	_ = plain.SetDeadline(time.Time{})
	state := secure.ConnectionState()
	c.rwc, c.tls = secure, &state
	return secure, true
}

func looksLikeHTTP(head [5]byte) bool {
	return slices.Contains([]string{"GET /", "HEAD ", "POST ", "OPTIO", "DELET"}, string(head[:]))
}

// next reads one request, has it answered, and reports whether another one may follow on this connection.
func (c *conn) next() bool {
	req, err := c.readRequest()
	if err != nil {
		c.refuse(err)
		return false
	}
	w := &c.response
	w.reset(c, req)
	if !c.body.left {
		c.watch.start()
	}
	if !c.handle(w, req) {
		return false
	}
	err = w.finish()
	c.watch.stop()
	if err != nil || c.ctx.Err() != nil {
		return false
	}
	if c.body.left && !w.close {
		c.until(time.Now().Add(linger), 0)
		_, _ = io.CopyN(io.Discard, &c.body, maxDiscard)
		c.watch.stop() // the end of a body starts it, and nothing runs that a client could leave
	}
	if w.close || c.body.left || c.server.closing.Load() {
		if c.body.left || c.br.Buffered() > 0 || len(c.watch.early) > 0 {
			c.lingeringClose(lingerBytes)
		}
		return false
	}
	return c.fallIdle()
}

// fallIdle reports whether the connection may wait for another request. Shutdown may have passed by since next looked, while
// the connection still counted as busy: then nobody else ends it.
func (c *conn) fallIdle() bool {
	c.since = time.Now()
	return c.state.CompareAndSwap(active, c.since.UnixNano()) && !c.server.closing.Load()
}

// handle calls the handler; false when it panicked: then the connection is cut, for a clean end would look like success.
func (c *conn) handle(w *response, req *http.Request) (ok bool) {
	defer func() {
		if ok {
			return
		}
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			c.server.Log.Error("panic in a handler", "remote", c.remote, "panic", p, "stack", string(debug.Stack()))
		}
		c.watch.stop()
		c.cut()
	}()
	c.server.Handler.ServeHTTP(w, req)
	return true
}

// cut resets the connection: after a clean end an answer that lasts until the connection's end would look whole.
func (c *conn) cut() {
	if tcp, ok := c.raw.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.raw.Close()
}

// lingeringClose says that nothing more comes and reads on for a moment, so that the answer is not lost to a reset.
func (c *conn) lingeringClose(most int64) {
	if half, ok := c.rwc.(interface{ CloseWrite() error }); ok && half.CloseWrite() != nil {
		return
	}
	c.headLeft = -1
	c.until(time.Now().Add(linger), 0)
	_, _ = io.CopyN(io.Discard, &c.br, most)
}

// until sets the deadline of reads to come; one that is set and at most slack earlier is good enough.
func (c *conn) until(t time.Time, slack time.Duration) { c.readBy, c.slack = t, slack }

// source is what the buffered reader reads from. Deadlines are set here, when it is known that the connection has to be
// waited for: most requests arrive in one piece, and setting deadlines that nobody waits for costs.
type source struct{ *conn }

func (c source) Read(p []byte) (int, error) {
	if len(c.watch.early) > 0 {
		n := copy(p, c.watch.early)
		c.watch.early = c.watch.early[n:]
		return n, nil
	}
	if c.headLeft == 0 {
		c.readErr = errHeadTooLarge
		return 0, c.readErr
	}
	if c.headLeft > 0 && int64(len(p)) > c.headLeft {
		p = p[:c.headLeft]
	}
	if err := c.setDeadline(); err != nil {
		return 0, err
	}
	n, err := c.rwc.Read(p)
	if c.headLeft > 0 {
		c.headLeft -= int64(n)
	}
	c.readErr = err
	return n, err
}

func (c *conn) setDeadline() error {
	if late := c.readBy.Sub(c.readSet); c.readBy.IsZero() == c.readSet.IsZero() && late >= 0 && late <= c.slack {
		return nil
	}
	c.readSet = c.readBy
	return c.rwc.SetReadDeadline(c.readBy)
}

// sink is what the buffered writer writes to. Every write has a deadline: the handler's, or the server's.
type sink struct{ *conn }

func (c sink) Write(p []byte) (int, error) {
	if !c.ownWrite {
		c.writeUntil(time.Now().Add(c.server.WriteTimeout))
	}
	return c.rwc.Write(p)
}

// writeUntil sets the write deadline; one that is set and less than a second earlier is good enough.
func (c *conn) writeUntil(t time.Time) {
	if late := t.Sub(c.writeSet); !c.writeSet.IsZero() && !t.IsZero() && late >= 0 && late < min(time.Second, c.server.WriteTimeout/16) {
		return
	}
	_ = c.rwc.SetWriteDeadline(t)
	c.writeSet = t
}
