package meter

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/vallum/vallum/internal/verdict"
)

func page(t *testing.T, m *Meter) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func has(t *testing.T, page string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(page, "\n"+l+"\n") {
			t.Errorf("no line %q", l)
		}
	}
}

func streamed() Sample {
	return Sample{
		Operation: "chat.create", Model: "llama", Role: "app", Upstream: "a", Prompt: 21, Cached: 16, Completion: 4, Duration: 2100 * time.Millisecond, Began: true,
		Outcome: verdict.Outcome{Ended: verdict.Complete, Events: 5, FirstByte: 30 * time.Millisecond, InterEvent: 12 * time.Millisecond, Upstream: 2 * time.Second, BytesUp: 100, BytesDown: 900},
	}
}

func TestARequestIsCounted(t *testing.T) {
	m := New()
	m.Began("chat.create")
	has(t, page(t, m), `vallum_requests_in_flight{operation="chat.create"} 1`)
	m.Observe(streamed())
	has(t, page(t, m),
		`vallum_requests_in_flight{operation="chat.create"} 0`,
		`vallum_requests_total{ended="complete",model="llama",operation="chat.create",reason="none",role="app",upstream="a"} 1`,
		`vallum_tokens_total{kind="prompt",model="llama",operation="chat.create",role="app"} 21`,
		`vallum_tokens_total{kind="cached",model="llama",operation="chat.create",role="app"} 16`,
		`vallum_tokens_total{kind="completion",model="llama",operation="chat.create",role="app"} 4`,
		`vallum_body_bytes_total{direction="up",operation="chat.create"} 100`,
		`vallum_body_bytes_total{direction="down",operation="chat.create"} 900`,
		`vallum_time_to_first_token_seconds_bucket{model="llama",operation="chat.create",upstream="a",le="0.05"} 1`,
		`vallum_inter_token_seconds_bucket{model="llama",operation="chat.create",upstream="a",le="0.015"} 1`,
		`vallum_upstream_seconds_bucket{model="llama",operation="chat.create",upstream="a",le="2.5"} 1`,
		`vallum_overhead_seconds_count{operation="chat.create"} 1`,
	)
}

func TestARefusalIsCountedByItsReason(t *testing.T) {
	m := New()
	m.Observe(Sample{Operation: "chat.create", Reason: verdict.NotPermitted.String()})
	m.Observe(Sample{Reason: verdict.UnknownOperation.String()})
	got := page(t, m)
	has(t, got,
		`vallum_requests_total{ended="not_forwarded",model="none",operation="chat.create",reason="not_permitted",role="none",upstream="none"} 1`,
		`vallum_requests_total{ended="not_forwarded",model="none",operation="none",reason="unknown_operation",role="none",upstream="none"} 1`,
	)
	if strings.Contains(got, "vallum_upstream_seconds") {
		t.Error("a refusal has times of an upstream that it never reached")
	}
	if strings.Contains(got, `vallum_requests_in_flight{operation="none"}`) {
		t.Error("a refusal was counted as running")
	}
}

// A request's own words must not become labels: they are secrets, prompts, or a flood of series.
func TestNoLabelComesFromARequest(t *testing.T) {
	m := New()
	m.Began("canary")
	m.Observe(Sample{Operation: "canary", Reason: "canary", Began: true})
	if got := page(t, m); strings.Contains(got, "canary") {
		t.Error("a request's word became a label")
	}
}

func TestNumbersThatCannotBeDoNotPanic(t *testing.T) {
	m := New()
	m.Observe(Sample{Prompt: -1, Cached: -1, Completion: -1, Duration: -1, Outcome: verdict.Outcome{BytesUp: -1, BytesDown: -1, Upstream: -1, FirstByte: -1, InterEvent: -1, Events: -1}})
	_ = page(t, m)
}

func TestGauges(t *testing.T) {
	m := New()
	m.Gauge("vallum_audit_queue", "Records that wait.", func() float64 { return 7 })
	m.Counter("vallum_some_total", "Some.", nil, func() int64 { return 3 })
	m.Counter("vallum_others_total", "Others.", map[string]string{"kind": "x"}, func() int64 { return 4 })
	m.Counter("vallum_others_total", "Others.", map[string]string{"kind": "y"}, func() int64 { return 5 })
	m.Upstreams(func() map[string]bool { return map[string]bool{"a": true, "b": false} })
	has(t, page(t, m), "vallum_audit_queue 7", "vallum_some_total 3", `vallum_others_total{kind="x"} 4`, `vallum_others_total{kind="y"} 5`, `vallum_upstream_up{upstream="a"} 1`, `vallum_upstream_up{upstream="b"} 0`)
}

func TestManyAtOnce(t *testing.T) {
	m := New()
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			for range 50 {
				s := streamed()
				s.Model = fmt.Sprint("m", i%3)
				m.Began(s.Operation)
				m.Observe(s)
			}
		})
	}
	wait.Wait()
	has(t, page(t, m), `vallum_requests_in_flight{operation="chat.create"} 0`, `vallum_body_bytes_total{direction="up",operation="chat.create"} 100000`)
}

func BenchmarkObserve(b *testing.B) {
	m, s := New(), streamed()
	b.ReportAllocs()
	for b.Loop() {
		m.Began(s.Operation)
		m.Observe(s)
	}
}

// Names, units and helps are as Prometheus' own linter wants them, and every metric says in its help what it counts.
func TestTheMetricsAreAsPrometheusWantsThem(t *testing.T) {
	m := New()
	m.Began("chat.create")
	m.Observe(streamed())
	m.Malformed()
	m.Upstreams(func() map[string]bool { return map[string]bool{"a": true} })
	m.Gauge("vallum_slots", "Slots taken by running requests.", func() float64 { return 0 })
	var ours strings.Builder
	for line := range strings.Lines(page(t, m)) {
		if strings.Contains(line, "vallum_") {
			ours.WriteString(line)
		}
	}
	problems, err := promlint.New(strings.NewReader(ours.String())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for line := range strings.Lines(ours.String()) {
		if help, ok := strings.CutPrefix(line, "# HELP "); ok && (len(help) < 40 || !strings.HasSuffix(help, ".\n")) {
			t.Errorf("a help says too little: %s", line)
		}
	}
	if n := strings.Count(ours.String(), "# HELP "); n < 11 {
		t.Errorf("%d metrics", n)
	}
}
