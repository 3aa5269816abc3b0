package forward

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/vllmtest"
)

// takings are the ways in which a key's running requests lose their right. None of them waits for anything.
var takings = map[string]func(p *path){
	"the key is revoked":     func(p *path) { p.set(authn.Key{Revoked: true}) },
	"the key is gone":        func(p *path) { p.keys.SetKeys(nil) },
	"the key loses its role": func(p *path) { p.set(authn.Key{Roles: []string{"monitor"}}) },
	"the key expires":        func(p *path) { p.keys.EndExpired(time.Now()) },
}

// soonest is how long a client that takes nothing has for the end of its answer.
const soonest = 500 * time.Millisecond

// A key that is taken away ends its requests at once, whatever they were doing: exactly, for nothing but time passes while
// all wait. Only a client that takes nothing of its answer, or sends nothing of its body, is waited for, for a moment.
func TestAKeyThatIsTakenAwayEndsItsRequestsAtOnce(t *testing.T) {
	for _, l := range leavings {
		for taken, take := range takings {
			for _, way := range []string{"plain", "TLS", "HTTP/2"} {
				t.Run(fmt.Sprintf("%s/%s/%s", l.what, taken, way), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p := newPath(t, way != "plain")
						p.fake.Next(l.does)
						expires := time.Now().Add(10 * time.Second)
						if taken == "the key expires" {
							p.set(authn.Key{Expires: expires})
						}
						got := p.begins(way, l.stream, l.events, l.reads)
						<-time.After(time.Until(expires))
						synctest.Wait()
						began := time.Now()
						take(p)
						<-p.fake.Gone()
						if d := time.Since(began); d > 0 {
							t.Errorf("the upstream worked for %v more", d)
						}
						r := <-p.ended
						d := time.Since(began)
						if l.reads && d > 0 || d > soonest {
							t.Errorf("the request ended after %v", d)
						}
						if r.Ended != audit.EndedRevoked {
							t.Errorf("it is recorded as %+v", r)
						}
						if rest := <-got; l.reads && !strings.Contains(rest, "revoked") {
							t.Errorf("the caller reads %q", rest)
						}
					})
				})
			}
		}
	}
}

// begins sends a request, reads so many events of its answer, and reads on only if that is wanted. What it gives is told
// what came after the events, once the answer has ended.
func (p *path) begins(way string, stream bool, events int, reads bool) <-chan string {
	p.t.Helper()
	got := make(chan string, 1)
	body, shut := p.asks(way, stream)
	br := bufio.NewReader(body())
	for range events {
		nextEvent(p.t, br)
	}
	if !reads {
		p.t.Cleanup(shut)
		close(got)
		return got
	}
	go func() {
		defer shut()
		rest, _ := io.ReadAll(br)
		got <- string(rest)
	}()
	return got
}

// asks sends a request; body is its answer from the status line on, or what comes behind the head over HTTP/2.
func (p *path) asks(way string, stream bool) (body func() io.Reader, shut func()) {
	p.t.Helper()
	if way != "HTTP/2" {
		c := p.connect()
		text := strings.Replace(requestOf(stream), "Host: h\r\n", "Host: h\r\nConnection: close\r\n", 1)
		if _, err := io.WriteString(c, text); err != nil {
			p.t.Fatal(err)
		}
		return func() io.Reader { return c }, func() { _ = c.Close() }
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: p.trust, ServerName: "127.0.0.1"}}
	transport.DialContext = p.clients.dial
	p.t.Cleanup(transport.CloseIdleConnections)
	ctx, cancel := context.WithCancel(p.t.Context())
	_, text, _ := strings.Cut(requestOf(stream), "\r\n\r\n")
	req, err := http.NewRequestWithContext(ctx, "POST", "https://gate/v1/chat/completions", strings.NewReader(text))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	r, w := io.Pipe()
	go func() {
		resp, err := transport.RoundTrip(req)
		if err != nil {
			_ = w.CloseWithError(err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		_, err = io.Copy(w, resp.Body)
		_ = w.CloseWithError(err)
	}()
	return func() io.Reader { return r }, func() { cancel(); _ = r.Close() }
}

// An upload that was begun with a key that is taken away meanwhile ends too, and nothing of it leaves, however slow it is.
func TestAnUploadEndsWithItsKey(t *testing.T) {
	for taken, take := range takings {
		for _, secure := range []bool{false, true} {
			for _, goesOn := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/TLS %t/the rest comes %t", taken, secure, goesOn), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p := newPath(t, secure)
						expires := time.Now().Add(30 * time.Second)
						if taken == "the key expires" {
							p.set(authn.Key{Expires: expires})
						}
						c := p.connect()
						defer func() { _ = c.Close() }()
						text := requestOf(true)
						half := len(text) - 10
						if _, err := io.WriteString(c, text[:half]); err != nil {
							t.Fatal(err)
						}
						<-time.After(time.Until(expires))
						synctest.Wait()
						began := time.Now()
						take(p)
						answer := make(chan string, 1)
						go func() {
							if goesOn {
								_, _ = io.WriteString(c, text[half:])
							}
							answer <- answered(c)
						}()
						r := <-p.ended
						d := time.Since(began)
						if goesOn && d > 0 || d > soonest {
							t.Errorf("the request ended after %v", d)
						}
						if r.Reason != "revoked" || r.Event != audit.Ended && r.Event != audit.Refused {
							t.Errorf("it is recorded as %+v", r)
						}
						if got := <-answer; goesOn && !strings.Contains(got, "401") {
							t.Errorf("the caller reads %q", got)
						}
						if n := p.fake.Arrived(); n != 0 {
							t.Errorf("%d requests reached the upstream", n)
						}
					})
				})
			}
		}
	}
}

// answered reads one answer's head.
func answered(c net.Conn) string {
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line
}

// A key that expired while nobody looked gives no request to an upstream, on a connection that is there neither.
func TestAnExpiredKeyRegistersNothing(t *testing.T) {
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			p := newPath(t, false)
			for arrived := range 2 { // without a pooled connection, and with one
				p.set(authn.Key{Expires: time.Now()})
				rest := <-p.begins("plain", true, 0, true)
				<-p.ended
				if n := p.fake.Arrived(); !strings.Contains(rest, "revoked") || n != arrived {
					t.Fatalf("%d requests reached the upstream, want %d; the caller reads %q", n, arrived, rest)
				}
				p.set(authn.Key{})
				<-p.begins("plain", false, 0, true)
				<-p.ended
			}
		})
	}
}

// A request that ended well is not cut afterwards: its connection may carry another's, where a proxy ends TLS.
func TestAConnectionOutlivesARevokedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPath(t, false)
		c := p.connect()
		defer func() { _ = c.Close() }()
		br := bufio.NewReader(c)
		ask := func(does vllmtest.Behaviour, while func()) string {
			p.fake.Next(does)
			_, _ = io.WriteString(c, requestOf(false))
			synctest.Wait()
			while()
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				return err.Error()
			}
			defer func() { _ = resp.Body.Close() }()
			_, err = io.Copy(io.Discard, resp.Body)
			return fmt.Sprint(resp.StatusCode, err)
		}
		if got := ask(vllmtest.Behaviour{Kind: vllmtest.NeverAnswer}, func() { p.set(authn.Key{Revoked: true}) }); got != "401 <nil>" {
			t.Fatal(got)
		}
		p.set(authn.Key{})
		if got := ask(vllmtest.Behaviour{Pause: 2 * soonest}, func() {}); got != "200 <nil>" {
			t.Errorf("another request on the connection: %s", got)
		}
	})
}

// A request that was cancelled gets no connection, neither a new one nor one that is there: what closes it comes too late.
func TestACancelledRequestGetsNoConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	u, err := New(Target{Name: "test", URL: &url.URL{Scheme: "http", Host: l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	pooled, err := u.connection(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	u.pool.put(pooled)
	u.dial = func(context.Context, string, string) (net.Conn, error) {
		t.Error("a connection is made")
		return nil, net.ErrClosed
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, fresh := range []bool{false, true} {
		if c, err := u.connection(cancelled, fresh); c != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("fresh %t: %v %v", fresh, c, err)
		}
	}
	if c, err := u.connection(t.Context(), false); c != pooled {
		t.Errorf("the pooled connection is gone: %v", err)
	}
}
