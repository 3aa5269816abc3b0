package gatetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/vllmtest"
)

// ended reads frames until the stream or the connection is over, and says how: "data", at its end, or "cut".
func ended(c net.Conn) string {
	for head := [9]byte{}; ; {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err.Error()
		}
		length := int64(binary.BigEndian.Uint32(head[:]) >> 8)
		if _, err := io.CopyN(io.Discard, c, length); err != nil {
			return err.Error()
		}
		switch kind, last := head[3], head[4]&1 != 0; {
		case kind == 0 && last:
			return "data"
		case kind == 3, kind == 7: // RST_STREAM, GOAWAY: which one hangs on what was read of the stream by then
			return "cut"
		}
	}
}

// Requests over HTTP/2 that two readers would frame in two ways, or that are none, end in an answer or an error; what
// arrives is one request with the body as it was sent.
func TestStrangeFramingOverHTTP2(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{TLS: true})
	head := func(more ...string) []byte {
		return fields(append([]string{":method", "POST", ":scheme", "https", ":path", "/v1/chat/completions", ":authority", "gate", "content-type", "application/json", "authorization", "Bearer " + g.Secret("app")}, more...)...)
	}
	all := func(head []byte) []byte { return append(frame(1, 4, 1, head), frame(0, 1, 1, []byte(ChatBody))...) }
	length := fmt.Sprint(len(ChatBody))
	begun := append(frame(1, 4, 1, head()), frame(0, 0, 1, []byte(ChatBody))...)
	for name, row := range map[string]struct {
		wire    []byte
		ended   string
		arrives int
	}{
		"a length":               {all(head("content-length", length)), "data", 1},
		"no length":              {all(head()), "data", 1},
		"a length twice":         {all(head("content-length", length, "content-length", "5")), "data", 1}, // the first is checked, none is forwarded
		"a shorter length":       {all(head("content-length", "5")), "cut", 0},
		"a longer length":        {all(head("content-length", "5000")), "data", 0},
		"a negative length":      {all(head("content-length", "-1")), "data or cut", 0}, // the refusal of no body, or of the data behind it
		"a length of 0":          {all(head("content-length", "0")), "data or cut", 0},
		"a length and no body":   {frame(1, 5, 1, head("content-length", length)), "data", 0},
		"trailers":               {slices.Concat(begun, frame(1, 5, 1, fields("authorization", "Bearer x", "content-length", "3"))), "data", 1},
		"a path in the trailers": {slices.Concat(begun, frame(1, 5, 1, fields(":path", "/pause"))), "cut", 0},
		"trailers without end":   {slices.Concat(begun, frame(1, 4, 1, fields("x", "y"))), "cut", 0},
		"another host":           {all(head("host", "elsewhere")), "data", 1},
		"two keys":               {all(head("authorization", "Bearer x")), "data", 0},
		"an expectation":         {all(head("expect", "100-continue")), "data", 1},
		"te":                     {all(head("te", "gzip")), "data", 0},
		"connection":             {all(head("connection", "close")), "data", 0},
		"CONNECT":                {frame(1, 5, 1, fields(":method", "CONNECT", ":authority", "h:443")), "data", 0},
		"a path behind a field":  {frame(1, 5, 1, fields(":method", "GET", "a", "b", ":scheme", "https", ":path", "/v1/models", ":authority", "gate")), "cut", 0},
		"a space in a name":      {all(head("x y", "z")), "cut", 0},
		"an empty name":          {all(head("", "z")), "cut", 0},
		"an even stream":         {append(frame(1, 4, 2, head()), frame(0, 1, 2, []byte(ChatBody))...), "cut", 0},
		"padding beyond it":      {append(frame(1, 12, 1, append([]byte{255}, head()...)), frame(0, 1, 1, []byte(ChatBody))...), "cut", 0},
		"a push":                 {frame(5, 4, 1, append([]byte{0, 0, 0, 2}, head()...)), "cut", 0},
		"no such field":          {frame(1, 5, 1, []byte{0xff, 0xff, 0xff, 0x7f}), "cut", 0},
		"a table of 256 MB":      {frame(1, 5, 1, []byte{0x3f, 0xff, 0xff, 0xff, 0x7f}), "cut", 0},
		"data of no stream":      {frame(0, 1, 99, []byte("x")), "cut", 0},
		"a window beyond all":    {bytes.Repeat(frame(8, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff}), 2), "cut", 0},
	} {
		before := g.Fake.Arrived()
		c := g.http2()
		if _, err := c.Write(row.wire); err != nil {
			t.Fatal(err)
		}
		if got := ended(c); !slices.Contains(strings.Split(row.ended, " or "), got) {
			t.Errorf("%s: ended with %s, want %s", name, got, row.ended)
		}
		_ = c.Close()
		if n := g.Fake.Arrived() - before; n != row.arrives || n > 0 && unsalted(g.Fake.Last().RawBody) != ChatBody {
			t.Errorf("%s: %d arrived: %q", name, n, g.Fake.Last().RawBody)
		}
	}
	g.NothingHeld()
}

// Frames that cost the server and not their sender, who reads none of the answers.
func TestFloodsOverHTTP2AreBounded(t *testing.T) { // not in parallel: it looks at the heap
	g := Start(t, Options{TLS: true})
	head := fields(":method", "POST", ":scheme", "https", ":path", "/v1/chat/completions", ":authority", "gate", "authorization", "Bearer "+g.Secret("app"))
	for name, row := range map[string]struct{ first, unit []byte }{
		"pings":         {nil, frame(6, 0, 0, make([]byte, 8))},            // CVE-2019-9512
		"settings":      {nil, frame(4, 0, 0, []byte{0, 3, 0, 0, 0, 100})}, // CVE-2019-9515
		"priorities":    {nil, frame(2, 0, 1, []byte{0, 0, 0, 0, 1})},      // CVE-2019-9513
		"empty data":    {frame(1, 4, 1, head), frame(0, 0, 1, nil)},       // CVE-2019-9518
		"continuations": {frame(1, 1, 1, head), frame(9, 0, 1, nil)},       // the same
		"windows":       {nil, frame(8, 0, 0, []byte{0, 0, 0, 1})},         // CVE-2019-9511
		"of no kind":    {nil, frame(77, 0, 0, []byte("abc"))},
	} {
		var before, after runtime.MemStats
		runtime.GC() // before each look: what is garbage stays for as long as the collector likes
		runtime.ReadMemStats(&before)
		c := g.http2()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Write(row.first)
		many := bytes.Repeat(row.unit, 1000)
		for sent := 0; err == nil && sent < 300; sent++ {
			_, err = c.Write(many)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 16<<20 {
			t.Errorf("%s: the heap grew by %d MiB", name, grown>>20)
		}
		if a := g.Do(g.Chat("app")); a.Status != 200 {
			t.Errorf("%s: meanwhile another client: %d %s", name, a.Status, a.Body)
		}
		_ = c.Close()
	}
	g.NothingHeld()
}

// A client that gives its streams no window cannot keep what answers them, be it refused or not.
func TestAnswersOverHTTP2ThatNobodyTakesAreLetGo(t *testing.T) { // not in parallel: it counts goroutines
	g := Start(t, Options{TLS: true, Config: "timeouts: {write: 2s}"}) // in which a busy machine comes to hold sixty at once
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	before := runtime.NumGoroutine()
	c := g.http2()
	if _, err := c.Write(frame(4, 0, 0, []byte{0, 4, 0, 0, 0, 0})); err != nil { // SETTINGS_INITIAL_WINDOW_SIZE: 0
		t.Fatal(err)
	}
	for i, fieldsOf := range [][]string{
		{":method", "GET", ":path", "/v1/models"},
		{":method", "GET", ":path", "/v1/models", "authorization", "Bearer " + g.Secret("app")},
		{":method", "GET", ":path", "/v1/models/other", "authorization", "Bearer " + g.Secret("app")},
		{":method", "POST", ":path", "/pause", "authorization", "Bearer " + g.Secret("app")},
		{":method", "OPTIONS", ":path", "/v1/models", "origin", "https://elsewhere"},
		{":method", "GET", ":path", "//"},
	} {
		head := fields(append([]string{":scheme", "https", ":authority", "gate"}, fieldsOf...)...)
		for j := range 20 {
			if _, err := c.Write(frame(1, 5, uint32(2*(20*i+j)+1), head)); err != nil {
				t.Fatal(err)
			}
		}
	}
	g.Eventually("the streams", func() bool { return runtime.NumGoroutine() > before+60 })
	g.Eventually("their end", func() bool { return runtime.NumGoroutine() < before+20 })
	_ = c.Close()
	g.NothingHeld()
}

// A stream may be silent for longer than a caller may take to read: writes have deadlines, silence has none.
func TestASilentStreamOutlivesTheWriteDeadline(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{TLS: true, Config: "timeouts: {write: 1s}", Fake: vllmtest.Options{Words: words}})
	for _, how := range over {
		if !how.tls {
			continue
		}
		g.Fake.Next(vllmtest.Behaviour{Stepped: true})
		resp := begin(t, g, g.client(how.proto), Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: streams[0].body})
		for k := range streams[0].events - 1 {
			if k < 2 {
				<-time.After(1500 * time.Millisecond)
			}
			g.Fake.Step()
		}
		if b, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(b), "data: [DONE]\n\n") {
			t.Errorf("%s: %q, %v", how.name, b, err)
		}
		_ = resp.Body.Close()
	}
}

// CVE-2025-8671: streams that the client makes the server reset, which counts them as closed while their handlers run on.
func TestStreamsThatTheServerIsMadeToResetAreBounded(t *testing.T) { // not in parallel: it counts goroutines
	g := Start(t, Options{TLS: true})
	head := fields(":method", "POST", ":scheme", "https", ":path", "/v1/chat/completions", ":authority", "gate", "content-type", "application/json",
		"content-length", fmt.Sprint(len(ChatBody)), "authorization", "Bearer "+g.Secret("app"))
	for name, wrong := range map[string][]byte{"no increment": {0, 0, 0, 0}, "beyond all": {0x7f, 0xff, 0xff, 0xff}} {
		before, most := runtime.NumGoroutine(), 0
		c := g.http2()
		go func() { _, _ = io.Copy(io.Discard, c) }()
		for sent := range 20_000 {
			stream := uint32(2*sent + 1)
			b := slices.Concat(frame(1, 4, stream, head), frame(0, 1, stream, []byte(ChatBody)), frame(8, 0, stream, wrong))
			if _, err := c.Write(b); err != nil {
				break // closed: ENHANCE_YOUR_CALM
			}
			most = max(most, runtime.NumGoroutine()-before)
		}
		_ = c.Close()
		if most > 3000 {
			t.Errorf("%s: %d goroutines", name, most)
		}
	}
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("afterwards: %d %s", a.Status, a.Body)
	}
	g.NothingHeld()
}
