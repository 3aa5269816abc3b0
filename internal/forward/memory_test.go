package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/spare"
	"github.com/vallum/vallum/internal/verdict"
)

// shared is the memory of all requests, as forward sees it.
type shared struct{ most, taken, peak int64 }

func (s *shared) room(n int64) bool {
	if s.taken+n > s.most {
		return false
	}
	s.taken += n
	s.peak = max(s.peak, s.taken)
	return true
}

// watching notes what is taken while the answer is written to its caller, who may be slow.
type watching struct {
	*httptest.ResponseRecorder
	shared *shared
	taken  int64
}

func (w *watching) Write(b []byte) (int, error) {
	w.taken = w.shared.taken
	return w.ResponseRecorder.Write(b)
}

// copying makes another answer of each, as the real rewriting does.
type copying struct{ plain }

func (c *copying) Whole(status int, contentType string, body []byte) ([]byte, verdict.Verdict) {
	out, v := c.plain.Whole(status, contentType, body)
	return bytes.Clone(out), v
}

func TestAnAnswerTakesWhatItHoldsOfTheSharedMemory(t *testing.T) {
	const size = 3 << 20
	body := strings.Repeat("x", size)
	declared := answer(body)
	open := "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(body[:100]) + chunked(body[100:]) + "0\r\n\r\n"
	for what, c := range map[string]struct {
		answer string
		most   int64 // of memory that it may take
		w      Rewriter
	}{
		"declared":                 {declared, 2*size + 2, &plain{}},
		"declared, and rewritten":  {declared, 2*size + 2, &copying{}},
		"of unknown length":        {open, 4 * size, &plain{}},
		"unknown, and rewritten":   {open, 4 * size, &copying{}},
		"a kilobyte":               {answer(body[:1000]), 4 << 10, &plain{}},
		"a kilobyte of rewritten":  {answer(body[:1000]), 4 << 10, &copying{}},
		"an error, which is small": {strings.Replace(answer(body[:3000]), "200 OK", "500 X", 1), 8 << 10, &plain{}},
	} {
		u := always(t, c.answer).upstream(nil)
		for _, enough := range []bool{true, false} {
			s := &shared{most: c.most}
			if !enough {
				s.most = min(c.most/2, size)
			}
			cl := call(t, "{}")
			cl.Room, cl.Rewriter = s.room, c.w
			w := &watching{httptest.NewRecorder(), s, 0}
			out := u.Send(t.Context(), w, cl)
			switch {
			case !enough:
				if out.Written || out.Refusal.Reason() != verdict.Busy || out.Ended != verdict.NoMemory || w.Body.Len() != 0 {
					t.Errorf("%s, without room: %+v", what, out)
				}
			case out.UpStatus == 500:
				if out.Refusal.Reason() != verdict.UpstreamRefused {
					t.Errorf("%s: %+v", what, out)
				}
			default:
				n := int64(w.Body.Len())
				if out.Ended != verdict.Complete || s.peak < 2*n || w.taken < n || w.taken > s.peak/2 {
					t.Errorf("%s: %d bytes took %d, and %d while they were written; %+v", what, n, s.peak, w.taken, out)
				}
			}
		}
	}
}

// An answer that finds no room is not read on, and its connection serves nobody else.
func TestAnAnswerWithoutRoomIsCut(t *testing.T) {
	cut := make(chan error, 1)
	f := listen(t, func(f *fake, c net.Conn, br *bufio.Reader) {
		f.request(br)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n{")
		_, err := br.ReadByte()
		cut <- err
	})
	u := f.upstream(nil)
	cl := call(t, "{}")
	cl.Room = (&shared{most: 8 << 10}).room
	if out, _ := send(u, cl); out.Ended != verdict.NoMemory {
		t.Errorf("%+v", out)
	}
	if err := <-cut; err == nil {
		t.Error("the upstream was not cut")
	}
}

// Streams take nothing but for large events, and give that back when the event has left.
func TestALargeEventTakesOfTheSharedMemory(t *testing.T) {
	small, large := "data: {}\n\n", "data: "+strings.Repeat("x", 300<<10)+"\n\n"
	u := always(t, streamHead+chunked(small)+chunked(large)+chunked(small)+chunked("data: [DONE]\n\n")+"0\r\n\r\n").upstream(nil)
	for most, want := range map[int64]verdict.Ended{2 << 20: verdict.Complete, 500 << 10: verdict.NoMemory, 0: verdict.NoMemory} {
		s := &shared{most: most}
		cl := streamCall(t)
		cl.Room = s.room
		out, w := send(u, cl)
		if out.Ended != want || !strings.HasPrefix(w.Body.String(), small) {
			t.Errorf("%d bytes of room: %+v", most, out)
		}
		if want == verdict.Complete && (s.taken != 0 || s.peak < 600<<10) {
			t.Errorf("%d bytes at most, %d still taken", s.peak, s.taken)
		}
		if want == verdict.NoMemory && !strings.HasSuffix(w.Body.String(), "data: ended no_memory\n\n") {
			t.Errorf("%d bytes of room: it ends in %q", most, w.Body.String())
		}
	}
}

// keeping fails to write and goes on reading what it was given, as net/http's HTTP/2 does: a stream that its client resets
// fails its writer's Write while the frame may still be on its way out.
type keeping struct {
	*httptest.ResponseRecorder
	kept []byte
}

func (k *keeping) Write(b []byte) (int, error) {
	k.kept = b
	return 0, errors.New("stream closed")
}

// What is perhaps still being written to one caller must not become the memory of another's answer.
func TestTheMemoryOfAWriteThatFailedIsNotUsedAgain(t *testing.T) {
	body := `"` + strings.Repeat("a", 20<<10) + `"`
	u := always(t, answer(body)).upstream(nil)
	var all []*keeping
	for range 20 {
		w := &keeping{ResponseRecorder: httptest.NewRecorder()}
		if out := u.Send(context.Background(), w, call(t, "{}")); out.Ended != verdict.ClientLeft || len(w.kept) != len(body) {
			t.Fatalf("%+v", out)
		}
		all = append(all, w)
		for range 4 { // somebody else's
			b := spare.Borrow(len(body) + 1)
			for b.B = b.B[:cap(b.B)]; len(b.B) > 0; b.B = b.B[1:] {
				b.B[0] = 'z'
			}
		}
	}
	for i, w := range all {
		if string(w.kept) != body {
			t.Fatalf("answer %d was written over: %.20q", i, w.kept)
		}
	}
}
