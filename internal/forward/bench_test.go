package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// sink is a caller that takes everything.
type sink struct{ h http.Header }

func (s *sink) Header() http.Header              { return s.h }
func (s *sink) WriteHeader(int)                  {}
func (s *sink) Write(b []byte) (int, error)      { return len(b), nil }
func (s *sink) Flush()                           {}
func (s *sink) SetWriteDeadline(time.Time) error { return nil }

// fast answers every request with the same bytes at the least cost.
func fast(b *testing.B, answer string) *fake {
	return listen(b, func(f *fake, c net.Conn, br *bufio.Reader) {
		bytes := []byte(answer)
		for {
			length := 0
			for {
				line, err := br.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) == 2 {
					break
				}
				_, _ = fmt.Sscanf(string(line), "Content-Length: %d", &length)
			}
			if _, err := br.Discard(length); err != nil {
				return
			}
			if _, err := c.Write(bytes); err != nil {
				return
			}
		}
	})
}

func benchAnswers() map[string]string {
	events := strings.Repeat(chunked("data: "+strings.Repeat("x", 240)+"\n\n"), 100)
	return map[string]string{"unary 1 KB": answer(`"` + strings.Repeat("x", 1000) + `"`), "100 events": streamHead + events + chunked(doneEvent) + "0\r\n\r\n"}
}

// Send against http.Transport, which does less: it neither rewrites nor splits events.
func BenchmarkSend(b *testing.B) {
	for what, answer := range benchAnswers() {
		b.Run(what, func(b *testing.B) {
			u := fast(b, answer).upstream(nil)
			c := streamCall(b)
			c.Body = []byte(`{"prompt":"` + strings.Repeat("x", 1000) + `"}`)
			b.ReportAllocs()
			for b.Loop() {
				c.Rewriter = &plain{}
				if out := u.Send(b.Context(), &sink{http.Header{}}, c); out.Refusal.Refused() {
					b.Fatal(out.Refusal.Err())
				}
			}
		})
	}
}

func BenchmarkTransport(b *testing.B) {
	for what, answer := range benchAnswers() {
		b.Run(what, func(b *testing.B) {
			f := fast(b, answer)
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			body := `{"prompt":"` + strings.Repeat("x", 1000) + `"}`
			b.ReportAllocs()
			for b.Loop() {
				r, err := http.NewRequestWithContext(b.Context(), "POST", "http://"+f.listener.Addr().String()+"/v1/chat/completions", strings.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set("Content-Type", "application/json")
				response, err := transport.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(&sink{}, response.Body)
				_ = response.Body.Close()
			}
		})
	}
}
