package meter

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/verdict"
)

func scrape(m *Meter) string {
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func TestARequestIsCountedOnce(t *testing.T) {
	m := New()
	m.Gauge("audit_queue", "Lines.", func() float64 { return 3 })
	m.Began("chat.create")
	if !strings.Contains(scrape(m), `vallum_requests_in_flight{operation="chat.create"} 1`) {
		t.Error("it does not run")
	}
	m.Observe(Sample{Operation: "chat.create", Model: "tiny", Role: "inference", Upstream: "a", Prompt: 7, Completion: 3, Began: true, Duration: time.Second,
		Outcome: verdict.Outcome{Ended: verdict.Complete, Events: 3, FirstByte: 20 * time.Millisecond, InterEvent: 5 * time.Millisecond, Upstream: time.Second}})
	m.Observe(Sample{Operation: "chat.create", Reason: "not_permitted"})
	text := scrape(m)
	for _, want := range []string{
		`vallum_requests_in_flight{operation="chat.create"} 0`,
		`vallum_requests_total{ended="complete",model="tiny",operation="chat.create",reason="",role="inference"} 1`,
		`vallum_requests_total{ended="not_forwarded",model="",operation="chat.create",reason="not_permitted",role=""} 1`,
		`vallum_tokens_total{kind="prompt",model="tiny",operation="chat.create",role="inference"} 7`,
		`vallum_tokens_total{kind="completion",model="tiny",operation="chat.create",role="inference"} 3`,
		`vallum_time_to_first_token_seconds_count{model="tiny",operation="chat.create"} 1`,
		`vallum_inter_token_latency_seconds_count{model="tiny",operation="chat.create"} 1`,
		`vallum_upstream_duration_seconds_count{upstream="a"} 1`,
		`vallum_audit_queue 3`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if strings.Contains(text, `kind="cached"`) {
		t.Error("nothing was cached, yet it is counted")
	}
}
