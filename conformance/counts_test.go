//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// tokens is what was worked on: by vLLM's own counters, by the records, or by
// the gateway's metrics.
type tokens struct{ prompt, completion float64 }

func (t tokens) since(before tokens) tokens {
	return tokens{t.prompt - before.prompt, t.completion - before.completion}
}

// engineTokens is vLLM's account of all its requests.
func (s *stand) engineTokens(p *report.Proof) tokens {
	p.Helper()
	metrics := s.direct().do(p, get("/metrics")).body
	return tokens{sum(metrics, "vllm:prompt_tokens_total"), sum(metrics, "vllm:generation_tokens_total")}
}

// metricTokens is the gateway's account, as a scraper sees it.
func (g *gate) metricTokens(p *report.Proof) tokens {
	p.Helper()
	metrics := g.probe(p, "/metrics")
	return tokens{sum(metrics, "vallum_tokens_total", `kind="prompt"`), sum(metrics, "vallum_tokens_total", `kind="completion"`)}
}

// endedSince is the records of requests that ended after the first n records,
// once no admitted one is missing its end.
func (g *gate) endedSince(p *report.Proof, n int) []realvallum.Record {
	p.Helper()
	var ended []realvallum.Record
	until(p, recordWithin, "a record of each end", func() bool {
		records, err := realvallum.Records(g.State)
		if err != nil {
			p.Fatal(err)
		}
		open := 0
		ended = nil
		for _, r := range records[n:] {
			switch r["event"] {
			case "admitted":
				open++
			case "ended":
				open--
				ended = append(ended, r)
			}
		}
		return open == 0
	})
	return ended
}

func recordedTokens(records []realvallum.Record) tokens {
	var t tokens
	for _, r := range records {
		prompt, _ := r["prompt_tokens"].(float64)
		completion, _ := r["completion_tokens"].(float64)
		t.prompt, t.completion = t.prompt+prompt, t.completion+completion
	}
	return t
}

// counting is requests after which the accounts have to agree.
type counting struct {
	operations []operation
	kinds      []string // of calls of the official Python clients
	// A prompt that is answered twice is counted twice by vLLM and once in the
	// usage that it tells, which is what records say. Twice is how many such
	// requests there are, all of the same prompt.
	twice int
	// An audio stream's usage has tokens for the sound, of which vLLM's counter
	// of prompts knows nothing.
	completions bool
}

// countsAgree sends every granted operation of a suite once more, and the calls
// of the official Python clients, while nobody else asks vLLM anything: records
// and metrics have to add up to what vLLM counted meanwhile.
func countsAgree(operations []operation, twice int, kinds ...string) proof {
	return proof{"tokens by records and metrics are those that vLLM counted", counting{operations: operations, twice: twice, kinds: kinds}.run}
}

// streamCountsAgree is countsAgree for audio, where only streams tell tokens.
// They name the language: to find it, vLLM makes a token more, which it counts
// and does not tell.
func streamCountsAgree() proof {
	var streams []operation
	for _, more := range [][]part{{}, {text("stream_include_usage", "true")}} {
		all := append([]part{text("stream", "true"), text("language", "de")}, more...)
		streams = append(streams, operation{request: hear(transcriptions, all...)}, operation{request: hear(translations, all...)})
	}
	return proof{"completion tokens of streams by records and metrics are those that vLLM counted", counting{operations: streams, completions: true}.run}
}

func (c counting) run(p *report.Proof, s *stand) {
	s.needGate(p)
	again := 0.0
	if c.twice > 0 {
		again = float64(c.twice) * s.as("anna").do(p, post("/v1/chat/completions", chat())).number("usage.prompt_tokens")
	}
	s.gate.endedSince(p, 0) // nothing of before is still to be written
	before, err := realvallum.Records(s.gate.State)
	if err != nil {
		p.Fatal(err)
	}
	engine, metrics := s.engineTokens(p), s.gate.metricTokens(p)
	for _, o := range c.operations {
		o.send(p, s)
	}
	for _, kind := range c.kinds {
		pythonSDK("Python "+kind, kind).run(p, s.gate.URL, s.gate.keys["anna"], s.vllm.Served)
	}
	ended := s.gate.endedSince(p, len(before))
	recorded := recordedTokens(ended)
	want := tokens{recorded.prompt + again, recorded.completion}
	var counted tokens
	for deadline := time.Now().Add(recordWithin); ; <-time.After(100 * time.Millisecond) {
		counted = s.engineTokens(p).since(engine)
		if c.completions {
			counted.prompt = want.prompt
		}
		if counted == want || time.Now().After(deadline) {
			break
		}
	}
	if counted != want || counted.prompt == 0 {
		p.Errorf("vLLM counted %v, the records say %v, and %v for prompts that are answered twice", counted, recorded, again)
		for _, r := range ended {
			p.Logf("%v %v: prompt %v, completion %v, %v, %v", r["operation"], r["status"], r["prompt_tokens"], r["completion_tokens"], r["usage"], r["ended"])
		}
	}
	for _, r := range ended {
		if used := amount(r, "prompt_tokens") + amount(r, "completion_tokens"); used > amount(r, "reserved_tokens") {
			p.Errorf("%v used %v tokens, and %v were reserved", r["operation"], used, r["reserved_tokens"])
		}
	}
	if by := s.gate.metricTokens(p).since(metrics); by != recorded {
		p.Errorf("the records say %v, the metrics %v", recorded, by)
	}
	p.Logf("%d requests, %v prompt and %v completion tokens", len(ended), counted.prompt, counted.completion)
}

// tokensSent is how many events with text a client got, in any dialect: vLLM
// puts one token in each, or more if the client is slow.
func tokensSent(body []byte) int {
	n := bytes.Count(body, []byte("event: response.output_text.delta")) + bytes.Count(body, []byte(`"text_delta"`))
	for line := range bytes.Lines(body) {
		if bytes.Contains(line, []byte(`"delta":{"content":"`)) || bytes.Contains(line, []byte(`"text":"`)) && bytes.Contains(line, []byte(`"choices"`)) {
			n++
		}
	}
	return n
}

// roles is how many events of a chat of four choices have a role and no text:
// the gateway counts events.
const roles = 4

// leftIsCounted: who leaves in the middle of a stream has used what vLLM made
// until then.
var leftIsCounted = proof{"a client that leaves early is counted: at least what it was sent, at most what vLLM made", func(p *report.Proof, s *stand) {
	s.needGate(p)
	for _, c := range clientsInFlight(s.vllm.Served, tillItEnds) {
		if !c.stream {
			continue
		}
		records, err := realvallum.Records(s.gate.State)
		if err != nil {
			p.Fatal(err)
		}
		engine := s.engineTokens(p)
		ctx, leave := context.WithCancel(p.Context())
		begun := make(chan string, 1)
		ended := make(chan ending, 1)
		go func() { ended <- follow(ctx, s.as("anna"), c, begun) }()
		<-begun
		until(p, endWithin, "some tokens", func() bool { return s.engineTokens(p).since(engine).completion >= 40 })
		leave()
		sent := tokensSent((<-ended).body)
		until(p, endWithin, "an engine that stops", func() bool { return s.atWork(p) == 0 })
		made := s.engineTokens(p).since(engine)
		left := s.gate.endedSince(p, len(records))
		if len(left) != 1 {
			p.Fatalf("%s: %d records", c.name, len(left))
		}
		got := recordedTokens(left)
		p.Logf("%s: %d were sent, vLLM made %v, the record says %v, usage %v, ended %v", c.name, sent, made, got, left[0]["usage"], left[0]["ended"])
		if fmt.Sprint(left[0]["ended"]) != "client_left" || sent < 4 || got.completion < float64(sent) || got.completion > made.completion+roles || got.prompt == 0 {
			p.Errorf("%s: the record is not about what was sent and made", c.name)
		}
	}
}}
