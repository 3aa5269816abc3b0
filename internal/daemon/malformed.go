package daemon

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
)

// net/http answers what is no HTTP, and header blocks that are too large, with a bare 400 or 431 of its own: no request
// existed, so no record does. They are counted all the same, or a probe of the parser would leave no trace.

// counted is a listener whose connections know whether what arrived on them became a request.
type counted struct{ net.Listener }

// countedConn is one of its connections.
type countedConn struct {
	net.Conn
	requests atomic.Int64 // that reached the gateway
	active   atomic.Int64 // times that bytes of a request began to arrive
}

func (l counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedConn{Conn: c}, nil
}

// countedOf finds the connection behind TLS.
func countedOf(c net.Conn) *countedConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	of, _ := c.(*countedConn)
	return of
}

type connKey struct{}

// countMalformed counts, on a server whose listener is counted, the connections that ended after bytes that became no
// request. Bytes that came along with a request before them are not seen.
func countMalformed(s *http.Server, count func()) {
	handler := s.Handler
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, countedOf(c))
	}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, _ := r.Context().Value(connKey{}).(*countedConn); c != nil {
			c.requests.Add(1)
		}
		handler.ServeHTTP(w, r)
	})
	s.ConnState = func(c net.Conn, state http.ConnState) {
		of := countedOf(c)
		switch {
		case of == nil:
		case state == http.StateActive:
			of.active.Add(1)
		case state == http.StateClosed && of.active.Load() > of.requests.Load():
			count()
		}
	}
}
