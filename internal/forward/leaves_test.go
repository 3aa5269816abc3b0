package forward

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/gateway"
	"github.com/vallum/vallum/internal/http1"
	"github.com/vallum/vallum/internal/http2"
	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllmtest"
)

// pipes is a listener whose connections are pipes: nothing of them is the kernel's, so time stands still while they work.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	return client, p.give(ctx, server)
}

func (p *pipes) give(ctx context.Context, c net.Conn) error {
	select {
	case p.conns <- c:
		return nil
	case <-p.closed:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
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
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8000} }

// path is the whole way of a request: a client's connection, the loop that serves it, the gateway, the way to the
// upstream, and a fake vLLM that tells when a client is gone.
type path struct {
	t       *testing.T
	clients *pipes
	fake    *vllmtest.Server
	trust   *x509.CertPool // for clients of TLS; nil when there is none
	keys    *authn.Authenticator
	ended   chan audit.Record // the last lines of requests
}

// newPath makes one within a bubble. With TLS clients may choose HTTP/2.
func newPath(t *testing.T, secure bool) *path {
	p := &path{t: t, clients: newPipes(), keys: authn.New(authn.Options{}), ended: make(chan audit.Record, 9), fake: vllmtest.New(vllmtest.Options{MaxModelLen: 1 << 20, Words: 1 << 16, Interval: 30 * time.Millisecond})}
	upstream := newPipes()
	served := make(chan error, 1)
	go func() { served <- p.fake.Serve(upstream) }()
	t.Cleanup(func() {
		p.fake.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	u, err := New(Target{Name: "test", URL: &url.URL{Scheme: "http", Host: "vllm:8000"}})
	if err != nil {
		t.Fatal(err)
	}
	u.dial = upstream.dial
	t.Cleanup(u.Close)
	front := &http1.Server{
		Handler: p.gate(u), HeaderTimeout: time.Minute, IdleTimeout: time.Minute, WriteTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		Log: slog.New(slog.DiscardHandler),
	}
	if secure {
		p.second(front)
	}
	ended := make(chan error, 1)
	go func() { ended <- front.Serve(p.clients) }()
	t.Cleanup(func() {
		_ = front.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		_ = front.Shutdown(context.Background()) // waits for the connections' goroutines
	})
	return p
}

// second serves the connections that chose HTTP/2 by net/http, as the daemon does.
func (p *path) second(front *http1.Server) {
	pool, certificate := authority(p.t)
	p.trust = pool
	front.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}
	second := http2.New(&http.Server{Handler: front.Handler}, time.Minute, func() {})
	front.HTTP2 = second.Hand
	ended := make(chan error, 1)
	go func() { ended <- second.Serve(p.clients.Addr()) }()
	p.t.Cleanup(func() {
		_ = second.Close()
		if err := <-ended; err != nil {
			p.t.Error(err)
		}
	})
}

// gate is a gateway whose stages allow, the key "k" with its role for as long as the path's keys have it.
func (p *path) gate(u *Upstream) *gateway.Gateway {
	t := p.t
	t.Helper()
	p.set(authn.Key{})
	rules, problems := policy.Build(policy.Rules{Models: []policy.Model{{Name: "tiny", Upstreams: []string{"test"}}}, Upstreams: []string{"test"}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s := allows{u, p.ended}
	return &gateway.Gateway{
		Policy: rules, Keys: s, Limits: s, Memory: gateway.NewMemory(1 << 20), Records: s, Upstreams: s, Salts: s, Running: running{p.keys}, Meter: s,
		Log: slog.New(slog.DiscardHandler), Now: time.Now, Settings: gateway.Settings{Body: inspect.Default(), BodyTimeout: time.Minute, MaxReply: 1 << 20},
	}
}

// allows is every stage that is not looked at here.
type allows struct {
	up    *Upstream
	ended chan audit.Record
}

// set makes the key what it is from now on, in the role inference.
func (p *path) set(k authn.Key) {
	k.ID, k.Name, k.Hash[0] = "k", "app", 1
	if k.Roles == nil {
		k.Roles = []string{"inference"}
	}
	p.keys.SetKeys(authn.NewKeys([]authn.Key{k}))
}

// running tells a request of a key that was taken away, as the daemon does.
type running struct{ keys *authn.Authenticator }

func (r running) Register(keyID string, roles []string, cancel func(error)) func() {
	return r.keys.Register(keyID, roles, func(why error) { cancel(errors.Join(verdict.ErrRevoked, why)) })
}

func (allows) Authenticate(http.Header, netip.Addr, time.Time) (identity.Principal, verdict.Verdict) {
	return identity.New("app", "k", "", []string{"inference"}), verdict.Allow()
}

func (s allows) Take(string, policy.Limits, time.Time) (gateway.Slot, verdict.Verdict) {
	return s, verdict.Allow()
}
func (allows) Reserve(int64, time.Time) verdict.Verdict { return verdict.Allow() }
func (allows) Settle(int64, time.Time)                  {}
func (allows) Release(time.Time)                        {}
func (allows) Count(string, netip.Addr)                 {}
func (allows) Salt(tenant string) string                { return "salt-of-" + tenant }
func (allows) Began(string)                             {}
func (allows) Observe(gateway.Sample)                   {}
func (allows) Name() string                             { return "test" }

func (s allows) Append(r audit.Record) (uint64, error) {
	if r.Event != audit.Admitted {
		s.ended <- r
	}
	return 1, nil
}

func (s allows) Pick(policy.Grant, []string) (gateway.Upstream, verdict.Verdict) {
	return s, verdict.Allow()
}

func (s allows) Send(ctx context.Context, w http.ResponseWriter, c gateway.Call) verdict.Outcome {
	return s.up.Send(ctx, w, Call{
		Grant: c.Grant, RequestID: c.ID, ContentType: c.Body.ContentType, Body: c.Body.Bytes, Reader: c.Body.Reader, Length: c.Body.Length,
		Stream: c.Grant.Stream(), MaxReply: c.MaxReply, Rewriter: c.Reply, Sent: c.Sent, Room: c.Room,
	})
}

// slowest is how long the upstream may work for a client that is gone.
const slowest = 100 * time.Millisecond

// cut checks that the upstream is cut in time after the client left, which was just now.
func (p *path) cut() {
	p.t.Helper()
	left := time.Now()
	select {
	case <-p.fake.Gone():
	case <-time.After(time.Hour):
	}
	if d := time.Since(left); d > slowest {
		p.t.Errorf("the upstream was cut %v after its client had left, want %v at most", d, slowest)
	}
}

// leavings are the requests that a client leaves, and what the upstream is doing then.
var leavings = []struct {
	what   string
	stream bool
	does   vllmtest.Behaviour
	events int  // that come first
	reads  bool // the client reads what comes
}{
	{"a whole answer that does not come", false, vllmtest.Behaviour{Kind: vllmtest.NeverAnswer}, 0, true},
	{"a whole answer that is half here", false, vllmtest.Behaviour{Kind: vllmtest.Hang}, 0, true},
	{"a stream that does not begin", true, vllmtest.Behaviour{Kind: vllmtest.NeverAnswer}, 0, true},
	{"a stream without an event", true, vllmtest.Behaviour{Kind: vllmtest.Hang}, 0, true},
	{"a stream that fell silent", true, vllmtest.Behaviour{Kind: vllmtest.Hang, After: 3}, 3, true},
	{"a stream that goes on", true, vllmtest.Behaviour{}, 3, true},
	{"a stream that the client does not read", true, vllmtest.Behaviour{}, 1, false},
}

// When the client goes, the upstream is cut within 100 ms, whatever either of them was doing: exactly, for nothing but
// time passes while all wait.
func TestTheUpstreamIsCutWithinAHundredMillisecondsOfItsClient(t *testing.T) {
	const ahead = "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
	for _, l := range leavings {
		for _, way := range []struct {
			after  time.Duration // of what was waited for
			sends  string        // then, and leaves
			secure bool
		}{
			{0, "", false},
			{19 * time.Millisecond, "", false},
			{20 * time.Millisecond, "", false},
			{20 * time.Millisecond, "", true},
			{5 * time.Minute, "", false},
			{5 * time.Minute, "", true},
			{0, ahead, false},
			{time.Second, "\r\n", false},
			{time.Second, "\r\n", true},
			{time.Second, ahead, false},
			{time.Second, ahead, true},
		} {
			t.Run(fmt.Sprintf("%s/%v %q TLS %t", l.what, way.after, way.sends, way.secure), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPath(t, way.secure)
					p.fake.Next(l.does)
					c := p.connect()
					defer shut(c)
					_, _ = io.WriteString(c, requestOf(l.stream))
					br := bufio.NewReader(c)
					for range l.events {
						nextEvent(t, br)
					}
					if l.reads {
						go func() { _, _ = io.Copy(io.Discard, br) }()
					}
					<-time.After(way.after)
					if way.sends != "" {
						_, _ = io.WriteString(c, way.sends)
					}
					synctest.Wait()
					shut(c)
					p.cut()
				})
			})
		}
	}
}

// connect opens a connection to the gateway, by TLS where it serves that.
func (p *path) connect() net.Conn {
	p.t.Helper()
	c, err := p.clients.dial(p.t.Context(), "", "")
	if err != nil {
		p.t.Fatal(err)
	}
	if p.trust == nil {
		return c
	}
	return cutting{tls.Client(c, &tls.Config{RootCAs: p.trust, ServerName: "127.0.0.1", NextProtos: []string{"http/1.1"}}), c}
}

// cutting is a TLS connection of a client that goes without a word, as most do.
type cutting struct {
	*tls.Conn
	raw net.Conn
}

func (c cutting) Close() error { return c.raw.Close() }

func requestOf(stream bool) string {
	body := fmt.Sprintf(`{"model":"tiny","stream":%t,"messages":[{"role":"user","content":"hi"}]}`, stream)
	return fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func nextEvent(t *testing.T, br *bufio.Reader) {
	t.Helper()
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "data: ") {
			return
		}
	}
}

// The same for HTTP/2, where a client leaves a request alone by a reset of its stream, or all of them with the connection.
func TestTheUpstreamIsCutWithinAHundredMillisecondsOverHTTP2(t *testing.T) {
	for _, l := range leavings {
		for _, after := range []time.Duration{0, 20 * time.Millisecond, 5 * time.Minute} {
			for _, whole := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%v/the connection %t", l.what, after, whole), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p := newPath(t, true)
						p.fake.Next(l.does)
						leaveByHTTP2(t, p, l.stream, l.events, l.reads, after, whole)
						p.cut()
					})
				})
			}
		}
	}
}

func leaveByHTTP2(t *testing.T, p *path, stream bool, events int, reads bool, after time.Duration, whole bool) {
	t.Helper()
	var raw net.Conn
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: p.trust, ServerName: "127.0.0.1"}}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := p.clients.dial(ctx, network, address)
		raw = c
		return c, err
	}
	t.Cleanup(transport.CloseIdleConnections)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	_, body, _ := strings.Cut(requestOf(stream), "\r\n\r\n")
	req, err := http.NewRequestWithContext(ctx, "POST", "https://gate/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	came, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return
		}
		defer shut(resp.Body)
		if resp.ProtoMajor != 2 {
			t.Errorf("this is %s", resp.Proto)
		}
		br := bufio.NewReader(resp.Body)
		for range events {
			nextEvent(t, br)
		}
		close(came)
		if reads {
			_, _ = io.Copy(io.Discard, br)
		}
		<-ctx.Done()
	}()
	if events > 0 {
		<-came
	}
	<-time.After(after)
	synctest.Wait()
	if whole {
		shut(raw)
	}
	left := time.Now()
	cancel()
	<-over
	if d := time.Since(left); d > 0 {
		t.Errorf("the client took %v to leave", d)
	}
}
