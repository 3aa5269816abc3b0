//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// Bounds on one request: a first picture takes 17 s on two cores.
const (
	callTimeout    = 90 * time.Second
	maxAnswerBytes = 16 << 20
)

// call is one request, spelt as it goes over the wire.
type call struct {
	method string
	path   string // the request target, sent as it stands
	body   string // "" sends none
	header map[string]string
}

// answer is what came back, read to the end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s", a.status, bytes.TrimSpace(a.body[:min(len(a.body), 400)]))
}

// target is where requests go, and with whose key.
type target struct {
	base   string
	client *http.Client
	key    string
}

// direct is vLLM itself, without a key.
func (s *stand) direct() target {
	return target{base: s.vllm.URL, client: s.vllm.Client()}
}

// holder is vLLM itself with its key: what every client of a vLLM holds.
func (s *stand) holder() target {
	t := s.direct()
	t.key = s.vllm.Key
	return t
}

// as is the gateway with the key of one of the people; "" is nobody.
func (s *stand) as(name string) target { return s.gate.as(name) }

func (g *gate) as(name string) target {
	t := target{base: g.URL, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	if name != "" {
		t.key = g.keys[name]
	}
	return t
}

// do sends c and reads the whole answer.
func (t target) do(tb testing.TB, c call) answer {
	tb.Helper()
	a, err := t.try(tb.Context(), c)
	if err != nil {
		tb.Fatalf("%s %s: %v", c.method, c.path, err)
	}
	return a
}

// try is do for those who expect that it may fail.
func (t target) try(ctx context.Context, c call) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := t.open(ctx, c)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	return answer{resp.StatusCode, resp.Header, b}, err
}

// open sends c and returns with the header; the caller reads and closes.
func (t target) open(ctx context.Context, c call) (*http.Response, error) {
	u, err := url.Parse(t.base)
	if err != nil {
		return nil, err
	}
	u.Opaque = c.path // so that net/url neither cleans nor escapes it
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, t.base, body)
	if err != nil {
		return nil, err
	}
	req.URL = u
	if c.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if t.key != "" {
		req.Header.Set("Authorization", "Bearer "+t.key)
	}
	for name, value := range c.header {
		req.Header.Set(name, value)
	}
	return t.client.Do(req)
}

// post is a JSON request. The body is a Go value, or JSON text as it stands.
func post(path string, body any) call {
	text, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		text = string(b)
	}
	return call{method: "POST", path: path, body: text}
}

func get(path string) call { return call{method: "GET", path: path} }

// doc is a JSON object under construction.
type doc = map[string]any

// field reads a value out of a JSON answer by a dotted path with indexes:
// "choices.0.message.content". It is nil where there is none.
func (a answer) field(path string) any {
	var v any
	if json.Unmarshal(a.body, &v) != nil {
		return nil
	}
	for name := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			i := 0
			if _, err := fmt.Sscan(name, &i); err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// number is field for a number, -1 where there is none.
func (a answer) number(path string) float64 {
	if f, ok := a.field(path).(float64); ok {
		return f
	}
	return -1
}

// ok wants a 200 that contains every one of the texts.
func ok(texts ...string) func(answer) error {
	return func(a answer) error {
		if a.status != http.StatusOK {
			return fmt.Errorf("want 200, got %s", a)
		}
		for _, want := range texts {
			if !bytes.Contains(a.body, []byte(want)) {
				return fmt.Errorf("want %q in it, got %s", want, a)
			}
		}
		return nil
	}
}

// arrived counts the lines of vLLM's access log for a path: the evidence of
// what reached it, written by vLLM itself.
func (s *stand) arrived(tb testing.TB, path string) int {
	tb.Helper()
	b, err := os.ReadFile(s.vllm.Log)
	if err != nil {
		tb.Fatal(err)
	}
	path, _, _ = strings.Cut(path, "?")
	return bytes.Count(b, []byte(" "+path+" HTTP/1")) + bytes.Count(b, []byte(" "+path+"?"))
}
