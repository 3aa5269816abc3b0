package gatetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/vllmtest"
)

const lieTimeouts = "timeouts: {first_byte: 1s, between_events: 1s}"

// liedTo gives a gateway with short timeouts for the lies that are silences, and one with long ones for all others: a
// busy machine takes its time over what is no silence.
func liedTo(t *testing.T) func(reason string) *Gate {
	hasty, patient := Start(t, Options{Config: lieTimeouts}), Start(t, Options{})
	return func(reason string) *Gate {
		if reason == "upstream_timeout" {
			return hasty
		}
		return patient
	}
}

// lies are what an upstream may do instead of answering. A caller gets one clear refusal, in its dialect.
var lies = []struct {
	b      vllmtest.Behaviour
	reason string // of the caller's answer; "" is a good one
	ended  string // in the record
	cause  string // in the record's detail, for the operator
}{
	{vllmtest.Behaviour{Kind: vllmtest.NeverAnswer}, "upstream_timeout", "timeout", "timeout"},
	{vllmtest.Behaviour{Kind: vllmtest.SlowHeaders}, "upstream_timeout", "timeout", "timeout"},
	{vllmtest.Behaviour{Kind: vllmtest.EndlessHeaders}, "upstream_failed", "upstream_error", "a head of more than"},
	{vllmtest.Behaviour{Kind: vllmtest.InterimStorm}, "upstream_failed", "upstream_error", "informational"},
	{vllmtest.Behaviour{Kind: vllmtest.TooShort}, "upstream_failed", "upstream_error", "unexpected EOF"},
	{vllmtest.Behaviour{Kind: vllmtest.TooLong}, "upstream_failed", "upstream_error", ""},
	{vllmtest.Behaviour{Kind: vllmtest.NotHTTP}, "upstream_failed", "upstream_error", "not HTTP/1.1"},
	{vllmtest.Behaviour{Kind: vllmtest.DieBefore}, "upstream_failed", "upstream_error", "without an answer"},
	{vllmtest.Behaviour{Kind: vllmtest.DieMidEvent}, "upstream_failed", "upstream_error", "unexpected EOF"},
	{vllmtest.Behaviour{Kind: vllmtest.Hang}, "upstream_timeout", "timeout", "timeout"},
	{vllmtest.Behaviour{Kind: vllmtest.EngineDead}, "upstream_failed", "upstream_error", "the upstream answered 500"},
	{vllmtest.Behaviour{Kind: vllmtest.Overloaded}, "upstream_busy", "upstream_error", "the upstream answered 503"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 307, Header: []string{"location: http://evil/"}}, "upstream_failed", "upstream_error", ""},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 101, Header: []string{"upgrade: h2c"}}, "upstream_failed", "upstream_error", "switches protocols"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Body: "<html>not JSON</html>", Type: "text/html"}, "upstream_failed", "upstream_error", ""},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Body: "data: {}\n\n", Type: "text/event-stream"}, "upstream_failed", "upstream_error", ""},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Body: "{}", Header: []string{"content-encoding: gzip"}}, "upstream_failed", "upstream_error", "encodes"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Body: "{}", Header: []string{"content-length: 1"}}, "upstream_failed", "upstream_error", "Content-Length"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Body: "{}", Header: []string{"transfer-encoding: chunked"}}, "upstream_failed", "upstream_error", "both"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Body: "{}", Header: []string{"x: a\r\n b"}}, "upstream_failed", "upstream_error", "header line"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 401, Body: `{"error":"Unauthorized"}`}, "upstream_failed", "upstream_error", "the upstream answered 401"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 404, Body: `{"error":{"message":"The model ` + "`x`" + ` does not exist. Available models: secret-model","code":404}}`}, "upstream_refused", "upstream_error", "the upstream answered 404"},
	{vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 400, Body: `{"error":{"message":"Traceback /srv/models/secret-path at 0x7f00","code":400}}`}, "upstream_refused", "upstream_error", "the upstream answered 400"},
	{vllmtest.Behaviour{Kind: vllmtest.NoUsage}, "", "complete", ""},
	{vllmtest.Behaviour{Kind: vllmtest.AbsurdUsage}, "", "complete", ""},
	{vllmtest.Behaviour{Kind: vllmtest.ServerHeaders}, "", "complete", ""},
	{vllmtest.Behaviour{Kind: vllmtest.CloseAfter}, "", "complete", ""},
	{vllmtest.Behaviour{Kind: vllmtest.WrongType}, "upstream_failed", "upstream_error", `"text/html"`},
	{vllmtest.Behaviour{Kind: vllmtest.FinishAbort}, "", "upstream_aborted", ""},
}

// tells is what no answer may hold of an upstream's lies.
var tells = []string{"uvicorn", "secret", "0x7f", "Traceback", "EngineCore", "not JSON", "evil", "an event"}

func TestAnUpstreamThatLies(t *testing.T) {
	t.Parallel()
	gates := liedTo(t)
	for i, row := range lies {
		g := gates(row.reason)
		name := fmt.Sprintf("%d %s %d", i, row.b.Kind, row.b.Status)
		before := g.Fake.Arrived()
		g.Fake.Next(row.b)
		a := g.Do(g.Chat("app"))
		if a.Reason() != row.reason || a.Code() != row.reason {
			t.Errorf("%s: %d %s, want %q", name, a.Status, a.Body, row.reason)
		}
		if n := g.Fake.Arrived() - before; n != 1 {
			t.Errorf("%s: sent %d times", name, n)
		}
		for _, word := range tells {
			if strings.Contains(a.Body+fmt.Sprint(a.Header), word) {
				t.Errorf("%s: the caller reads %q: %v %s", name, word, a.Header, a.Body)
			}
		}
		for _, h := range []string{"Server", "Set-Cookie", "Via", "Endpoint-Load-Metrics", "Access-Control-Allow-Origin", "Location", "Vary"} {
			if v, ok := a.Header[h]; ok {
				t.Errorf("%s: the caller gets %s: %s", name, h, v)
			}
		}
		r := g.Record(a.ID())
		if r.Ended != row.ended || r.Reason != row.reason || !strings.Contains(r.Detail, row.cause) || r.Status != a.Status {
			t.Errorf("%s: recorded as %+v", name, r)
		}
		if r.PromptTokens < 0 || r.CompletionTokens < 0 || r.CompletionTokens > 1<<30 {
			t.Errorf("%s: recorded with %d and %d tokens", name, r.PromptTokens, r.CompletionTokens)
		}
		for _, word := range tells[1:] {
			if strings.Contains(r.Detail, word) {
				t.Errorf("%s: the record holds %q: %s", name, word, r.Detail)
			}
		}
		after := g.Do(g.Chat("app"))
		if row.b.Kind == vllmtest.CloseAfter && after.Reason() == "upstream_failed" {
			after = g.Do(g.Chat("app")) // the close and the next request crossed on the way: it is not sent twice, so it failed
		}
		for late := time.Now().Add(20 * time.Second); after.Reason() == "upstream_timeout" && time.Now().Before(late); {
			after = g.Do(g.Chat("app")) // a busy machine is slow as well
		}
		if after.Status != 200 {
			t.Fatalf("%s: the request after it: %d %s", name, after.Status, after.Body)
		}
	}
}

// streamLies are the same for streams that have begun: they end as their dialect ends an error, never as a success.
var streamLies = []struct {
	b      vllmtest.Behaviour
	reason string // in the last event, or of the refusal when no status line had left
	ended  string
}{
	{vllmtest.Behaviour{Kind: vllmtest.DieMidEvent, After: 3}, "upstream_failed", "upstream_ended_early"},
	{vllmtest.Behaviour{Kind: vllmtest.DieMidEvent}, "upstream_failed", "upstream_error"},
	{vllmtest.Behaviour{Kind: vllmtest.Hang, After: 3}, "upstream_timeout", "timeout"},
	{vllmtest.Behaviour{Kind: vllmtest.Hang}, "upstream_timeout", "timeout"},
	{vllmtest.Behaviour{Kind: vllmtest.JustEnds, After: 3}, "upstream_failed", "upstream_ended_early"},
	{vllmtest.Behaviour{Kind: vllmtest.JustEnds}, "upstream_failed", "upstream_ended_early"},
	{vllmtest.Behaviour{Kind: vllmtest.Garbage, After: 3}, "upstream_failed", "upstream_error_event"},
	{vllmtest.Behaviour{Kind: vllmtest.Garbage, After: 3, Body: "data: <<<<\n\n"}, "upstream_failed", "upstream_error_event"},
	{vllmtest.Behaviour{Kind: vllmtest.Garbage, After: 3, Body: "event: ping\ndata: []\n\n"}, "upstream_failed", "upstream_error_event"},
	{vllmtest.Behaviour{Kind: vllmtest.HugeEvent, After: 3}, "upstream_failed", "upstream_ended_early"},
	{vllmtest.Behaviour{Kind: vllmtest.ErrorEvent, After: 3}, "upstream_failed", "upstream_error_event"},
	{vllmtest.Behaviour{Kind: vllmtest.BareStream}, "upstream_failed", "upstream_error"},
	{vllmtest.Behaviour{Kind: vllmtest.FinishAbort}, "", "upstream_aborted"},
	{vllmtest.Behaviour{Kind: vllmtest.FinishAbortHarmony}, "", "upstream_aborted"},
	{vllmtest.Behaviour{Kind: vllmtest.NeverAnswer}, "upstream_timeout", "timeout"},
	{vllmtest.Behaviour{Kind: vllmtest.EngineDead}, "upstream_failed", "upstream_error"},
	{vllmtest.Behaviour{Kind: vllmtest.Overloaded}, "upstream_busy", "upstream_error"},
}

func TestAStreamThatLies(t *testing.T) {
	t.Parallel()
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			gates := liedTo(t)
			for _, row := range streamLies {
				g := gates(row.reason)
				name := fmt.Sprintf("%s after %d", row.b.Kind, row.b.After)
				ended := row.ended
				if s.name == "responses" && row.b.Kind == vllmtest.ErrorEvent {
					ended = "upstream_ended_early" // its stream has no error event: it is cut
				}
				if s.name == "responses" && row.b.Kind == vllmtest.FinishAbort {
					ended = "complete" // vLLM calls it completed, and nothing tells it apart
				}
				before := g.Fake.Arrived()
				g.Fake.Next(row.b)
				a := g.Do(Request{Path: s.path, Key: g.Secret("app"), Body: s.body})
				if n := g.Fake.Arrived() - before; n != 1 {
					t.Errorf("%s: sent %d times", name, n)
				}
				for _, word := range tells {
					if strings.Contains(a.Body, word) {
						t.Errorf("%s: the caller reads %q:\n%s", name, word, a.Body)
					}
				}
				if row.reason != "" {
					s.endsInError(t, name, a, row.reason)
				}
				if r := g.Record(a.ID()); r.Ended != ended {
					t.Errorf("%s: recorded as %+v, want %q", name, r, ended)
				}
			}
			g := gates("")
			if a := g.Do(Request{Path: s.path, Key: g.Secret("app"), Body: s.body}); a.Status != 200 || !strings.Contains(a.Body, s.last) {
				t.Errorf("the stream after all of them: %d %s", a.Status, a.Body)
			}
		})
	}
}

// An answer that is not streamed says in the same words that the engine dropped its request.
func TestAWholeAnswerThatWasAborted(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for _, s := range streams {
		body := strings.Replace(s.body, `"stream":true,`, "", 1)
		for kind, ended := range map[vllmtest.Kind]string{vllmtest.FinishAbortHarmony: "upstream_aborted", vllmtest.Normal: "complete"} {
			g.Fake.Next(vllmtest.Behaviour{Kind: kind})
			a := g.Do(Request{Path: s.path, Key: g.Secret("app"), Body: body})
			if r := g.Record(a.ID()); a.Status != 200 || r.Ended != ended {
				t.Errorf("%s %q: %d %s, recorded as %q, want %q", s.name, kind, a.Status, a.Body, r.Ended, ended)
			}
		}
	}
}
