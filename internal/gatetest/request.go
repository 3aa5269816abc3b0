package gatetest

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Request is one request as a client writes it.
type Request struct {
	Method, Path string // the method "" is POST with a body, GET without
	Key          string // a key itself, sent as a bearer token; "" sends none
	Body         string // application/json unless Header says otherwise
	Header       map[string]string
}

// Answer is what came back.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Reason is the refusal's, "" when there is none.
func (a Answer) Reason() string { return a.Header.Get("X-Vallum-Reason") }

// ID is the record's.
func (a Answer) ID() string { return a.Header.Get("X-Request-Id") }

// Code is error.code of the body, in the forms of OpenAI.
func (a Answer) Code() string {
	var body struct{ Error struct{ Code any } }
	if json.Unmarshal([]byte(a.Body), &body) != nil {
		return ""
	}
	code, _ := body.Error.Code.(string)
	return code
}

// Chat is a chat request in the name of the key.
func (g *Gate) Chat(name string) Request {
	return Request{Path: "/v1/chat/completions", Key: g.Secret(name), Body: ChatBody}
}

// ChatBody is the smallest chat.
const ChatBody = `{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":5}`

// Open sends a request and gives the response with its body still to be read.
func (g *Gate) Open(r Request) (*http.Response, error) {
	g.t.Helper()
	return Open(g.t, g.Client, g.URL, r)
}

// Open sends a request to whatever answers at base.
func Open(t *testing.T, c *http.Client, base string, r Request) (*http.Response, error) {
	t.Helper()
	method := r.Method
	if method == "" {
		method = "GET"
		if r.Body != "" {
			method = "POST"
		}
	}
	var body io.Reader
	if r.Body != "" {
		body = strings.NewReader(r.Body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, base+r.Path, body)
	if err != nil {
		t.Fatal(err)
	}
	if r.Body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.Key != "" {
		req.Header.Set("Authorization", "Bearer "+r.Key)
	}
	for name, value := range r.Header {
		req.Header.Set(name, value)
	}
	return c.Do(req)
}

// Do sends a request through the gate and reads the whole answer.
func (g *Gate) Do(r Request) Answer {
	g.t.Helper()
	a, err := do(g.t, g.Client, g.URL, r)
	if err != nil {
		g.t.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	return a
}

// Direct sends the same request straight to the fake: what happens without Vallum.
func (g *Gate) Direct(r Request) Answer {
	g.t.Helper()
	a, err := do(g.t, http.DefaultClient, g.Fake.URL(), r)
	if err != nil {
		g.t.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	return a
}

func do(t *testing.T, c *http.Client, base string, r Request) (Answer, error) {
	t.Helper()
	resp, err := Open(t, c, base, r)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, string(b)}, err
}

// Dial opens a connection to the gate on which a test writes bytes as it likes. It closes with the test.
func (g *Gate) Dial() net.Conn {
	g.t.Helper()
	return dial(g.t, g.URL, g.cert)
}

func dial(t *testing.T, base string, cert *Certificate) net.Conn {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	if u.Scheme == "https" {
		c, err = tls.Dial("tcp", u.Host, &tls.Config{RootCAs: cert.Pool, NextProtos: []string{"http/1.1"}})
	} else {
		c, err = net.Dial("tcp", u.Host)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// Raw writes bytes on a connection of its own and reads the answers until the other side closes or 20 s have passed;
// send "Connection: close" with the last request.
func (g *Gate) Raw(bytes string) []Answer {
	g.t.Helper()
	return Raw(g.t, g.Dial(), bytes)
}

// RawDirect is Raw to the fake.
func (g *Gate) RawDirect(bytes string) []Answer {
	g.t.Helper()
	return Raw(g.t, dial(g.t, g.Fake.URL(), nil), bytes)
}

// Raw writes bytes and reads every answer that comes.
func Raw(t *testing.T, c net.Conn, bytes string) []Answer {
	t.Helper()
	defer func() { _ = c.Close() }()
	written := make(chan struct{})
	go func() { // an answer may come, and the connection close, before all is taken
		defer close(written)
		_, _ = io.WriteString(c, bytes)
	}()
	var all []Answer
	for br := bufio.NewReader(c); ; {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			break
		}
		b, _ := io.ReadAll(resp.Body)
		all = append(all, Answer{resp.StatusCode, resp.Header, string(b)})
		if resp.Close {
			break
		}
	}
	_ = c.Close()
	<-written
	return all
}
