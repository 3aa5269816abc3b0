// Package http2 serves connections that chose HTTP/2 in their handshake: net/http's server, given them one by one.
// It refuses to wait for a client that takes nothing of an answer: each write has a deadline, and silence has none.
package http2

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server serves the connections that Hand brings. Make it with New.
type Server struct {
	http   *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// New makes a server of net/http's, which speaks HTTP/2 only from then on. Write bounds each write to a client; malformed
// is called for what is no HTTP/2.
func New(s *http.Server, write time.Duration, malformed func()) *Server {
	s.Handler = bounded(s.Handler, write)
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP2(true)
	s.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: 250, MaxReadFrameSize: 64 << 10, SendPingTimeout: 30 * time.Second, WriteByteTimeout: write,
		CountError: func(string) { malformed() },
	}
	return &Server{http: s, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Hand gives the server a connection whose handshake is over. Once the server has ended it closes it.
func (s *Server) Hand(c *tls.Conn) {
	select {
	case s.conns <- c:
	case <-s.closed:
		_ = c.Close()
	}
}

// Serve serves until Shutdown, Close or End; only another error is one. The address is that of the listener that
// clients connected to.
func (s *Server) Serve(address net.Addr) error {
	if err := s.http.Serve(handed{s, address}); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// End takes no further connections.
func (s *Server) End() { s.once.Do(func() { close(s.closed) }) }

// Shutdown takes no further connections and waits for running requests, as http.Server's does.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close cuts every connection.
func (s *Server) Close() error { return s.http.Close() }

// handed is the listener of what is handed over.
type handed struct {
	*Server
	address net.Addr
}

// Accept gives the next one.
func (h handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; what is handed over afterwards is closed.
func (h handed) Close() error {
	h.End()
	return nil
}

// Addr is the address of the listener that clients connected to.
func (h handed) Addr() net.Addr { return h.address }
