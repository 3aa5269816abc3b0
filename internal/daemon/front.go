package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/http1"
	"github.com/vallum/vallum/internal/http2"
)

// front is what clients connect to: our own loop for HTTP/1.1, and net/http for the connections that chose HTTP/2.
type front struct {
	*http1.Server
	second *http2.Server // nil without TLS
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
	f.second = http2.New(newServer(f.Handler, t, base, d.log), time.Duration(t.Write), d.meter.Malformed)
	f.HTTP2 = f.second.Hand
	return f
}

// Serve serves both until they are shut down.
func (f *front) Serve(l net.Listener) error {
	if f.second == nil {
		return f.Server.Serve(l)
	}
	second := make(chan error, 1)
	go func() { second <- f.second.Serve(l.Addr()) }()
	err := f.Server.Serve(l)
	f.second.End()
	if other := <-second; other != nil {
		return errors.Join(err, other)
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
