// Package http1 serves HTTP/1.1 connections: one request after the other, each read by net/http's own parser or, in
// the one form that has no second reading, as that one reads it, given to a handler and answered, with a watch for clients that leave.
// It refuses what is no request, what announces its length in a way that nobody else would read alike, and header
// blocks over its bound, with a bare status of its own: no request existed, so the handler is not called.
//
// It exists because net/http's server costs a request a goroutine to watch its client, a header's copy and a
// context, which together were a quarter of what the gate spends on one (docs/decisions.md).
package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/sock"
)

// Server serves the connections of its listeners. Its fields are not changed once Serve was called. Handlers get no
// Hijacker, and keep neither a request nor its header; http.ResponseController reaches flushing and deadlines. The zero Server has no handler and refuses to serve.
type Server struct {
	Handler        http.Handler
	HeaderTimeout  time.Duration   // for a TLS handshake, and from a request's first byte to the end of its header block
	IdleTimeout    time.Duration   // between requests
	WriteTimeout   time.Duration   // for each write to a client, unless the handler sets a deadline
	MaxHeaderBytes int             // request line and header block
	TLS            *tls.Config     // nil for plain HTTP
	HTTP2          func(*tls.Conn) // gets connections whose clients chose "h2", after the handshake; nil closes them
	Base           context.Context // what requests' contexts are made of; nil for the background
	Malformed      func()          // called for each thing that arrived and was no request; may be nil
	Log            *slog.Logger    // of broken connections, for debugging; panics as errors

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	running   sync.WaitGroup
	closing   atomic.Bool
	date      atomic.Pointer[dateLine]
}

// Serve accepts connections until the listener is closed by Shutdown or Close; then its error is http.ErrServerClosed.
// An error of accept that is not the listener's end (too many open files) is waited out, and logged.
func (s *Server) Serve(l net.Listener) error {
	if s.Handler == nil || s.MaxHeaderBytes <= 0 || s.HeaderTimeout <= 0 || s.IdleTimeout <= 0 || s.WriteTimeout <= 0 {
		return errors.New("http1: a server needs a handler, a bound on header blocks and its timeouts")
	}
	if !s.listen(l) {
		_ = l.Close()
		return http.ErrServerClosed
	}
	for wait := time.Duration(0); ; {
		rwc, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			s.start(rwc)
			continue
		case s.closing.Load():
			return http.ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting connections: %w", err)
		}
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		s.Log.Error("accepting a connection", "error", err, "next_try", wait)
		time.Sleep(wait)
	}
}

// listen notes the listener, so that Shutdown closes it; false when the server has been shut down.
func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	if s.listeners == nil {
		s.listeners, s.conns = map[net.Listener]struct{}{}, map[*conn]struct{}{}
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) start(rwc net.Conn) {
	base := context.Background()
	if s.Base != nil {
		base = s.Base
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		_ = rwc.Close()
		return
	}
	c := &conn{server: s, raw: rwc, rwc: sock.Of(rwc), remote: rwc.RemoteAddr().String(), state: new(atomic.Int64), since: time.Now()}
	if lent, ok := rwc.(interface{ Idleness() *atomic.Int64 }); ok { // whoever lent it a place may take it back while it is idle
		c.state = lent.Idleness()
	} else {
		c.state.Store(c.since.UnixNano())
	}
	c.ctx, c.cancel = context.WithCancelCause(base)
	s.conns[c] = struct{}{}
	s.running.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// Shutdown stops listening, closes connections on which no request runs, and waits for the others until the context
// ends; then its error is the context's. It may be called again, with another context. Under TLS too the connection itself
// is closed: a goodbye could wait seconds for a client that does not read.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(func(c *conn) {
		if since := c.state.Load(); since > active && c.state.CompareAndSwap(since, closed) {
			_ = c.raw.Close()
		}
	})
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops listening and closes every connection, whatever runs on it.
func (s *Server) Close() error {
	s.stop(func(c *conn) {
		c.state.Store(closed)
		_ = c.raw.Close()
	})
	return nil
}

func (s *Server) stop(end func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing.Store(true)
	for l := range s.listeners {
		_ = l.Close()
		delete(s.listeners, l)
	}
	for c := range s.conns {
		end(c)
	}
}

func (s *Server) malformed() {
	if s.Malformed != nil {
		s.Malformed()
	}
}

// dateLine is the Date field for one second.
type dateLine struct {
	second int64
	text   string
}

func (s *Server) dateNow() string {
	now := time.Now()
	d := s.date.Load()
	if d == nil || d.second != now.Unix() {
		d = &dateLine{now.Unix(), now.UTC().Format(http.TimeFormat)}
		s.date.Store(d)
	}
	return d.text
}
