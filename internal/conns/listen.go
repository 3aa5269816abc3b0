package conns

import (
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/remote"
)

// Listener gives each connection of l a place of the bound, and closes those for which there is none as they come. Of the
// addresses that shared reports, such as proxies before many clients, only the bound over all is asked; nil is none. A UNIX
// socket's clients have no address, and count as shared.
func (b *Bound) Listener(l net.Listener, shared func(netip.Addr) bool) net.Listener {
	return &listener{Listener: l, bound: b, shared: shared}
}

type listener struct {
	net.Listener
	bound  *Bound
	shared func(netip.Addr) bool
}

// Accept gives the next connection that has a place.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		held, p := hold(c)
		p.conn = held
		if at, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			if addr := at.AddrPort().Addr().Unmap(); l.shared == nil || !l.shared(addr) {
				p.from = remote.Network(addr)
			}
		}
		if l.bound.take(p) {
			return held, nil
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // the kernel has nothing to keep of it either
		}
		_ = c.Close()
	}
}

// hold wraps a connection with its place. What it was, it still is to those who ask for the socket's own methods.
func hold(c net.Conn) (net.Conn, *place) {
	switch c := c.(type) {
	case *net.TCPConn:
		h := &tcpConn{TCPConn: c}
		return h, &h.place
	case *net.UnixConn:
		h := &unixConn{UnixConn: c}
		return h, &h.place
	}
	h := &otherConn{Conn: c}
	return h, &h.place
}

type tcpConn struct {
	*net.TCPConn
	place
}

// Close closes the connection and gives its place back.
func (c *tcpConn) Close() error {
	defer c.giveBack()
	return c.TCPConn.Close()
}

type unixConn struct {
	*net.UnixConn
	place
}

// Close closes the connection and gives its place back.
func (c *unixConn) Close() error {
	defer c.giveBack()
	return c.UnixConn.Close()
}

type otherConn struct {
	net.Conn
	place
}

// Close closes the connection and gives its place back.
func (c *otherConn) Close() error {
	defer c.giveBack()
	return c.Conn.Close()
}

// State notes what net/http's server says of a connection, in whatever it lies; it is for http.Server.ConnState. That
// server is asked per connection, not per request: one of HTTP/2 is active while any of its streams is.
func State(c net.Conn, s http.ConnState) {
	state := idleness(c)
	if state == nil || s != http.StateActive && s != http.StateIdle {
		return
	}
	next := Active
	if s == http.StateIdle {
		next = time.Now().UnixNano()
	}
	if now := state.Load(); now != Closed {
		state.CompareAndSwap(now, next)
	}
}

// idleness finds the place under TLS and the like; nil when there is none.
func idleness(c net.Conn) *atomic.Int64 {
	for {
		switch in := c.(type) {
		case interface{ Idleness() *atomic.Int64 }:
			return in.Idleness()
		case interface{ NetConn() net.Conn }:
			c = in.NetConn()
		default:
			return nil
		}
	}
}
