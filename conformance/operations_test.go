//go:build conformance

package conformance

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// operation is a granted operation that has to work directly and through
// Vallum with the same judgement of the answer.
type operation struct {
	name    string
	as      string // who was granted it; "" is anna
	request call
	good    func(answer) error
	ours    bool // vLLM lacks it: Vallum answers
	xAPIKey bool // through Vallum, with the key in x-api-key
}

func (o operation) proof() proof {
	return proof{"works through Vallum: " + o.name, func(p *report.Proof, s *stand) {
		if !o.ours {
			if err := o.good(s.holder().do(p, o.request)); err != nil {
				p.Fatalf("it does not work directly: %v", err)
			}
		}
		s.needGate(p)
		got := o.send(p, s)
		if err := o.good(got); err != nil {
			p.Errorf("through Vallum: %v (reason %q)", err, got.header.Get("X-Vallum-Reason"))
		}
		if got.header.Get("X-Request-Id") == "" {
			p.Error("through Vallum: no X-Request-Id")
		}
		if server := got.header.Get("Server"); server != "" {
			p.Errorf("through Vallum: the Server header of vLLM's HTTP server: %q", server)
		}
		if bytes.Contains(got.body, []byte("/models-")) {
			p.Errorf("through Vallum: a path on vLLM's disk: %s", got)
		}
	}}
}

// send sends it through the gateway.
func (o operation) send(p *report.Proof, s *stand) answer {
	p.Helper()
	who := o.as
	if who == "" {
		who = "anna"
	}
	to, request := s.as(who), o.request
	if o.xAPIKey {
		request.header, to.key = map[string]string{"X-Api-Key": to.key}, ""
	}
	return to.do(p, request)
}

func works(operations []operation) []proof {
	var out []proof
	for _, o := range operations {
		out = append(out, o.proof())
	}
	return out
}

// stream wants server-sent events: at least n of them, the last being end.
func stream(n int, end string) func(answer) error {
	return func(a answer) error {
		if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("Content-Type"), "text/event-stream") {
			return fmt.Errorf("want 200 text/event-stream, got %q %s", a.header.Get("Content-Type"), a)
		}
		events := bytes.Split(bytes.TrimSpace(a.body), []byte("\n\n"))
		if len(events) < n {
			return fmt.Errorf("want %d events, got %d: %s", n, len(events), a)
		}
		if last := events[len(events)-1]; !bytes.Contains(last, []byte(end)) {
			return fmt.Errorf("want %q as the last event, got %q", end, last)
		}
		return nil
	}
}

func operationsOfGenerate() []operation {
	messages := []doc{{"role": "user", "content": "hello"}}
	completion := doc{"model": "tiny", "prompt": "hello", "max_tokens": 4}
	streamed := func(d doc) doc {
		out := doc{"stream": true}
		for k, v := range d {
			out[k] = v
		}
		return out
	}
	answered := doc{"model": "tiny", "input": "hello", "max_output_tokens": 4}
	message := doc{"model": "tiny", "max_tokens": 4, "messages": messages}
	return []operation{
		{name: "chat", request: post("/v1/chat/completions", chat()), good: ok(`"choices"`, `"total_tokens"`)},
		{name: "chat, streamed", request: post("/v1/chat/completions", chat("stream", true)), good: stream(3, "[DONE]")},
		{
			name: "chat, streamed with usage", request: post("/v1/chat/completions", chat("stream", true, "stream_options", doc{"include_usage": true})),
			good: both(stream(4, "[DONE]"), ok(`"total_tokens"`)),
		},
		{name: "chat with a JSON schema", good: ok(`"choices"`), request: post("/v1/chat/completions", chat("max_tokens", 64, "response_format",
			doc{"type": "json_schema", "json_schema": doc{"name": "a", "schema": doc{"type": "object", "properties": doc{"a": doc{"type": "boolean"}}, "required": []string{"a"}}}}))},
		{name: "chat of several parts and turns", good: ok(`"choices"`), request: post("/v1/chat/completions", chat("messages", []doc{
			{"role": "system", "content": "be brief"},
			{"role": "user", "content": []doc{{"type": "text", "text": "hello"}}},
			{"role": "assistant", "content": "hi", "refusal": nil, "annotations": nil, "tool_calls": nil},
			{"role": "user", "content": "again"},
		}))},
		{
			name: "chat with logprobs, seed, stop and n", good: ok(`"logprobs"`, `"index":1`),
			request: post("/v1/chat/completions", chat("logprobs", true, "top_logprobs", 2, "seed", 7, "stop", []string{"zzz"}, "n", 2, "temperature", 0.5)),
		},
		{name: "chat batch", good: ok(`"index":1`), request: post("/v1/chat/completions/batch", doc{"model": "tiny", "max_tokens": 4, "messages": [][]doc{messages, messages}})},
		{name: "completions", request: post("/v1/completions", completion), good: ok(`"choices"`)},
		{name: "completions, streamed", request: post("/v1/completions", streamed(completion)), good: stream(3, "[DONE]")},
		{name: "completions of token ids", request: post("/v1/completions", doc{"model": "tiny", "prompt": []int{70, 71, 72}, "max_tokens": 4}), good: ok(`"choices"`)},
		{name: "responses", request: post("/v1/responses", answered), good: ok(`"output"`)},
		{name: "responses, streamed", request: post("/v1/responses", streamed(answered)), good: stream(5, "response.completed")},
		{name: "messages", request: post("/v1/messages", message), good: ok(`"content"`, `"output_tokens"`)},
		{name: "messages, streamed", request: post("/v1/messages", streamed(message)), good: stream(5, "message_stop")},
		{name: "messages with the x-api-key header", request: post("/v1/messages", message), good: ok(`"content"`), xAPIKey: true},
		{name: "messages count_tokens", request: post("/v1/messages/count_tokens", doc{"model": "tiny", "messages": messages}), good: ok(`"input_tokens"`)},
		{name: "models", request: get("/v1/models"), good: ok(`"tiny"`)},
		{name: "one model", request: get("/v1/models/tiny"), good: ok(`"tiny"`), ours: true},
		{name: "health", request: get("/health"), good: ok()},
		{name: "metrics for the monitor", as: "mona", request: get("/metrics"), good: ok("vllm:")},
		{name: "load for the monitor", as: "mona", request: get("/load"), good: ok("server_load")},
		{name: "version for the monitor", as: "mona", request: get("/version"), good: ok("version")},
	}
}

// both wants two judgements of one answer.
func both(a, b func(answer) error) func(answer) error {
	return func(got answer) error {
		if err := a(got); err != nil {
			return err
		}
		return b(got)
	}
}

// operationsOfTools need a server with a tool parser, which only A has.
func operationsOfTools() []operation {
	parameters := doc{"type": "object", "properties": doc{"city": doc{"type": "string"}}}
	openai := doc{"type": "function", "function": doc{"name": "weather", "description": "d", "parameters": parameters}}
	anthropic := doc{"name": "weather", "description": "d", "input_schema": parameters}
	messages := []doc{{"role": "user", "content": "hello"}}
	return []operation{
		{name: "chat with tools", good: ok(`"choices"`), request: post("/v1/chat/completions", chat("tools", []doc{openai}, "tool_choice", "auto"))},
		{
			name: "messages with tools", good: ok(`"content"`),
			request: post("/v1/messages", doc{"model": "tiny", "max_tokens": 4, "messages": messages, "tools": []doc{anthropic}}),
		},
	}
}

// operationsOfOperator pause and resume the engine, which only A opens.
func operationsOfOperator() []operation {
	return []operation{
		{name: "pause for the operator", as: "olga", request: post("/pause", ""), good: ok("paused")},
		{name: "is_paused for the operator", as: "olga", request: get("/is_paused"), good: ok("true")},
		{name: "resume for the operator", as: "olga", request: post("/resume", ""), good: ok("resumed")},
	}
}

func operationsOfEmbed() []operation {
	embed := func(fields ...any) doc {
		d := doc{"model": "tiny-embed", "input": "hello"}
		for i := 0; i+1 < len(fields); i += 2 {
			d[fields[i].(string)] = fields[i+1]
		}
		return d
	}
	score := doc{"model": "tiny-embed", "text_1": "hello", "text_2": []string{"a", "b"}}
	rerank := doc{"model": "tiny-embed", "query": "hello", "documents": []string{"a", "b"}}
	return []operation{
		{name: "embeddings", request: post("/v1/embeddings", embed()), good: ok(`"embedding":[`)},
		{name: "embeddings in base64", request: post("/v1/embeddings", embed("encoding_format", "base64")), good: ok(`"embedding":"`)},
		{name: "embeddings of token ids", request: post("/v1/embeddings", embed("input", [][]int{{70, 71}})), good: ok(`"embedding":[`)},
		{name: "embed v2", request: post("/v2/embed", doc{"model": "tiny-embed", "texts": []string{"hello"}, "embedding_types": []string{"float"}}), good: ok(`"embeddings"`)},
		{name: "pooling", request: post("/pooling", embed()), good: ok(`"data"`)},
		{name: "score", request: post("/v1/score", score), good: ok(`"score"`)},
		{name: "score without a prefix", request: post("/score", score), good: ok(`"score"`)},
		{name: "rerank", request: post("/v1/rerank", rerank), good: ok(`"relevance_score"`)},
		{name: "rerank without a prefix", request: post("/rerank", rerank), good: ok(`"relevance_score"`)},
		{name: "rerank v2", request: post("/v2/rerank", rerank), good: ok(`"relevance_score"`)},
		{name: "models", request: get("/v1/models"), good: ok(`"tiny-embed"`)},
	}
}

func operationsOfClassify() []operation {
	body := doc{"model": "tiny-classify", "input": []string{"hello", "world"}}
	return []operation{
		{name: "classify", request: post("/classify", body), good: ok(`"probs"`)},
		{name: "pooling", request: post("/pooling", body), good: ok(`"data"`)},
		{name: "models", request: get("/v1/models"), good: ok(`"tiny-classify"`)},
	}
}

// zeroConfiguration shows that `vallum serve --upstream` alone is safe and
// useful in front of a real vLLM: the first key does inference and nothing else.
var zeroConfiguration = proof{"serve --upstream without a configuration: the first key infers and does nothing else", func(p *report.Proof, s *stand) {
	s.needGate(p)
	state := filepath.Join(s.dir, "zero")
	if err := os.MkdirAll(state, 0o700); err != nil {
		p.Fatal(err)
	}
	upstream := s.vllm.URL
	if s.vllm.Path != "" {
		upstream = "unix:" + s.vllm.Path
	}
	args := []string{"--upstream", upstream, "--probes", "127.0.0.1:0"}
	if s.vllm.Key != "" {
		file := filepath.Join(s.dir, "zero.key")
		if err := os.WriteFile(file, []byte(s.vllm.Key), 0o600); err != nil {
			p.Fatal(err)
		}
		args = append(args, "--upstream-key-file", file)
	}
	zero, err := realvallum.Start(p.Context(), realvallum.Options{Binary: s.gate.Binary, State: state, Log: filepath.Join(s.dir, "zero.log"), Args: args})
	if err != nil {
		p.Fatal(err)
	}
	defer zero.Stop()
	first, err := os.ReadFile(filepath.Join(state, "first-key"))
	if err != nil {
		p.Fatalf("no terminal, so the first key has to be in STATE/first-key: %v", err)
	}
	if info, err := os.Stat(filepath.Join(state, "first-key")); err != nil || info.Mode().Perm() != 0o600 {
		p.Errorf("STATE/first-key has mode %v, %v; want 0600", info.Mode(), err)
	}
	g := &gate{Gateway: zero, keys: map[string]string{"first": strings.TrimSpace(string(first))}}
	for path, want := range map[string]func(answer) error{
		"/v1/chat/completions": ok(`"choices"`), "/invocations": refused("not_permitted"), "/tokenize": refused("not_permitted"),
	} {
		if err := want(g.as("first").do(p, post(path, chat()))); err != nil {
			p.Errorf("the first key, POST %s: %v", path, err)
		}
		if err := refused("no_credential")(g.as("").do(p, post(path, chat()))); err != nil {
			p.Errorf("a stranger, POST %s: %v", path, err)
		}
	}
	said, err := zero.Said()
	if err != nil {
		p.Fatal(err)
	}
	if bytes.Contains(said, bytes.TrimSpace(first)) {
		p.Error("the first key was printed although there is no terminal")
	}
}}
