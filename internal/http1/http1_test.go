package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served is a server that runs until its test ends.
type served struct {
	*Server
	t         *testing.T
	address   string
	malformed atomic.Int64
}

func serve(t *testing.T, handler http.HandlerFunc, change ...func(*Server)) *served {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, handler, change...)
}

func serveOn(t *testing.T, l net.Listener, handler http.HandlerFunc, change ...func(*Server)) *served {
	t.Helper()
	s := &served{t: t, address: l.Addr().String()}
	s.Server = &Server{
		Handler: handler, HeaderTimeout: 5 * time.Second, IdleTimeout: 30 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10,
		Malformed: func() { s.malformed.Add(1) }, Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(s.Server)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve ended with %v", err)
		}
		if err := s.Shutdown(context.Background()); err != nil { // waits for the connections' goroutines
			t.Error(err)
		}
	})
	return s
}

// client is one connection to it.
type client struct {
	net.Conn
	t  *testing.T
	br *bufio.Reader
}

func (s *served) dial() *client {
	s.t.Helper()
	network := "unix"
	if !strings.HasPrefix(s.address, "/") {
		network = "tcp"
	}
	c, err := net.Dial(network, s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	return &client{c, s.t, bufio.NewReader(c)}
}

func (c *client) send(text string) *client {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, text); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// answer reads one answer: "200 body", with "close" before the body when the connection ends with it.
func (c *client) answer(method string) string {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		return "no answer: " + err.Error()
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "a cut answer: " + err.Error()
	}
	end := ""
	if resp.Close {
		end = "close "
	}
	return fmt.Sprintf("%d %s%s", resp.StatusCode, end, body)
}

// closed reports whether the server closed the connection, within the test's deadline.
func (c *client) closed() bool {
	_, err := c.br.ReadByte()
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(r.Method)+len(r.RequestURI)+len(b)+2))
	_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, b)
}

func TestRequestsOnOneConnection(t *testing.T) {
	s := serve(t, echo)
	c := s.dial()
	for range 3 {
		if got := c.send("POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz").answer("POST"); got != "200 POST /a?b xyz" {
			t.Fatal(got)
		}
	}
	// several at once, a chunked one and the line that old clients send too much
	c.send("POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	for _, want := range []string{"200 POST /1 ", "200 POST /2 ab", "200 close GET /3 "} {
		if got := c.answer("GET"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if !c.closed() {
		t.Error("the connection is open after Connection: close")
	}
	if n := s.malformed.Load(); n != 0 {
		t.Errorf("%d were counted as malformed", n)
	}
}

func TestWhatIsNoRequestIsRefusedAndCounted(t *testing.T) {
	called := false
	handler := func(http.ResponseWriter, *http.Request) { called = true }
	patient, hasty := serve(t, handler), serve(t, handler, func(s *Server) { s.HeaderTimeout = time.Second })
	for what, row := range map[string]struct{ send, want string }{
		"garbage":                  {"\x16\x03\x01 nonsense\r\n\r\n", "400"},
		"an empty line":            {"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		"an empty Host":            {"GET / HTTP/1.1\r\nHost:\r\n\r\n", "400"},
		"a Host that is a URL":     {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"},
		"lines that end in LF":     {"GET / HTTP/1.1\nHost: h\n\n", "400"},
		"one line of them":         {"GET / HTTP/1.1\r\nHost: h\r\nX: a\nY: b\r\n\r\n", "400"},
		"a head that ends in LF":   {"GET / HTTP/1.1\r\nHost: h\r\nX: a\n\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		"a folded line":            {"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", "400"},
		"a folded long line":       {"GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("a", 5<<10) + "\r\n\tb\r\n\r\n", "400"},
		"a folded length":          {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n 3\r\n\r\nabc", "400"},
		"a CR within a line":       {"GET / HTTP/1.1\r\nHost: h\r\nX: a\rY: b\r\n\r\n", "400"},
		"a name with a space":      {"GET / HTTP/1.1\r\nHost: h\r\nContent Length: 3\r\n\r\n", "400"},
		"a control byte":           {"GET / HTTP/1.1\r\nHost: h\r\nX: a\x01b\r\n\r\n", "400"},
		"two lengths":              {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"},
		"HTTP/2's preface":         {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		"another encoding":         {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", "501"},
		"another expectation":      {"POST / HTTP/1.1\r\nHost: h\r\nExpect: a, 100-continue\r\nContent-Length: 1\r\n\r\n", "417"},
		"two expectations":         {"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nExpect: x\r\nContent-Length: 1\r\n\r\n", "417"},
		"9 KiB of one field":       {"GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("a", 9<<10) + "\r\n\r\n", "431"},
		"9 KiB of fields":          {"GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("X: abcd\r\n", 1<<10) + "\r\n", "431"},
		"a request line of 9 KiB":  {"GET /" + strings.Repeat("a", 9<<10), "431"},
		"a head that does not end": {"GET / HTTP/1.1\r\nHo", "408"},
		"the same, on a boundary":  {"GET / HTTP/1.1\r\nHost: h\r\n", "408"},
		"behind a request":         {"HEAD / HTTP/1.0\r\n\r\nnonsense\r\n\r\n", ""},
	} {
		s := patient
		if row.want == "408" {
			s = hasty
		}
		called = false
		before := s.malformed.Load()
		c := s.dial().send(row.send)
		got, _, _ := strings.Cut(c.answer("GET"), " ")
		if row.want == "" { // HTTP/1.0 ends the connection: what stands behind it is not even looked at
			continue
		}
		if got != row.want || called || s.malformed.Load() != before+1 || !c.closed() {
			t.Errorf("%s: answered %s, want %s; handled: %v; counted: %d", what, got, row.want, called, s.malformed.Load()-before)
		}
	}
	s := patient
	before := s.malformed.Load()
	c := s.dial()
	_ = c.Close() // a client that only closes sent nothing malformed
	if got := s.dial().send("GET / HTTP/1.0\r\n\r\n").answer("GET"); got != "200 close " || s.malformed.Load() != before {
		t.Errorf("%q, counted %d", got, s.malformed.Load()-before)
	}
}

func TestTheAnswersFraming(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.RequestURI {
		case "/stream":
			for _, part := range []string{"one ", "", "two"} {
				_, _ = io.WriteString(w, part)
				_ = http.NewResponseController(w).Flush()
			}
		case "/none":
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("a body behind 204: %v", err)
			}
		case "/more":
			w.Header().Set("Content-Length", "2")
			if _, err := io.WriteString(w, "abc"); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("more than declared: %v", err)
			}
		case "/less":
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "abc")
		case "/split":
			w.Header().Set("X-A", "a\r\nX-Evil: b")
			w.Header().Set("Transfer-Encoding", "identity")
		case "/twice":
			w.WriteHeader(http.StatusAccepted)
			w.WriteHeader(http.StatusConflict)
		}
	})
	for _, row := range []struct{ request, want string }{
		{"GET /stream HTTP/1.1", "200 one two"},
		{"HEAD /stream HTTP/1.1", "200 "},
		{"GET /stream HTTP/1.0", "200 close one two"},
		{"GET /none HTTP/1.1", "204 "},
		{"GET /nothing HTTP/1.1", "200 "},
		{"GET /more HTTP/1.1", "a cut answer: unexpected EOF"},
		{"GET /less HTTP/1.1", "a cut answer: unexpected EOF"},
		{"GET /twice HTTP/1.1", "202 "},
	} {
		method, _, _ := strings.Cut(row.request, " ")
		if got := s.dial().send(row.request + "\r\nHost: h\r\n\r\n").answer(method); got != row.want {
			t.Errorf("%s: %q, want %q", row.request, got, row.want)
		}
	}
	c := s.dial().send("GET /split HTTP/1.1\r\nHost: h\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil || resp.Header.Get("X-Evil") != "" || resp.Header.Get("X-A") != "" || resp.ContentLength != 0 || resp.Header.Get("Date") == "" {
		t.Errorf("a value with a line end: %+v %v", resp, err)
	}
}

func TestBodiesThatNobodyRead(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(403)
	})
	next := "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
	for what, row := range map[string]struct {
		head, body string
		want       []string
	}{
		"a small one is thrown away":      {"Content-Length: 5", "GET /" + next, []string{"403 ", "403 "}},
		"a chunked one too":               {"Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n" + next, []string{"403 ", "403 "}},
		"a large one ends the connection": {"Content-Length: 1000000", "abc", []string{"403 close "}},
		"a promised one as well":          {"Content-Length: 5\r\nExpect: 100-continue", "", []string{"403 close "}},
		"a chunk that is none":            {"Transfer-Encoding: chunked", "zz\r\nabc\r\n0\r\n\r\n" + next, []string{"403 "}},
	} {
		c := s.dial().send("POST / HTTP/1.1\r\nHost: h\r\n" + row.head + "\r\n\r\n" + row.body)
		for _, want := range row.want {
			if got := c.answer("POST"); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		if len(row.want) == 1 && !c.closed() {
			t.Errorf("%s: the connection is still open", what)
		}
	}
}

// Throwing a body away must leave nobody who reads: a byte of a later request would be lost, and POST be OST.
func TestAfterABodyThatNobodyReadTheNextRequestsAreWhole(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Method", r.Method)
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(403)
	})
	for _, body := range []string{"Content-Length: 5\r\n\r\nabcde", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"} {
		c := s.dial()
		for i, method := range []string{"POST", "GET", "POST", "GET", "POST"} {
			rest := body
			if method == "GET" {
				rest = "\r\n"
			}
			resp, err := http.ReadResponse(c.send(method+" / HTTP/1.1\r\nHost: h\r\n"+rest).br, nil)
			if err != nil || resp.StatusCode != 403 || resp.Header.Get("X-Method") != method {
				t.Fatalf("request %d: %+v, %v", i, resp, err)
			}
			<-time.After(2 * patience) // as long as a client may think: a watch that was left behind reads by then
		}
	}
}

// Two lengths: what stands behind the body may be a request to whoever counted by the other one, a proxy that several
// clients share for one. It is answered, and the connection ends (RFC 9112 §6.1).
func TestAfterTwoLengthsNothingMoreIsRead(t *testing.T) {
	s := serve(t, echo)
	next := "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
	for what, fields := range map[string]string{
		"length first":      "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
		"length last":       "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 4\r\n",
		"a long head":       "Content-Length: 4\r\nX: " + strings.Repeat("a", 5<<10) + "\r\nTransfer-Encoding: chunked\r\n",
		"a long head, last": "Transfer-Encoding: chunked\r\nX: " + strings.Repeat("a", 5<<10) + "\r\nContent-Length: 4\r\n",
	} {
		c := s.dial().send("POST / HTTP/1.1\r\nHost: h\r\n" + fields + "\r\n2\r\nab\r\n0\r\n\r\n" + next)
		if got := c.answer("POST"); got != "200 close POST / ab" || !c.closed() {
			t.Errorf("%s: %q, or the connection is open", what, got)
		}
		c = s.dial()
		for _, b := range []byte("POST / HTTP/1.1\r\nHost: h\r\n" + fields + "\r\n2\r\nab\r\n0\r\n\r\n") { // a segment for each byte
			c.send(string(b))
		}
		if got := c.answer("POST"); got != "200 close POST / ab" || !c.closed() {
			t.Errorf("%s, byte by byte: %q, or the connection is open", what, got)
		}
	}
	// One length is no reason to end it: also behind another request, and with a body that speaks of lengths.
	c := s.dial()
	for range 2 {
		c.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" + next)
		if got := c.answer("POST") + c.answer("GET"); got != "200 POST / ab200 GET /next " {
			t.Error(got)
		}
	}
}

// The end of a chunked body is where everybody sees it: net/http's reader takes LF for CRLF behind the last chunk. What has
// a trailer is answered, and nothing behind it is read.
func TestTheEndOfAChunkedBody(t *testing.T) {
	s := serve(t, echo)
	next := "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
	for end, want := range map[string]string{
		"0\r\n\r\n":                 "200 POST / ab",
		"000\r\n\r\n":               "200 POST / ab",
		"0;a=b\r\n\r\n":             "200 POST / ab",
		"0\r\nX: y\r\n\r\n":         "200 close POST / ab",
		"0\r\nX: y\r\nZ: z\r\n\r\n": "200 close POST / ab",
		"0\r\nnonsense\r\n\r\n":     "418 ",
		"0\n\n":                     "418 ",
		"0\r\n\n":                   "418 ",
		"0\r\nX: y\n\n":             "418 ",
		"0\r\nX: y\r\n\n":           "418 close ",
		"0\r\nX: y\n\r\n":           "418 ",
		"0\r\n\r\r\n\r\n":           "418 ",
		"0\r\nX: " + strings.Repeat("y", 5<<10) + "\r\n\r\n": "418 ",
		"0\r\n" + strings.Repeat("X: y\r\n", 1<<10) + "\r\n": "418 close ",
	} {
		c := s.dial().send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n" + end + next)
		got := c.answer("POST")
		if got != want {
			t.Errorf("%.40q: %q, want %q", end, got, want)
		}
		if more := want == "200 POST / ab"; more != !c.closed() {
			t.Errorf("%.40q: the next one is answered: %v", end, !more)
		}
	}
}

func TestContinueIsSaidOnceTheBodyIsRead(t *testing.T) {
	read := make(chan bool)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		<-read
		echo(w, r)
	})
	c := s.dial().send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
	read <- true
	if line, err := c.br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = c.br.ReadString('\n')
	if got := c.send("ab").answer("POST"); got != "200 POST / ab" {
		t.Error(got)
	}
}

// "100 Continue" behind the answer's head would be read as its body.
func TestNothingIsContinuedOnceTheAnswerHasBegun(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2")
		_, _ = io.WriteString(w, "o")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = r.Body.Read(make([]byte, 1))
		_, _ = io.WriteString(w, "k")
	})
	if got := s.dial().send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").answer("POST"); got != "200 close ok" {
		t.Error(got)
	}
}

func TestAClientThatLeavesIsSeen(t *testing.T) {
	began, cause, unseen := make(chan bool, 1), make(chan error, 1), make(chan struct{})
	handler := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		began <- true
		select {
		case <-r.Context().Done():
			cause <- context.Cause(r.Context())
		case <-unseen:
		}
	}
	for what, request := range map[string]string{
		"without a body": "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"with one":       "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab",
		"chunked":        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
	} {
		s := serve(t, handler)
		c := s.dial().send(request)
		<-began
		_ = c.Close()
		if err := <-cause; !errors.Is(err, errClientLeft) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, early := range map[string]string{
		"after a line end too much":         "\r\n",
		"after a part of its next request":  "GET /next HTT",
		"after as much as is kept, but one": strings.Repeat("x", ahead-1),
	} {
		c := serve(t, handler).dial().send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		<-began
		_ = c.send(early).Close()
		select {
		case err := <-cause:
			if !errors.Is(err, errClientLeft) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(20 * time.Second):
			close(unseen)
			t.Fatalf("%s: nobody saw it", what)
		}
	}
}

// A client that sends its next request while the first one runs loses none of its bytes, watched or not.
func TestBytesThatTheWatchReadBelongToTheNextRequest(t *testing.T) {
	release := make(chan bool)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		<-release
		echo(w, r)
	})
	c := s.dial().send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")
	for i := 2; i <= 4; i++ {
		watching := func() bool { // the watch has begun, and waits
			s.mu.Lock()
			defer s.mu.Unlock()
			for c := range s.conns {
				c.watch.mu.Lock()
				defer c.watch.mu.Unlock()
				return c.watch.state == reading
			}
			return false
		}
		for late := time.Now().Add(10 * time.Second); !watching(); {
			if time.Now().After(late) {
				t.Fatal("the client is not watched")
			}
		}
		c.send(fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: h\r\n\r\n", i))
		release <- true
		if got, want := c.answer("GET"), fmt.Sprintf("200 GET /%d ", i-1); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	release <- true
	if got := c.answer("GET"); got != "200 GET /4 " {
		t.Error(got)
	}

	// more of them than are kept
	const many = 4 * ahead / len("GET /100 HTTP/1.1\r\nHost: h\r\n\r\n")
	go func() {
		for i := range many {
			_, _ = io.WriteString(c, fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: h\r\n\r\n", 100+i))
		}
	}()
	for i := range many {
		if i%40 == 0 {
			<-time.After(2 * patience) // for the watch to read ahead
		}
		release <- true
		if got, want := c.answer("GET"), fmt.Sprintf("200 GET /%d ", 100+i); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

// An answer that a panic cut off must not look whole, not even to a client of HTTP/1.0, for which the connection's end
// is the answer's.
func TestAPanicCutsTheConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(t, l, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		if r.RequestURI == "/abort" {
			panic(http.ErrAbortHandler)
		}
		panic("no")
	})
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET /abort HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"} {
		if got := s.dial().send(request).answer("GET"); !strings.HasPrefix(got, "a cut answer") {
			t.Errorf("%q: %s", request, got)
		}
	}
}

func TestShutdownWaitsForWhatRuns(t *testing.T) {
	began, release := make(chan bool, 1), make(chan bool)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		began <- true
		<-release
		echo(w, r)
	})
	fresh, used, busy := s.dial(), s.dial(), s.dial()
	used.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-began
	release <- true
	used.answer("GET")
	busy.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-began
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shut down although a request runs: %v", err)
	}
	if !fresh.closed() || !used.closed() {
		t.Error("a connection without a request is open")
	}
	if c, err := net.Dial("unix", s.address); err == nil {
		_ = c.Close()
		t.Error("it still listens")
	}
	release <- true
	if got := busy.answer("GET"); got != "200 close GET / " {
		t.Error(got)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// A shutdown that comes between the last look whether there is one and the moment in which the connection counts as idle
// leaves it alone, for it is busy; so it ends itself.
func TestAShutdownMissesNoConnectionThatFallsIdle(t *testing.T) {
	s := &Server{conns: map[*conn]struct{}{}}
	c := &conn{server: s}
	s.conns[c] = struct{}{}
	c.state = new(atomic.Int64)
	if err := s.Shutdown(context.Background()); err != nil || c.state.Load() != active {
		t.Fatal(err, c.state.Load())
	}
	if c.fallIdle() {
		t.Error("it waits for another request")
	}
}

func TestSlowClientsAreLetGo(t *testing.T) {
	cut := make(chan error, 1)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI == "/body" {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, err := io.ReadAll(r.Body)
			cut <- err
			return
		}
		part := make([]byte, 1<<20)
		for {
			if _, err := w.Write(part); err != nil {
				cut <- err
				return
			}
		}
	}, func(s *Server) { s.WriteTimeout = 100 * time.Millisecond })
	for what, request := range map[string]string{
		"one that does not read":      "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"one that does not send more": "POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\na",
	} {
		s.dial().send(request)
		if err := <-cut; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
	}
	idle := serve(t, echo, func(s *Server) { s.IdleTimeout = 100 * time.Millisecond })
	if c := idle.dial(); !c.closed() {
		t.Error("an idle connection stays open")
	}
}

func TestAServerWithoutBoundsDoesNotServe(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := (&Server{}).Serve(l); err == nil || errors.Is(err, http.ErrServerClosed) {
		t.Errorf("it served: %v", err)
	}
}
