package forward

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/sock"
)

// What is accepted is read by another reader in the same way: same status, same body, same rest of the connection.
func FuzzAnswer(f *testing.F) {
	ok := "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
	for _, seed := range []string{
		answer("{}"), answer("{}") + "rest", ok + "transfer-encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nt: x\r\n\r\nrest",
		"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", "HTTP/1.1 204 \r\ncontent-length: 0\r\n\r\n", ok + "content-length: 1, 1\r\n\r\n{",
		ok + "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", ok + "a: \r\n b\r\ncontent-length: 0\r\n\r\n",
		ok + "transfer-encoding: chunked\r\n\r\n0002\r\n{}\r\n00\r\n\r\n", ok + "content-length: 00002\r\n\r\n{}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		c := &conn{br: sock.NewReader(bytes.NewReader(wire))}
		h, err := c.readHead("POST")
		if err != nil {
			return
		}
		body, err := c.body(h).all(nil, 1<<20, func() {}, unbounded)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(&c.br)
		br := bufio.NewReader(bytes.NewReader(wire))
		for {
			r, err := http.ReadResponse(br, &http.Request{Method: "POST"})
			if err != nil {
				t.Fatalf("we read %d %q, net/http says %v", h.status, body, err)
			}
			if r.StatusCode < 200 {
				continue
			}
			theirs, err := io.ReadAll(r.Body)
			if err != nil || r.StatusCode != h.status || !bytes.Equal(theirs, body) {
				t.Fatalf("we read %d %q, net/http %d %q, %v", h.status, body, r.StatusCode, theirs, err)
			}
			if after, _ := io.ReadAll(br); !h.close && !bytes.Equal(after, rest) {
				t.Fatalf("after the answer we have %q, net/http has %q", rest, after)
			}
			return
		}
	})
}

func TestWords(t *testing.T) {
	for path, want := range map[string]bool{"/v1/models": true, "": false, "v1": false, "/a b": false, "/a?b": false, "/%61": false, "/a#b": false, "/é": false, "/a\\b": false, "/a\r\n": false} {
		if isPath(path) != want {
			t.Errorf("isPath(%q)", path)
		}
	}
	if !is([]byte("Content-LENGTH"), "content-length") || is([]byte("content-lengt\u212a"), "content-lengthk") || is([]byte("a"), "b") {
		t.Error("header names are compared wrongly")
	}
	if !isToken("GET") || isToken("") || isToken("a b") || isToken(strings.Repeat("\x80", 2)) {
		t.Error("tokens are read wrongly")
	}
}
