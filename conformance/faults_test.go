//go:build conformance

package conformance

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// The timeouts of the gateway in the faults, and the time after which every
// client must have got an end: the longest of them and a margin for the start.
const (
	faultTimeouts = "timeouts: {connect: 2s, first_byte: 6s, between_events: 4s}\n"
	endWithin     = 20 * time.Second
	recordWithin  = 30 * time.Second // however busy the machine is: it is waited for, not judged
)

// running is one client in the middle of a request.
type running struct {
	name     string
	request  call
	end      string // what a stream of this dialect ends with when all is well
	cutShort string // what it has to contain when it is cut short
	stream   bool
}

// As many tokens as fit, for requests that something ends.
const tillItEnds = 900

// clientsInFlight is one long request in each dialect, streamed, and two plain ones.
func clientsInFlight(model string, tokens int) []running {
	messages := []doc{{"role": "user", "content": "tell me all"}}
	long := doc{"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": true, "n": 4, "temperature": 1.0, "stream": true}
	plain := doc{"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": true, "n": 4, "temperature": 1.0}
	return []running{
		{"chat", post("/v1/chat/completions", long), "[DONE]", `data: {"error"`, true},
		{"completions", post("/v1/completions", doc{"model": model, "prompt": "hello", "max_tokens": tokens, "ignore_eos": true, "n": 4, "temperature": 1.0, "stream": true}), "[DONE]", `data: {"error"`, true},
		{"responses", post("/v1/responses", doc{"model": model, "input": "hello", "max_output_tokens": tokens, "temperature": 1.0, "ignore_eos": true, "stream": true}), "response.completed", "event: error", true},
		{"messages", post("/v1/messages", doc{"model": model, "messages": messages, "max_tokens": tokens, "stream": true}), "message_stop", "event: error", true},
		{"plain chat", post("/v1/chat/completions", plain), "", "", false},
		{"plain messages", post("/v1/messages", doc{"model": model, "messages": messages, "max_tokens": tokens}), "", "", false},
	}
}

// ending is how a client's request ended.
type ending struct {
	client running
	id     string // X-Request-Id
	status int
	body   []byte
	err    error // of the transport: a bare close is one
	took   time.Duration
	at     time.Time // when it ended
}

// fault runs the clients through a gateway of its own, does something to vLLM
// once each stream has begun, and wants an end for every client and a record
// that says which.
func fault(p *report.Proof, s *stand, harm func() error) {
	s.faults++
	g, err := fleet.startGate(s, fmt.Sprintf("fault-%d", s.faults), faultTimeouts)
	if err != nil {
		p.NotRun("%v", err)
	}
	defer g.Stop()
	var wg sync.WaitGroup
	begun := make(chan string, 16)
	results := make(chan ending, 16)
	clients := clientsInFlight(s.vllm.Served, tillItEnds)
	for _, c := range clients {
		wg.Go(func() { results <- follow(p.Context(), g.as("anna"), c, begun) })
	}
	for range clients {
		select {
		case <-begun:
		case <-time.After(endWithin):
			p.Fatal("not every request began")
		}
	}
	if err := harm(); err != nil {
		p.Fatal(err)
	}
	wg.Wait()
	close(results)
	var ends []ending
	for e := range results {
		judge(p, e)
		ends = append(ends, e)
	}
	if cut := wantRecords(p, g, ends); cut == 0 {
		p.Error("every request was complete before the harm was done: nothing is shown")
	}
}

// follow sends a request and reads it to its end, whatever that is. It says
// when the first event came; a plain request has begun when it is sent.
func follow(ctx context.Context, to target, c running, begun chan<- string) (e ending) {
	ctx, cancel := context.WithTimeout(ctx, 3*endWithin)
	defer cancel()
	e.client = c
	defer func() { e.at = time.Now() }()
	if !c.stream {
		begun <- c.name
	}
	start := time.Now()
	resp, err := to.open(ctx, c.request)
	if err != nil {
		e.err, e.took = err, time.Since(start)
		if c.stream {
			begun <- c.name
		}
		return e
	}
	defer resp.Body.Close()
	e.id, e.status = resp.Header.Get("X-Request-Id"), resp.StatusCode
	r := bufio.NewReader(resp.Body)
	first := c.stream
	for {
		line, err := r.ReadBytes('\n')
		e.body = append(e.body, line...)
		if first && (err != nil || bytes.HasPrefix(line, []byte("data: "))) {
			first = false
			begun <- c.name
		}
		if err != nil {
			if err.Error() != "EOF" {
				e.err = err
			}
			break
		}
	}
	e.took = time.Since(start)
	return e
}

// judge wants an end in the client's dialect and in time.
func judge(p *report.Proof, e ending) {
	p.Helper()
	tail := string(e.body[max(0, len(e.body)-300):])
	p.Logf("%s: %d after %s, %d bytes, %v, … %q", e.client.name, e.status, e.took.Round(10*time.Millisecond), len(e.body), e.err, tail)
	if e.took > endWithin {
		p.Errorf("%s: its end came after %s", e.client.name, e.took)
	}
	if e.err != nil {
		p.Errorf("%s: no end of its dialect but a broken connection: %v", e.client.name, e.err)
		return
	}
	if e.status != http.StatusOK {
		if e.status < 500 || !strings.Contains(tail, `"error"`) {
			p.Errorf("%s: want a 5xx in the error form, got %d %q", e.client.name, e.status, tail)
		}
		return
	}
	switch {
	case !e.client.stream:
	case bytes.Contains(e.body, []byte(e.client.cutShort)):
		if e.client.end == "[DONE]" && !strings.Contains(tail, "[DONE]") {
			p.Errorf("%s: the error event is not followed by [DONE]: %q", e.client.name, tail)
		}
	case strings.Contains(tail, e.client.end):
	default:
		p.Errorf("%s: a bare close, which looks like success: %q", e.client.name, tail)
	}
}

// wantRecords wants an "ended" record for each, and one that does not call a
// stream complete that was cut short. It returns how many were cut short.
func wantRecords(p *report.Proof, g *gate, ends []ending) (cutShort int) {
	p.Helper()
	for _, e := range ends {
		if e.id == "" {
			continue // judged already
		}
		how, err := g.ended(e.id)
		if err != nil {
			p.Errorf("%s: %v", e.client.name, err)
			continue
		}
		p.Logf("%s: the record says %q", e.client.name, how)
		cut := e.status != http.StatusOK || (e.client.stream && bytes.Contains(e.body, []byte(e.client.cutShort))) || aborted(e)
		if how != "complete" {
			cutShort++
		}
		if cut && how == "complete" {
			p.Errorf("%s: it was cut short and the record says complete", e.client.name)
		}
		if e.status == http.StatusOK && aborted(e) && how != "upstream_aborted" {
			p.Errorf("%s: vLLM says that it dropped the request, the record %q", e.client.name, how)
		}
	}
	return cutShort
}

// aborted reports whether vLLM itself says that it dropped the request: a finish_reason, and for messages no
// stop_reason, which is null in a stream and left out of a whole message.
func aborted(e ending) bool {
	switch e.client.name {
	case "messages":
		return bytes.Contains(e.body, []byte(`"delta":{"stop_reason":null`))
	case "plain messages":
		return e.status == http.StatusOK && !bytes.Contains(e.body, []byte(`"stop_reason"`))
	}
	return bytes.Contains(e.body, []byte(`"abort"`))
}

// ended waits for the record of a request's end and returns its word.
func (g *gate) ended(id string) (string, error) {
	deadline := time.Now().Add(recordWithin)
	for {
		records, err := realvallum.Records(g.State)
		if err != nil {
			return "", err
		}
		for _, r := range records {
			if r["id"] == id && (r["event"] == "ended" || r["event"] == "refused") {
				return fmt.Sprint(r["ended"]), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no record of the end of %s within %s", id, recordWithin)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// A frozen engine leaves every stream open and silent while /health says 200.
var frozenWithStreams = proof{"vLLM's engine is frozen: every client gets an end, every record says how", func(p *report.Proof, s *stand) {
	fault(p, s, func() error {
		if err := s.vllm.SignalEngine(syscall.SIGSTOP); err != nil {
			return err
		}
		if got := s.direct().do(p, get("/health")); got.status != http.StatusOK {
			p.Logf("/health while frozen: %s", got)
		}
		return nil
	})
	if err := s.vllm.SignalEngine(syscall.SIGCONT); err != nil {
		p.Fatal(err)
	}
	if err := ok(`"choices"`)(s.holder().do(p, post("/v1/chat/completions", chat()))); err != nil {
		p.Errorf("vLLM did not recover: %v", err)
	}
}}

var killedWithStreams = proof{"vLLM is killed: every client gets an end, every record says how", func(p *report.Proof, s *stand) {
	fault(p, s, func() error { return s.vllm.Signal(syscall.SIGKILL) })
}}

var engineKilledWithStreams = proof{"vLLM's engine is killed: every client gets an end, every record says how", func(p *report.Proof, s *stand) {
	fault(p, s, func() error { return s.vllm.SignalEngine(syscall.SIGKILL) })
}}

var terminatedWithStreams = proof{"vLLM is terminated: every client gets an end, every record says how", func(p *report.Proof, s *stand) {
	fault(p, s, func() error { return syscall.Kill(s.vllm.PID(), syscall.SIGTERM) })
}}
