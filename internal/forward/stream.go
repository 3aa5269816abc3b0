package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/vallum/vallum/internal/spare"
	"github.com/vallum/vallum/internal/verdict"
)

// stream relays server-sent events: each is rewritten, written and flushed before the next is waited for. The status
// line leaves with the first event, so that an upstream that fails before it can still be answered with an error.
func (x *exchange) stream(h head) verdict.Outcome {
	s := &relay{exchange: x, head: h, rc: http.NewResponseController(x.w), body: x.conn.body(h)}
	if h.encoded {
		return x.refuse(x.broken(errors.New("the upstream encodes its stream although identity was asked for")))
	}
	err := s.run()
	x.out.Upstream = time.Since(x.start)
	if s.events > 1 {
		x.out.InterEvent = s.last.Sub(s.firstEvent) / time.Duration(s.events-1)
	}
	x.out.Events = s.events
	if err != nil && !s.began {
		return x.refuse(x.broken(err))
	}
	x.clean = err == nil && !h.close
	return s.finish(err)
}

// relay is one stream on its way.
type relay struct {
	*exchange
	head       head
	rc         *http.ResponseController
	body       *body
	buf        []byte // read and not yet relayed; in memory
	scanned    int    // of buf, what holds no end of an event
	began      bool   // the status line left
	gone       error  // writing to the caller failed
	events     int64  // with data
	firstEvent time.Time
	last       time.Time
	writeBy    time.Time // the write deadline that is set
}

// run relays until the body ends, the upstream fails or the caller is gone.
func (s *relay) run() error {
	for {
		wrote := false
		for {
			event := s.next()
			if event == nil {
				break
			}
			if s.relay(event) {
				wrote = true
			}
		}
		if wrote {
			s.flush()
		}
		if s.gone != nil {
			return s.gone
		}
		if err := s.fill(); err != nil {
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("reading the stream: %w", err)
		}
	}
}

// fill reads what there is of the stream, waiting for something.
func (s *relay) fill() error {
	if len(s.buf) == 0 && s.memory != nil { // or every stream that waits would hold some, and one with a large event much
		s.take(-counted(cap(s.memory.B)))
		s.memory.GiveBack()
		s.memory, s.buf = nil, nil
	}
	if s.events > 0 {
		s.conn.within(s.last, s.up.timeouts.BetweenEvents)
	}
	if err := s.body.await(); err != nil {
		return err
	}
	if err := s.room(); err != nil {
		return err
	}
	n, err := s.body.Read(s.buf[len(s.buf):cap(s.buf)])
	s.buf = s.buf[:len(s.buf)+n]
	return err
}

// room makes place behind what is buffered.
func (s *relay) room() error {
	switch {
	case s.memory == nil:
		s.memory = spare.Borrow(4 << 10)
		s.buf = s.memory.B
	case len(s.buf) < cap(s.buf):
	case len(s.buf) >= maxEvent:
		return fmt.Errorf("an event of more than %d bytes", maxEvent)
	case len(s.buf) <= cap(s.memory.B)/2:
		s.buf = append(s.memory.B, s.buf...)
	default:
		size := 2 * cap(s.memory.B)
		if !s.take(counted(size) - counted(cap(s.memory.B))) {
			return errNoRoom
		}
		larger := spare.Borrow(size)
		s.buf = append(larger.B, s.buf...)
		s.memory.GiveBack()
		s.memory = larger
	}
	return nil
}

// smallEvent is the bytes of buffer that every stream may have.
const smallEvent = 64 << 10

// counted is what a buffer takes of the memory that all share: it, and what is rewritten of it.
func counted(size int) int64 {
	if size <= smallEvent {
		return 0
	}
	return 2 * int64(size)
}

// next cuts the next whole event off the buffer; nil when there is none. It is valid until the next call.
func (s *relay) next() []byte {
	end := endOfEvent(s.buf, s.scanned)
	if end < 0 {
		s.scanned = max(0, len(s.buf)-2)
		return nil
	}
	event := s.buf[:end]
	s.buf, s.scanned = s.buf[end:], 0
	return event
}

// endOfEvent finds the blank line that ends an event, and gives where what follows begins; -1 when there is none yet.
// Line ends are LF or CRLF: vLLM writes LF.
func endOfEvent(b []byte, from int) int {
	for from < len(b) {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return -1
		}
		from += i + 1
		switch {
		case from < len(b) && b[from] == '\n':
			return from + 1
		case from+1 < len(b) && b[from] == '\r' && b[from+1] == '\n':
			return from + 2
		}
	}
	return -1
}

// relay has one event rewritten and writes it; it reports whether something was written.
func (s *relay) relay(event []byte) bool {
	if isData(event) {
		s.last = time.Now()
		if s.events++; s.events == 1 {
			s.firstEvent, s.out.FirstByte = s.last, s.last.Sub(s.start)
		}
	}
	out := s.call.Rewriter.Event(event)
	if len(out) == 0 || s.gone != nil {
		return false
	}
	s.write(out)
	return true
}

// isData reports whether the event has data: comments are keep-alives of the server, which says nothing of the engine.
func isData(event []byte) bool {
	return event[0] != ':' || bytes.Contains(event, []byte("\ndata:"))
}

// write writes to the caller, after the status line.
func (s *relay) write(b []byte) {
	if !s.began {
		s.begin()
	}
	now := time.Now()
	if by := now.Add(s.up.timeouts.Write); by.Sub(s.writeBy) > min(time.Second, s.up.timeouts.Write/16) {
		s.writeBy = by
		_ = s.rc.SetWriteDeadline(by) // a test's recorder has none
	}
	n, err := s.w.Write(b)
	s.out.BytesDown += int64(n)
	if err != nil && s.gone == nil {
		s.gone = err
	}
}

func (s *relay) begin() {
	s.began = true
	h := s.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // nginx in front of us would hold events back
	s.w.WriteHeader(s.head.status)
	s.out.Written, s.out.Status, s.out.Refusal = true, s.head.status, verdict.Allow()
}

func (s *relay) flush() {
	if err := s.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) && s.gone == nil {
		s.gone = err
	}
}

// finish ends the stream in its dialect and completes the outcome.
func (s *relay) finish(err error) verdict.Outcome {
	cause := s.cause(err)
	if cause != verdict.Complete {
		s.release() // the upstream is to stop at once, however slow the caller is
	}
	s.out.Cause = err
	_ = s.rc.SetWriteDeadline(time.Now().Add(s.up.timeouts.Write)) // the last one may lie long back, and net/http still ends the body
	if tail := s.call.Rewriter.Finish(cause); len(tail) > 0 && s.gone == nil {
		s.write(tail)
	}
	if !s.began {
		s.begin() // a stream without an event
	}
	s.flush()
	s.out.Ended, s.out.UpMessage = s.call.Rewriter.Ended(), s.call.Rewriter.UpMessage()
	if s.gone != nil {
		s.out.Ended, s.out.Cause = verdict.ClientLeft, fmt.Errorf("writing to the client: %w", s.gone)
	}
	return s.out
}

// cause says how the connection ended.
func (s *relay) cause(err error) verdict.Ended {
	switch {
	case err == nil:
		return verdict.Complete
	case s.gone != nil:
		return verdict.ClientLeft
	case s.ctx.Err() != nil:
		return causeOf(s.ctx)
	case isTimeout(err):
		return verdict.TimedOut
	case errors.Is(err, errNoRoom):
		return verdict.NoMemory
	case errors.Is(err, errNotHTTP):
		return verdict.UpstreamError
	}
	return verdict.UpstreamEndedEarly
}
