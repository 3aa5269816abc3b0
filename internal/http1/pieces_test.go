package http1

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Pipelines of requests of every kind, in pieces of every size, to handlers that take long enough to be watched and to
// some that read no body: each is answered in its order and as itself, whatever of it was read ahead, by whom.
func TestPipelinesInPiecesAreAnsweredInOrder(t *testing.T) {
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Slow") != "" {
			<-time.After(patience + patience/2)
		}
		if r.Header.Get("X-Deaf") != "" {
			text := r.Method + " " + r.RequestURI + " "
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
			_, _ = fmt.Fprint(w, text)
			return
		}
		echo(w, r)
	}
	server, client := secured(t)
	for _, secure := range []bool{false, true} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		s := serveOn(t, l, handler, func(s *Server) {
			if secure {
				s.TLS = server
			}
		})
		var all sync.WaitGroup
		for seed := range uint64(40) {
			c := s.dial()
			if secure {
				c.Conn = tls.Client(c.Conn, client)
				c.br = bufio.NewReader(c.Conn)
			}
			all.Go(func() { c.pipeline(rand.New(rand.NewPCG(seed, 1))) })
		}
		all.Wait()
	}
}

// pipeline sends requests that a random source makes, and reads their answers.
func (c *client) pipeline(r *rand.Rand) {
	var wire strings.Builder
	var want []string
	for i := range 1 + r.IntN(12) {
		target, body := fmt.Sprintf("/%d", i), strings.Repeat(string(rune('a'+i)), []int{0, 1, 30, 3000, 9000}[r.IntN(5)])
		method, fields := "POST", []string{"", "X-Slow: 1\r\n"}[r.IntN(2)]
		answer := body
		if r.IntN(4) == 0 {
			fields, answer = fields+"X-Deaf: 1\r\n", ""
		}
		if r.IntN(4) == 0 { // what is not plain is read by the other parser
			fields += "X_Y: 1\r\n"
		}
		fmt.Fprintf(&wire, "%s %s HTTP/1.1\r\nHost: h\r\n%sContent-Length: %d\r\n\r\n%s", method, target, fields, len(body), body)
		if r.IntN(8) == 0 {
			wire.WriteString("\r\n") // as old clients do
		}
		want = append(want, "200 "+method+" "+target+" "+answer)
	}
	go func() {
		for rest := wire.String(); rest != ""; {
			n := min(len(rest), []int{1, 2, 17, 300, 5000, 100_000}[r.IntN(6)])
			if _, err := c.Write([]byte(rest[:n])); err != nil {
				return
			}
			if rest = rest[n:]; r.IntN(6) == 0 {
				<-time.After(time.Duration(r.IntN(30)) * time.Millisecond)
			}
		}
	}()
	for i, w := range want {
		if got := c.answer("POST"); got != w {
			c.t.Errorf("answer %d of %d: %.60q, want %.60q", i, len(want), got, w)
			return
		}
	}
}
