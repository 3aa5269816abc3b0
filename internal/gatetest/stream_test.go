package gatetest

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/vllmtest"
)

// stream is a streamed request of one dialect.
type stream struct {
	name, path, body string
	events, hidden   int    // of the upstream; which one of them is Vallum's own and does not leave, -1 for none
	last             string // how its last event begins
}

// endsInError checks that an answer is no success in the dialect's eyes, and says why.
func (s stream) endsInError(t *testing.T, name string, a Answer, reason string) {
	t.Helper()
	if a.Reason() != "" { // before the status line left
		if a.Reason() != reason || a.Status < 400 || a.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v %s, want %s", name, a.Status, a.Header, a.Body, reason)
		}
		return
	}
	end := map[string]string{"chat": "\n\ndata: [DONE]\n\n", "completions": "\n\ndata: [DONE]\n\n", "responses": "\n\n", "messages": "\n\n"}[s.name]
	events := strings.Split(strings.TrimSuffix(a.Body, end), "\n\n")
	last := events[len(events)-1]
	begins := map[string]string{"chat": `data: {"error":`, "completions": `data: {"error":`, "responses": "event: error\ndata: ", "messages": "event: error\ndata: {\"type\":\"error\""}[s.name]
	if !strings.HasSuffix(a.Body, end) || !strings.HasPrefix(last, begins) || s.name != "messages" && !strings.Contains(last, `"code":"`+reason+`"`) {
		t.Errorf("%s: does not end as an error (%s):\n%s", name, reason, a.Body)
	}
	if strings.Contains(a.Body, "event: message_stop") || strings.Contains(a.Body, "event: response.completed") {
		t.Errorf("%s: looks like a success:\n%s", name, a.Body)
	}
}

// streams are the dialects' streams: words is how many pieces the fake answers with. The caller does not ask for usage.
var streams = []stream{
	{"chat", "/v1/chat/completions", `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}`, words + 3, words + 1, "data: [DONE]"},
	{"completions", "/v1/completions", `{"model":"tiny","stream":true,"prompt":"hi"}`, words + 2, words, "data: [DONE]"},
	{"responses", "/v1/responses", `{"model":"tiny","stream":true,"input":"hi"}`, words + 8, -1, "event: response.completed"},
	{"messages", "/v1/messages", `{"model":"tiny","stream":true,"max_tokens":99,"messages":[{"role":"user","content":"hi"}]}`, words + 5, -1, "event: message_stop"},
}

const words = 5

// over are the ways in which clients connect.
var over = []struct {
	name  string
	tls   bool
	proto string
}{{"HTTP/1.1", false, "HTTP/1.1"}, {"TLS and HTTP/1.1", true, "HTTP/1.1"}, {"TLS and HTTP/2", true, "HTTP/2.0"}}

// client speaks the protocol.
func (g *Gate) client(proto string) *http.Client {
	tr := g.transport()
	if proto == "HTTP/1.1" {
		tr.ForceAttemptHTTP2 = false
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	g.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// nextEvent reads one event with its blank line.
func nextEvent(r *bufio.Reader) (string, error) {
	var event strings.Builder
	for {
		line, err := r.ReadString('\n')
		event.WriteString(line)
		if err != nil || strings.TrimRight(line, "\r\n") == "" {
			return event.String(), err
		}
	}
}

// begin opens a stream whose first event the fake is told to let out.
func begin(t *testing.T, g *Gate, c *http.Client, r Request) *http.Response {
	t.Helper()
	type opened struct {
		resp *http.Response
		err  error
	}
	got := make(chan opened, 1)
	go func() {
		resp, err := Open(t, c, g.URL, r)
		got <- opened{resp, err}
	}()
	if !g.Fake.Step() {
		t.Fatal("no stream wanted its first event")
	}
	select {
	case o := <-got:
		if o.err != nil {
			t.Fatal(o.err)
		}
		return o.resp
	case <-time.After(30 * time.Second):
		t.Fatal("the first event did not bring the status line")
		return nil
	}
}

// Event k is with the client before event k+1 exists anywhere, in all dialects, over all protocols, with usage asked for
// in the client's place.
func TestEachEventLeavesBeforeTheNextExists(t *testing.T) {
	t.Parallel()
	for _, how := range over {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			g := Start(t, Options{TLS: how.tls, Fake: vllmtest.Options{Words: words}})
			c := g.client(how.proto)
			for _, s := range streams {
				g.Fake.Next(vllmtest.Behaviour{Stepped: true})
				resp := begin(t, g, c, Request{Path: s.path, Key: g.Secret("app"), Body: s.body})
				if resp.Proto != how.proto || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
					t.Fatalf("%s: %s %d %v", s.name, resp.Proto, resp.StatusCode, resp.Header)
				}
				body := bufio.NewReader(resp.Body)
				last := ""
				for k := range s.events {
					if k > 0 && !g.Fake.Step() {
						t.Fatalf("%s: the upstream did not come to event %d", s.name, k)
					}
					if k == s.hidden {
						continue
					}
					event, err := within(t, body)
					if err != nil {
						t.Fatalf("%s: event %d: %q %v", s.name, k, event, err)
					}
					last = event
				}
				if rest, err := io.ReadAll(body); err != nil || len(rest) != 0 || !strings.HasPrefix(last, s.last) {
					t.Errorf("%s: ends with %q and then %q, %v", s.name, last, rest, err)
				}
				_ = resp.Body.Close()
				r := g.Record(resp.Header.Get("X-Request-Id"))
				if r.Ended != audit.EndedComplete || r.Usage != audit.UsageCounted || r.CompletionTokens != words || r.PromptTokens == 0 {
					t.Errorf("%s: recorded as %+v", s.name, r)
				}
			}
		})
	}
}

// within reads an event, for at most thirty seconds.
func within(t *testing.T, body *bufio.Reader) (string, error) {
	t.Helper()
	type read struct {
		event string
		err   error
	}
	got := make(chan read, 1)
	go func() {
		event, err := nextEvent(body)
		got <- read{event, err}
	}()
	select {
	case r := <-got:
		return r.event, r.err
	case <-time.After(30 * time.Second):
		return "", fmt.Errorf("it did not come within 30 s")
	}
}

var changing = regexp.MustCompile(`[0-9a-f]{32}|\b1[0-9]{9}\b|msg_[0-9]+`)

// However the upstream's bytes are cut, the same leaves; and it is what leaves the fake without Vallum, but for what
// hides the server.
func TestHoweverAStreamIsCutTheSameLeaves(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Fake: vllmtest.Options{Words: words, PromptDetails: true}})
	for _, s := range streams {
		ask := func(kind vllmtest.Kind) string {
			g.Fake.Next(vllmtest.Behaviour{Kind: kind})
			a := g.Do(Request{Path: s.path, Key: g.Secret("app"), Body: s.body})
			if a.Status != 200 {
				t.Errorf("%s, %s: %d %s", s.name, kind, a.Status, a.Body)
			}
			if r := g.Record(a.ID()); r.Ended != audit.EndedComplete || r.CompletionTokens != words {
				t.Errorf("%s, %s: recorded as %+v", s.name, kind, r)
			}
			return changing.ReplaceAllString(a.Body, "_")
		}
		whole := ask(vllmtest.Normal)
		if strings.Contains(whole, `"choices":[]`) || strings.Contains(whole, "system_fingerprint") {
			t.Errorf("%s: what nobody asked for leaves:\n%s", s.name, whole)
		}
		if got := ask(vllmtest.SplitBytes); got != whole {
			t.Errorf("%s: cut at every byte it is\n%s\nwhole it is\n%s", s.name, got, whole)
		}
		if got := strings.ReplaceAll(ask(vllmtest.CarriageReturn), "\r\n", "\n"); got != whole {
			t.Errorf("%s: with CRLF it is\n%s\nwith LF it is\n%s", s.name, got, whole)
		}
		if got := ask(vllmtest.KeepAlives); strings.ReplaceAll(got, ": keep-alive\n\n", "") != whole || !strings.Contains(got, ": keep-alive\n\n") {
			t.Errorf("%s: with keep-alives it is\n%s", s.name, got)
		}
		direct := changing.ReplaceAllString(g.Direct(Request{Path: s.path, Body: s.body}).Body, "_")
		direct = regexp.MustCompile(`,"system_fingerprint":"[^"]*"`).ReplaceAllString(direct, "")
		if s.name != "responses" && s.name != "messages" && direct != whole { // these two show counts of cached tokens
			t.Errorf("%s: directly it is\n%s\nthrough the gate it is\n%s", s.name, direct, whole)
		}
	}
}

// A client that asks for usage gets it, once.
func TestUsageThatWasAskedForLeaves(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for _, options := range []struct {
		field string
		times int
	}{{`"stream_options":{"include_usage":true}`, 1}, {`"stream_options":{"include_usage":false}`, 0}, {`"stream_options":{}`, 0}, {`"stream_options":null`, 0}} {
		a := g.Do(Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: `{"model":"tiny","messages":[],"stream":true,` + options.field + `}`})
		if n := strings.Count(a.Body, `"completion_tokens"`); a.Status != 200 || n != options.times || !strings.HasSuffix(a.Body, "data: [DONE]\n\n") {
			t.Errorf("%s: %d, usage %d times in\n%s", options.field, a.Status, n, a.Body)
		}
		if r := g.Record(a.ID()); r.Usage != audit.UsageCounted || r.CompletionTokens != 5 {
			t.Errorf("%s: recorded as %+v", options.field, r)
		}
	}
}

// A client that hangs up costs no more GPU time: the upstream's connection closes at once, and what it got is counted.
func TestAClientThatHangsUpCutsTheUpstream(t *testing.T) {
	t.Parallel()
	for _, how := range over {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			g := Start(t, Options{TLS: how.tls})
			c := g.client(how.proto)
			for _, s := range streams {
				g.Fake.Next(vllmtest.Behaviour{Stepped: true})
				ctx, leave := context.WithCancel(t.Context())
				resp := begin(t, g, withContext(c, ctx), Request{Path: s.path, Key: g.Secret("app"), Body: s.body})
				body := bufio.NewReader(resp.Body)
				if _, err := within(t, body); err != nil {
					t.Fatal(err)
				}
				if !g.Fake.Step() {
					t.Fatal("no second event")
				}
				if _, err := within(t, body); err != nil {
					t.Fatal(err)
				}
				leave()
				_ = resp.Body.Close()
				g.Gone() // within 100 ms, as forward's tests see in virtual time
				r := g.Record(resp.Header.Get("X-Request-Id"))
				if r.Ended != audit.EndedClientLeft || r.Usage == audit.UsageCounted {
					t.Errorf("%s: recorded as %+v", s.name, r)
				}
			}
			g.NothingHeld()
		})
	}
}

// A unary request whose client leaves is cut as well: nobody would read the answer.
func TestAClientThatLeavesBeforeTheAnswerCutsTheUpstream(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.NeverAnswer})
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := Open(t, withContext(g.Client, ctx), g.URL, g.Chat("app"))
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	g.Eventually("the request", func() bool { return g.Fake.Arrived() == 1 })
	leave()
	g.Gone()
	<-done
	g.Eventually("the record", func() bool {
		for _, r := range g.Records() {
			if r.Event == audit.Ended {
				return r.Ended == audit.EndedClientLeft && r.Usage == audit.UsageEstimated && r.PromptTokens > 0
			}
		}
		return false
	})
}

// withContext makes a client whose requests end with ctx.
func withContext(c *http.Client, ctx context.Context) *http.Client {
	return &http.Client{Transport: bound{c.Transport, ctx}}
}

type bound struct {
	http.RoundTripper
	ctx context.Context
}

func (b bound) RoundTrip(r *http.Request) (*http.Response, error) {
	return b.RoundTripper.RoundTrip(r.WithContext(b.ctx))
}
