package forward

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an upstream that answers as a test says. It records every request that it got.
type fake struct {
	t        testing.TB
	listener net.Listener
	wait     sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
	requests []string // head and body as they arrived
}

// listen starts a fake on loopback; serve gets each connection, and the connection is closed when it returns.
func listen(t testing.TB, serve func(f *fake, c net.Conn, br *bufio.Reader)) *fake {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listenOn(t, l, serve)
}

// listenPiped is listen without a network: within a bubble time passes only while everybody waits, so a timeout takes exactly
// as long as it says, however busy the machine is.
func listenPiped(t testing.TB, serve func(f *fake, c net.Conn, br *bufio.Reader)) *fake {
	t.Helper()
	return listenOn(t, newPipes(), serve)
}

func listenOn(t testing.TB, l net.Listener, serve func(f *fake, c net.Conn, br *bufio.Reader)) *fake {
	f := &fake{t: t, listener: l}
	f.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			f.wait.Go(func() {
				defer shut(c)
				serve(f, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.mu.Lock()
		for _, c := range f.conns {
			_ = c.Close()
		}
		f.mu.Unlock()
		f.wait.Wait()
	})
	return f
}

// always answers every request of every connection with the same bytes.
func always(t testing.TB, answer string) *fake {
	return listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		for f.request(br) {
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
}

// once answers one request with the bytes and closes.
func once(t testing.TB, answer string) *fake {
	return listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, answer)
	})
}

// request reads one request as it came and keeps it.
func (f *fake) request(br *bufio.Reader) bool {
	var text strings.Builder
	r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(oneByte{br}, &text)))
	if err != nil {
		return false
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return false
	}
	f.mu.Lock()
	f.requests = append(f.requests, text.String())
	f.mu.Unlock()
	return true
}

// oneByte keeps the reader on top of it from reading ahead into the next request.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func (f *fake) got() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.requests...)
}

func (f *fake) accepted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

// upstream makes an upstream of the fake.
func (f *fake) upstream(change func(*Target)) *Upstream {
	f.t.Helper()
	target := Target{Name: "test", URL: &url.URL{Scheme: "http", Host: f.listener.Addr().String()}, Key: "canary-key"}
	if change != nil {
		change(&target)
	}
	u, err := New(target)
	if err != nil {
		f.t.Fatal(err)
	}
	if p, ok := f.listener.(*pipes); ok {
		u.dial = p.dial
	}
	f.t.Cleanup(u.Close)
	return u
}

// noticed waits until it is known here that the pooled connections are closed: on a busy machine the kernel takes its time to
// carry the news.
func noticed(t *testing.T, u *Upstream) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		u.pool.mu.Lock()
		open := slices.ContainsFunc(u.pool.conns, (*conn).alive)
		u.pool.mu.Unlock()
		if !open {
			return
		}
		if time.Now().After(late) {
			t.Fatal("a connection that was closed looks open")
		}
	}
}

func timeouts(first, between time.Duration) func(*Target) {
	return func(t *Target) { t.Timeouts = Timeouts{FirstByte: first, BetweenEvents: between} }
}

// grant makes a real grant: there is no other way to one.
func grant(t testing.TB, id string, stream bool) policy.Grant {
	t.Helper()
	p, problems := policy.Build(policy.Rules{Models: []policy.Model{{Name: "m", Upstreams: []string{"test"}}}, Upstreams: []string{"test"}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	op, ok := vllm.ByID(id)
	if !ok {
		t.Fatalf("no operation %q", id)
	}
	who := identity.New("n", "k", "", []string{"inference", "operator"})
	g, v := p.Decide(who, op, nil, policy.Facts{Model: "m", Stream: stream, Choices: 1, Inputs: 1})
	if v.Refused() {
		t.Fatal(v.Err())
	}
	return g
}

func call(t testing.TB, body string) Call {
	return Call{
		Grant: grant(t, "chat.create", false), RequestID: "req-1", ContentType: "application/json", Body: []byte(body),
		Rewriter: &plain{},
	}
}

func streamCall(t testing.TB) Call {
	c := call(t, `{"stream":true}`)
	c.Grant, c.Stream = grant(t, "chat.create", true), true
	return c
}

// plain lets everything out and knows chat's last event.
type plain struct {
	done     bool
	cause    verdict.Ended
	finished int
	pass     bool
	event    func([]byte) []byte
}

func (p *plain) Whole(_ int, contentType string, body []byte) ([]byte, verdict.Verdict) {
	if contentType != "application/json" {
		return nil, verdict.Refuse(verdict.UpstreamFailed, fmt.Errorf("content type %q", contentType))
	}
	p.done = true
	return body, verdict.Allow()
}

func (p *plain) Event(e []byte) []byte {
	p.done = p.done || string(e) == "data: [DONE]\n\n"
	if p.event != nil {
		return p.event(e)
	}
	return e
}
func (p *plain) Metadata(value string) string { return value }
func (p *plain) UpMessage() string            { return "said" }

func (p *plain) Failed(status int, body []byte) verdict.Verdict {
	if p.pass {
		return verdict.Allow()
	}
	if status == 503 {
		return verdict.Refuse(verdict.UpstreamBusy, fmt.Errorf("%d: %s", status, body))
	}
	return verdict.Refuse(verdict.UpstreamRefused, fmt.Errorf("%d: %s", status, body))
}

func (p *plain) Finish(cause verdict.Ended) []byte {
	p.cause = cause
	p.finished++
	if p.done {
		return nil
	}
	return []byte("data: ended " + cause.String() + "\n\n")
}

func (p *plain) Ended() verdict.Ended {
	if p.done {
		return verdict.Complete
	}
	if p.cause == verdict.Complete {
		return verdict.UpstreamEndedEarly
	}
	return p.cause
}

// send makes the round trip with a recorder for a caller.
func send(u *Upstream, c Call) (verdict.Outcome, *httptest.ResponseRecorder) {
	w := httptest.NewRecorder()
	return u.Send(context.Background(), w, c), w
}

func answer(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
}

const streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"

func chunked(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// shut closes what a test no longer needs; that it fails says nothing.
func shut(c io.Closer) { _ = c.Close() }
