// Package upstream knows the vLLM servers: what each serves, which release it is, and whether it is alive.
// It refuses to pick a server that does not serve the model, or that does not answer.
package upstream

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Spec is one server as the configuration names it.
type Spec struct {
	Name   string
	Models []string // what it serves; nil: what it says that it serves
	HasKey bool     // the server has a key of its own: a request without it must get 401

	Release vllm.Release // what the configuration says that it runs; the server's own word wins over it
}

// Model is a model that a server serves.
type Model struct {
	Name        string
	MaxModelLen int64 // tokens; 0 when not known
	Created     int64 // seconds since 1970, as the server says
}

// State is what is known of a server at one moment.
type State struct {
	Name    string       `json:"name"`
	Alive   bool         `json:"alive"`
	LeftOut bool         `json:"left_out,omitempty"` // requests failed in a row: others are picked, as long as there are others
	Release vllm.Release `json:"-"`
	Version string       `json:"version,omitempty"`
	Assumed bool         `json:"version_assumed,omitempty"` // the server does not tell its release: it is the configuration's
	Models  []Model      `json:"models,omitempty"`
	Problem string       `json:"problem,omitempty"` // why it is not alive
	Warning string       `json:"warning,omitempty"` // what is unsafe about it
	Since   time.Time    `json:"since"`             // of Alive
}

// unheard is the problem of a server that nothing is known of yet.
const unheard = "it has not answered yet"

// Heard reports whether the server has answered, or was seen not to: before, only the configuration speaks of it.
func (st State) Heard() bool { return st.Alive || st.Problem != unheard }

// Server is one vLLM server. It outlives reloads. Make it with New and let one goroutine Run it.
type Server struct {
	spec     Spec
	get      Getter
	changed  func()
	wake     chan struct{}
	failures atomic.Int32

	mu      sync.Mutex
	state   State
	misses  int           // looks at /health that timed out, one after the other; of Run's goroutine
	leftOut time.Time     // until when others are picked
	penalty time.Duration // how long it is left out the next time
}

// New makes a server that is not alive until Run has seen it answer. changed is called, from Run's goroutine or from
// Failed's, after each change of its state; nil for nobody.
func New(spec Spec, get Getter, changed func()) *Server {
	if changed == nil {
		changed = func() {}
	}
	s := &Server{spec: spec, get: get, changed: changed, wake: make(chan struct{}, 1)}
	s.state = State{Name: spec.Name, Problem: unheard, Models: named(spec.Models)}
	return s
}

func named(names []string) []Model {
	var models []Model
	for _, n := range names {
		models = append(models, Model{Name: n})
	}
	return models
}

// Name is what the configuration calls it.
func (s *Server) Name() string { return s.spec.Name }

// State is what is known of it now.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state
	st.LeftOut = time.Now().Before(s.leftOut)
	return st
}

// Serves reports whether it serves the model.
func (s *Server) Serves(model string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.state.Models, func(m Model) bool { return m.Name == model })
}

// maxFailures is how many requests in a row may fail before the server is left out, at first for minPenalty, then twice
// as long each time, up to maxPenalty.
const (
	maxFailures = 3
	minPenalty  = time.Second
	maxPenalty  = 30 * time.Second
)

// Done tells how a request ended. Only what the server did counts: a client that left or a key that was revoked say
// nothing of it, a refusal of the request says that it is well, and "busy" is no failure. A server that hangs while its
// /health says 200 shows here only.
func (s *Server) Done(o verdict.Outcome) {
	switch o.Ended {
	case verdict.NotForwarded, verdict.ClientLeft, verdict.KeyRevoked, verdict.Drained, verdict.Panicked:
		return
	case verdict.TimedOut, verdict.UpstreamAborted, verdict.UpstreamErrorEvent, verdict.UpstreamEndedEarly:
		s.Failed(false, fmt.Sprintf("a request ended as %s: %v", o.Ended, o.Cause))
		return
	}
	switch {
	case o.UpStatus == 0 && isOurs(o.Cause):
	case o.UpStatus == 0:
		s.Failed(o.Unsent, fmt.Sprint(o.Cause))
	case o.UpStatus == 503 || o.UpStatus == 429:
	case o.UpStatus >= 500:
		s.Failed(false, fmt.Sprintf("it answers %d", o.UpStatus))
	default:
		s.Answered()
	}
}

// isOurs reports whether a connection could not be made for want of something here: files, ports, memory. Nothing can be
// said of the server then, and many connections of callers must not take all servers away.
func isOurs(err error) bool {
	for _, want := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

// Answered notes that a request got an answer.
func (s *Server) Answered() {
	if s.failures.Swap(0) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !time.Now().Before(s.leftOut) {
		s.penalty = 0
	}
}

// Failed notes that a request got none: fatal when not even a connection could be made. Then the server is dead until
// its /health says 200. Otherwise, after several in a row, it is left out for a while, but only as long as there is
// another: some requests make vLLM answer 500 by what is in them, and a caller who sends such must not be able to take
// a model away from everybody.
func (s *Server) Failed(fatal bool, why string) {
	if fatal {
		if s.set(func(st *State) { st.Alive, st.Problem = false, why }) {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
		return
	}
	if s.failures.Add(1) < maxFailures {
		return
	}
	s.failures.Store(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.penalty = min(max(2*s.penalty, minPenalty), maxPenalty)
	s.leftOut = time.Now().Add(s.penalty)
}

// set changes the state and tells whoever wants to know. It reports whether anything changed.
func (s *Server) set(change func(*State)) bool {
	s.mu.Lock()
	before := s.state
	change(&s.state)
	if before.Alive != s.state.Alive {
		s.state.Since = time.Now()
	}
	same := before.Alive == s.state.Alive && before.Problem == s.state.Problem && before.Warning == s.state.Warning &&
		before.Version == s.state.Version && before.Assumed == s.state.Assumed && slices.Equal(before.Models, s.state.Models)
	s.mu.Unlock()
	if !same {
		s.changed()
	}
	return !same
}

// Why nothing was picked.
var (
	ErrUnknown = errors.New("no upstream of that name")
	ErrNone    = errors.New("no upstream serves the model")
	ErrDown    = errors.New("no upstream that serves the model is alive")
)

// Set is the servers of one configuration.
type Set struct {
	servers []*Server
	turn    sync.Map // model → *atomic.Uint64
}

// NewSet makes a set of servers.
func NewSet(servers []*Server) *Set { return &Set{servers: servers} }

// Pick chooses in turn among the live servers of the model, but for those that were tried already; of a named one, that
// one. The model is "" for operations that have none. Servers of releases that may have the request are preferred; nil:
// all may. Errors: ErrUnknown, ErrNone, ErrDown.
func (s *Set) Pick(model, name string, tried []string, may func(vllm.Release) bool) (*Server, error) {
	var can, alive, well, unfit []*Server
	for _, one := range s.servers {
		if name != "" && one.spec.Name != name || model != "" && !one.Serves(model) {
			continue
		}
		can = append(can, one)
		switch st := one.State(); {
		case !st.Alive, slices.Contains(tried, one.spec.Name):
		case may != nil && !may(st.Release):
			unfit = append(unfit, one)
		case st.LeftOut:
			alive = append(alive, one)
		default:
			alive, well = append(alive, one), append(well, one)
		}
	}
	switch {
	case len(well) > 0:
		alive = well
	case len(alive) == 0:
		alive = unfit
	}
	switch {
	case len(can) == 0 && name != "" && !slices.ContainsFunc(s.servers, func(o *Server) bool { return o.spec.Name == name }):
		return nil, ErrUnknown
	case len(can) == 0:
		return nil, ErrNone
	case len(alive) == 0:
		return nil, ErrDown
	case len(alive) == 1:
		return alive[0], nil
	}
	turn, _ := s.turn.LoadOrStore(model, new(atomic.Uint64))
	return alive[turn.(*atomic.Uint64).Add(1)%uint64(len(alive))], nil
}

// States is what is known of every server, in the configuration's order.
func (s *Set) States() []State {
	var all []State
	for _, one := range s.servers {
		all = append(all, one.State())
	}
	return all
}
