// Package admin is administration on a socket of its own, and probes and metrics on a listener of theirs.
// It refuses everything but the routes named here, and neither of the two can reach the data path.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/vallum/vallum/internal/config"
)

// State is what the daemon tells about itself.
type State struct {
	Ready     bool       `json:"ready"`
	Draining  bool       `json:"draining"`
	Upstreams []Upstream `json:"upstreams"`
	Audit     string     `json:"audit"` // "writing" or "cannot be written"

	AuditProblem string `json:"audit_problem,omitempty"` // why; on the socket only, for it names files
}

// Upstream is one vLLM server, as the administration shows it.
type Upstream struct {
	Name    string   `json:"name"`
	Alive   bool     `json:"alive"`
	Version string   `json:"version,omitempty"`
	Models  []string `json:"models,omitempty"`
	Problem string   `json:"problem,omitempty"`
	Warning string   `json:"warning,omitempty"`
}

// Daemon is what administration asks for.
type Daemon interface {
	State() State
	Reload(context.Context) error
}

// Handler is the administration: GET /status, POST /reload. Who can open its socket is the operator.
func Handler(d Daemon) http.Handler {
	return exact(map[string]http.HandlerFunc{
		"GET /status": func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, d.State()) },
		"POST /reload": func(w http.ResponseWriter, r *http.Request) {
			if err := d.Reload(r.Context()); err != nil {
				writeJSON(w, http.StatusConflict, failureOf(err))
				return
			}
			writeJSON(w, http.StatusOK, map[string]string{"reloaded": "yes"})
		},
	})
}

// failure is why nothing was reloaded: with the problems of the file, each where it stands, when they are why.
type failure struct {
	Error    string           `json:"error"`
	Problems []config.Problem `json:"problems,omitempty"`
}

func failureOf(err error) failure {
	f := failure{Error: err.Error()}
	var problems *config.Problems
	if errors.As(err, &problems) {
		f.Problems = problems.List
	}
	return f
}

// Probes serves /livez, /readyz and /metrics, and nothing else: it may listen where everybody can reach it, so it tells
// names of upstreams and no addresses.
func Probes(d Daemon, metrics http.Handler) http.Handler {
	return exact(map[string]http.HandlerFunc{
		"GET /livez":   func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "alive\n") },
		"GET /metrics": metrics.ServeHTTP,
		"GET /readyz": func(w http.ResponseWriter, _ *http.Request) {
			st := d.State()
			text, status := "ready\n", http.StatusOK
			if !st.Ready {
				text, status = "not ready\n", http.StatusServiceUnavailable
			}
			text += "audit: " + st.Audit + "\n"
			for _, u := range st.Upstreams {
				word := "alive"
				if !u.Alive {
					word = "not alive"
				}
				text += "upstream " + u.Name + ": " + word + "\n"
			}
			if st.Draining {
				text += "draining\n"
			}
			writeText(w, status, text)
		},
	})
}

// exact serves literal methods and paths and answers 404 for all else: no cleaning, no redirects.
func exact(routes map[string]http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		handler, ok := routes[method+" "+r.URL.EscapedPath()]
		if !ok {
			writeText(w, http.StatusNotFound, "not found\n")
			return
		}
		handler(w, r)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone: nothing to do
}

func writeText(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(s)) // the caller is gone: nothing to do
}
