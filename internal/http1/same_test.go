package http1

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// bytesConn is a connection on which these bytes arrive, and then its end.
type bytesConn struct {
	in   *bytes.Reader
	done chan struct{}
	once sync.Once
}

func (c *bytesConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *bytesConn) Write(p []byte) (int, error) { return len(p), nil }
func (c *bytesConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

func (c *bytesConn) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "@", Net: "unix"} }
func (c *bytesConn) RemoteAddr() net.Addr             { return c.LocalAddr() }
func (c *bytesConn) SetDeadline(time.Time) error      { return nil }
func (c *bytesConn) SetReadDeadline(time.Time) error  { return nil }
func (c *bytesConn) SetWriteDeadline(time.Time) error { return nil }

// oneConn is a listener with one connection.
type oneConn struct {
	c    *bytesConn
	once sync.Once
}

func (l *oneConn) Accept() (c net.Conn, err error) {
	l.once.Do(func() { c = l.c })
	if c == nil {
		<-l.c.done
		err = net.ErrClosed
	}
	return c, err
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.c.LocalAddr() }

// seen are the requests that a server makes of these bytes.
func seen(b []byte, serve func(http.Handler, net.Listener)) []string {
	var requests []string
	c := &bytesConn{in: bytes.NewReader(b), done: make(chan struct{})}
	serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		r.Header.Del("Host")
		requests = append(requests, fmt.Sprintf("%s %q %q %v %d %q %v", r.Method, r.RequestURI, r.Host, r.Header, r.ContentLength, body, err != nil))
	}), &oneConn{c: c})
	<-c.done
	return requests
}

func ours(h http.Handler, l net.Listener) {
	s := &Server{Handler: h, HeaderTimeout: time.Hour, IdleTimeout: time.Hour, WriteTimeout: time.Hour, MaxHeaderBytes: 64 << 10, Log: slog.New(slog.DiscardHandler)}
	_ = s.Serve(l)
	s.running.Wait()
}

func theirs(h http.Handler, l net.Listener) {
	s := &http.Server{Handler: h, DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	_ = s.Serve(l)
}

// Every request that this loop sees net/http's server sees alike, in the same order: the framing of a connection is
// read as it is read everywhere else. The other way round less may be seen: this loop refuses more.
func FuzzTheRequestsAreThoseOfNetHTTP(f *testing.F) {
	post := "POST /a HTTP/1.1\r\nHost: h\r\n"
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
		post + "Content-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
		post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
		post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
		post + "Content-Length: 3\r\n\r\nabc\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
		post + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET http://x/ HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\nHost: h\n\n", "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("a", 80<<10) + "\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		our, their := seen(b, ours), seen(b, theirs)
		// Whether a request in absolute form had a Host header cannot be seen here; the gateway refuses its target.
		if i := slices.IndexFunc(our, func(r string) bool {
			_, target, _ := strings.Cut(r, " ")
			return !strings.HasPrefix(target, `"/`) && !strings.HasPrefix(target, `"*" `)
		}); i >= 0 {
			our = our[:i]
		}
		if len(our) > len(their) {
			t.Fatalf("%q\nis %q here\nand %q to net/http", b, our, their)
		}
		for i := range our {
			if cut, ok := strings.CutSuffix(our[i], " true"); ok && i == len(our)-1 && strings.HasPrefix(their[i], cut[:strings.LastIndex(cut, ` "`)]) {
				break // a body whose end is doubtful; nothing is read behind it
			}
			if our[i] != their[i] {
				t.Fatalf("%q\nis %q here\nand %q to net/http", b, our[i], their[i])
			}
		}
	})
}
