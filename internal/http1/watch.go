package http1

import (
	"slices"
	"sync"
	"time"
)

// patience is how long a request runs before its client is watched. Most are answered by then, and a watch costs a
// goroutine, two deadlines and a wake-up, which is as much as a short request costs in all.
const patience = 20 * time.Millisecond

// ahead is how much is kept of what a client sends before its answer: a line end too much behind the body, the next
// request. Who sends more than that is not watched any longer; that he left is seen by the next write to him.
const ahead = 4 << 10

// watch sees, while a handler runs and the request's body has been read, that the client closes the connection, and
// ends the connection's context. What the client sends early is kept for the next request, and the watch goes on.
type watch struct {
	conn  *conn
	early []byte // read by the watch, and not yet by the connection's reader

	mu    sync.Mutex
	ended sync.Cond
	timer *time.Timer
	state int8 // off, waiting, reading, stopping
	byte  [1]byte
}

const (
	off int8 = iota
	waiting
	reading
	stopping // a read that fails now says nothing of the client
)

// start is called when nothing of the request is left to read.
func (w *watch) start() {
	w.conn.br.Lend()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = waiting
	if w.timer == nil {
		w.ended.L = &w.mu
		w.timer = time.AfterFunc(patience, w.read)
	} else {
		w.timer.Reset(patience)
	}
}

// read waits for the connection's end, or for more than is kept.
func (w *watch) read() {
	w.mu.Lock()
	if w.state != waiting {
		w.mu.Unlock()
		return
	}
	w.state = reading
	_ = w.conn.rwc.SetReadDeadline(time.Time{})
	w.conn.readSet = time.Time{}
	buf := append(w.byte[:0], w.early...)
	w.mu.Unlock()
	for {
		n, err := w.conn.rwc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		w.mu.Lock()
		if err == nil && w.state == reading && len(buf) < ahead {
			w.mu.Unlock()
			buf = slices.Grow(buf, ahead-len(buf)) // once: the first byte is alone, for hardly anybody sends one
			continue
		}
		w.early = buf
		if err != nil && w.state == reading {
			w.conn.cancel(errClientLeft)
		}
		w.state = off
		w.ended.Broadcast()
		w.mu.Unlock()
		return
	}
}

// stop returns once the watch is over, so that the connection can be read again.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.state {
	case waiting:
		w.timer.Stop()
		w.state = off
	case reading:
		w.state = stopping
		_ = w.conn.rwc.SetReadDeadline(longAgo)
		for w.state != off {
			w.ended.Wait()
		}
		w.conn.readSet = longAgo
	}
}

// longAgo makes a read that waits return.
var longAgo = time.Unix(1, 0)
