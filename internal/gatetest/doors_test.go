package gatetest

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllm/surface"
	"github.com/vallum/vallum/internal/vllm/surface/all"
	"github.com/vallum/vallum/internal/vllmtest"
)

// Where proxies end TLS, whoever comes around them is refused, with a right key too.
func TestOnlyNamedProxiesMayConnect(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Listener: "terminated_by: [10.0.0.0/8]"})
	if a := g.Do(g.Chat("app")); a.Status != 403 || a.Reason() != "untrusted_proxy" {
		t.Errorf("from 127.0.0.1: %d %s", a.Status, a.Reason())
	}
	if n := len(g.Fake.Work()); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}

// A browser's preflight is answered here: vLLM skips its key check for OPTIONS.
func TestPreflightsAreNeverForwarded(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for _, path := range []string{"/v1/chat/completions", "/pause"} {
		a := g.Do(Request{Method: "OPTIONS", Path: path, Key: g.Secret("app"), Header: map[string]string{"Origin": "https://evil.example"}})
		if a.Status != 403 || a.Reason() != "origin_not_listed" {
			t.Errorf("OPTIONS %s: %d %s", path, a.Status, a.Reason())
		}
	}
	if answers := g.Raw("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); len(answers) != 1 || answers[0].Reason() != "origin_not_listed" {
		t.Errorf("OPTIONS *: %+v", answers)
	}
	if n := len(g.Fake.Work()); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}

// 0.8.5 has no cache_salt: a second tenant could tell the first one's prompts by the time that an answer takes.
func TestAServerWithoutSaltsBelongsToItsFirstTenant(t *testing.T) {
	t.Parallel()
	releases := all.Releases(t)
	old := releases[slices.IndexFunc(releases, func(r *surface.Release) bool { return r.Version == "0.8.5" })]
	keys := []store.NewKey{{Name: "a1", Tenant: "a", Roles: []string{"inference"}}, {Name: "a2", Tenant: "a", Roles: []string{"inference"}}, {Name: "b1", Tenant: "b", Roles: []string{"inference"}}}
	g := Start(t, Options{Fake: vllmtest.Options{Surface: old}, Keys: keys})
	for _, row := range []struct {
		key, reason string
		arrived     int
	}{{"a1", "", 1}, {"b1", "cache_not_isolated", 1}, {"a2", "", 2}} {
		if a := g.Do(g.Chat(row.key)); a.Reason() != row.reason || len(g.Fake.Work()) != row.arrived {
			t.Errorf("%s: %d %q, %d arrived; want %q, %d", row.key, a.Status, a.Reason(), len(g.Fake.Work()), row.reason, row.arrived)
		}
	}
	shared := Start(t, Options{Fake: vllmtest.Options{Surface: old}, Keys: keys, UpExtra: "insecure_shared_prefix_cache: true"})
	for _, key := range []string{"a1", "b1"} {
		if a := shared.Do(shared.Chat(key)); a.Status != 200 {
			t.Errorf("shared on purpose, %s: %d %q", key, a.Status, a.Reason())
		}
	}
}

// A port that speaks TLS says so to whoever forgot it, counts what is neither, and does not count a look whether it is open.
func TestAPortThatSpeaksTLSSaysSo(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{TLS: true})
	for _, row := range []struct{ send, want string }{
		{"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n", "https://"},
		{"\x00\x01\x02 nonsense that is no handshake", ""},
	} {
		c := dial(t, strings.Replace(g.URL, "https:", "http:", 1), nil)
		if _, err := io.WriteString(c, row.send); err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(c); !strings.Contains(string(b), row.want) || strings.Contains(string(b), "200") {
			t.Errorf("%q: answered %q", row.send, b)
		}
	}
	_ = dial(t, strings.Replace(g.URL, "https:", "http:", 1), nil).Close()
	g.Eventually("the two that are counted", func() bool { return g.Gauge("vallum_malformed_requests_total") == "2" })
	if answers := g.Raw("GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer " + g.Secret("app") + "\r\n\r\n"); len(answers) != 1 || answers[0].Status != 200 {
		t.Errorf("HTTP/1.1 over TLS: %+v", answers)
	}
	if n := g.Gauge("vallum_malformed_requests_total"); n != "2" {
		t.Errorf("%s were counted as malformed", n)
	}
}
