package http1

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// lender keeps the connections that it gave, and their numbers.
type lender struct {
	net.Listener
	lent chan *lent
}

type lent struct {
	*net.UnixConn
	number atomic.Int64
}

func (l *lent) Idleness() *atomic.Int64 { return &l.number }

func (l lender) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	one := &lent{UnixConn: c.(*net.UnixConn)}
	one.number.Store(time.Now().UnixNano())
	l.lent <- one
	return one, nil
}

// takeBack is what a lender does with an idle connection; false when it is not idle.
func (l *lent) takeBack() bool {
	since := l.number.Load()
	if since <= active || !l.number.CompareAndSwap(since, closed) {
		return false
	}
	_ = l.Close()
	return true
}

// Whoever lent a place to a connection sees when it is idle, and may take it back then: no request is lost by that that
// had been read. While one runs the place is not to be had.
func TestALentPlaceIsTakenBackWhileItIsIdle(t *testing.T) {
	plain, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	from := lender{plain, make(chan *lent, 1)}
	called, goOn := make(chan struct{}), make(chan struct{})
	s := serveOn(t, from, func(w http.ResponseWriter, _ *http.Request) {
		called <- struct{}{}
		<-goOn
		_, _ = fmt.Fprint(w, "ok")
	})
	c := s.dial()
	place := <-from.lent
	since := place.number.Load()
	for range 2 {
		c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		<-called
		if got := place.number.Load(); got != active || place.takeBack() {
			t.Errorf("while a request runs the connection is %d", got)
		}
		goOn <- struct{}{}
		if got := c.answer("GET"); got != "200 ok" {
			t.Fatal(got)
		}
		late := time.Now().Add(10 * time.Second)
		for place.number.Load() <= since && time.Now().Before(late) {
			<-time.After(time.Millisecond)
		}
		if now := place.number.Load(); now <= since {
			t.Fatalf("after its request the connection is %d, idle since %d before", now, since)
		}
		since = place.number.Load()
	}
	if !place.takeBack() || !c.closed() {
		t.Error("the idle connection is open")
	}
	c = s.dial()
	if (<-from.lent).takeBack(); !c.closed() {
		t.Error("the connection on which nothing came is open")
	}
}
