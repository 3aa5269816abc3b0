package gateway

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/verdict"
)

// Memory bounds the bytes of bodies that all running requests hold together: what callers send until it is up, and whole
// replies, which are held twice while they are rewritten. The zero Memory holds nothing. It outlives reloads.
type Memory struct {
	most  int64
	taken atomic.Int64
}

// NewMemory makes a memory of at most so many bytes.
func NewMemory(most int64) *Memory { return &Memory{most: most} }

// Taken is how many bytes are held now.
func (m *Memory) Taken() int64 { return m.taken.Load() }

func (m *Memory) take(n int64) bool {
	if m.taken.Add(n) <= m.most {
		return true
	}
	m.taken.Add(-n)
	return false
}

// largest is how large one whole reply may be: more would find no room even alone.
func (m *Memory) largest(most int64) int64 { return min(most, max(m.most-step, 0)/2) }

// held is a body whose bytes are taken from the memory: all at once when its length is declared, as they come when not.
// Once it is up, the reply's bytes are taken in its place.
type held struct {
	memory *Memory
	body   io.Reader
	n      int64 // taken
	read   int64
}

// step is how much is taken at a time for a body of unknown length.
const step = 64 << 10

func (m *Memory) hold(body io.Reader, declared int64) (*held, verdict.Verdict) {
	h := &held{memory: m, body: body}
	if declared > 0 && !h.take(declared) {
		return nil, verdict.Refuse(verdict.Busy, nil)
	}
	return h, verdict.Allow()
}

func (h *held) take(n int64) bool {
	if !h.memory.take(n) {
		return false
	}
	h.n += n
	return true
}

func (h *held) Read(p []byte) (int, error) {
	if h.read >= h.n && !h.take(step) {
		return 0, inspect.ErrBusy
	}
	if room := h.n - h.read; int64(len(p)) > room {
		p = p[:room]
	}
	n, err := h.body.Read(p)
	h.read += int64(n)
	return n, err
}

// room takes bytes of a reply, or gives some back.
func (h *held) room(n int64) bool {
	if n > 0 {
		return h.take(n)
	}
	n = max(n, -h.n)
	h.memory.taken.Add(n)
	h.n += n
	return true
}

// give returns what was taken; a nil held took nothing.
func (h *held) give() {
	if h == nil || h.n == 0 {
		return
	}
	h.memory.taken.Add(-h.n)
	h.n = 0
}

// linger is how long a server may go on reading a body that nobody wants any more, so that a client which writes first
// and reads then gets the answer (net/http, which serves HTTP/2, reads before it answers).
const linger = 500 * time.Millisecond

// timedBody gives the whole body a deadline, from the request's arrival on: a caller that sends a byte a minute, with a
// key or without, would otherwise hold a connection, a slot and memory for as long as it likes.
type timedBody struct {
	body    io.Reader
	control *http.ResponseController
	now     func() time.Time
	left    bool // there may be more to read
	late    bool // its deadline passed
}

func (g *Gateway) deadlineFor(w http.ResponseWriter, r *http.Request) *timedBody {
	b := &timedBody{body: r.Body, control: http.NewResponseController(w), now: g.Now, left: r.ContentLength != 0}
	if b.left {
		// A writer without deadlines (an ext_authz caller) has its own; the server's has one.
		_ = b.control.SetReadDeadline(b.now().Add(g.Settings.BodyTimeout))
	}
	return b
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	var timeout interface{ Timeout() bool }
	switch {
	case err == io.EOF:
		b.left = false
		_ = b.control.SetReadDeadline(time.Time{}) // the connection's reader goes on to watch for the client's leaving
	case errors.As(err, &timeout) && timeout.Timeout():
		b.late = true
	}
	return n, err
}

// done is called before anything is answered: what is left of the body has a moment more, and none when it was late.
func (b *timedBody) done() {
	if b.left && !b.late {
		_ = b.control.SetReadDeadline(b.now().Add(linger))
	}
}
