package gatetest

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// frame is one HTTP/2 frame (RFC 9113 §4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b := []byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// fields are header fields without any compression (RFC 7541 §6.2.2).
func fields(pairs ...string) []byte {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		b = append(b, 0)
		for _, s := range pairs[i : i+2] {
			if len(s) < 127 {
				b = append(b, byte(len(s)))
			} else {
				rest := len(s) - 127
				b = append(b, 127)
				for ; rest >= 128; rest /= 128 {
					b = append(b, byte(rest%128+128))
				}
				b = append(b, byte(rest))
			}
			b = append(b, s...)
		}
	}
	return b
}

// http2 opens a connection on which a test writes frames.
func (g *Gate) http2() net.Conn {
	g.t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(g.URL, "https://"), &tls.Config{RootCAs: g.cert.Pool, NextProtos: []string{"h2"}})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		g.t.Fatal(err)
	}
	if _, err := c.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0, nil)...)); err != nil {
		g.t.Fatal(err)
	}
	return c
}

// CVE-2023-44487: streams that are opened and reset as fast as can be. The connection is closed or the work stays
// bounded; others are served meanwhile, and nothing is held afterwards.
func TestRapidResetIsBounded(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{TLS: true})
	before := runtime.NumGoroutine()
	for _, key := range []string{"", g.Secret("app")} {
		c := g.http2()
		go func() { _, _ = io.Copy(io.Discard, c) }()
		head := fields(":method", "POST", ":scheme", "https", ":path", "/v1/chat/completions", ":authority", "gate",
			"content-type", "application/json", "content-length", fmt.Sprint(len(ChatBody)), "authorization", "Bearer "+key)
		sent := 0
		for ; sent < 20_000; sent++ {
			stream := uint32(2*sent + 1)
			b := append(frame(1, 4, stream, head), frame(0, 1, stream, []byte(ChatBody))...)
			if _, err := c.Write(append(b, frame(3, 0, stream, []byte{0, 0, 0, 8})...)); err != nil {
				break // closed: ENHANCE_YOUR_CALM
			}
			if sent%2000 == 0 {
				if a := g.Do(g.Chat("app")); a.Status != 200 {
					t.Errorf("meanwhile another client: %d %s", a.Status, a.Body)
				}
				if n := runtime.NumGoroutine() - before; n > 6000 {
					t.Errorf("%d goroutines", n)
				}
			}
		}
		_ = c.Close()
	}
	g.NothingHeld()
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("afterwards: %d %s", a.Status, a.Body)
	}
}

// Header blocks over HTTP/2 have the same bounds, however they are cut: CONTINUATION frames without end (CVE-2023-45288)
// end the connection.
func TestContinuationsWithoutEndAreBounded(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{TLS: true})
	c := g.http2()
	answers := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(c, 1<<20))
		answers <- b
	}()
	head := fields(":method", "GET", ":scheme", "https", ":path", "/v1/models", ":authority", "gate", "authorization", "Bearer "+g.Secret("app"))
	_, err := c.Write(frame(1, 1, 1, head)) // END_STREAM, not END_HEADERS
	sent := 0
	for more := frame(9, 0, 1, fields("x-a", strings.Repeat("a", 16000))); err == nil && sent < 64<<20; sent += len(more) {
		_, err = c.Write(more)
	}
	if err == nil || sent > 16<<20 {
		t.Errorf("%d bytes of headers were taken", sent)
	}
	_ = c.Close()
	<-answers
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d arrived", n)
	}
}

// What HTTP/1.1 refuses in pseudo-headers' places, HTTP/2 must not let in: each of these is refused or has our reading.
func TestHTTP2HasTheSameReadings(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{TLS: true})
	c := g.client("HTTP/2.0")
	for _, path := range []string{"/%70ause", "//pause", "/pause/", "/v1/../pause", "/pause;a", "/v1%2Fmodels"} {
		resp, err := Open(t, c, g.URL, Request{Method: "POST", Path: path, Key: g.Secret("app")})
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.Header.Get("X-Vallum-Reason") != "ambiguous_path" {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
	heads := map[string][]byte{
		"a path that is a URL":  fields(":method", "POST", ":scheme", "https", ":path", "http://evil/pause", ":authority", "gate"),
		"an empty path":         fields(":method", "POST", ":scheme", "https", ":path", "", ":authority", "gate"),
		"a path with a newline": fields(":method", "POST", ":scheme", "https", ":path", "/v1/models HTTP/1.1\r\nX: y", ":authority", "gate"),
		"a method with a space": fields(":method", "GET /pause HTTP/1.1\r\nX:", ":scheme", "https", ":path", "/v1/models", ":authority", "gate"),
		"a value with CR LF":    fields(":method", "GET", ":scheme", "https", ":path", "/v1/models", ":authority", "gate", "x-a", "b\r\nX: y"),
		"transfer-encoding":     fields(":method", "POST", ":scheme", "https", ":path", "/pause", ":authority", "gate", "transfer-encoding", "chunked"),
		"two paths":             fields(":method", "POST", ":scheme", "https", ":path", "/v1/models", ":path", "/pause", ":authority", "gate"),
		"upper case":            fields(":method", "POST", ":scheme", "https", ":path", "/pause", ":authority", "gate", "X-A", "b"),
		"an upgrade":            fields(":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/v1/realtime", ":authority", "gate"),
	}
	t.Run("heads", func(t *testing.T) {
		for name, head := range heads {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				conn := g.http2()
				auth := fields("authorization", "Bearer "+g.Secret("app"))
				if _, err := conn.Write(frame(1, 5, 1, append(head, auth...))); err != nil {
					t.Error(err)
				}
				if _, err := conn.Write(frame(7, 0, 0, make([]byte, 8))); err == nil { // GOAWAY: nothing more will come
					_, _ = io.Copy(io.Discard, io.LimitReader(conn, 4<<10))
				}
				_ = conn.Close()
			})
		}
	})
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d arrived: %q", n, g.Fake.Last().Head)
	}
}
