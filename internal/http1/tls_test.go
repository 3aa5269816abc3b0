package http1

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// secured is a TLS configuration with a certificate of its own, and one for clients that do not check it.
func secured(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}, &tls.Config{InsecureSkipVerify: true}
}

// pipes is a listener of connections that buffer nothing.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "@", Net: "unix"} }

// A client that does not read holds up nobody's shutdown: TLS would wait five seconds for each to take its goodbye.
func TestShutdownWaitsForNoGoodbye(t *testing.T) {
	server, client := secured(t)
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := serveOn(t, l, echo, func(s *Server) { s.TLS = server })
	for range 3 {
		near, far := net.Pipe()
		l.conns <- far
		c := tls.Client(near, client)
		t.Cleanup(func() { _ = near.Close() })
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	began := time.Now()
	if err := s.Shutdown(ctx); err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

// Handshakes that run while the server shuts down (the race detector looks on).
func TestShutdownDuringHandshakes(t *testing.T) {
	server, client := secured(t)
	for range 20 {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		s := serveOn(t, l, func(http.ResponseWriter, *http.Request) {}, func(s *Server) { s.TLS = server })
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				if c, err := tls.Dial("unix", s.address, client); err == nil {
					_ = c.Close()
				}
			})
		}
		<-time.After(time.Millisecond)
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		clients.Wait()
	}
}
