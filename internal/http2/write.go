package http2

import (
	"net/http"
	"time"
)

// bounded gives each write of an answer over HTTP/2 a deadline, and silence none. Of a stream net/http knows one deadline,
// which resets it when it passes, though nothing is being written; without one, a client that gives its streams no window
// keeps the handler and its answer, a refusal too, for as long as it likes.
func bounded(h http.Handler, write time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{ResponseWriter: w, control: http.NewResponseController(w), write: write}
		h.ServeHTTP(a, r)
		a.bound() // what is left is written when this returns
	})
}

// answer is one over HTTP/2.
type answer struct {
	http.ResponseWriter
	control *http.ResponseController
	write   time.Duration
	bounded bool // a deadline is set
}

func (a *answer) bound() {
	if !a.bounded {
		_ = a.SetWriteDeadline(time.Now().Add(a.write)) // net/http's HTTP/2 has deadlines
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.bound()
	return a.ResponseWriter.Write(p)
}

// SetWriteDeadline takes effect until the next flush has ended.
func (a *answer) SetWriteDeadline(by time.Time) error {
	if by.IsZero() || by.After(time.Now()) { // one that has passed resets the stream, and any goroutine may set it
		a.bounded = !by.IsZero()
	}
	return a.control.SetWriteDeadline(by)
}

// FlushError sends what was written; what follows may take its time to exist.
func (a *answer) FlushError() error {
	a.bound()
	err := a.control.Flush()
	_ = a.SetWriteDeadline(time.Time{})
	return err
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
