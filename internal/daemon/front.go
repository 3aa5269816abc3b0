package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/http1"
)

// front is what clients connect to: our own loop for HTTP/1.1, and net/http for the connections that chose HTTP/2.
type front struct {
	*http1.Server
	second *http.Server // HTTP/2; nil without TLS
	chosen *handedOver
}

// front makes the server of one listener for clients.
func (d *Daemon) front(base context.Context, l config.Listener, t config.Timeouts) *front {
	f := &front{Server: &http1.Server{
		Handler: d.from(l), MaxHeaderBytes: maxHeaderBytes,
		HeaderTimeout: time.Duration(t.Header), IdleTimeout: time.Duration(t.Idle), WriteTimeout: time.Duration(t.Write),
		Base: base, Malformed: d.meter.Malformed, Log: d.log,
	}}
	if l.TLS == nil {
		return f
	}
	f.TLS = tlsConfig(func() *tls.Certificate { return d.certs.of(l.TLS.Certificate) })
	f.second = newServer(overHTTP2(f.Handler, time.Duration(t.Write)), t, base, d.log)
	f.second.Protocols = new(http.Protocols)
	f.second.Protocols.SetHTTP2(true)
	f.second.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: 250, MaxReadFrameSize: 64 << 10, SendPingTimeout: 30 * time.Second, WriteByteTimeout: time.Duration(t.Write),
		CountError: func(string) { d.meter.Malformed() },
	}
	f.chosen = &handedOver{conns: make(chan net.Conn), closed: make(chan struct{})}
	f.HTTP2 = f.chosen.hand
	return f
}

// Serve serves both until they are shut down.
func (f *front) Serve(l net.Listener) error {
	if f.second == nil {
		return f.Server.Serve(l)
	}
	f.chosen.address = l.Addr()
	second := make(chan error, 1)
	go func() { second <- f.second.Serve(f.chosen) }()
	err := f.Server.Serve(l)
	_ = f.chosen.Close()
	if other := <-second; !errors.Is(other, http.ErrServerClosed) && !errors.Is(other, net.ErrClosed) {
		err = errors.Join(err, other)
	}
	return err
}

// Shutdown stops listening and waits for running requests, of both protocols side by side.
func (f *front) Shutdown(ctx context.Context) error {
	if f.second == nil {
		return f.Server.Shutdown(ctx)
	}
	second := make(chan error, 1)
	go func() { second <- f.second.Shutdown(ctx) }()
	return errors.Join(f.Server.Shutdown(ctx), <-second)
}

// Close cuts every connection.
func (f *front) Close() error {
	if f.second == nil {
		return f.Server.Close()
	}
	return errors.Join(f.Server.Close(), f.second.Close())
}

// handedOver is the listener of the connections that chose HTTP/2 in their handshake.
type handedOver struct {
	address net.Addr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func (h *handedOver) hand(c *tls.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

// Accept gives the next one.
func (h *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; what is handed over afterwards is closed.
func (h *handedOver) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is the address of the listener that clients connected to.
func (h *handedOver) Addr() net.Addr { return h.address }

// from gives requests of a listener to the snapshot of now, with what the listener knows of who ends TLS.
func (d *Daemon) from(l config.Listener) http.Handler {
	proxies := l.ProxyNetworks()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		d.current.Load().gateway.Behind(proxies, w, r)
	})
}
