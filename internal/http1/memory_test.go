package http1

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/sock"
)

// live is the bytes that are in use: twice collected, for what a pool lends nobody goes only then.
func live() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A connection whose request was read has no buffer while its handler waits, and none while no request comes: of
// thousands that are open, hardly any reads or writes.
func TestAConnectionThatWaitsHoldsNoBuffer(t *testing.T) {
	const many = 200
	began, end := make(chan struct{}), make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "an event")
		_ = http.NewResponseController(w).Flush()
		began <- struct{}{}
		<-end
	})
	before := live()
	var clients []net.Conn
	for range many {
		c, err := net.Dial("unix", s.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		<-began
		clients = append(clients, c)
	}
	each := func() int64 { return (live() - before) / many }
	if got := each(); got > most {
		t.Errorf("a connection with a handler that waits holds %d bytes", got)
	}
	close(end)
	if sock.Of(clients[0]) == clients[0] {
		return // where a connection cannot be asked, an idle one waits in a read, with a buffer
	}
	for _, c := range clients {
		answer := make([]byte, 512)
		for n := 0; !bytes.HasSuffix(answer[:n], []byte("0\r\n\r\n")); {
			m, err := c.Read(answer[n:])
			if n += m; err != nil {
				t.Fatal(err)
			}
		}
	}
	got := each()
	for deadline := time.Now().Add(20 * time.Second); got > most && time.Now().Before(deadline); got = each() {
		runtime.Gosched() // the answer is here before its connection waits for another request
	}
	if got > most {
		t.Errorf("an idle connection holds %d bytes", got)
	}
}

// most is between what a connection takes, with its client's side, which is in this process, and that with a buffer more.
const most = 7 << 10
