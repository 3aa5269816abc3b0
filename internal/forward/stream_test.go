package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vallum/vallum/internal/sock"
	"github.com/vallum/vallum/internal/verdict"
)

const doneEvent = "data: [DONE]\n\n"

func TestStream(t *testing.T) {
	f := always(t, streamHead+chunked(": keep-alive\n\n")+chunked("data: 1\n\ndata: 2\n\n")+chunked("event: x\r\ndata: 3\r\n\r\n")+chunked(doneEvent)+"0\r\n\r\n")
	u := f.upstream(nil)
	for range 2 {
		out, w := send(u, streamCall(t))
		if want := ": keep-alive\n\ndata: 1\n\ndata: 2\n\nevent: x\r\ndata: 3\r\n\r\n" + doneEvent; w.Body.String() != want {
			t.Errorf("the caller saw %q", w.Body)
		}
		if out.Refusal.Refused() || out.Ended != verdict.Complete || out.Events != 4 || out.Status != 200 || out.BytesDown != int64(w.Body.Len()) || out.FirstByte <= 0 || out.Cause != nil || !w.Flushed {
			t.Errorf("%+v", out)
		}
		h := w.Header()
		if len(h) != 3 || h.Get("Content-Type") != "text/event-stream; charset=utf-8" || h.Get("Cache-Control") != "no-cache" || h.Get("X-Accel-Buffering") != "no" {
			t.Errorf("%v", h)
		}
	}
	if f.accepted() != 1 || !strings.Contains(f.got()[0], "Accept: text/event-stream\r\n") {
		t.Errorf("%d connections, %q", f.accepted(), f.got()[0])
	}
}

// pieces is a body that comes in the given pieces, and nothing in between.
type pieces struct{ list []string }

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.list) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.list[0])
	if p.list[0] = p.list[0][n:]; p.list[0] == "" {
		p.list = p.list[1:]
	}
	return n, nil
}

// However the bytes are cut on their way, the same events leave.
func TestStreamSplitAtEveryByte(t *testing.T) {
	text := ": c\n\n" + "data: é1\n\n" + "event: x\r\ndata: 2\r\n\r\n" + "\n\n" + "data: 3\ndata: 4\n\n" + doneEvent + "data: not whole\n"
	wire := streamHead + chunked(text[:7]) + chunked(text[7:40]) + chunked(text[40:]) + "0\r\n\r\n"
	relayed := func(list ...string) (string, []string) {
		var events []string
		c := streamCall(t)
		c.Rewriter = &plain{event: func(e []byte) []byte { events = append(events, string(e)); return e }}
		client, server := net.Pipe()
		defer shut(server)
		defer shut(client)
		w := httptest.NewRecorder()
		x := &exchange{up: &Upstream{timeouts: Timeouts{}.withDefaults()}, ctx: t.Context(), w: w, call: &c, start: time.Now(), unhook: func() bool { return false }}
		x.conn = newConn(client, client)
		x.conn.br = sock.NewReader(&pieces{list})
		h, err := x.conn.readHead("POST")
		if err != nil {
			t.Fatal(err)
		}
		x.stream(h)
		return w.Body.String(), events
	}
	want, events := relayed(wire)
	if want != strings.TrimSuffix(text, "data: not whole\n") || len(events) != 6 {
		t.Fatalf("%q in %d events", want, len(events))
	}
	for i := 1; i < len(wire); i++ {
		if got, cut := relayed(wire[:i], wire[i:]); got != want || fmt.Sprint(cut) != fmt.Sprint(events) {
			t.Fatalf("split at %d: %q, %q", i, got, cut)
		}
	}
	if got, cut := relayed(strings.Split(wire, "")...); got != want || fmt.Sprint(cut) != fmt.Sprint(events) {
		t.Fatalf("byte by byte: %q, %q", got, cut)
	}
}

// waiting is a body that looks, before each piece, whether memory is held although no part of an event lies there.
type waiting struct {
	pieces
	t     *testing.T
	x     *exchange
	left  int // pieces, when it looked last
	looks int
	whole bool // what came so far is whole events
}

func (w *waiting) Read(b []byte) (int, error) {
	if now := len(w.list); now < w.left && now > 0 {
		if w.left, w.looks = now, w.looks+1; w.whole && w.x.memory != nil {
			w.t.Errorf("before %.20q it holds %d bytes", w.list[0], cap(w.x.memory.B))
		}
		w.whole = strings.HasSuffix(w.list[0], "\n\n\r\n")
	}
	return w.pieces.Read(b)
}

// A stream that waits for its next event holds no memory for it: thousands may wait.
func TestAStreamThatWaitsHoldsNoMemory(t *testing.T) {
	events := "data: 1\n\n|data: " + strings.Repeat("x", 9000) + "\n\n|data: half| of it\n\n|" + doneEvent
	wire := []string{streamHead}
	for piece := range strings.SplitSeq(events, "|") {
		wire = append(wire, chunked(piece))
	}
	c, w := streamCall(t), httptest.NewRecorder()
	client, server := net.Pipe()
	defer shut(server)
	defer shut(client)
	x := &exchange{up: &Upstream{timeouts: Timeouts{}.withDefaults()}, ctx: t.Context(), w: w, call: &c, start: time.Now(), unhook: func() bool { return false }}
	x.conn = newConn(client, client)
	looks := &waiting{pieces: pieces{append(wire, "0\r\n\r\n")}, t: t, x: x, left: len(wire) + 1, whole: true}
	x.conn.br = sock.NewReader(looks)
	h, err := x.conn.readHead("POST")
	if err != nil {
		t.Fatal(err)
	}
	if out := x.stream(h); out.Ended != verdict.Complete || w.Body.String() != strings.ReplaceAll(events, "|", "") || looks.looks != len(wire) {
		t.Errorf("%d looks, %+v: %.200q", looks.looks, out, w.Body.String())
	}
}

// An event reaches the client before the next one exists.
func TestEachEventLeavesAtOnce(t *testing.T) {
	step := make(chan struct{})
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, streamHead)
		for i := range 5 {
			<-step
			_, _ = io.WriteString(c, chunked(fmt.Sprintf("data: %d\n\n", i)))
		}
		_, _ = io.WriteString(c, chunked(doneEvent)+"0\r\n\r\n")
	})
	u, c := f.upstream(nil), streamCall(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { u.Send(r.Context(), w, c) }))
	defer server.Close()
	go func() { step <- struct{}{} }() // the status line leaves with the first event
	response, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer shut(response.Body)
	lines := bufio.NewReader(response.Body)
	for i := range 5 {
		line, err := lines.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d: %q, %v", i, line, err)
		}
		_, _ = lines.ReadString('\n')
		if i < 4 {
			step <- struct{}{} // only now does the next one come to be
		}
	}
	if rest, _ := io.ReadAll(lines); string(rest) != doneEvent {
		t.Errorf("the rest: %q", rest)
	}
}

// Streams that do not end well: what the caller saw, and what the record says.
func TestStreamsThatEndBadly(t *testing.T) {
	for _, c := range []struct {
		what, answer string
		ended        verdict.Ended
		seen         string
	}{
		{"just ends", streamHead + chunked("data: 1\n\n") + "0\r\n\r\n", verdict.UpstreamEndedEarly, "data: 1\n\ndata: ended complete\n\n"},
		{"dies between events", streamHead + chunked("data: 1\n\n"), verdict.UpstreamEndedEarly, "data: 1\n\ndata: ended upstream_ended_early\n\n"},
		{"dies in an event", streamHead + chunked("data: 1\n\nda"), verdict.UpstreamEndedEarly, "data: 1\n\ndata: ended upstream_ended_early\n\n"},
		{"dies in a chunk", streamHead + "ff\r\ndata: 1\n\ndat", verdict.UpstreamEndedEarly, "data: 1\n\ndata: ended upstream_ended_early\n\n"},
		{"is no longer HTTP", streamHead + chunked("data: 1\n\n") + "garbage\r\n", verdict.UpstreamError, "data: 1\n\ndata: ended upstream_error\n\n"},
		{"breaks after its end", streamHead + chunked(doneEvent) + "garbage\r\n", verdict.Complete, doneEvent},
		{"is empty", streamHead + "0\r\n\r\n", verdict.UpstreamEndedEarly, "data: ended complete\n\n"},
		{"has an event without end", streamHead + chunked("data: 1\n\ndata: "+strings.Repeat("x", maxEvent+1)), verdict.UpstreamEndedEarly, "data: 1\n\ndata: ended upstream_ended_early\n\n"},
	} {
		out, w := send(once(t, c.answer).upstream(nil), streamCall(t))
		if out.Ended != c.ended || out.Refusal.Refused() || !out.Written || w.Body.String() != c.seen {
			t.Errorf("%s: ended %s, the caller saw %.80q (%v)", c.what, out.Ended, w.Body, out.Cause)
		}
		if strings.Contains(c.what, "without end") && !strings.Contains(out.Cause.Error(), "an event of more than") {
			t.Errorf("%s: %v", c.what, out.Cause)
		}
	}
	for what, answer := range map[string]string{
		"dies before the first event": streamHead,
		"dies in the first event":     streamHead + chunked("data: 1\n"),
		"is encoded":                  strings.Replace(streamHead, "\r\n\r\n", "\r\ncontent-encoding: br\r\n\r\n", 1) + chunked(doneEvent) + "0\r\n\r\n",
	} {
		out, w := send(once(t, answer).upstream(nil), streamCall(t))
		if out.Refusal.Reason() != verdict.UpstreamFailed || out.Written || w.Body.Len() > 0 {
			t.Errorf("%s: %+v", what, out)
		}
	}
}

func TestAStreamThatGoesSilent(t *testing.T) {
	for _, c := range []struct {
		what, first string
		written     bool
		after       time.Duration
	}{
		{"before the first event", streamHead, false, time.Minute},
		{"with nothing but keep-alives", streamHead + chunked(": keep-alive\n\n"), true, time.Minute},
		{"after an event", streamHead + chunked("data: 1\n\n"), true, 10 * time.Second},
		{"in an event", streamHead + chunked("data: 1\n\ndata"), true, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := listenPiped(t, func(f *fake, conn net.Conn, br *bufio.Reader) {
				f.request(br)
				_, _ = io.WriteString(conn, c.first)
				_, _ = br.ReadByte()
			})
			rw := &plain{}
			cl := streamCall(t)
			cl.Rewriter = rw
			began := time.Now()
			out, w := send(f.upstream(timeouts(time.Minute, 10*time.Second)), cl)
			if took := time.Since(began); out.Ended != verdict.TimedOut || out.Written != c.written || took != c.after {
				t.Errorf("%s: after %s, want %s: %+v", c.what, took, c.after, out)
			}
			if c.written && !strings.HasSuffix(w.Body.String(), "data: ended timeout\n\n") || !c.written && out.Refusal.Reason() != verdict.UpstreamTimeout {
				t.Errorf("%s: %q, %v", c.what, w.Body, out.Refusal.Err())
			}
		})
	}
}

// A stream that moves has no total limit: here it lives for as long as a hundred of the pauses that are allowed.
func TestAStreamThatMovesIsNotTimedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pause, events = 10 * time.Second, 111
		f := listenPiped(t, func(f *fake, c net.Conn, br *bufio.Reader) {
			f.request(br)
			_, _ = io.WriteString(c, streamHead)
			for range events {
				<-time.After(pause - time.Second)
				_, _ = io.WriteString(c, chunked("data: 1\n\n"))
			}
			_, _ = io.WriteString(c, chunked(doneEvent)+"0\r\n\r\n")
		})
		out, _ := send(f.upstream(timeouts(pause, pause)), streamCall(t))
		if out.Ended != verdict.Complete || out.Events != events+1 || out.InterEvent != (events-1)*(pause-time.Second)/events {
			t.Errorf("%+v", out)
		}
	})
}

// An event that only we asked for does not leave, and an answer that is no stream is not taken for one.
func TestEventsThatDoNotLeave(t *testing.T) {
	c := streamCall(t)
	c.Rewriter = &plain{event: func(e []byte) []byte {
		if strings.Contains(string(e), "usage") {
			return nil
		}
		return e
	}}
	out, w := send(once(t, streamHead+chunked("data: 1\n\n")+chunked("data: usage\n\n")+chunked(doneEvent)+"0\r\n\r\n").upstream(nil), c)
	if w.Body.String() != "data: 1\n\n"+doneEvent || out.Ended != verdict.Complete {
		t.Errorf("%q, %+v", w.Body, out)
	}
	out, w = send(once(t, answer("{}")).upstream(nil), streamCall(t))
	if w.Body.String() != "{}" || out.Ended != verdict.Complete {
		t.Errorf("JSON to a request for a stream: %q, %+v", w.Body, out)
	}
	out, w = send(once(t, streamHead+chunked(doneEvent)+"0\r\n\r\n").upstream(nil), call(t, "{}"))
	if !out.Refusal.Refused() || w.Body.Len() > 0 {
		t.Errorf("a stream that nobody asked for: %q, %+v", w.Body, out)
	}
}

// A client that stops reading is given up, and the upstream with it.
func TestAClientThatDoesNotRead(t *testing.T) {
	for what, serve := range map[string]func(c net.Conn) error{
		"a stream": func(c net.Conn) error {
			_, _ = io.WriteString(c, streamHead)
			big := chunked("data: " + strings.Repeat("x", 1<<20) + "\n\n")
			for {
				if _, err := io.WriteString(c, big); err != nil {
					return err
				}
			}
		},
		"a whole answer": func(c net.Conn) error {
			_, err := io.WriteString(c, answer(strings.Repeat("x", 48<<20)))
			return err
		},
	} {
		served := make(chan struct{})
		f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
			f.request(br)
			_ = serve(c)
			close(served)
		})
		u := f.upstream(func(t *Target) { t.Timeouts.Write = 100 * time.Millisecond })
		c, outs := streamCall(t), make(chan verdict.Outcome, 1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { outs <- u.Send(r.Context(), w, c) }))
		client, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		<-served
		if out := <-outs; out.Ended != verdict.ClientLeft || out.Cause == nil {
			t.Errorf("%s: %+v", what, out)
		}
		_ = client.Close()
		server.Close()
	}
}
