package forward

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/verdict"
)

// authority is a CA of a test, and a certificate for 127.0.0.1 and for a client by it.
func authority(t *testing.T) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return pool, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func overTLS(t *testing.T, server *tls.Config) *fake {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listenOn(t, tls.NewListener(l, server), func(f *fake, c net.Conn, br *bufio.Reader) {
		for f.request(br) {
			_, _ = io.WriteString(c, answer("{}"))
		}
	})
}

func https(client *tls.Config) func(*Target) {
	return func(t *Target) { t.URL.Scheme, t.TLS = "https", client }
}

func TestTLSUpstream(t *testing.T) {
	pool, certificate := authority(t)
	f := overTLS(t, &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	u := f.upstream(https(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}}))
	for range 4 {
		if out, w := send(u, call(t, "{}")); out.Refusal.Refused() || w.Body.String() != "{}" {
			t.Fatalf("%v %q", out.Refusal.Err(), w.Body)
		}
	}
	if n := f.accepted(); n != 1 {
		t.Errorf("%d connections for 4 requests", n)
	}
	if status, _, err := u.Get(context.Background(), "/health", true); status != 200 || err != nil {
		t.Errorf("probe: %d %v", status, err)
	}
}

func TestTLSUpstreamsThatAreNotTrusted(t *testing.T) {
	pool, certificate := authority(t)
	other, _ := authority(t)
	for what, c := range map[string]struct{ server, client *tls.Config }{
		"another CA":                     {&tls.Config{Certificates: []tls.Certificate{certificate}}, &tls.Config{RootCAs: other}},
		"no CA":                          {&tls.Config{Certificates: []tls.Certificate{certificate}}, nil},
		"another name":                   {&tls.Config{Certificates: []tls.Certificate{certificate}}, &tls.Config{RootCAs: pool, ServerName: "example.org"}},
		"TLS 1.1, though the caller may": {&tls.Config{Certificates: []tls.Certificate{certificate}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10}},
	} {
		f := overTLS(t, c.server)
		out, _ := send(f.upstream(https(c.client)), call(t, "{}"))
		if out.Refusal.Reason() != verdict.UpstreamUnavailable || len(f.got()) != 0 {
			t.Errorf("%s: %+v, %d requests", what, out, len(f.got()))
		}
	}
}

func TestUnixUpstream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f := listenOn(t, l, func(f *fake, c net.Conn, br *bufio.Reader) {
		for f.request(br) {
			_, _ = io.WriteString(c, answer("{}"))
		}
	})
	u := f.upstream(func(t *Target) { t.URL = &url.URL{Scheme: "unix", Path: path} })
	for range 3 {
		if out, w := send(u, call(t, "{}")); out.Refusal.Refused() || w.Body.String() != "{}" {
			t.Fatalf("%v %q", out.Refusal.Err(), w.Body)
		}
	}
	if f.accepted() != 1 || !strings.Contains(f.got()[0], "\r\nHost: localhost\r\n") {
		t.Errorf("%d connections, %q", f.accepted(), f.got()[0])
	}
	_ = l.Close()
	u.Close()
	if out, _ := send(u, call(t, "{}")); out.Refusal.Reason() != verdict.UpstreamUnavailable {
		t.Errorf("a socket that is gone: %+v", out)
	}
}

// Events leave at once over HTTP/2 and TLS as well.
func TestEachEventLeavesAtOnceOverHTTP2(t *testing.T) {
	step := make(chan struct{})
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, streamHead)
		for range step {
			_, _ = io.WriteString(c, chunked("data: x\n\n"))
		}
		_, _ = io.WriteString(c, chunked(doneEvent)+"0\r\n\r\n")
	})
	u, c := f.upstream(nil), streamCall(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { u.Send(r.Context(), w, c) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	go func() { step <- struct{}{} }()
	response, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer shut(response.Body)
	if response.ProtoMajor != 2 {
		t.Fatalf("this is %s", response.Proto)
	}
	buf := make([]byte, len("data: x\n\n"))
	for i := range 5 {
		if _, err := io.ReadFull(response.Body, buf); err != nil || string(buf) != "data: x\n\n" {
			t.Fatalf("event %d: %q %v", i, buf, err)
		}
		if i < 4 {
			step <- struct{}{}
		}
	}
	close(step)
	if rest, _ := io.ReadAll(response.Body); string(rest) != doneEvent {
		t.Errorf("the rest: %q", rest)
	}
}

// Over TLS, bytes that nobody asked for may lie decrypted, or whole records not yet decrypted, in the connection's own
// memory: the socket is empty, and still the next caller would be given them.
func TestBytesNobodyAskedForOverTLS(t *testing.T) {
	pool, certificate := authority(t)
	server := &tls.Config{Certificates: []tls.Certificate{certificate}}
	for _, size := range []int{2, 3000, 5000, 8000, 12000, 20_000, 30_000} {
		for _, records := range []int{1, 2} {
			f := listen(t, func(f *fake, raw net.Conn, _ *bufio.Reader) {
				wire := &corked{Conn: raw}
				c := tls.Server(wire, server)
				for br := bufio.NewReader(c); f.request(br); {
					text := answer(`"` + strings.Repeat("x", size-2) + `"`)
					wire.held = []byte{} // in one packet, however many records
					if records == 2 {
						_, _ = io.WriteString(c, text)
						text = ""
					}
					_, _ = io.WriteString(c, text+answer(`{"of":"another request"}`))
					wire.pull()
				}
			})
			u := f.upstream(https(&tls.Config{RootCAs: pool}))
			for range 3 {
				if _, w := send(u, call(t, "{}")); strings.Contains(w.Body.String(), "another") || w.Body.Len() != size {
					t.Errorf("%d bytes, %d records: a caller got %.40q", size, records, w.Body)
				}
			}
		}
	}
}

// corked keeps what is written while held is not nil.
type corked struct {
	net.Conn
	held []byte
}

func (c *corked) Write(p []byte) (int, error) {
	if c.held == nil {
		return c.Conn.Write(p)
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

func (c *corked) pull() {
	held := c.held
	c.held = nil
	_, _ = c.Conn.Write(held)
}
