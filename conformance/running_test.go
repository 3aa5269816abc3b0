//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// endsWithin is how soon a running request has to end after what ends it, and
// the engine to stop working for it.
const endsWithin = time.Second

// steady is a request whose answer is the same each time, and takes a while.
func steady(model string, fields ...any) doc {
	d := doc{"model": model, "messages": []doc{{"role": "user", "content": "tell me all"}}, "max_tokens": 900, "ignore_eos": true, "temperature": 0}
	for i := 0; i+1 < len(fields); i += 2 {
		d[fields[i].(string)] = fields[i+1]
	}
	return d
}

// followed is requests that run while something happens.
type followed struct {
	begun chan string
	ends  chan ending
	count int
	wg    sync.WaitGroup
}

// followAll sends the requests and returns when each has begun.
func followAll(p *report.Proof, to target, clients ...running) *followed {
	p.Helper()
	f := &followed{begun: make(chan string, len(clients)), ends: make(chan ending, len(clients)), count: len(clients)}
	for _, c := range clients {
		f.wg.Go(func() { f.ends <- follow(p.Context(), to, c, f.begun) })
	}
	for range clients {
		select {
		case <-f.begun:
		case <-time.After(endWithin):
			p.Fatal("not every request began")
		}
	}
	return f
}

// running tells whether none has ended yet.
func (f *followed) running() bool { return len(f.ends) == 0 }

// all waits for every end.
func (f *followed) all() []ending {
	f.wg.Wait()
	var out []ending
	for range f.count {
		out = append(out, <-f.ends)
	}
	return out
}

// said is the text of a streamed chat.
func said(body []byte) string {
	var out strings.Builder
	for line := range bytes.Lines(body) {
		data, isData := bytes.CutPrefix(bytes.TrimSpace(line), []byte("data: "))
		var event struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		if !isData || json.Unmarshal(data, &event) != nil {
			continue
		}
		for _, c := range event.Choices {
			out.WriteString(c.Delta.Content)
		}
	}
	return out.String()
}

// wantRevoked wants each of the requests ended within a second of since, in its
// dialect, as revoked, and recorded so.
func wantRevoked(p *report.Proof, g *gate, ends []ending, since time.Time) {
	p.Helper()
	for _, e := range ends {
		if e.client.stream {
			judge(p, e)
		}
		if late := e.at.Sub(since); late > endsWithin {
			p.Errorf("%s: it ended %s after what ended it, want at most %s", e.client.name, late, endsWithin)
		}
		if !bytes.Contains(e.body, []byte("revoked")) {
			p.Errorf("%s: it does not say revoked: %q", e.client.name, e.body[max(0, len(e.body)-300):])
		}
		if !e.client.stream && e.status != http.StatusUnauthorized {
			p.Errorf("%s: want 401, got %d", e.client.name, e.status)
		}
		if how, err := g.ended(e.id); err != nil || how != "revoked" {
			p.Errorf("%s: the record says %q, %v", e.client.name, how, err)
		}
	}
}

// wantUnchanged wants a stream that runs through all of it to say what vLLM
// says when nothing happens.
func wantUnchanged(p *report.Proof, g *gate, e ending, want string) {
	p.Helper()
	if e.err != nil || !bytes.Contains(e.body, []byte("[DONE]")) || said(e.body) != want {
		p.Errorf("another key's stream did not go on unchanged: %v, %d of %d characters, … %q", e.err, len(said(e.body)), len(want), e.body[max(0, len(e.body)-200):])
	}
	if how, err := g.ended(e.id); err != nil || how != "complete" {
		p.Errorf("another key's stream: the record says %q, %v", how, err)
	}
}

// undisturbed is what vLLM says to the steady request when nothing happens.
func undisturbed(p *report.Proof, s *stand) string {
	p.Helper()
	e := follow(p.Context(), s.holder(), steadyChat(s), make(chan string, 1))
	if e.err != nil || len(said(e.body)) < 900 {
		p.Fatalf("vLLM alone did not answer it: %v, %d, %d bytes", e.err, e.status, len(e.body))
	}
	return said(e.body)
}

func steadyChat(s *stand) running {
	return running{"steady chat", post("/v1/chat/completions", steady(s.vllm.Served, "stream", true)), "[DONE]", `data: {"error"`, true}
}

// A key that is revoked ends what runs by it; with vLLM's own key, which all
// clients share, nothing can be taken from one of them.
var revokedWhileStreaming = proof{"a key is revoked while its requests run: they end within a second and say so, another's goes on unchanged", func(p *report.Proof, s *stand) {
	s.needGate(p)
	g, err := fleet.startGate(s, "revoked", "", realvallum.Key{Name: "carl", Role: "inference", Tenant: "red"})
	if err != nil {
		p.NotRun("%v", err)
	}
	defer g.Stop()
	want := undisturbed(p, s)
	annas := followAll(p, g.as("anna"), steadyChat(s))
	carls := followAll(p, g.as("carl"), clientsInFlight(s.vllm.Served, tillItEnds)...)
	if !annas.running() || !carls.running() {
		p.Fatal("a request ended before the key was revoked: nothing is shown")
	}
	out, err := g.Run(p.Context(), "keys", "revoke", "carl")
	if err != nil {
		p.Fatal(err)
	}
	revoked := time.Now()
	p.Log(out)
	wantRevoked(p, g, carls.all(), revoked)
	if !annas.running() {
		p.Error("anna's stream ended before carl's did: that it goes on is not shown")
	}
	wantUnchanged(p, g, annas.all()[0], want)
	if err := refused("no_credential")(g.as("carl").do(p, post("/v1/chat/completions", chat("model", s.vllm.Served)))); err != nil {
		p.Errorf("the revoked key afterwards: %v", err)
	}
}}

// roleOfGuests is a role of the configuration. The reload takes it away.
const roleOfGuests = "roles:\n  guests: {operations: [chat.create, completions.create, responses.create, messages.create], models: [\"*\"]}\n"

// A reload takes effect on what runs: whole, or not at all.
var reloadedWhileStreaming = proof{"a role is taken away by a reload while its requests run: they end within a second as revoked, another's goes on unchanged; a bad file ends nothing", func(p *report.Proof, s *stand) {
	s.needGate(p)
	g, err := fleet.startGate(s, "reloaded", roleOfGuests, realvallum.Key{Name: "gwen", Role: "guests"}, realvallum.Key{Name: "nora", Role: "newcomers"})
	if err != nil {
		p.NotRun("%v", err)
	}
	defer g.Stop()
	with, err := os.ReadFile(g.Config)
	if err != nil {
		p.Fatal(err)
	}
	without := bytes.ReplaceAll(with, []byte("  guests:"), []byte("  newcomers:"))
	want := undisturbed(p, s)
	if err := refused("not_permitted")(g.as("nora").do(p, post("/v1/chat/completions", chat("model", s.vllm.Served)))); err != nil {
		p.Errorf("the key of a role that is not there yet: %v", err)
	}
	annas := followAll(p, g.as("anna"), steadyChat(s))
	gwens := followAll(p, g.as("gwen"), clientsInFlight(s.vllm.Served, tillItEnds)...)

	g.reload(p, bytes.ReplaceAll(without, []byte("operations: [chat.create"), []byte("operations: [chat.creat")), "was not reloaded")
	if !annas.running() || !gwens.running() {
		p.Error("a configuration with a mistake ended a request, or one ended before")
	}
	changed := g.reload(p, without, "the configuration was reloaded")
	wantRevoked(p, g, gwens.all(), changed)
	if !annas.running() {
		p.Error("anna's stream ended before gwen's did: that it goes on is not shown")
	}
	wantUnchanged(p, g, annas.all()[0], want)
	if err := refused("not_permitted")(g.as("gwen").do(p, post("/v1/chat/completions", chat("model", s.vllm.Served)))); err != nil {
		p.Errorf("the key without its role afterwards: %v", err)
	}
	if err := ok(`"choices"`)(g.as("nora").do(p, post("/v1/chat/completions", chat("model", s.vllm.Served)))); err != nil {
		p.Errorf("the key of the role that came: %v", err)
	}
}}

// reload writes the configuration in one step, sends SIGHUP and waits until the
// gateway has said what became of it. It returns when the signal was sent.
func (g *gate) reload(p *report.Proof, config []byte, says string) (sent time.Time) {
	p.Helper()
	before, err := g.Said()
	if err != nil {
		p.Fatal(err)
	}
	next := filepath.Join(filepath.Dir(g.Config), "next")
	if err := os.WriteFile(next, config, 0o600); err != nil {
		p.Fatal(err)
	}
	if err := os.Rename(next, g.Config); err != nil {
		p.Fatal(err)
	}
	sent = time.Now()
	if err := g.Signal(syscall.SIGHUP); err != nil {
		p.Fatal(err)
	}
	p.Logf("SIGHUP: %s", until(p, endWithin, "what became of the reload", func() bool {
		now, err := g.Said()
		return err == nil && strings.Contains(string(now[len(before):]), says)
	}))
	return sent
}

// until waits for a condition and returns how long it took.
func until(p *report.Proof, limit time.Duration, what string, holds func() bool) time.Duration {
	p.Helper()
	began := time.Now()
	for !holds() {
		if time.Since(began) > limit {
			p.Fatalf("%s: not within %s", what, limit)
		}
		<-time.After(10 * time.Millisecond)
	}
	return time.Since(began)
}

// sum adds up a metric's values over its labels, but for those lines that lack
// one of the texts.
func sum(metrics []byte, name string, having ...string) float64 {
	var total float64
lines:
	for line := range strings.Lines(string(metrics)) {
		rest, found := strings.CutPrefix(line, name)
		if !found || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, text := range having {
			if !strings.Contains(rest, text) {
				continue lines
			}
		}
		var n float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:], &n); err == nil {
			total += n
		}
	}
	return total
}

// atWork is how many requests vLLM's engine works on, by its own account.
func (s *stand) atWork(p *report.Proof) float64 {
	p.Helper()
	return sum(s.direct().do(p, get("/metrics")).body, "vllm:num_requests_running")
}

// A client that leaves stops the engine's work: for a stream, and for an answer
// of which nothing has come yet.
var hangUpStopsTheEngine = proof{"a client that hangs up stops the engine within a second: streams and plain requests", func(p *report.Proof, s *stand) {
	s.needGate(p)
	for _, c := range clientsInFlight(s.vllm.Served, tillItEnds) {
		took, e := s.hangUp(p, s.as("anna"), c)
		p.Logf("%s: the engine stopped %s after the client left, having sent %d bytes", c.name, took.Round(time.Millisecond), len(e.body))
		if e.id == "" {
			continue // nothing had come yet
		}
		if how, err := s.gate.ended(e.id); err != nil || how != "client_left" {
			p.Errorf("%s: the record says %q, %v", c.name, how, err)
		}
	}
}}

// hangUp lets a client leave in the middle of its request, and gives how long the engine worked on and what the client got.
// A machine that is busy with something else for a moment is given three attempts; one that is in time is enough, for an
// engine that nobody stops is never.
func (s *stand) hangUp(p *report.Proof, to target, c running) (took time.Duration, e ending) {
	p.Helper()
	for range 3 {
		until(p, endWithin, "an idle engine", func() bool { return s.atWork(p) == 0 })
		ctx, leave := context.WithCancel(p.Context())
		begun, ended := make(chan string, 1), make(chan ending, 1)
		go func() { ended <- follow(ctx, to, c, begun) }()
		<-begun
		until(p, endWithin, c.name+": the engine at work", func() bool { return s.atWork(p) > 0 })
		// It works on while the client stays: that it stops is the hang-up's doing.
		<-time.After(endsWithin / 4)
		if s.atWork(p) == 0 {
			p.Errorf("%s: the engine was done before the client left: nothing is shown", c.name)
		}
		leave()
		left := time.Now()
		e = <-ended
		until(p, endWithin, c.name+": an engine that stops", func() bool { return s.atWork(p) == 0 })
		if took = time.Since(left); took <= endsWithin {
			return took, e
		}
	}
	p.Errorf("%s: the engine worked on for %s", c.name, took)
	return took, e
}
