package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

const (
	likeAClient = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n" +
		"Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 3.54.0\r\nX-Stainless-Lang: python\r\n" +
		"X-Stainless-Package-Version: 3.54.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n" +
		"X-Stainless-Runtime-Version: 3.11.7\r\nX-Stainless-Async: false\r\nX-Stainless-Retry-Count: 0\r\nX-Stainless-Read-Timeout: 600\r\n" +
		"Authorization: Bearer vlm_k7f3a9c1_0123456789abcdef0123456789abcdef\r\nContent-Length: 3\r\n\r\nabc"
	likeNode = "POST /v1/messages HTTP/1.1\r\nhost: h\r\nconnection: keep-alive\r\nx-api-key: k\r\ncontent-type: application/json\r\naccept: */*\r\n" +
		"accept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\naccept-encoding: gzip, deflate\r\ncontent-length: 2\r\n\r\n{}"
)

func blankRequest() *http.Request {
	return &http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
}

func TestOrdinaryClientsHeadsArePlain(t *testing.T) {
	for _, b := range []string{likeAClient, likeNode, "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"} {
		var p plain
		if _, ok := p.read([]byte(b), blankRequest()); !ok {
			t.Errorf("not plain: %q", b)
		}
	}
}

// Whatever has a second reading, or a meaning for the connection, is left to net/http's parser.
func TestWhatIsNotPlain(t *testing.T) {
	const line, host = "POST /a HTTP/1.1\r\n", "Host: h\r\n"
	for _, b := range []string{
		"", "GET / HTTP/1.1\r\n", line + host, line + "\r\n", line + host + host + "\r\n", line + "Host:\r\n" + host + "\r\n", line + "Host: \r\n\r\n", line + "Host: a b\r\n\r\n",
		line + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", line + host + "Content-Length: 1, 1\r\n\r\n", line + host + "Content-Length: +1\r\n\r\n",
		line + host + "Content-Length: -1\r\n\r\n", line + host + "Content-Length:\r\n\r\n", line + host + "Content-Length: 1_0\r\n\r\n",
		line + host + "Content-Length: 9223372036854775808\r\n\r\n", line + host + "Transfer-Encoding: chunked\r\n\r\n",
		line + host + "transfer-encoding: chunked\r\n\r\n", line + host + "Expect: 100-continue\r\n\r\n", line + host + "Connection: upgrade\r\n\r\n",
		line + host + "Connection: close\r\nConnection: close\r\n\r\n", line + host + "A: b\r\na: c\r\n\r\n", line + host + "A : b\r\n\r\n",
		line + host + "A: b\r\n c\r\n\r\n", line + host + " A: b\r\n\r\n", line + host + "A\r\n\r\n", line + host + ": b\r\n\r\n", line + host + "A: b\x00\r\n\r\n",
		line + host + "A: \xff\r\n\r\n", line + host + "A: b\rc\r\n\r\n", line + host + "A: b\nC: d\r\n\r\n", line + host + "A\x00: b\r\n\r\n",
		line + host + "Pragma: no-cache\r\n\r\n", line + host + strings.Repeat("A: b\r\n", maxPlain) + "\r\n",
		"POST /a?b HTTP/1.1\r\n" + host + "\r\n", "POST /%61 HTTP/1.1\r\n" + host + "\r\n", "POST //a HTTP/1.1\r\n" + host + "\r\n",
		"POST a HTTP/1.1\r\n" + host + "\r\n", "POST http://h/ HTTP/1.1\r\n" + host + "\r\n", "POST  /a HTTP/1.1\r\n" + host + "\r\n",
		"POST /a  HTTP/1.1\r\n" + host + "\r\n", "POST /a HTTP/1.0\r\n" + host + "\r\n", "POST /a HTTP/1.1 \r\n" + host + "\r\n",
		"PUT /a HTTP/1.1\r\n" + host + "\r\n", "post /a HTTP/1.1\r\n" + host + "\r\n", "POST /a HTTP/1.1\n" + host + "\r\n", "\r\n" + line + host + "\r\n",
	} {
		var p plain
		if _, ok := p.read([]byte(b), blankRequest()); ok {
			t.Errorf("plain: %q", b)
		}
	}
}

// What a plain head is taken for is what net/http's parser takes it for, field by field, and it ends where that one ends.
func FuzzPlainHeadsAreReadAsNetHTTPReadsThem(f *testing.F) {
	for _, seed := range []string{
		likeAClient, likeNode, "GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\nHost: h\r\n\r\n", "GET /a/../b//c HTTP/1.1\r\nHost: [::1]:80\r\nA:\r\nB:  c \r\n\r\n",
		"POST /a HTTP/1.1\r\nConnection: close\r\nHost: h\r\nContent-Length: 007\r\n\r\n1234567", "GET /.. HTTP/1.1\r\nHOST: h\r\n0-a: b\r\n-a: b\r\na-: b\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: h\r\nConnection: Keep-Alive\r\nTe: trailers\r\nUpgrade: h2c\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	used := plain{} // as a connection uses it: what came before must not show
	f.Fuzz(func(t *testing.T, b []byte) {
		ours := blankRequest()
		size, ok := used.read(b, ours)
		if !ok {
			return
		}
		br := bufio.NewReaderSize(bytes.NewReader(b), len(b)+16)
		theirs, err := http.ReadRequest(br)
		if err != nil {
			t.Fatalf("%q is a request here, and to net/http: %v", b, err)
		}
		if err := check(theirs); err != nil {
			t.Fatalf("%q passes here, and not the check: %v", b, err)
		}
		if hasBody := theirs.Body != http.NoBody; hasBody != (ours.ContentLength > 0) || br.Buffered() != len(b)-size {
			t.Fatalf("%q: a head of %d bytes, %d of body; to net/http %d, body %v", b, size, ours.ContentLength, len(b)-br.Buffered(), hasBody)
		}
		theirs.Body = http.NoBody
		if !reflect.DeepEqual(ours, theirs) {
			t.Fatalf("%q\nis %s here\nand %s to net/http", b, shown(ours), shown(theirs))
		}
	})
}

func shown(r *http.Request) string {
	return fmt.Sprintf("%s %q %+v %s %v %d %v %q %v %v", r.Method, r.RequestURI, r.URL, r.Proto, r.Header, r.ContentLength, r.Close, r.Host, r.TransferEncoding, r.Trailer)
}

func BenchmarkHead(b *testing.B) {
	head := []byte(likeAClient)
	b.Run("plain", func(b *testing.B) {
		var p plain
		blank := *blankRequest()
		b.ReportAllocs()
		for b.Loop() {
			r := blank
			if _, ok := p.read(head, &r); !ok {
				b.Fatal("not plain")
			}
		}
	})
	b.Run("net/http", func(b *testing.B) {
		in := bytes.NewReader(nil)
		br := bufio.NewReader(in)
		b.ReportAllocs()
		for b.Loop() {
			in.Reset(head)
			br.Reset(in)
			r, err := http.ReadRequest(br)
			if err != nil || check(r) != nil {
				b.Fatal(err)
			}
		}
	})
}
