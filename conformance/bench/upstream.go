package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// model is the one name that the fake upstream serves.
const model = "tiny"

// The bodies are shaped as vLLM 0.32.0 writes them (vllm/entrypoints/openai/chat_completion/protocol.py).
const (
	models = `{"object":"list","data":[{"id":"tiny","object":"model","created":1763900000,"owned_by":"vllm","root":"/models/tiny","parent":null,"max_model_len":262144,"permission":[{"id":"modelperm-a5f0c2","object":"model_permission","created":1763900000,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}]}`
	member = `"id":"chatcmpl-0f8fad5bd9cb469fa16570867728950e"`
	rest   = `,"service_tier":null,"system_fingerprint":"vllm-0.32.0-5c8a01f2","usage":{"prompt_tokens":212,"total_tokens":340,"completion_tokens":128,"prompt_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}`
	unary  = `{` + member + `,"object":"chat.completion","created":1763900000,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]` + rest
	chunk  = `data: {` + member + `,"object":"chat.completion.chunk","created":1763900000,"model":"tiny","choices":[{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s%s}]%s}` + "\n\n"
	totals = `data: {` + member + `,"object":"chat.completion.chunk","created":1763900000,"model":"tiny","choices":[],"usage":{"prompt_tokens":212,"total_tokens":340,"completion_tokens":128}}` + "\n\n"
)

// unaryBytes is the size of an answer's body.
const unaryBytes = 1024

// fake is the fast upstream: it looks for three members in the body, and answers with bytes made beforehand. It costs
// as little as it can, since it runs beside what is measured.
type fake struct {
	unary, models, version, health, missing []byte
	streamHead, role, word, last, usage     []byte
	end                                     []byte
}

func newFake() *fake {
	text := strings.Repeat("the quick brown fox jumps over the lazy dog ", 40)
	f := &fake{
		unary:      answer("200 OK", fmt.Sprintf(unary, text[:unaryBytes-len(unary)+len("%s")])),
		models:     answer("200 OK", models),
		version:    answer("200 OK", `{"version":"0.32.0"}`),
		health:     []byte("HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 0\r\n\r\n"),
		missing:    answer("404 Not Found", `{"detail":"Not Found"}`),
		streamHead: []byte("HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"),
		role:       frame(fmt.Sprintf(chunk, `"role":"assistant","content":""`, "null", "", `,"prompt_token_ids":null`)),
		word:       frame(fmt.Sprintf(chunk, `"content":" dog"`, "null", `,"token_ids":null`, "")),
		last:       frame(fmt.Sprintf(chunk, `"content":" dog"`, `"length"`, `,"stop_reason":null,"token_ids":null`, `,"system_fingerprint":"vllm-0.32.0-5c8a01f2"`)),
		usage:      frame(totals),
		end:        append(frame("data: [DONE]\n\n"), "0\r\n\r\n"...),
	}
	return f
}

func answer(status, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\ndate: Mon, 23 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: application/json\r\nvary: Origin\r\n\r\n%s", status, len(body), body)
}

// frame is one chunk of HTTP/1.1: vLLM sends one event in each.
func frame(s string) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(s), s) }

// serveFake listens on a free loopback port, says so on standard output, and serves until standard input ends.
func serveFake() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("%shttp://%s\n", readyPrefix, l.Addr())
	go endWithParent()
	f := newFake()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go f.serve(c)
	}
}

// endWithParent ends this process when the one that started it is gone.
func endWithParent() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// buffers are for bodies: connections of open streams hold none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 160<<10); return &b }}

// serve answers the requests of one connection.
func (f *fake) serve(c net.Conn) {
	defer c.Close()
	for {
		var first [1]byte // waited for without a buffer
		if _, err := io.ReadFull(c, first[:]); err != nil {
			return
		}
		p := buffers.Get().(*[]byte)
		b, headEnd, err := readRequest(c, append((*p)[:0], first[0]))
		var reply func() error
		if err == nil {
			reply = f.choose(c, b[:headEnd], b[headEnd:])
		}
		if cap(b) <= 1<<20 {
			*p = b[:0]
			buffers.Put(p)
		}
		if err != nil || reply() != nil {
			return
		}
	}
}

// readRequest reads one request whole, with a declared length or in chunks, which stay as they are.
func readRequest(c net.Conn, b []byte) (request []byte, headEnd int, err error) {
	headEnd = -1
	for want := 0; ; {
		if headEnd < 0 {
			if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
				headEnd = i + 4
				if want = headEnd + lengthIn(b[:headEnd]); want < headEnd {
					want = 0
				}
			}
		}
		if headEnd >= 0 && (want > 0 && len(b) >= want || want == 0 && bytes.HasSuffix(b, []byte("0\r\n\r\n"))) {
			return b, headEnd, nil
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil {
			return b, headEnd, err
		}
	}
}

// lengthIn is the declared length of a body, -1 - len(head) or less when it comes in chunks.
func lengthIn(head []byte) int {
	for line := range bytes.Lines(head) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			n, _ := strconv.Atoi(string(bytes.TrimSpace(value)))
			return n
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			return -1 - len(head)
		}
	}
	return 0
}

// choose says how to answer. What it returns needs no byte of the request.
func (f *fake) choose(c net.Conn, head, body []byte) func() error {
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	send := func(b []byte) func() error {
		return func() error { _, err := c.Write(b); return err }
	}
	switch string(line) {
	case "POST /v1/chat/completions HTTP/1.1":
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			return send(f.unary)
		}
		events, pause := number(body, `"max_tokens":`), number(body, `"seed":`)
		withUsage := bytes.Contains(body, []byte(`"include_usage":true`))
		return func() error { return f.stream(c, events, time.Duration(pause)*time.Microsecond, withUsage) }
	case "GET /v1/models HTTP/1.1":
		return send(f.models)
	case "GET /version HTTP/1.1":
		return send(f.version)
	case "GET /health HTTP/1.1", "GET /ping HTTP/1.1":
		return send(f.health)
	}
	return send(f.missing)
}

// stream sends a role, events with a word each, the pause apart, and the end.
func (f *fake) stream(c net.Conn, events int, pause time.Duration, withUsage bool) error {
	if _, err := c.Write(f.streamHead); err != nil {
		return err
	}
	if _, err := c.Write(f.role); err != nil {
		return err
	}
	next := time.Now()
	for i := range events {
		next = next.Add(pause)
		time.Sleep(time.Until(next))
		event := f.word
		if i == events-1 {
			event = f.last
		}
		if _, err := c.Write(event); err != nil {
			return err
		}
	}
	if withUsage {
		if _, err := c.Write(f.usage); err != nil {
			return err
		}
	}
	_, err := c.Write(f.end)
	return err
}

// number is the integer behind a member's name; 0 when there is none.
func number(body []byte, name string) int {
	_, rest, _ := bytes.Cut(body, []byte(name))
	n := 0
	for _, c := range bytes.TrimLeft(rest, " ") {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n
}
