package forward

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/ascii"
	"github.com/vallum/vallum/internal/spare"
	"github.com/vallum/vallum/internal/verdict"
)

// whole reads an answer that is no stream, has it rewritten, and writes it with its length.
func (x *exchange) whole(h head) verdict.Verdict {
	most := x.call.MaxReply
	if most <= 0 {
		most = defaultMaxReply
	}
	body, err := x.read(h, most)
	if err != nil {
		return x.broken(fmt.Errorf("reading the answer: %w", err))
	}
	if h.encoded {
		return x.broken(fmt.Errorf("the upstream encodes its answer although identity was asked for"))
	}
	out, v := x.call.Rewriter.Whole(h.status, h.contentType, body)
	if v.Refused() {
		return v
	}
	x.take(-int64(cap(body))) // one of the two: as it came, or as it leaves, however slow the caller takes it
	if cap(out) > 0 && cap(body) > 0 && &out[:1][0] != &body[:1][0] {
		x.memory.GiveBack()
		x.memory, body = nil, nil
	}
	if h.metadata != "" {
		if m := x.call.Rewriter.Metadata(h.metadata); m != "" && ascii.Printable(m) {
			x.w.Header().Set("Metadata", m)
		}
	}
	x.write(h, out)
	x.memory.GiveBack()
	return verdict.Allow()
}

// failed has a verdict made of an error status. An allowed one lets the upstream's body out as it is.
func (x *exchange) failed(h head) verdict.Verdict {
	body, err := x.read(h, maxErrorBody)
	if err != nil {
		return x.broken(fmt.Errorf("reading the body of status %d: %w", h.status, err))
	}
	v := x.call.Rewriter.Failed(h.status, body)
	x.out.Ended = verdict.UpstreamError
	if v.Refused() {
		if h.retryAfter > 0 && v.Reason() == verdict.UpstreamBusy {
			v = v.After(h.retryAfter)
		}
		return v
	}
	if h.status < 400 { // a redirect leads past the gate
		return verdict.Refuse(verdict.UpstreamFailed, fmt.Errorf("the upstream answered %d", h.status))
	}
	x.write(h, body)
	x.out.Ended = verdict.UpstreamError
	return verdict.Allow()
}

// read reads the whole body of the answer, at most so many bytes.
func (x *exchange) read(h head, most int64) ([]byte, error) {
	b := x.conn.body(h)
	// What is declared is borrowed as far as that is not much; a lie must not cost memory.
	x.memory = spare.Borrow(int(min(max(b.length, 0), 1<<20)) + 1)
	body, err := b.all(x.memory.B, most, x.pause, x.take)
	x.out.Upstream = time.Since(x.start)
	if len(body) > 0 {
		x.out.FirstByte = b.first.Sub(x.start)
	}
	if err != nil {
		return nil, err
	}
	x.clean = !h.close
	return body, nil
}

// pause sets the deadline for the next bytes of an answer that has begun.
func (x *exchange) pause() { x.conn.within(time.Now(), x.up.timeouts.BetweenEvents) }

// write writes the whole answer to the caller. The connection is given back first: the caller may be slow.
func (x *exchange) write(h head, body []byte) {
	x.release()
	hs := x.w.Header()
	if h.contentType != "" && ascii.Printable(h.contentType) {
		hs.Set("Content-Type", h.contentType)
	}
	hs.Set("Content-Length", strconv.Itoa(len(body)))
	rc := http.NewResponseController(x.w)
	_ = rc.SetWriteDeadline(time.Now().Add(x.up.timeouts.Write)) // a test's recorder has none
	x.w.WriteHeader(h.status)
	n, err := x.w.Write(body)
	x.out.Refusal, x.out.Written, x.out.Status, x.out.BytesDown = verdict.Allow(), true, h.status, int64(n)
	x.out.Ended, x.out.UpMessage = x.call.Rewriter.Ended(), x.call.Rewriter.UpMessage()
	if err != nil {
		x.out.Ended, x.out.Cause = verdict.ClientLeft, fmt.Errorf("writing the answer: %w", err)
		x.memory = nil // net/http's HTTP/2 may still be writing it, to a client that reset its stream: it is nobody else's
	}
}

func isEvents(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(media), "text/event-stream")
}

// errTooLarge is an answer over its cap.
type errTooLarge int64

func (e errTooLarge) Error() string {
	return fmt.Sprintf("the answer has more than %d bytes", int64(e))
}

var errNoRoom = errors.New("the memory for bodies is used up by other requests")

// unbounded is take for what is small, or asked for by us.
func unbounded(int64) bool { return true }

// take takes memory of what all requests share, or gives it back.
func (x *exchange) take(n int64) bool { return x.call.Room == nil || x.call.Room(n) }

// all reads to the body's end, at first into buf, which is empty. Before each read that may have to wait, wait is called.
// What is read takes its memory twice, for the rewriting makes another answer of it.
func (b *body) all(buf []byte, most int64, wait func(), take func(n int64) bool) ([]byte, error) {
	switch {
	case b.length > most:
		return nil, errTooLarge(most)
	case !take(2 * int64(cap(buf))):
		return nil, errNoRoom
	}
	for {
		if len(buf) == cap(buf) {
			size := min(max(2*int64(cap(buf)), 4<<10), most+1)
			if b.length > 0 {
				size = min(size, b.length+1)
			}
			if !take(2 * (size - int64(cap(buf)))) {
				return nil, errNoRoom
			}
			buf = append(make([]byte, 0, size), buf...)
		}
		if b.waits() {
			wait()
		}
		n, err := b.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > most {
			return nil, errTooLarge(most)
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// waits reports whether reading on may have to wait for the upstream.
func (b *body) waits() bool {
	if b.left == 0 {
		return b.chunked
	}
	return b.conn.br.Buffered() == 0
}
