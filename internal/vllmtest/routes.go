package vllmtest

import (
	"crypto/sha256"
	"crypto/subtle"
	"strings"

	"github.com/vallum/vallum/internal/vllm/surface"
)

type handler func(*exchange)

// routes are the API port's routes of a release, as far as the options open them.
type routes struct {
	prefixes []string
	all      []served
}

type served struct {
	route   surface.Route
	parts   []string
	handler handler
}

func newRoutes(o Options) *routes {
	rs := &routes{prefixes: o.Surface.GuardedPrefixes}
	for _, r := range o.Surface.Routes {
		if r.Server != "api" || !o.opens(&r) {
			continue
		}
		rs.all = append(rs.all, served{r, strings.Split(r.Path, "/"), o.handler(&r)})
	}
	return rs
}

// opens reports whether the options open the route. Every flag and task but development mode counts as set.
func (o *Options) opens(r *surface.Route) bool {
	for _, c := range r.Conditions {
		needs := strings.Contains(c, "env VLLM_SERVER_DEV_MODE=1") && !strings.Contains(c, "not env VLLM_SERVER_DEV_MODE=1")
		if o.DevMode || !needs {
			return true
		}
	}
	return false
}

// handler is what answers a route; a route that nothing here knows is answered by what it would have done.
func (o *Options) handler(r *surface.Route) handler {
	if !o.ScaleOut {
		for _, c := range r.Conditions {
			if strings.HasSuffix(c, "stub answering 403") {
				return func(x *exchange) {
					x.fail(403, "Forbidden", "Scale-out endpoints are disabled. Set --enable-scale-out.")
				}
			}
		}
	}
	if r.Method == "WEBSOCKET" {
		return func(x *exchange) { x.respond(403, "text/plain", "") }
	}
	if h := handlers[r.Method+" "+r.Path]; h != nil {
		return h
	}
	return wouldHave(r)
}

// find gives the handler, or the status with which Starlette answers: 404, 405, 307.
func (rs *routes) find(r *Recorded) (handler, int) {
	status := 404
	for i := range rs.all {
		s := &rs.all[i]
		if !s.matches(r.Path) {
			continue
		}
		method := s.route.Method
		switch {
		case method == "ANY", method == r.Method:
			return s.handler, 0
		case method == "WEBSOCKET" && r.Method == "GET" && strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
			return s.handler, 0
		case method != "WEBSOCKET":
			status = 405
		}
	}
	if trimmed := strings.TrimSuffix(r.Path, "/"); status == 404 && trimmed != r.Path && trimmed != "" {
		again := *r
		again.Path = trimmed
		if _, s := rs.find(&again); s == 0 {
			return nil, 307 // redirect_slashes
		}
	}
	return nil, status
}

func (s *served) matches(path string) bool {
	switch s.route.Kind {
	case "mount":
		return strings.HasPrefix(path, s.route.Path) // ^/metrics(?P<path>.*)$
	case "wildcard":
		return strings.HasPrefix(path, strings.TrimSuffix(s.route.Path, "*"))
	}
	parts := strings.Split(path, "/")
	if len(parts) != len(s.parts) {
		return false
	}
	for i, want := range s.parts {
		if want != parts[i] && (!strings.HasPrefix(want, "{") || parts[i] == "") {
			return false
		}
	}
	return true
}

// unauthorized is vLLM's own key check (serve/middleware/authenticate.py): by string prefix, OPTIONS excepted, the
// first Authorization header only, the scheme in any case and one space.
func (s *Server) unauthorized(r *Recorded) bool {
	if s.o.Key == "" || r.Method == "OPTIONS" {
		return false
	}
	guarded := false
	for _, prefix := range s.routes.prefixes {
		guarded = guarded || strings.HasPrefix(r.Path, prefix)
	}
	if !guarded {
		return false
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(s.o.Key)), sha256.Sum256([]byte(token))
	return !strings.EqualFold(scheme, "bearer") || subtle.ConstantTimeCompare(want[:], got[:]) != 1
}
