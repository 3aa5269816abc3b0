// Package vllmtest is a fake vLLM, made of the surface that was extracted from the newest release: it serves every
// route of it, answers in vLLM's shapes, records every byte that reached it, and misbehaves on demand.
// It refuses to know Vallum's catalogue: what the catalogue forgot, this server still serves.
package vllmtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vallum/vallum/internal/vllm/surface"
)

// Options says what kind of vLLM to be. The zero Options is a server of one model "tiny" without a key, on loopback.
type Options struct {
	Key           string           // --api-key; "" switches vLLM's own check off, as there
	Models        []string         // served model names, the first is the default; nil serves "tiny"
	MaxModelLen   int64            // tokens of context; 0 is 1024
	Surface       *surface.Release // what to serve; nil is the newest release
	Version       string           // what GET /version says; "" is the surface's release
	DevMode       bool             // VLLM_SERVER_DEV_MODE=1: serves the routes that need it
	ScaleOut      bool             // --enable-scale-out: otherwise its routes are stubs that answer 403
	PromptDetails bool             // --enable-prompt-tokens-details: cached tokens in usage (responses always has them)
	ForceUsage    bool             // --enable-force-include-usage
	Tools         bool             // --enable-auto-tool-choice: otherwise tools are 400 on chat and messages
	Words         int              // words in an answer before it stops by itself; 0 is 5
	Interval      time.Duration    // between two streamed events; 0 is none
	Idle          time.Duration    // how long an idle connection stays open; 0 is vLLM's 5 s
	UDS           string           // Start: the path of a UNIX socket to listen on instead of loopback
	TLS           *tls.Config      // Start: serve HTTPS

	// Act, when it is set, is asked how to answer each request that arrived whole and is no probe, in the place of Next. It
	// may take its time; ctx ends when the client leaves. over, unless nil, is called before the last byte of the answer
	// leaves or the connection breaks: a client that has its answer is no longer counted by who counts what runs.
	Act func(ctx context.Context, r Recorded) (b Behaviour, over func())
}

// Server is a fake vLLM. Make one with New or Start.
type Server struct {
	o      Options
	routes *routes
	cache  prefixCache
	rec    recorder
	url    string

	steps  chan struct{}
	gone   chan int
	closed chan struct{}
	once   sync.Once
	conns  sync.WaitGroup

	mu       sync.Mutex
	queue    []Behaviour
	open     map[net.Conn]bool
	paused   bool
	sleeping bool
	ids      int
}

// New makes a server that listens nowhere yet: see Serve.
func New(o Options) *Server {
	if len(o.Models) == 0 {
		o.Models = []string{"tiny"}
	}
	if o.MaxModelLen == 0 {
		o.MaxModelLen = 1024
	}
	if o.Surface == nil {
		o.Surface = surface.Newest()
	}
	if o.Version == "" {
		o.Version = o.Surface.Version
	}
	if o.Words == 0 {
		o.Words = 5
	}
	if o.Idle == 0 {
		o.Idle = 5 * time.Second // VLLM_HTTP_TIMEOUT_KEEP_ALIVE
	}
	return &Server{
		o: o, routes: newRoutes(o), cache: prefixCache{seen: map[[32]byte]bool{}}, open: map[net.Conn]bool{},
		steps: make(chan struct{}), gone: make(chan int, 4096), closed: make(chan struct{}),
	}
}

// TB is what Start needs of a *testing.T; the package itself links nothing of testing.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Apart is where a server may listen that goes, or comes back, while its test runs: a loopback address of its own, with
// port 0. On 127.0.0.1 the next server of another test may be given the port that it left, and answer in its place. Where
// there are no other loopback addresses it is 127.0.0.1 all the same.
func Apart() string {
	address := fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return "127.0.0.1:0"
	}
	_ = l.Close() // it was opened to see that it can be
	return address
}

// Start runs a server on a loopback port, or on Options.UDS, until the test ends.
func Start(t TB, o Options) *Server {
	t.Helper()
	s := New(o)
	network, address := "tcp", "127.0.0.1:0"
	if o.UDS != "" {
		network, address = "unix", o.UDS
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), network, address)
	if err != nil {
		t.Fatalf("vllmtest: %v", err)
	}
	if o.TLS != nil {
		l = tls.NewListener(l, o.TLS)
	}
	s.setURL(l)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Fatalf("vllmtest: %v", err)
		}
	})
	return s
}

func (s *Server) setURL(l net.Listener) {
	switch {
	case s.o.UDS != "":
		s.url = "unix:" + s.o.UDS
	case s.o.TLS != nil:
		s.url = "https://" + l.Addr().String()
	default:
		s.url = "http://" + l.Addr().String()
	}
}

// Serve answers on l until Close, and returns nil then. It closes l.
func (s *Server) Serve(l net.Listener) error {
	go func() {
		<-s.closed
		_ = l.Close()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-s.closed:
				s.conns.Wait()
				return nil
			default:
				return fmt.Errorf("accepting: %w", err)
			}
		}
		s.adopt(c)
		s.conns.Add(1)
		go func() {
			defer s.conns.Done()
			s.serveConn(c)
			s.mu.Lock()
			delete(s.open, c)
			s.mu.Unlock()
		}()
	}
}

// adopt keeps c for BreakConnections; a connection that came during Close is broken at once.
func (s *Server) adopt(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[c] = true
	select {
	case <-s.closed:
		_ = c.Close()
	default:
	}
}

// Close ends the server as a killed vLLM ends: every connection breaks at once.
func (s *Server) Close() {
	s.once.Do(func() {
		close(s.closed)
		s.BreakConnections()
		if s.o.UDS != "" {
			_ = os.Remove(s.o.UDS)
		}
	})
}

// BreakConnections closes every open connection and goes on listening.
func (s *Server) BreakConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.Close()
	}
}

// URL is where a server that Start made listens: http://127.0.0.1:PORT, https://…, or unix:PATH.
func (s *Server) URL() string { return s.url }

// Models are the served names.
func (s *Server) Models() []string { return s.o.Models }

// Next queues a behaviour for the next request that it fits: see Behaviour.Path.
func (s *Server) Next(b Behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, b)
}

// take removes the first queued behaviour that fits.
func (s *Server) take(method, path string) (Behaviour, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, b := range s.queue {
		if b.Path == path || b.Path == "" && method == "POST" {
			s.queue = append(s.queue[:i:i], s.queue[i+1:]...)
			return b, true
		}
	}
	return Behaviour{}, false
}

// Step lets one event of a Stepped stream out, and returns once a stream has taken the permission: the event after it
// does not exist before the next Step. It reports false when no stream asked within 10 s or the server was closed.
func (s *Server) Step() bool {
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	select {
	case s.steps <- struct{}{}:
		return true
	case <-s.closed:
		return false
	case <-timeout.C:
		return false
	}
}

// Gone yields the number (in Requests, from 0) of each request whose client left before the answer was whole. A
// half-closed connection counts as gone, as it does for vLLM.
func (s *Server) Gone() <-chan int { return s.gone }

// next numbers what has to be unique.
func (s *Server) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids++
	return s.ids
}
