package vllmtest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// generation is one request for text, whatever its form.
type generation struct {
	id, model     string
	created       int64
	prompt        int64 // tokens of all prompts
	cached        int64
	prompts       int
	n             int
	words         []string // of one choice, each one token
	finish        string
	stream, usage bool
	continuous    bool
	details       bool
}

// prefixCache is vLLM's, with blocks of 64 bytes that count 16 tokens: keyed by salt and by everything before.
type prefixCache struct {
	mu   sync.Mutex
	seen map[[32]byte]bool
}

const (
	blockBytes  = 64
	blockTokens = 16
)

// hit gives the cached tokens of a text and keeps its blocks.
func (c *prefixCache) hit(model, salt, text string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := sha256.New()
	fmt.Fprintf(h, "%q %q ", model, salt)
	hits, missed := int64(0), false
	for len(text) >= blockBytes {
		h.Write([]byte(text[:blockBytes]))
		text = text[blockBytes:]
		key := [32]byte(h.Sum(nil))
		missed = missed || !c.seen[key]
		if !missed {
			hits++
		}
		c.seen[key] = true
	}
	return hits * blockTokens
}

// tokens is the length of a text: four bytes are a token, as blocks of the cache count.
func tokens(text string) int64 { return max(1, int64(len(text)+3)/4) }

// start reads what all generation routes share: model, salt, stream, caps. It answers and reports false when vLLM
// would refuse.
func (x *exchange) start(idPrefix, text string, caps ...string) (*generation, bool) {
	model, ok := x.model()
	if !ok {
		return nil, false
	}
	salt, ok := x.salt()
	if !ok {
		return nil, false
	}
	g := &generation{
		id: fmt.Sprintf("%s-%032x", idPrefix, x.s.next()), model: model, created: time.Now().Unix(),
		prompt: tokens(text), prompts: 1, n: 1, finish: "stop",
		stream: lax(x.body["stream"]), usage: x.s.o.ForceUsage, continuous: x.s.o.ForceUsage, details: x.s.o.PromptDetails,
	}
	if options, ok := x.body["stream_options"].(map[string]any); ok {
		if !g.stream && strings.HasSuffix(x.r.Path, "completions") {
			x.fail(400, "BadRequestError", "Stream options can only be defined when `stream=True`.")
			return nil, false
		}
		g.usage = g.usage || lax(options["include_usage"])
		g.continuous = g.usage && (g.continuous || lax(options["continuous_usage_stats"]))
	}
	if n, ok := integer(x.body["n"]); ok {
		if n < 1 || n > 16384 {
			x.fail(400, "BadRequestError", fmt.Sprintf("n must be between 1 and 16384, got %d.", n))
			return nil, false
		}
		g.n = int(n)
	}
	if !x.cap(g, caps) || !x.tools() {
		return nil, false
	}
	g.cached = min(x.s.cache.hit(model, salt, text), g.prompt-1)
	return g, true
}

// cap applies the caps on output and the context's length.
func (x *exchange) cap(g *generation, caps []string) bool {
	limit := int64(x.s.o.Words)
	longest := x.s.o.MaxModelLen
	if g.prompt > longest {
		x.fail(400, "BadRequestError", fmt.Sprintf("This model's maximum context length is %d tokens. However, your request has %d input tokens. Please reduce the length of the input messages.", longest, g.prompt))
		return false
	}
	for _, name := range caps {
		n, ok := integer(x.body[name])
		switch {
		case !ok:
			continue
		case n < 1:
			x.fail(400, "BadRequestError", fmt.Sprintf("max_tokens must be at least 1, got %d.", n))
			return false
		case n > longest-g.prompt:
			x.fail(400, "BadRequestError", fmt.Sprintf("'max_tokens' or 'max_completion_tokens' is too large: %d. This model's maximum context length is %d tokens and your request has %d input tokens (%d > %d - %d).", n, longest, g.prompt, n, longest, g.prompt))
			return false
		}
		if n < limit {
			limit, g.finish = n, "length"
		}
		break
	}
	for i := range limit {
		g.words = append(g.words, vocabulary[int(i)%len(vocabulary)])
	}
	if x.b.Kind == FinishAbort || x.b.Kind == FinishAbortHarmony {
		g.finish = "abort"
	}
	return true
}

var vocabulary = []string{"Hello", " from", " the", " fake", " vLLM", ",", " again", " and", " again"}

func (g *generation) text() string { return strings.Join(g.words, "") }

// completion is the tokens of all choices of all prompts.
func (g *generation) completion() int64 { return int64(g.n * g.prompts * len(g.words)) }

// usageJSON is OpenAI's usage; one choice's own so far when done is not negative.
func (x *exchange) usageJSON(g *generation, done int) string {
	completion := g.completion()
	if done >= 0 {
		completion = int64(done) // per choice, not cumulative (measured)
	}
	switch x.b.Kind {
	case NoUsage:
		return "null"
	case AbsurdUsage:
		return `{"prompt_tokens":-5,"total_tokens":1e30,"completion_tokens":99999999999999999999}`
	}
	details := "null"
	if g.details {
		details = fmt.Sprintf(`{"cached_tokens":%d,"multimodal_tokens":null}`, g.cached)
	}
	return fmt.Sprintf(`{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":%s}`,
		g.prompt, g.prompt+completion, completion, details)
}

func (s *Server) fingerprint() string { return "vllm-" + s.o.Version + "-fa4e0000" }

// model is the served model; absent, null and empty are the first one, but for Anthropic's routes.
func (x *exchange) model() (string, bool) {
	name, _ := x.body["model"].(string)
	strict := strings.HasPrefix(x.r.Path, "/v1/messages")
	switch {
	case x.r.Path == "/invocations", name == "" && !strict: // /invocations ignores it (measured)
		return x.s.o.Models[0], true
	case slices.Contains(x.s.o.Models, name):
		return name, true
	case name == "":
		x.fail(400, "Bad Request", "1 validation error: 'type': 'missing', 'loc': ('body', 'model'), 'msg': 'Field required'")
	default:
		x.fail(404, "NotFoundError", fmt.Sprintf("The model `%s` does not exist. Available models: %s.", name, strings.Join(x.s.o.Models, ", ")))
	}
	return "", false
}

func (x *exchange) salt() (string, bool) {
	v := x.body["cache_salt"]
	if v == nil {
		return "", true
	}
	salt, ok := v.(string)
	if !ok || salt == "" || len(salt) > 128 || strings.ContainsAny(salt, "@/\\\x00") {
		x.fail(400, "BadRequestError", "Parameter 'cache_salt' must be a non-empty string of at most 128 characters if provided.")
		return "", false
	}
	return "salt " + salt, true
}

// tools refuses tools unless the server was told to parse calls.
func (x *exchange) tools() bool {
	tools, _ := x.body["tools"].([]any)
	if len(tools) == 0 || x.s.o.Tools || x.body["tool_choice"] == "none" || strings.HasPrefix(x.r.Path, "/v1/responses") {
		return true
	}
	x.fail(400, "BadRequestError", `"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set`)
	return false
}

// object demands a JSON object with the content type that vLLM demands.
func (x *exchange) object() bool {
	kind, _, _ := strings.Cut(x.r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/json") {
		x.fail(400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed")
		return false
	}
	if !x.parse() {
		x.fail(400, "Bad Request", "[{'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error', 'input': "+quote(string(x.r.Body[:min(len(x.r.Body), 100)]))+"}]")
		return false
	}
	return true
}

// lax reads a boolean as pydantic does.
func lax(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case string:
		return slices.Contains([]string{"1", "true", "t", "yes", "y", "on"}, strings.ToLower(v))
	case json.Number:
		return v == "1" || v == "1.0"
	}
	return false
}

// integer reads an integer as pydantic does, strings and whole floats included.
func integer(v any) (int64, bool) {
	text := ""
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	}
	n, err := json.Number(strings.TrimSuffix(text, ".0")).Int64()
	return n, err == nil
}
