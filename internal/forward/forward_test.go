package forward

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/vallum/vallum/internal/verdict"
)

func TestTheRequestIsBuilt(t *testing.T) {
	f := always(t, answer(`{"a":1}`))
	u := f.upstream(nil)
	out, w := send(u, call(t, `{"model":"m"}`))
	want := "POST /v1/chat/completions HTTP/1.1\r\nHost: " + f.listener.Addr().String() + "\r\nUser-Agent: vallum\r\nAccept-Encoding: identity\r\n" +
		"Authorization: Bearer canary-key\r\nAccept: application/json\r\nX-Request-Id: req-1\r\nContent-Length: 13\r\nContent-Type: application/json\r\n\r\n" + `{"model":"m"}`
	if got := f.got(); len(got) != 1 || got[0] != want {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	if out.Refusal.Refused() || !out.Written || out.Status != 200 || out.UpStatus != 200 || out.Ended != verdict.Complete || out.BytesUp != 13 || out.BytesDown != 7 || out.FirstByte <= 0 || out.Upstream < out.FirstByte {
		t.Errorf("%+v", out)
	}
	if w.Code != 200 || w.Body.String() != `{"a":1}` || len(w.Header()) != 2 || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Content-Length") != "7" {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}
}

func TestNothingGoesOutWithoutAGrant(t *testing.T) {
	f := always(t, answer(`{}`))
	u := f.upstream(nil)
	for what, change := range map[string]func(*Call){
		"the zero call":           func(c *Call) { *c = Call{} },
		"no grant":                func(c *Call) { c.Grant = Call{}.Grant },
		"no rewriter":             func(c *Call) { c.Rewriter = nil },
		"a header of two lines":   func(c *Call) { c.RequestID = "a\r\nX-Vllm-Priority: 0" },
		"a content type likewise": func(c *Call) { c.ContentType = "a\nb" },
		"a body that is not there": func(c *Call) {
			c.Body, c.Length = nil, 5
		},
	} {
		c := call(t, "{}")
		change(&c)
		out, w := send(u, c)
		if !out.Refusal.Refused() || out.Refusal.Reason() != verdict.InternalError || out.Written || w.Body.Len() > 0 || out.Ended != verdict.NotForwarded {
			t.Errorf("%s: %+v", what, out)
		}
	}
	if f.accepted() != 0 {
		t.Errorf("%d connections were made", f.accepted())
	}
}

func TestBodiesGoUpWhole(t *testing.T) {
	large := strings.Repeat("x", 300<<10)
	for _, c := range []struct {
		what string
		with func(*Call)
		want string
	}{
		{"large", func(c *Call) { c.Body = []byte(large) }, large},
		{"from a reader", func(c *Call) { c.Body, c.Reader, c.Length = nil, strings.NewReader(large), int64(len(large)) }, large},
		{"of a reader that goes on, as much as declared", func(c *Call) { c.Body, c.Reader, c.Length = nil, strings.NewReader("abcdef"), 3 }, "abc"},
		{"empty", func(c *Call) { c.Body = []byte{} }, ""},
	} {
		f := always(t, answer(`{}`))
		cl := call(t, "")
		c.with(&cl)
		out, _ := send(f.upstream(nil), cl)
		got := f.got()
		if out.Refusal.Refused() || len(got) != 1 || !strings.HasSuffix(got[0], "\r\n\r\n"+c.want) || out.BytesUp != int64(len(c.want)) ||
			!strings.Contains(got[0], fmt.Sprintf("\r\nContent-Length: %d\r\n", len(c.want))) {
			t.Errorf("%s: %+v, %d requests", c.what, out, len(got))
		}
	}
	f := always(t, answer(`{}`))
	cl := call(t, "")
	cl.Body, cl.Reader, cl.Length = nil, strings.NewReader("abc"), 5
	if out, _ := send(f.upstream(nil), cl); !out.Refusal.Refused() || len(f.got()) != 0 {
		t.Errorf("a body that is shorter than declared: %+v, %q", out, f.got())
	}
}

// A stream may run for an hour. Were its prompt held as long, a few of the largest would fill the memory.
func TestABodyThatWentUpIsNotHeld(t *testing.T) {
	arrived, answered := make(chan struct{}), make(chan struct{})
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		close(arrived)
		<-answered
		_, _ = io.WriteString(c, answer("{}"))
	})
	body, ended := make(chan weak.Pointer[byte], 1), make(chan verdict.Outcome, 1)
	go func() {
		cl := call(t, strings.Repeat("x", 1<<20))
		body <- weak.Make(&cl.Body[0])
		out, _ := send(f.upstream(nil), cl)
		ended <- out
	}()
	held := <-body
	<-arrived
	for range 1000 { // it arrived a moment before the sender knows that
		if runtime.GC(); held.Value() == nil {
			break
		}
	}
	if held.Value() != nil {
		t.Error("the body is still in memory while the answer is waited for")
	}
	close(answered)
	if out := <-ended; out.Refusal.Refused() || out.BytesUp != 1<<20 {
		t.Errorf("%+v", out)
	}
}

// An upstream that lies. Each answer is one that some other client would have read.
func TestAnswersThatAreNotHTTP(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
	for _, c := range []struct{ what, bytes, says string }{
		{"a CR in the status line", "HTTP/1.1 200 O\rK\r\ncontent-length: 0\r\n\r\n", "CRLF"},
		{"nothing", "", "without an answer"},
		{"half a head", "HTTP/1.1 200 OK\r\ncontent-le", "unexpected EOF"},
		{"HTML", "<html>\r\n\r\n", "first line"},
		{"HTTP/2", "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", "first line"},
		{"a status of two digits", "HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n", "first line"},
		{"a status that is none", "HTTP/1.1 999 OK\r\ncontent-length: 0\r\n\r\n", "its status is 999"},
		{"bare LF", "HTTP/1.1 200 OK\ncontent-length: 0\n\n", "CRLF"},
		{"a CR within a line", ok + "a: b\rc\r\ncontent-length: 2\r\n\r\n{}", "CRLF"},
		{"a folded header", ok + "a: b\r\n c\r\ncontent-length: 2\r\n\r\n{}", "the header line"},
		{"a space before the colon", ok + "content-length : 2\r\n\r\n{}", "the header line"},
		{"a header without a name", ok + ": 2\r\ncontent-length: 2\r\n\r\n{}", "the header line"},
		{"a NUL in a header", ok + "a: \x00\r\ncontent-length: 2\r\n\r\n{}", "control byte"},
		{"two lengths", ok + "content-length: 2\r\ncontent-length: 2\r\n\r\n{}", "its Content-Length"},
		{"a list of lengths", ok + "content-length: 2, 2\r\n\r\n{}", "its Content-Length"},
		{"a length with a sign", ok + "content-length: +2\r\n\r\n{}", "its Content-Length"},
		{"a negative length", ok + "content-length: -2\r\n\r\n{}", "its Content-Length"},
		{"a length beyond all", ok + "content-length: 99999999999999999999\r\n\r\n{}", "its Content-Length"},
		{"length and chunked", ok + "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "both Content-Length and"},
		{"gzip, chunked", ok + "transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "the Transfer-Encoding"},
		{"chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding in HTTP/1.0"},
		{"chunked twice", ok + "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "the Transfer-Encoding"},
		{"no framing", ok + "\r\n{}", "neither Content-Length"},
		{"two content types", ok + "content-type: text/html\r\ncontent-length: 2\r\n\r\n{}", "two Content-Type"},
		{"a body that is too short", ok + "content-length: 3\r\n\r\n{}", "unexpected EOF"},
		{"a chunk that is too short", ok + "transfer-encoding: chunked\r\n\r\n5\r\n{}", "unexpected EOF"},
		{"a chunk that is too long", ok + "transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n", "longer than its size"},
		{"a chunk size that is none", ok + "transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n", "the chunk size"},
		{"an empty chunk size", ok + "transfer-encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n", "the chunk size"},
		{"no last chunk", ok + "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", "unexpected EOF"},
		{"an endless trailer", ok + "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + strings.Repeat("a: b\r\n", 1000), "a head of more than"},
		{"a trailer that is none", ok + "transfer-encoding: chunked\r\n\r\n0\r\n0\r\n\r\n", "the header line"},
		{"101 fields", ok + strings.Repeat("a: b\r\n", 100) + "content-length: 2\r\n\r\n{}", "more than 100 header"},
		{"endless headers", ok + strings.Repeat("a: "+strings.Repeat("b", 2000)+"\r\n", 40), "a head of more than"},
		{"one endless header", ok + "a: " + strings.Repeat("b", 1<<20), "a head of more than"},
		{"a storm of informational answers", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 9) + ok + "content-length: 2\r\n\r\n{}", "more than 8 informational"},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n", "switches protocols"},
		{"an encoding nobody asked for", ok + "content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}", "encodes its answer"},
	} {
		f := once(t, c.bytes)
		out, w := send(f.upstream(nil), call(t, "{}"))
		if out.Refusal.Reason() != verdict.UpstreamFailed || !out.Refusal.Refused() || out.Written || out.Ended != verdict.UpstreamError || out.Cause == nil {
			t.Errorf("%s: %s, %+v", c.what, out.Refusal.Reason(), out)
		}
		if w.Body.Len() > 0 || len(f.got()) != 1 {
			t.Errorf("%s: the caller saw %q, the upstream %d requests", c.what, w.Body, len(f.got()))
		}
		if out.Cause != nil && !strings.Contains(out.Cause.Error(), c.says) {
			t.Errorf("%s: the cause is %v, want %q", c.what, out.Cause, c.says)
		}
		if out.Cause != nil && strings.Contains(out.Cause.Error(), "canary") {
			t.Errorf("%s: a secret in the cause: %v", c.what, out.Cause)
		}
	}
}

func TestAnswersThatAreHTTP(t *testing.T) {
	for what, bytes := range map[string]string{
		"a length":              answer("{}"),
		"chunks":                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: Chunked\r\n\r\n1;ext=1\r\n{\r\n01\r\n}\r\n0\r\ntrailer: x\r\n\r\n",
		"no reason phrase":      "HTTP/1.1 200 \r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
		"eight informational":   strings.Repeat("HTTP/1.1 103 x\r\na: b\r\n\r\n", 8) + answer("{}"),
		"HTTP/1.0 with length":  "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
		"identity":              "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: identity\r\ncontent-length: 2\r\n\r\n{}",
		"a header of 20,000 B":  "HTTP/1.1 200 OK\r\na: " + strings.Repeat("b", 20000) + "\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
		"exactly 100 fields":    "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 98) + "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
		"whitespace in a value": "HTTP/1.1 200 OK\r\ncontent-type:\t application/json \r\ncontent-length:2\r\n\r\n{}",
	} {
		out, w := send(once(t, bytes).upstream(nil), call(t, "{}"))
		if out.Refusal.Refused() || w.Body.String() != "{}" || out.Ended != verdict.Complete {
			t.Errorf("%s: %v, %q", what, out.Refusal.Err(), w.Body)
		}
	}
}

func TestHeadersLeaveByAList(t *testing.T) {
	f := once(t, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\nset-cookie: a=b\r\nendpoint-load-metrics: x\r\nx-request-id: theirs\r\nmetadata: {\"a\":1}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
	w := httptest.NewRecorder()
	w.Header().Set("X-Request-Id", "ours")
	f.upstream(nil).Send(context.Background(), w, call(t, "{}"))
	for name := range w.Header() {
		if name != "Content-Type" && name != "Content-Length" && name != "Metadata" && name != "X-Request-Id" {
			t.Errorf("the header %q left", name)
		}
	}
	if w.Header().Get("X-Request-Id") != "ours" || w.Header().Get("Metadata") != `{"a":1}` {
		t.Errorf("%v", w.Header())
	}
}

func TestAnswersAreCapped(t *testing.T) {
	for _, bytes := range []string{answer(strings.Repeat("x", 101)), "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(strings.Repeat("x", 101)) + "0\r\n\r\n"} {
		c := call(t, "{}")
		c.MaxReply = 100
		out, w := send(once(t, bytes).upstream(nil), c)
		if out.Refusal.Reason() != verdict.UpstreamFailed || w.Body.Len() > 0 || !strings.Contains(out.Cause.Error(), "more than 100 bytes") {
			t.Errorf("%+v", out)
		}
	}
}

func TestErrorStatusesBecomeVerdicts(t *testing.T) {
	text := "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\nbusy"
	out, w := send(once(t, text).upstream(nil), call(t, "{}"))
	if out.Refusal.Reason() != verdict.UpstreamBusy || out.Refusal.RetryAfter() != 7*time.Second || out.UpStatus != 503 || out.Written || w.Body.Len() > 0 || out.UpMessage != "said" || out.Ended != verdict.UpstreamError {
		t.Errorf("%+v", out)
	}
	c := call(t, "{}")
	c.Rewriter = &plain{pass: true}
	out, w = send(once(t, text).upstream(nil), c)
	if out.Refusal.Refused() || w.Code != 503 || w.Body.String() != "busy" || out.Ended != verdict.UpstreamError || out.Status != 503 {
		t.Errorf("passed: %+v %d %q", out, w.Code, w.Body)
	}
	c.Rewriter = &plain{pass: true}
	out, w = send(once(t, "HTTP/1.1 307 x\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n").upstream(nil), c)
	if out.Refusal.Reason() != verdict.UpstreamFailed || len(w.Header()) > 0 {
		t.Errorf("a redirect left: %+v %v", out, w.Header())
	}
}

func TestAnUpstreamThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, listener: l}
	_ = l.Close()
	out, _ := send(f.upstream(nil), call(t, "{}"))
	if out.Refusal.Reason() != verdict.UpstreamUnavailable || out.Written || out.BytesUp != 0 || out.Refusal.RetryAfter() == 0 {
		t.Errorf("%+v", out)
	}
}

func TestAnUpstreamThatNeverAnswers(t *testing.T) {
	for what, row := range map[string]struct {
		first string
		after time.Duration
	}{
		"nothing":     {"", time.Minute},
		"half a head": {"HTTP/1.1 200", time.Minute},
		"half a body": {"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{", 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			closed := make(chan struct{})
			f := listenPiped(t, func(f *fake, c net.Conn, br *bufio.Reader) {
				f.request(br)
				if row.first != "" {
					_, _ = io.WriteString(c, row.first)
				}
				_, _ = br.ReadByte() // until we hang up
				close(closed)
			})
			began := time.Now()
			out, _ := send(f.upstream(timeouts(time.Minute, 10*time.Second)), call(t, "{}"))
			if out.Refusal.Reason() != verdict.UpstreamTimeout || out.Ended != verdict.TimedOut || out.Written {
				t.Errorf("%s: %+v", what, out)
			}
			<-closed
			if took := time.Since(began); took != row.after {
				t.Errorf("%s: given up after %s, want %s", what, took, row.after)
			}
		})
	}
}

func TestTheUpstreamStopsWhenTheClientLeaves(t *testing.T) {
	for what, start := range map[string]string{"before the answer": "", "in a stream": streamHead + chunked("data: 1\n\n")} {
		synctest.Test(t, func(t *testing.T) {
			closed := make(chan time.Time, 1)
			f := listenPiped(t, func(f *fake, c net.Conn, br *bufio.Reader) {
				f.request(br)
				if start != "" {
					_, _ = io.WriteString(c, start)
				}
				_, _ = br.ReadByte()
				closed <- time.Now()
			})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan verdict.Outcome)
			u, c := f.upstream(nil), streamCall(t)
			go func() { done <- u.Send(ctx, httptest.NewRecorder(), c) }()
			<-time.After(time.Minute)
			left := time.Now()
			cancel()
			if d := (<-closed).Sub(left); d != 0 {
				t.Errorf("%s: the upstream's connection closed after %v", what, d)
			}
			if out := <-done; out.Ended != verdict.ClientLeft {
				t.Errorf("%s: %+v", what, out)
			}
		})
	}
}

func TestWhyARequestWasCancelled(t *testing.T) {
	for cause, want := range map[error]struct {
		ended  verdict.Ended
		reason verdict.Reason
	}{
		verdict.ErrRevoked: {verdict.KeyRevoked, verdict.Revoked},
		verdict.ErrDrained: {verdict.Drained, verdict.ShuttingDown},
		nil:                {verdict.ClientLeft, verdict.CallerLeft},
	} {
		for _, began := range []bool{false, true} {
			arrived := make(chan struct{})
			f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
				f.request(br)
				if began {
					_, _ = io.WriteString(c, streamHead+chunked("data: 1\n\n"))
				}
				close(arrived)
				_, _ = br.ReadByte()
			})
			ctx, cancel := context.WithCancelCause(context.Background())
			first := make(chan struct{})
			c, rw := streamCall(t), &plain{}
			rw.event = func(e []byte) []byte { close(first); return e }
			c.Rewriter = rw
			w, done := httptest.NewRecorder(), make(chan verdict.Outcome)
			u := f.upstream(nil)
			go func() { done <- u.Send(ctx, w, c) }()
			<-arrived
			if began {
				<-first
			}
			cancel(cause)
			out := <-done
			switch {
			case out.Ended != want.ended:
				t.Errorf("%v: ended %s", cause, out.Ended)
			case !began && (out.Written || out.Refusal.Reason() != want.reason || !out.Refusal.Refused()):
				t.Errorf("%v: %+v", cause, out)
			case began && (!out.Written || out.Refusal.Refused() || !strings.HasSuffix(w.Body.String(), "data: ended "+want.ended.String()+"\n\n")):
				t.Errorf("%v: %+v, %q", cause, out, w.Body)
			}
		}
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	f := always(t, answer("{}"))
	u := f.upstream(nil)
	for range 5 {
		if out, _ := send(u, call(t, "{}")); out.Refusal.Refused() {
			t.Fatal(out.Refusal.Err())
		}
	}
	if f.accepted() != 1 || len(f.got()) != 5 {
		t.Errorf("%d connections for %d requests", f.accepted(), len(f.got()))
	}
}

func TestConnectionsThatAreNotUsedAgain(t *testing.T) {
	for what, bytes := range map[string]string{
		"the upstream closes":      "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
		"HTTP/1.0":                 "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
		"bytes nobody asked for":   answer("{}") + answer(`{"of":"another request"}`),
		"an answer that is broken": "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n<>",
	} {
		f := always(t, bytes)
		u := f.upstream(nil)
		for range 3 {
			if _, w := send(u, call(t, "{}")); strings.Contains(w.Body.String(), "another") {
				t.Fatalf("%s: a caller got %q", what, w.Body)
			}
		}
		want := 3
		if what == "an answer that is broken" { // whole as HTTP: only its text is wrong
			want = 1
		}
		if f.accepted() != want {
			t.Errorf("%s: %d connections", what, f.accepted())
		}
	}
}

// vLLM closes an idle connection without a word: the next request must not meet it, and must not be lost.
func TestADeadConnectionIsReplacedBeforeSending(t *testing.T) {
	closed := make(chan struct{}, 10)
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, answer("{}"))
		_ = c.Close()
		closed <- struct{}{}
	})
	u := f.upstream(nil)
	for range 3 {
		if out, _ := send(u, call(t, "{}")); out.Refusal.Refused() {
			t.Fatal(out.Refusal.Err())
		}
		<-closed
		noticed(t, u)
	}
	if len(f.got()) != 3 {
		t.Errorf("%d requests arrived", len(f.got()))
	}
}

// A request of which a byte may have arrived is never sent again, even when the connection then dies without an answer.
func TestARequestIsNeverSentTwice(t *testing.T) {
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, answer("{}"))
		f.request(br) // the second one is read, and the connection closed
	})
	u := f.upstream(nil)
	if out, _ := send(u, call(t, "{}")); out.Refusal.Refused() {
		t.Fatal(out.Refusal.Err())
	}
	out, _ := send(u, call(t, "{}"))
	if out.Refusal.Reason() != verdict.UpstreamFailed || len(f.got()) != 2 || f.accepted() != 1 {
		t.Errorf("%+v, %d requests on %d connections", out, len(f.got()), f.accepted())
	}
}

// The same while it is being sent: part of it was taken before the connection died.
func TestARequestThatWasSentInPartIsNotSentAgain(t *testing.T) {
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, answer("{}"))
		_, _ = br.Discard(1000)
		_ = c.(*net.TCPConn).SetLinger(0) // RST
	})
	u := f.upstream(nil)
	if out, _ := send(u, call(t, "{}")); out.Refusal.Refused() {
		t.Fatal(out.Refusal.Err())
	}
	out, _ := send(u, call(t, strings.Repeat("x", 32<<20)))
	if out.Refusal.Reason() != verdict.UpstreamFailed || f.accepted() != 1 || out.BytesUp == 0 || !strings.Contains(out.Cause.Error(), "sending the request") {
		t.Errorf("%+v, %d connections", out, f.accepted())
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan struct{})
		f := listenPiped(t, func(f *fake, c net.Conn, br *bufio.Reader) {
			f.request(br)
			_, _ = io.WriteString(c, answer("{}"))
			_, _ = br.ReadByte()
			close(gone)
		})
		u := f.upstream(nil)
		began := time.Now()
		if out, _ := send(u, call(t, "{}")); out.Refusal.Refused() {
			t.Fatal(out.Refusal.Err())
		}
		<-gone
		if took := time.Since(began); took != 3*time.Second { // vLLM closes after 5
			t.Errorf("closed after %s", took)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	f := always(t, answer(`{"a":1}`))
	u := f.upstream(nil)
	var wait sync.WaitGroup
	for range 50 {
		c := call(t, "{}")
		wait.Go(func() {
			for range 10 {
				c.Rewriter = &plain{}
				if out, w := send(u, c); out.Refusal.Refused() || w.Body.String() != `{"a":1}` {
					t.Errorf("%v %q", out.Refusal.Err(), w.Body)
				}
			}
		})
	}
	wait.Wait()
	if n := len(f.got()); n != 500 {
		t.Errorf("%d requests arrived", n)
	}
}

// Answers are read into memory that is used again: none may show in another, whatever its size and framing.
func TestAnswersDoNotMix(t *testing.T) {
	f := listen(t, func(_ *fake, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			text := answer(string(body))
			if len(body)%2 == 1 {
				half := len(body) / 2
				text = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" +
					chunked(string(body[:half])) + chunked(string(body[half:])) + "0\r\n\r\n"
			}
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	})
	u := f.upstream(nil)
	var wait sync.WaitGroup
	for g := range 8 {
		c := call(t, "")
		wait.Go(func() {
			for i := range 60 {
				body := strings.Repeat(fmt.Sprintf("%d-%d ", g, i), 10+i*97) // to 30 KB
				c.Body, c.Rewriter = []byte(body), &plain{}
				if out, w := send(u, c); out.Refusal.Refused() || w.Body.String() != body {
					t.Errorf("%d, %d: %v; %d bytes of %d: %.40q", g, i, out.Refusal.Err(), w.Body.Len(), len(body), w.Body)
				}
			}
		})
	}
	wait.Wait()
}

func TestTargetsThatAreRefused(t *testing.T) {
	for _, c := range []struct{ target, key, says string }{
		{"", "", "needs a URL"},
		{"ftp://h", "", "scheme"},
		{"http://", "", "no host"},
		{"http://u:p@h", "", "user or password"},
		{"http://h/v1", "", "run vLLM without --root-path"},
		{"http://h?x", "", "query"},
		{"unix:relative", "", "absolute path"},
		{"unix://host/path", "", "absolute path"},
		{"http://h", "canary\r\nx: y", "holds a byte"},
		{"http://h", "canary canary", "holds a byte"},
	} {
		var target Target
		if c.target != "" {
			l, err := url.Parse(c.target)
			if err != nil {
				t.Fatal(err)
			}
			target = Target{Name: "n", URL: l, Key: c.key}
		}
		_, err := New(target)
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", c.target, err)
		}
	}
}

func TestATargetPrintsNoKey(t *testing.T) {
	target := Target{Name: "n", Key: "canary"}
	b, err := json.Marshal(target)
	if got := fmt.Sprintf("%v %+v %#v %s %s", target, target, target, &target, b); err != nil || strings.Contains(got, "canary") {
		t.Errorf("%s, %v", got, err)
	}
}

func TestGetAsksForProbesOnly(t *testing.T) {
	f := always(t, "HTTP/1.1 401 x\r\ncontent-length: 2\r\n\r\n{}")
	u := f.upstream(nil)
	for _, withKey := range []bool{true, false} {
		status, body, err := u.Get(context.Background(), "/v1/models", withKey)
		if err != nil || status != 401 || string(body) != "{}" {
			t.Errorf("%d %q %v", status, body, err)
		}
	}
	got := f.got()
	if !strings.Contains(got[0], "Authorization: Bearer canary-key") || strings.Contains(got[1], "canary") {
		t.Errorf("%q", got)
	}
	if _, _, err := u.Get(context.Background(), "/pause", true); err == nil || len(f.got()) != 2 {
		t.Error("what is no probe was asked for")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := u.Get(ctx, "/health", false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A real server of net/http and a real client around Send: hang-ups are noticed, nothing is left behind.
func TestBehindARealServer(t *testing.T) {
	sent, closed := make(chan struct{}), make(chan struct{})
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, streamHead+chunked("data: 1\n\n"))
		close(sent)
		_, _ = br.ReadByte()
		close(closed)
	})
	u, c := f.upstream(nil), streamCall(t)
	outs := make(chan verdict.Outcome, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { outs <- u.Send(r.Context(), w, c) }))
	defer server.Close()
	response, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("data: 1\n\n"))
	if _, err := io.ReadFull(response.Body, line); err != nil || !bytes.Equal(line, []byte("data: 1\n\n")) {
		t.Fatalf("%q, %v", line, err)
	}
	<-sent
	_ = response.Body.Close()
	<-closed
	if out := <-outs; out.Ended != verdict.ClientLeft || out.Events != 1 {
		t.Errorf("%+v", out)
	}
}
