package forward

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/verdict"
)

// What is said to be unsent may be sent elsewhere: it is said only where no connection could be made, and never of a
// connection that was there, whatever became of it.
func TestUnsentIsSaidOfWhatNeverLeftOnly(t *testing.T) {
	pool, certificate := authority(t)
	nowhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shut(nowhere)
	serves := func(serve func(f *fake, c net.Conn, br *bufio.Reader)) func(*testing.T) (*fake, *Upstream) {
		return func(t *testing.T) (*fake, *Upstream) {
			f := listen(t, serve)
			return f, f.upstream(nil)
		}
	}
	overTLS := func(server, client *tls.Config) func(*testing.T) (*fake, *Upstream) {
		return func(t *testing.T) (*fake, *Upstream) {
			f := overTLS(t, server)
			return f, f.upstream(https(client))
		}
	}
	for name, row := range map[string]struct {
		upstream func(t *testing.T) (*fake, *Upstream)
		unsent   bool
	}{
		"nobody listens": {func(t *testing.T) (*fake, *Upstream) {
			f := &fake{t: t, listener: nowhere}
			return f, f.upstream(nil)
		}, true},
		"no socket": {func(t *testing.T) (*fake, *Upstream) {
			f := &fake{t: t, listener: nowhere}
			return f, f.upstream(func(to *Target) { to.URL = &url.URL{Scheme: "unix", Path: filepath.Join(t.TempDir(), "none")} })
		}, true},
		"its certificate is another's": {overTLS(&tls.Config{Certificates: []tls.Certificate{certificate}}, nil), true},
		"it closes in the handshake": {func(t *testing.T) (*fake, *Upstream) {
			f := listen(t, func(*fake, net.Conn, *bufio.Reader) {})
			return f, f.upstream(https(&tls.Config{RootCAs: pool}))
		}, true},
		"it is silent in the handshake": {func(t *testing.T) (*fake, *Upstream) {
			f := listen(t, func(_ *fake, _ net.Conn, br *bufio.Reader) { _, _ = io.Copy(io.Discard, br) })
			return f, f.upstream(func(to *Target) {
				https(&tls.Config{RootCAs: pool})(to)
				to.Timeouts.Connect = 50 * time.Millisecond
			})
		}, true},
		// The handshake of TLS 1.3 is over for us before the server has looked at our certificate
		"it refuses us after the handshake": {overTLS(&tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, &tls.Config{RootCAs: pool}), false},
		"it accepts and closes":             {serves(func(*fake, net.Conn, *bufio.Reader) {}), false},
		"it resets at the first byte": {serves(func(_ *fake, c net.Conn, br *bufio.Reader) {
			_, _ = br.Peek(1)
			_ = c.(*net.TCPConn).SetLinger(0)
		}), false},
		"it reads and closes": {serves(func(f *fake, _ net.Conn, br *bufio.Reader) { f.request(br) }), false},
		"it says no HTTP":     {serves(func(_ *fake, c net.Conn, _ *bufio.Reader) { _, _ = io.WriteString(c, "220 mail\r\n") }), false},
	} {
		t.Run(name, func(t *testing.T) {
			f, u := row.upstream(t)
			out, _ := send(u, call(t, `{"model":"m"}`))
			if !out.Refusal.Refused() || out.Written || out.Unsent != row.unsent {
				t.Errorf("%+v, want unsent %t", out, row.unsent)
			}
			if row.unsent && (out.Refusal.Reason() != verdict.UpstreamUnavailable || len(f.got()) != 0) {
				t.Errorf("%v; %d requests arrived", out.Refusal.Err(), len(f.got()))
			}
		})
	}
}

// A pooled connection that was closed before anything was written is as good as none; one that took the request is not.
func TestUnsentWithPooledConnections(t *testing.T) {
	for name, row := range map[string]struct {
		reads  int // requests that the connection takes before it closes; only the first is answered
		unsent bool
	}{
		"closed before the next request": {1, true},
		"closed when it had it":          {2, false},
	} {
		t.Run(name, func(t *testing.T) {
			closed := make(chan struct{})
			f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
				f.request(br)
				_, _ = io.WriteString(c, answer("{}"))
				_ = f.listener.Close() // nobody gets another connection
				if row.reads > 1 {
					f.request(br)
				}
				_ = c.Close()
				close(closed)
			})
			u := f.upstream(nil)
			if out, _ := send(u, call(t, "{}")); out.Refusal.Refused() || out.Unsent {
				t.Fatalf("%+v", out)
			}
			if row.unsent {
				<-closed
				noticed(t, u)
			}
			out, _ := send(u, call(t, "{}"))
			if out.Unsent != row.unsent || len(f.got()) != row.reads || f.accepted() != 1 {
				t.Errorf("%+v, %d requests on %d connections", out, len(f.got()), f.accepted())
			}
		})
	}
}

// A caller that left has no use for another upstream.
func TestACancelledRequestIsNotCalledUnsent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shut(l)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("gone"))
	out := (&fake{t: t, listener: l}).upstream(nil).Send(ctx, httptest.NewRecorder(), call(t, "{}"))
	if out.Unsent || out.Ended != verdict.ClientLeft {
		t.Errorf("%+v", out)
	}
}
