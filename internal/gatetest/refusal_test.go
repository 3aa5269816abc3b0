package gatetest

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// refusals are one refusal of each kind, made to happen, in the dialects' forms.
func TestRefusalsSpeakTheDialectOfTheOperation(t *testing.T) {
	t.Parallel()
	roles := "roles:\n" +
		"  limited: {operations: [\"@inference\"], models: [\"*\"], limits: {requests_per_minute: 1, burst: 1}}\n" +
		"  poor: {operations: [\"@inference\"], models: [\"*\"], limits: {tokens_per_minute: 5}}\n" +
		"  strict: {operations: [\"@inference\"], models: [\"*\"], unknown_fields: refuse}\n" +
		"  nothing: {operations: [health.read], models: [\"*\"]}\n"
	g := Start(t, Options{Config: roles + "bodies: {max_json: 2KiB}\n", Keys: []store.NewKey{
		{Name: "app", Roles: []string{"inference"}},
		{Name: "limited", Roles: []string{"limited"}},
		{Name: "poor", Roles: []string{"poor"}},
		{Name: "strict", Roles: []string{"strict"}},
		{Name: "nothing", Roles: []string{"nothing"}},
	}})
	began := time.Now()
	for _, s := range streams {
		g.Do(Request{Path: s.path, Key: g.Secret("limited"), Body: s.body}) // uses the one request up
		for _, row := range []struct {
			name, key, body string
			status          int
			reason          string
			header          string // one that has to be there, with its value; "" needs none
			anthropic       string // error.type on messages
			b               vllmtest.Behaviour
		}{
			{"no key", "", s.body, 401, "no_credential", "Www-Authenticate: Bearer", "authentication_error", vllmtest.Behaviour{}},
			{"no role", "nothing", s.body, 403, "not_permitted", "", "permission_error", vllmtest.Behaviour{}},
			{"another model", "app", strings.Replace(s.body, `"tiny"`, `"other"`, 1), 403, "not_permitted", "", "permission_error", vllmtest.Behaviour{}},
			{"too many", "limited", s.body, 429, "too_many_requests", "Retry-After: what is left of 60", "rate_limit_error", vllmtest.Behaviour{}},
			{"no budget", "poor", s.body, 429, "over_budget", "X-Should-Retry: false", "rate_limit_error", vllmtest.Behaviour{}},
			{"not JSON", "app", s.body[1:], 400, "bad_body", "", "invalid_request_error", vllmtest.Behaviour{}},
			{"too large", "app", s.body + strings.Repeat(" ", 2<<10), 413, "body_too_large", "", "request_too_large", vllmtest.Behaviour{}},
			{"unknown field", "strict", strings.Replace(s.body, "{", `{"zz":1,`, 1), 400, "unknown_parameter", "", "invalid_request_error", vllmtest.Behaviour{}},
			{"broken upstream", "app", s.body, 502, "upstream_failed", "", "api_error", vllmtest.Behaviour{Kind: vllmtest.DieBefore}},
			{"busy upstream", "app", s.body, 503, "upstream_busy", "Retry-After: 1", "overloaded_error", vllmtest.Behaviour{Kind: vllmtest.Overloaded}},
		} {
			key := ""
			if row.key != "" {
				key = g.Secret(row.key)
			}
			if row.b.Kind != "" {
				g.Fake.Next(row.b)
			}
			before := g.Fake.Arrived()
			a := g.Do(Request{Path: s.path, Key: key, Body: row.body, Header: map[string]string{"Accept": "text/event-stream"}})
			name := s.name + ", " + row.name
			if a.Status != row.status || a.Reason() != row.reason || a.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %d %v %s", name, a.Status, a.Header, a.Body)
			}
			if h, v, ok := strings.Cut(row.header, ": "); ok && a.Header.Get(h) != v {
				left, err := strconv.Atoi(a.Header.Get(h))
				if v != "what is left of 60" || err != nil || left > 60 || left < 60-int(time.Since(began).Seconds()) {
					t.Errorf("%s: %s is %q, want %s", name, h, a.Header.Get(h), v)
				}
			}
			if (row.b.Kind == "") != (g.Fake.Arrived() == before) {
				t.Errorf("%s: %d arrived", name, g.Fake.Arrived()-before)
			}
			checkForm(t, name, s.name == "messages", a, row.anthropic)
			if s.name == "messages" && (a.ID() == "" || a.Header.Get("Request-Id") != a.ID()) {
				t.Errorf("%s: Anthropic's SDKs do not find the request's id: %v", name, a.Header)
			}
			if row.key != "" {
				if r := g.Record(a.ID()); r.Reason != row.reason || r.Status != row.status || r.Principal != row.key {
					t.Errorf("%s: recorded as %+v", name, r)
				}
			}
		}
	}
}

// checkForm checks the body's form: clients in Rust and Go break on vLLM's integer code and its bare "Unauthorized".
func checkForm(t *testing.T, name string, anthropic bool, a Answer, kind string) {
	t.Helper()
	var body struct {
		Type  string
		Error struct {
			Type, Message string
			Code          any
			Param         any
		}
	}
	if err := json.Unmarshal([]byte(a.Body), &body); err != nil || body.Error.Message == "" || body.Error.Type == "" {
		t.Errorf("%s: %v in %s", name, err, a.Body)
	}
	if anthropic {
		if body.Type != "error" || body.Error.Type != kind || body.Error.Code != nil {
			t.Errorf("%s: not Anthropic's form of %s: %s", name, kind, a.Body)
		}
		return
	}
	if code, ok := body.Error.Code.(string); !ok || code != a.Reason() || body.Type != "" {
		t.Errorf("%s: not OpenAI's form: %s", name, a.Body)
	}
}

// A caller's own request id is kept for the record when it can stand in one, and never forwarded nor answered.
func TestTheRecordKeepsTheClientsRequestID(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for id, kept := range map[string]bool{"mine-1": true, strings.Repeat("a", 128): true, strings.Repeat("a", 129): false, "a\tb": false, "caf\u00e9": false} {
		r := g.Chat("app")
		r.Header = map[string]string{"X-Request-Id": id}
		a := g.Do(r)
		rec := g.Record(a.ID())
		if a.Status != 200 || a.ID() == id || (rec.ClientRequestID == id) != kept || g.Fake.Last().Header.Get("X-Request-Id") != a.ID() {
			t.Errorf("%q: %d, answered %q, recorded %q, forwarded %q", id, a.Status, a.ID(), rec.ClientRequestID, g.Fake.Last().Header.Get("X-Request-Id"))
		}
	}
}

// Browsers: closed unless origins are listed; OPTIONS never arrives.
func TestBrowsersMayCallFromListedOriginsOnly(t *testing.T) {
	t.Parallel()
	preflight := func(g *Gate, origin string) Answer {
		return g.Do(Request{Method: "OPTIONS", Path: "/v1/chat/completions", Header: map[string]string{"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}})
	}
	closed := Start(t, Options{})
	if a := preflight(closed, "https://chat.example.com"); a.Status != 403 || a.Reason() != "origin_not_listed" || a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("nothing is listed: %d %v", a.Status, a.Header)
	}
	g := Start(t, Options{Config: "cors: {origins: [\"https://chat.example.com\"]}\n"})
	if a := preflight(g, "https://chat.example.com"); a.Status != 204 || a.Header.Get("Access-Control-Allow-Origin") != "https://chat.example.com" || !strings.Contains(a.Header.Get("Access-Control-Allow-Headers"), "authorization") || a.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("listed: %d %v", a.Status, a.Header)
	}
	for _, origin := range []string{"https://evil.example.com", "null", "http://chat.example.com", "https://chat.example.com.evil", "https://chat.example.com:444"} {
		if a := preflight(g, origin); a.Status != 403 || a.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %d %v", origin, a.Status, a.Header)
		}
	}
	r := g.Chat("app")
	r.Header = map[string]string{"Origin": "https://chat.example.com"}
	if a := g.Do(r); a.Status != 200 || a.Header.Get("Access-Control-Allow-Origin") != "https://chat.example.com" || a.Header.Get("Vary") != "Origin" {
		t.Errorf("a request of a listed origin: %d %v", a.Status, a.Header)
	}
	if n := g.Fake.Arrived() + closed.Fake.Arrived(); n != 1 {
		t.Errorf("%d requests arrived", n)
	}
}

// Behind proxies that end TLS only what they append is believed, and around them nothing.
func TestOnlyWhatNamedProxiesAppendIsBelieved(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Listener: "terminated_by: [127.0.0.0/8]"})
	for forwarded, want := range map[string]string{
		"203.0.113.7": "203.0.113.7", "1.2.3.4, 203.0.113.7": "203.0.113.7", "203.0.113.7, 127.0.0.9": "203.0.113.7", "": "127.0.0.1", "nonsense": "127.0.0.1",
		"2001:db8::7": "2001:db8::7", "127.0.0.1": "127.0.0.1",
	} {
		r := g.Chat("app")
		r.Header = map[string]string{"X-Forwarded-For": forwarded, "Forwarded": "for=9.9.9.9", "X-Real-Ip": "9.9.9.9"}
		a := g.Do(r)
		if rec := g.Record(a.ID()); a.Status != 200 || rec.Remote != want {
			t.Errorf("%q: %d, recorded as %s, want %s", forwarded, a.Status, rec.Remote, want)
		}
	}
	elsewhere := Start(t, Options{Listener: "terminated_by: [10.0.0.0/8]"})
	r := elsewhere.Chat("app")
	r.Header = map[string]string{"X-Forwarded-For": "10.0.0.1"}
	if a := elsewhere.Do(r); a.Status != 403 || a.Reason() != "untrusted_proxy" || elsewhere.Fake.Arrived() != 0 {
		t.Errorf("past the proxy: %d %s", a.Status, a.Body)
	}
	// without terminated_by nobody is believed
	plain := Start(t, Options{})
	r = plain.Chat("app")
	r.Header = map[string]string{"X-Forwarded-For": "203.0.113.7"}
	if rec := plain.Record(plain.Do(r).ID()); rec.Remote != "127.0.0.1" {
		t.Errorf("without proxies: recorded as %s", rec.Remote)
	}
}
