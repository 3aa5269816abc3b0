package vllmtest

import (
	"net/http"
	"slices"
	"sync"
)

// Recorded is one request as it reached the server.
type Recorded struct {
	Method, Target, Proto string
	Path                  string      // Target as vLLM routes it: percent-decoded, without query
	Header                http.Header // canonical names, values in order
	Body                  []byte      // without chunk framing
	Head                  []byte      // every byte of the request line and the headers
	RawBody               []byte      // every byte of the body, chunk framing included
	Whole                 bool        // the body ended as it was declared
}

// isProbe reports whether it is one of the reads by which a gateway watches its upstream.
func (r *Recorded) isProbe() bool {
	return r.Method == "GET" && (r.Path == "/health" || r.Path == "/version" || r.Path == "/v1/models")
}

type recorder struct {
	mu      sync.Mutex
	all     []Recorded
	arrived int
	running int
}

func (r *recorder) arrive(probe bool) {
	if probe {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrived++
}

// add keeps a request and gives its number.
func (r *recorder) add(one Recorded) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, one)
	return len(r.all) - 1
}

// runs counts those that are being answered.
func (r *recorder) runs(more int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running += more
}

// Idle reports whether every request so far was answered, or given up.
func (s *Server) Idle() bool {
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	return s.rec.running == 0
}

// Requests are all requests so far whose headers arrived whole, probes included, in the order of their arrival.
func (s *Server) Requests() []Recorded {
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	return slices.Clone(s.rec.all)
}

// Work are the requests but for probes: GET of /health, /version and /v1/models.
func (s *Server) Work() []Recorded {
	return slices.DeleteFunc(s.Requests(), func(r Recorded) bool { return r.isProbe() })
}

// Last is the newest of Work; the zero Recorded when there is none.
func (s *Server) Last() Recorded {
	work := s.Work()
	if len(work) == 0 {
		return Recorded{}
	}
	return work[len(work)-1]
}

// Arrived counts the requests of which at least one byte reached the server, probes excepted. A request counts before
// anything of it is answered.
func (s *Server) Arrived() int {
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	return s.rec.arrived
}
