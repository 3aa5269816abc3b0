package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/conns"
)

// maxHeaderBytes bounds a request's header block. Real clients send 1.3 KB at most. A larger one is answered with a bare
// 431: no request existed.
const maxHeaderBytes = 64 << 10

// server is one listener and what answers on it.
type server struct {
	listener net.Listener
	http     service
	url      string // where a client reaches it
	what     string // "probes" or "admin"; "" for clients
}

// service is an HTTP server: net/http's for probes and administration, our own loop for clients.
type service interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

// listen opens a TCP address, or a UNIX socket for unix:/path. A socket file that nobody listens on any more is
// removed: it stays behind when a process dies. One that answers is another process's, and an error.
func listen(address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		network := "tcp"
		if at, err := netip.ParseAddrPort(address); err == nil && at.Addr().Is4() {
			network = "tcp4" // net takes 0.0.0.0 for every address of IPv6 too, which nobody wrote, and a firewall may not know
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return nil, fmt.Errorf("listening on %s: %w", address, err)
		}
		return l, nil
	}
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("listening on %s: another process answers there", address)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the socket that nobody listens on: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("setting the socket's mode: %w", err)
	}
	return l, nil
}

// newServer is net/http's server, with every deadline set but one on writing: a stream may last for hours, so each write
// has a deadline of its own. OPTIONS * is answered by the handler, not by net/http.
func newServer(handler http.Handler, t config.Timeouts, base context.Context, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      handler,
		BaseContext:                  func(net.Listener) context.Context { return base },
		ReadHeaderTimeout:            time.Duration(t.Header),
		IdleTimeout:                  time.Duration(t.Idle),
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ConnState:                    conns.State,
		ErrorLog:                     slog.NewLogLogger(quiet{log.Handler()}, slog.LevelDebug),
	}
}

// quiet passes on what net/http logs of broken connections: strangers cause it, so it is for debugging only.
type quiet struct{ slog.Handler }

// tlsConfig serves the certificate that is current, so that a renewed one needs no restart.
func tlsConfig(current func() *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c := current(); c != nil {
				return c, nil
			}
			return nil, errors.New("no certificate is loaded")
		},
	}
}

func (s *server) serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// urlOf is how a client on this machine reaches a listener.
func urlOf(l net.Listener, secure bool) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	return scheme + l.Addr().String()
}
