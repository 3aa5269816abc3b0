package gateway

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/verdict"
)

// Memory bounds the bytes of request bodies that all running requests hold together. The zero Memory holds nothing.
// It outlives reloads.
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

// held is a body whose bytes are taken from the memory: all at once when its length is declared, as they come when not.
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

// give returns what was taken; a nil held took nothing.
func (h *held) give() {
	if h == nil || h.n == 0 {
		return
	}
	h.memory.taken.Add(-h.n)
	h.n = 0
}

// timedBody gives the whole body a deadline, from the first read on: a caller that sends a byte a minute would
// otherwise hold a slot and memory for as long as it likes.
type timedBody struct {
	body    io.Reader
	control *http.ResponseController
	timeout time.Duration
	now     func() time.Time
	armed   bool
}

func (g *Gateway) deadlineFor(w http.ResponseWriter, body io.Reader) *timedBody {
	return &timedBody{body: body, control: http.NewResponseController(w), timeout: g.Settings.BodyTimeout, now: g.Now}
}

func (b *timedBody) Read(p []byte) (int, error) {
	if !b.armed && b.timeout > 0 {
		b.armed = true
		// A writer without deadlines (an ext_authz caller) has its own; the server's has one.
		_ = b.control.SetReadDeadline(b.now().Add(b.timeout))
	}
	return b.body.Read(p)
}

// done takes the deadline away again: the connection's reader goes on to watch for the client's leaving.
func (b *timedBody) done() {
	if b.armed {
		_ = b.control.SetReadDeadline(time.Time{})
	}
}
