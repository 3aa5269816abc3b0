//go:build conformance

package conformance

import (
	"net/http"
	"strings"

	"github.com/vallum/vallum/conformance/report"
)

// attacksOnNeighbours are what one tenant does to another behind one vLLM key.
func attacksOnNeighbours() []proof {
	return []proof{
		{"a neighbour reads a stored response", readStoredResponse},
		{"a neighbour overwrites a stored response", overwriteStoredResponse},
		{"a neighbour cancels a background response", cancelBackground},
		{"a neighbour continues a stored conversation", continueConversation},
		{"a neighbour sees what is in the prefix cache: chat", cacheOracle(chatCached)},
		{"a neighbour sees what is in the prefix cache: completions", cacheOracle(completionsCached)},
		{"a neighbour sees what is in the prefix cache: responses", cacheOracle(responsesCached)},
		{"a neighbour sees what is in the prefix cache: messages", cacheOracle(messagesCached)},
	}
}

func response(fields ...any) call {
	d := doc{"model": "tiny", "input": "my secret plan", "max_output_tokens": 4}
	for i := 0; i+1 < len(fields); i += 2 {
		d[fields[i].(string)] = fields[i+1]
	}
	return post("/v1/responses", d)
}

func readStoredResponse(p *report.Proof, s *stand) {
	made := s.holder().do(p, response())
	id, _ := made.field("id").(string)
	if err := ok("output_text")(s.holder().do(p, get("/v1/responses/"+id))); err != nil {
		p.Fatalf("vLLM alone did not give the response to another client: %v", err)
	}
	s.needGate(p)
	made = s.as("anna").do(p, response())
	if made.status != http.StatusOK {
		p.Fatalf("anna creates a response: %s", made)
	}
	id, _ = made.field("id").(string)
	if err := refused("not_permitted")(s.as("bert").do(p, get("/v1/responses/"+id))); err != nil {
		p.Errorf("bert reads anna's response through Vallum: %v", err)
	}
	// Not even vLLM has it: store was written as false.
	if got := s.holder().do(p, get("/v1/responses/"+id)); got.status != http.StatusNotFound {
		p.Errorf("vLLM stored anna's response: %s", got)
	}
}

func overwriteStoredResponse(p *report.Proof, s *stand) {
	mine := "resp_" + randomHex()
	s.holder().do(p, response("request_id", mine))
	s.holder().do(p, response("request_id", mine, "input", "something else altogether", "instructions", "planted"))
	got := s.holder().do(p, get("/v1/responses/"+mine))
	if err := ok("planted")(got); err != nil {
		p.Fatalf("vLLM alone did not overwrite by request_id: %v", err)
	}
	s.needGate(p)
	if err := refused("forbidden_parameter")(s.as("bert").do(p, response("request_id", mine))); err != nil {
		p.Errorf("bert names the id of a response through Vallum: %v", err)
	}
}

func cancelBackground(p *report.Proof, s *stand) {
	made := s.holder().do(p, response("background", true, "max_output_tokens", 900))
	id, _ := made.field("id").(string)
	got := s.holder().do(p, post("/v1/responses/"+id+"/cancel", ""))
	if err := ok("cancelled")(got); err != nil {
		p.Fatalf("vLLM alone did not cancel another client's response: %v", err)
	}
	s.needGate(p)
	if err := refused("not_permitted")(s.as("bert").do(p, post("/v1/responses/"+id+"/cancel", ""))); err != nil {
		p.Errorf("bert cancels through Vallum: %v", err)
	}
}

func continueConversation(p *report.Proof, s *stand) {
	id, _ := s.holder().do(p, response()).field("id").(string)
	alone := s.holder().do(p, response("input", "go on")).number("usage.input_tokens")
	with := s.holder().do(p, response("input", "go on", "previous_response_id", id))
	if with.status != http.StatusOK || with.number("usage.input_tokens") <= alone {
		p.Fatalf("vLLM alone did not put the other client's conversation in front: %v tokens alone, then %s", alone, with)
	}
	s.needGate(p)
	if err := refused("forbidden_parameter")(s.as("bert").do(p, response("input", "go on", "previous_response_id", id))); err != nil {
		p.Errorf("bert continues another's conversation through Vallum: %v", err)
	}
}

// cached asks with a long prompt and tells how many of its tokens vLLM had.
type cached struct {
	request func(prompt string) call
	tokens  string // where the answer has the count
}

var (
	chatCached = cached{func(prompt string) call {
		return post("/v1/chat/completions", chat("messages", []doc{{"role": "user", "content": prompt}}))
	}, "usage.prompt_tokens_details.cached_tokens"}
	completionsCached = cached{func(prompt string) call {
		return post("/v1/completions", doc{"model": "tiny", "prompt": prompt, "max_tokens": 4})
	}, "usage.prompt_tokens_details.cached_tokens"}
	responsesCached = cached{func(prompt string) call { return response("input", prompt) }, "usage.input_tokens_details.cached_tokens"}
	messagesCached  = cached{func(prompt string) call {
		return post("/v1/messages", doc{"model": "tiny", "max_tokens": 4, "messages": []doc{{"role": "user", "content": prompt}}})
	}, "usage.cache_read_input_tokens"}
)

// longPrompt is several cache blocks (of 128 tokens) of text that nobody sent
// before.
func longPrompt() string {
	return strings.Repeat("secret "+randomHex()+" ", 12)
}

// ask sends the prompt and returns the cached tokens, 0 where vLLM leaves the
// count out because it is 0.
func (c cached) ask(p *report.Proof, to target, prompt string) float64 {
	p.Helper()
	got := to.do(p, c.request(prompt))
	if got.status != http.StatusOK {
		p.Fatalf("want 200, got %s", got)
	}
	return max(0, got.number(c.tokens))
}

// cacheOracle shows that a second caller learns from cached tokens what the
// first one sent, and that through Vallum only the same tenant hits the cache.
// What Vallum hides in the answer is asked of vLLM's own counter.
func cacheOracle(c cached) func(*report.Proof, *stand) {
	return func(p *report.Proof, s *stand) {
		prompt := longPrompt()
		first, second := c.ask(p, s.holder(), prompt), c.ask(p, s.holder(), prompt)
		if first != 0 || second < 128 {
			p.Fatalf("vLLM alone shows no oracle: %v cached tokens for the first caller, %v for the second", first, second)
		}
		s.needGate(p)
		prompt = longPrompt()
		hits := func(who string) float64 {
			before := s.prefixHits(p)
			shown := c.ask(p, s.as(who), prompt)
			counted := s.prefixHits(p) - before
			p.Logf("%s: %v cached tokens in the answer, %v by vLLM's counter", who, shown, counted)
			return max(shown, counted)
		}
		if n := hits("anna"); n != 0 {
			p.Errorf("anna's first prompt hit the cache: %v tokens", n)
		}
		if n := hits("anna"); n < 128 {
			p.Errorf("anna's second prompt should hit her own cache: %v tokens", n)
		}
		if n := hits("bert"); n != 0 {
			p.Errorf("bert, of another tenant, hit what anna sent: %v tokens", n)
		}
		if n := hits("bert"); n < 128 {
			p.Errorf("bert's second prompt should hit his own cache: %v tokens", n)
		}
	}
}

// prefixHits is vLLM's count of prompt tokens found in the prefix cache.
func (s *stand) prefixHits(p *report.Proof) float64 {
	p.Helper()
	return sum(s.direct().do(p, get("/metrics")).body, "vllm:prefix_cache_hits_total")
}
