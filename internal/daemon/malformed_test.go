package daemon

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// What is no HTTP is counted; what became a request, and a client that only closes, is not.
func TestWhatBecameNoRequestIsCounted(t *testing.T) {
	for what, row := range map[string]struct {
		send string
		want int64
	}{
		"garbage":           {"\x16\x03\x01 nonsense\r\n\r\n", 1},
		"two lengths":       {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 1},
		"a header of 1 MiB": {"GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", 1},
		"a request":         {"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 0},
		"nothing":           {"", 0},
	} {
		var n atomic.Int64
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), MaxHeaderBytes: maxHeaderBytes}
		countMalformed(s, func() { n.Add(1) })
		closed := make(chan struct{})
		state := s.ConnState
		s.ConnState = func(c net.Conn, st http.ConnState) {
			state(c, st)
			if st == http.StateClosed {
				close(closed)
			}
		}
		done := make(chan error, 1)
		go func() { done <- s.Serve(counted{l}) }()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(c, row.send) }() // the server may close before it has read all
		if row.send != "" {
			_, _ = bufio.NewReader(c).ReadString('\n')
		}
		if row.want == 0 {
			_ = c.Close()
		} else {
			_, _ = io.Copy(io.Discard, c)
		}
		<-closed
		_ = c.Close()
		if n.Load() != row.want {
			t.Errorf("%s: counted %d, want %d", what, n.Load(), row.want)
		}
		_ = s.Close()
		<-done
	}
}
