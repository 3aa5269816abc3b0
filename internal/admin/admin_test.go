package admin

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/config"
)

type fake struct {
	state   State
	reloads int
	err     error
}

func (f *fake) State() State                 { return f.state }
func (f *fake) Reload(context.Context) error { f.reloads++; return f.err }

func do(h http.Handler, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func TestProbesServeThreeRoutesAndNothingElse(t *testing.T) {
	f := &fake{state: State{Ready: false, Audit: "cannot be written", AuditProblem: "open /var/lib/vallum/audit", Upstreams: []Upstream{{Name: "llama", Problem: "dial tcp 10.0.0.7:8000: refused"}}}}
	h := Probes(f, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
	for target, want := range map[string]int{"/livez": 200, "/metrics": 200, "/readyz": 503, "/": 404, "/metricsfoo": 404, "/%6divez": 404, "/debug/pprof/": 404, "/v1/models": 404, "/status": 404} {
		if w := do(h, "GET", target); w.Code != want {
			t.Errorf("GET %s: %d, want %d", target, w.Code, want)
		}
	}
	if w := do(h, "POST", "/livez"); w.Code != 404 {
		t.Errorf("POST /livez: %d", w.Code)
	}
	w := do(h, "GET", "/readyz")
	if !strings.Contains(w.Body.String(), "upstream llama: not alive") || strings.Contains(w.Body.String(), "10.0.0.7") ||
		!strings.Contains(w.Body.String(), "audit: cannot be written\n") || strings.Contains(w.Body.String(), "/var/lib") {
		t.Errorf("/readyz says %q", w.Body)
	}
	if w := do(Handler(f), "GET", "/status"); !strings.Contains(w.Body.String(), `"audit_problem":"open /var/lib/vallum/audit"`) {
		t.Errorf("the operator does not read why: %s", w.Body)
	}
	f.state.Ready = true
	if w := do(h, "GET", "/readyz"); w.Code != 200 {
		t.Errorf("ready: %d", w.Code)
	}
}

func TestReloadTellsWhyNothingChanged(t *testing.T) {
	f := &fake{err: errors.New("vallum.yaml: 2 problem(s)")}
	if w := do(Handler(f), "POST", "/reload"); w.Code != 409 || !strings.Contains(w.Body.String(), "2 problem(s)") || f.reloads != 1 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	_, f.err = config.Parse("vallum.yaml", []byte("version: 1\nupstreams: [{name: a, url: \"http://127.0.0.1:1\", modles: [x]}]\n"))
	if w := do(Handler(f), "POST", "/reload"); !strings.Contains(w.Body.String(), `"problems":[{"line":2,"column":50,"path":"upstreams[0].modles","what":"there is no such key","right":"models"}]`) {
		t.Errorf("where it stands is not told: %s", w.Body)
	}
	f.reloads, f.err = 1, nil
	if w := do(Handler(f), "POST", "/reload"); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
	if w := do(Handler(f), "GET", "/reload"); w.Code != 404 || f.reloads != 2 {
		t.Errorf("GET /reload: %d", w.Code)
	}
	if w := do(Handler(f), "GET", "/status"); w.Code != 200 || !strings.Contains(w.Body.String(), `"ready":false`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
