package http2

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"
)

// A connection that is handed over when the server has ended is closed: nobody else would, and its place would be lost.
func TestWhatIsHandedOverAfterTheEndIsClosed(t *testing.T) {
	for what, end := range map[string]func(*Server) error{
		"End":      func(s *Server) error { s.End(); return nil },
		"Close":    (*Server).Close,
		"Shutdown": func(s *Server) error { return s.Shutdown(context.Background()) },
	} {
		s := New(&http.Server{}, time.Second, func() {})
		served := make(chan error, 1)
		go func() { served <- s.Serve(&net.TCPAddr{}) }()
		theirs, ours := net.Pipe()
		accepted := make(chan struct{})
		go func() { // one that is served first, so that the server is there
			defer close(accepted)
			first, _ := net.Pipe()
			s.Hand(tls.Server(first, &tls.Config{}))
			_ = first.Close()
		}()
		<-accepted
		if err := end(s); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := <-served; err != nil {
			t.Errorf("%s: Serve ended with %v", what, err)
		}
		s.Hand(tls.Server(ours, &tls.Config{}))
		_ = theirs.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := theirs.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %s: the connection is open (%v)", what, err)
		}
	}
}

// recorder is an answer whose deadlines are noted.
type recorder struct {
	*httptest.ResponseRecorder
	deadlines []time.Time
}

func (r *recorder) SetWriteDeadline(t time.Time) error {
	r.deadlines = append(r.deadlines, t)
	return nil
}

// Each write has a deadline, silence after a flush has none, and one that has passed goes through as it is.
func TestWritesAreBoundedAndSilenceIsNot(t *testing.T) {
	r := &recorder{ResponseRecorder: httptest.NewRecorder()}
	past := time.Unix(1, 0)
	bounded(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		control := http.NewResponseController(w)
		_, _ = io.WriteString(w, "one")
		_ = control.SetWriteDeadline(past)
		_, _ = io.WriteString(w, "two")
		_ = control.Flush()
		_, _ = io.WriteString(w, "three")
	}), time.Minute).ServeHTTP(r, nil)
	var kinds string
	for _, d := range r.deadlines {
		switch {
		case d.IsZero():
			kinds += "none "
		case d.Equal(past):
			kinds += "past "
		default:
			kinds += "set "
		}
	}
	if kinds != "set past none set " || r.Body.String() != "onetwothree" {
		t.Errorf("the deadlines are %q, the body %q", kinds, r.Body)
	}
}
