package vllmtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/vllm/surface"
)

func post(t *testing.T, s *Server, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if s.o.Key != "" {
		req.Header.Set("Authorization", "Bearer "+s.o.Key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	if resp.Header.Get("Server") != "uvicorn" {
		t.Errorf("%s: server %q, want uvicorn", path, resp.Header.Get("Server"))
	}
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, string(all) + " / " + err.Error()
	}
	return resp.StatusCode, string(all)
}

// raw sends bytes and reads until the server closes.
func raw(t *testing.T, s *Server, request string) string {
	t.Helper()
	c := dial(t, s)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Logf("reading: %v", err)
	}
	return string(b)
}

func dial(t *testing.T, s *Server) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// Every route of the surface is served, the dangerous ones too; what is not in it is not.
func TestServesTheWholeSurface(t *testing.T) {
	s := Start(t, Options{DevMode: true, ScaleOut: true})
	for _, r := range surface.Newest().Routes {
		if r.Server != "api" || r.Method == "WEBSOCKET" || r.Method == "ANY" {
			continue
		}
		path := strings.NewReplacer("{response_id}", "resp_1", "{adapter_name}", "ad1", "*", "x.css").Replace(r.Path)
		answer := raw(t, s, r.Method+" "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if strings.Contains(answer, `"detail"`) || !strings.HasPrefix(answer, "HTTP/1.1 ") {
			t.Errorf("%s %s: %q", r.Method, path, answer)
		}
	}
	for _, c := range [][2]string{
		{"GET /nowhere", "404 Not Found"},
		{"GET /v1/chat/completions", "405"},
		{"GET /health/", "307"},
		{"POST /health", "405"},
		{"GET /metricsfoo", "200"},
		{"POST /%70ause", "would now be paused"},
		{"GET /is_paused", `"is_paused":true`},
		{"GET http://evil/health", "200"},
		{"OPTIONS /v1/models", "405"},
		{"GET health", "400"},
	} {
		answer := raw(t, s, c[0]+" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if !strings.Contains(answer, c[1]) {
			t.Errorf("%s: want %q in %q", c[0], c[1], answer)
		}
	}
}

func TestDevelopmentModeOpensRoutes(t *testing.T) {
	s := Start(t, Options{})
	if status, _ := post(t, s, "/pause", ""); status != 404 {
		t.Errorf("/pause without development mode: %d, want 404", status)
	}
	if status, body := post(t, s, "/inference/v1/generate", "{}"); status != 403 {
		t.Errorf("/inference/v1/generate without scale-out: %d %s, want 403", status, body)
	}
}

// The key check is vLLM's own, with its holes.
func TestKeyCheck(t *testing.T) {
	s := Start(t, Options{Key: "secret", DevMode: true})
	for _, c := range []struct{ request, header, want string }{
		{"GET /v1/models", "", "401"},
		{"GET /v1/models", "Authorization: Bearer secret\r\n", "200"},
		{"GET /v1/models", "authorization: bEaReR secret\r\n", "200"},
		{"GET /v1/models", "Authorization: Bearer  secret\r\n", "401"},
		{"GET /v1/models", "Authorization: Bearer secret \r\n", "401"},
		{"GET /v1/models", "Authorization: Bearer wrong\r\nAuthorization: Bearer secret\r\n", "401"},
		{"GET /v1/models", "x-api-key: secret\r\n", "401"},
		{"GET /v1%2Fmodels", "", "401"},
		{"GET //v1/models", "", "404"},
		{"GET /v1foo", "", "401"},
		{"OPTIONS /v1/models", "", "405"},
		{"GET /health", "", "200"},
		{"POST /pause", "", "200"},
		{"GET /metrics", "", "200"},
	} {
		answer := raw(t, s, c.request+" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"+c.header+"\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 "+c.want) {
			t.Errorf("%s %q: %q, want %s", c.request, c.header, answer, c.want)
		}
		if c.want == "401" && !strings.HasSuffix(answer, `{"error":"Unauthorized"}`) {
			t.Errorf("%s: the 401 is %q", c.request, answer)
		}
	}
}

func TestAnswers(t *testing.T) {
	s := Start(t, Options{Models: []string{"tiny", "other"}, PromptDetails: true})
	for _, c := range []struct {
		path, body string
		status     int
		want       []string
	}{
		{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`, 200, []string{`"object":"chat.completion"`, `"finish_reason":"stop"`, `"completion_tokens":5`}},
		{"/v1/chat/completions", `{"model":"tiny","max_tokens":2,"n":2,"messages":[]}`, 200, []string{`"finish_reason":"length"`, `"completion_tokens":4`}},
		{"/v1/chat/completions", `{"model":"nope","messages":[]}`, 404, []string{"`nope`", "tiny, other", `"code":404`}},
		{"/v1/chat/completions", `{"messages":[],"max_tokens":5000}`, 400, []string{"is too large: 5000"}},
		{"/v1/chat/completions", `{"messages":["` + strings.Repeat("long ", 2000) + `"]}`, 400, []string{"maximum context length is 1024 tokens"}},
		{"/v1/chat/completions", `{"messages":[],"tools":[{}]}`, 400, []string{"--enable-auto-tool-choice"}},
		{"/v1/chat/completions", `{"messages":[],"stream_options":{}}`, 400, []string{"Stream options"}},
		{"/v1/chat/completions", `{"model":"nope","model":"tiny","messages":[]}`, 200, []string{`"model":"tiny"`}}, // the last wins
		{"/v1/chat/completions", `{"messages":[],"cache_salt":"a/b"}`, 400, []string{"cache_salt"}},
		{"/v1/chat/completions", `not json`, 400, []string{"json_invalid"}},
		{"/v1/completions", `{"prompt":["a","b"],"max_tokens":1}`, 200, []string{`"object":"text_completion"`, `"completion_tokens":2`}},
		{"/v1/responses", `{"input":"hi"}`, 200, []string{`"object":"response"`, `"cached_tokens":0`, `"status":"completed"`}},
		{"/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[]}`, 200, []string{`"type":"message"`, `"stop_reason":"end_turn"`}},
		{"/v1/messages", `{"max_tokens":9,"messages":[]}`, 400, []string{`{"type":"error"`, "model"}},
		{"/v1/messages/count_tokens", `{"model":"tiny","messages":[]}`, 200, []string{`{"input_tokens":1`}},
		{"/v1/embeddings", `{"input":["a","b"]}`, 200, []string{`"index":1`, `"prompt_tokens":2`}},
		{"/v1/embeddings", `{"input":"a","encoding_format":"base64"}`, 200, []string{`"embedding":"`}},
		{"/v2/embed", `{"texts":["a"]}`, 200, []string{`"billed_units":{"input_tokens":1`}},
		{"/v1/score", `{"text_1":"a","text_2":["b","c"]}`, 200, []string{`"object":"score"`, `"prompt_tokens":3`}},
		{"/rerank", `{"query":"a","documents":["b","c"]}`, 200, []string{`"relevance_score"`}},
		{"/classify", `{"input":"a"}`, 200, []string{`"probs"`}},
		{"/pooling", `{"input":[1,2,3]}`, 200, []string{`"object":"pooling"`}},
		{"/tokenize", `{"prompt":"ab"}`, 200, []string{`"count":2`, `[97,98]`}},
		{"/detokenize", `{"tokens":[97,98]}`, 200, []string{`{"prompt":"ab"}`}},
		{"/invocations", `{"model":"nope","messages":[]}`, 200, []string{`"model":"tiny"`}},
		{"/v1/decisions", `{"model":"tiny","input":"a","questions":[{"type":"predicate","name":"q","instructions":"is it?"}]}`, 200, []string{`"name":"q"`, `"input_tokens":1`}},
		{"/v1/decisions", `{"input":"a","questions":[{"type":"predicate"}],"user":"x"}`, 400, []string{"extra_forbidden"}},
		{"/generative_scoring", `{"query":"a","items":["b"]}`, 200, []string{`"usage"`}},
	} {
		status, body := post(t, s, c.path, c.body)
		if status != c.status {
			t.Errorf("%s %s: %d, want %d", c.path, c.body, status, c.status)
		}
		for _, want := range c.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s %s: want %q in %s", c.path, c.body, want, body)
			}
		}
		if !json.Valid([]byte(body)) {
			t.Errorf("%s: the answer is no JSON: %s", c.path, body)
		}
	}
}

// How each dialect says that the engine dropped a request, as the sources of vLLM 0.32.0 have it.
func TestAborts(t *testing.T) {
	s := Start(t, Options{})
	for _, c := range []struct {
		kind       Kind
		path, body string
		want, not  string
	}{
		{FinishAbort, "/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[]}`, `"model":"tiny","usage"`, "stop_reason"},
		{FinishAbort, "/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[],"stream":true}`, `"delta":{"stop_reason":null,"stop_sequence":null}`, "abort"},
		{FinishAbort, "/v1/responses", `{"input":"hi"}`, `"status":"completed"`, "abort"},
		{FinishAbort, "/v1/responses", `{"input":"hi","stream":true}`, `"response.completed"`, "cancelled"},
		{FinishAbortHarmony, "/v1/responses", `{"input":"hi"}`, `"status":"cancelled"`, "abort"},
		{FinishAbortHarmony, "/v1/responses", `{"input":"hi","stream":true}`, `"status":"cancelled","text"`, "abort"},
		{Normal, "/v1/responses", `{"input":"hi","stream":true,"max_output_tokens":1}`, "event: response.incomplete\n", "response.completed"},
	} {
		s.Next(Behaviour{Kind: c.kind})
		if status, body := post(t, s, c.path, c.body); status != 200 || !strings.Contains(body, c.want) || strings.Contains(body, c.not) {
			t.Errorf("%s %s %s: %d %s", c.kind, c.path, c.body, status, body)
		}
	}
}

// The same long prompt is cached for the salt that sent it, and for no other (http.md's table, measured).
func TestPrefixCache(t *testing.T) {
	s := Start(t, Options{PromptDetails: true})
	ask := func(salt string) (cached int64) {
		t.Helper()
		_, body := post(t, s, "/v1/chat/completions", `{"messages":[{"role":"user","content":"`+strings.Repeat("long ", 100)+`"}]`+salt+`}`)
		var reply struct {
			Usage struct {
				Details struct {
					Cached int64 `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		if err := json.Unmarshal([]byte(body), &reply); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
		return reply.Usage.Details.Cached
	}
	none, a, b := "", `,"cache_salt":"a"`, `,"cache_salt":"b"`
	for i, c := range []struct {
		salt   string
		cached bool
	}{{none, false}, {none, true}, {a, false}, {a, true}, {b, false}, {a, true}, {none, true}} {
		if got := ask(c.salt); got > 0 != c.cached {
			t.Errorf("request %d with %q: %d cached tokens", i, c.salt, got)
		}
	}
}

func TestStreams(t *testing.T) {
	s := Start(t, Options{Words: 2})
	for _, c := range []struct {
		path, body string
		events     int
		want       []string
	}{
		{"/v1/chat/completions", `{"messages":[],"stream":true}`, 4, []string{`"delta":{"role":"assistant","content":""}`, `"finish_reason":"stop"`, "data: [DONE]\n\n"}},
		{"/v1/chat/completions", `{"messages":[],"stream":"yes","stream_options":{"include_usage":true}}`, 5, []string{`"choices":[],"usage":{`}},
		{"/v1/chat/completions", `{"messages":[],"stream":1,"n":2,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`, 8, []string{`"completion_tokens":1`, `"completion_tokens":4`}},
		{"/v1/completions", `{"prompt":"a","stream":true}`, 3, []string{`"object":"text_completion"`, "data: [DONE]\n\n"}},
		{"/v1/responses", `{"input":"a","stream":true}`, 10, []string{"event: response.created\ndata: {", `"sequence_number":9`, "event: response.completed\n"}},
		{"/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[],"stream":true}`, 7, []string{"event: message_start\ndata: {", "event: message_stop\n", `"stop_reason":"end_turn"`}},
	} {
		status, body := post(t, s, c.path, c.body)
		if n := strings.Count(body, "\n\n"); status != 200 || n != c.events {
			t.Errorf("%s %s: %d with %d events, want %d:\n%s", c.path, c.body, status, n, c.events, body)
		}
		for _, want := range c.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s %s: want %q in\n%s", c.path, c.body, want, body)
			}
		}
		for line := range strings.SplitSeq(body, "\n") {
			if data, ok := strings.CutPrefix(line, "data: "); ok && data != "[DONE]" && !json.Valid([]byte(data)) {
				t.Errorf("%s: no JSON: %s", c.path, data)
			}
		}
	}
}

// Event k arrives before event k+1 exists.
func TestStep(t *testing.T) {
	s := Start(t, Options{})
	s.Next(Behaviour{Stepped: true})
	c := dial(t, s)
	body := `{"messages":[],"stream":true}`
	fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	for k := range 3 {
		if !s.Step() || !lines.Scan() || !strings.HasPrefix(lines.Text(), "data: ") || !lines.Scan() {
			t.Fatalf("event %d did not come: %q", k, lines.Text())
		}
	}
	_ = c.Close()
	if n := <-s.Gone(); n != 0 {
		t.Errorf("request %d went, want 0", n)
	}
}

func TestRecordsEveryByte(t *testing.T) {
	s := Start(t, Options{})
	head := "POST /v1/chat/completions?x=%2F HTTP/1.1\r\nHOST: a\r\nX-One:  1\r\nx-one: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
	body := "2;ext=1\r\n{}\r\n0\r\nTrailer: x\r\n\r\n"
	raw(t, s, head+body)
	raw(t, s, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
	if all := s.Requests(); len(all) != 2 || len(s.Work()) != 1 || s.Arrived() != 1 {
		t.Fatalf("%d requests, %d of them work, %d arrived", len(all), len(s.Work()), s.Arrived())
	}
	r := s.Last()
	if string(r.Head) != head || string(r.RawBody) != body || string(r.Body) != "{}" || !r.Whole {
		t.Errorf("recorded %q %q %q", r.Head, r.RawBody, r.Body)
	}
	if r.Target != "/v1/chat/completions?x=%2F" || r.Path != "/v1/chat/completions" || strings.Join(r.Header["X-One"], " ") != "1 2" {
		t.Errorf("recorded %+v", r)
	}
	c := dial(t, s)
	_, _ = io.WriteString(c, "POST /pause HTTP/1.1\r\nContent-Length: 10\r\n\r\n123")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(c)
	if r := s.Last(); s.Arrived() != 2 || r.Whole || string(r.Body) != "123" {
		t.Errorf("a request that broke off: %d arrived, %+v", s.Arrived(), r)
	}
}

// Each kind of trouble is the one that its name says.
func TestBehaviours(t *testing.T) {
	s := Start(t, Options{})
	stream := `{"messages":[],"stream":true}`
	for _, c := range []struct {
		b      Behaviour
		body   string
		status int
		want   string
		absent string
	}{
		{Behaviour{Kind: Answer, Status: 418, Body: "tea", Type: "text/plain"}, `{}`, 418, "tea", ""},
		{Behaviour{Kind: EngineDead}, `{}`, 500, "EngineCore", ""},
		{Behaviour{Kind: Overloaded}, `{}`, 503, "busy", ""},
		{Behaviour{Kind: DieBefore}, `{}`, 0, "EOF", ""},
		{Behaviour{Kind: NotHTTP}, `{}`, 0, "malformed", ""},
		{Behaviour{Kind: EndlessHeaders}, `{}`, 0, "header", ""},
		{Behaviour{Kind: InterimStorm}, `{}`, 0, "broken", ""},
		{Behaviour{Kind: TooShort}, `{"messages":[]}`, 200, "unexpected EOF", ""},
		{Behaviour{Kind: DieMidEvent}, `{"messages":[]}`, 200, "unexpected EOF", ""},
		{Behaviour{Kind: DieMidEvent, After: 1}, stream, 200, "unexpected EOF", "[DONE]"},
		{Behaviour{Kind: JustEnds, After: 2}, stream, 200, "Hello", "[DONE]"},
		{Behaviour{Kind: Garbage, After: 1}, stream, 200, "not an event", ""},
		{Behaviour{Kind: HugeEvent, Size: 1 << 20}, stream, 200, strings.Repeat("a", 1000), ""},
		{Behaviour{Kind: ErrorEvent, After: 2}, stream, 200, `"code":500`, " fake"},
		{Behaviour{Kind: FinishAbort}, stream, 200, `"finish_reason":"abort"`, "stop"},
		{Behaviour{Kind: NoUsage}, `{"messages":[]}`, 200, `"usage":null`, ""},
		{Behaviour{Kind: AbsurdUsage}, `{"messages":[]}`, 200, `"prompt_tokens":-5`, ""},
		{Behaviour{Kind: SplitBytes}, stream, 200, "data: [DONE]", ""},
		{Behaviour{Kind: CarriageReturn}, stream, 200, "data: [DONE]\r\n\r\n", ""},
		{Behaviour{Kind: KeepAlives}, stream, 200, ": keep-alive\n\n", ""},
		{Behaviour{Kind: BareStream}, stream, 200, "data: [DONE]", ""},
		{Behaviour{}, `{"model":"tiny--just-ends","messages":[],"stream":true}`, 200, `"model":"tiny"`, "[DONE]"},
	} {
		s.Next(c.b)
		status, body := post(t, s, "/v1/chat/completions", c.body)
		if status != c.status || !strings.Contains(body, c.want) || c.absent != "" && strings.Contains(body, c.absent) {
			t.Errorf("%+v: %d %.300s, want %d with %q and without %q", c.b, status, body, c.status, c.want, c.absent)
		}
	}
}

// The silent ones: nothing comes, and the server learns when the client leaves.
func TestSilence(t *testing.T) {
	s := Start(t, Options{})
	for i, b := range []Behaviour{{Kind: NeverAnswer}, {Kind: Hang, After: 1}, {Kind: SlowHeaders}} {
		s.Next(b)
		c := dial(t, s)
		body := `{"messages":[],"stream":true}`
		fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		for len(s.Requests()) <= i {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			<-ctx.Done()
			cancel()
		}
		// A half-close is a disconnect for vLLM.
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n := <-s.Gone(); n != i {
			t.Errorf("%s: request %d went, want %d", b.Kind, n, i)
		}
	}
}

// An idle connection closes without a word.
func TestIdle(t *testing.T) {
	s := Start(t, Options{Idle: 500 * time.Millisecond}) // in which a busy machine sees the second of two requests
	answer := raw(t, s, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 200") || strings.Count(answer, "HTTP/1.1") != 1 {
		t.Errorf("%q", answer)
	}
	if two := raw(t, s, "GET /health HTTP/1.1\r\n\r\nGET /version HTTP/1.1\r\n\r\n"); strings.Count(two, "HTTP/1.1 200") != 2 {
		t.Errorf("pipelined: %q", two)
	}
}

func TestBytesOfEmbeddings(t *testing.T) {
	s := Start(t, Options{})
	req, _ := http.NewRequestWithContext(t.Context(), "POST", s.URL()+"/v1/embeddings", strings.NewReader(`{"input":["ab"],"encoding_format":"bytes"}`))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if !json.Valid([]byte(resp.Header.Get("Metadata"))) || len(b) != 16 || !bytes.Equal(b, packed(vector("ab"))) {
		t.Errorf("%d bytes, metadata %q", len(b), resp.Header.Get("Metadata"))
	}
}

// What an older release serves, not the newest, when asked.
func TestAnotherRelease(t *testing.T) {
	old := *surface.Newest()
	old.Version, old.Routes, old.GuardedPrefixes = "0.8.5", nil, []string{"/v1"}
	for _, r := range surface.Newest().Routes {
		if r.Path != "/v1/decisions" {
			old.Routes = append(old.Routes, r)
		}
	}
	s := Start(t, Options{Surface: &old})
	if status, body := post(t, s, "/v1/decisions", "{}"); status != 404 {
		t.Errorf("a route that the release lacks: %d %s, want 404", status, body)
	}
	if answer := raw(t, s, "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n"); !strings.Contains(answer, `{"version":"0.8.5"}`) {
		t.Errorf("the version: %q", answer)
	}
}

func TestUnixSocket(t *testing.T) {
	path := t.TempDir() + "/s"
	s := Start(t, Options{UDS: path})
	c, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
	if err != nil || s.URL() != "unix:"+path {
		t.Fatal(s.URL(), err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n")
	if b, _ := io.ReadAll(c); !bytes.Contains(b, []byte(surface.Newest().Version)) {
		t.Errorf("%s", b)
	}
}
