package http1

import (
	"bytes"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/vallum/vallum/internal/ascii"
)

// plain reads heads of requests as nearly every client writes them: "POST /path HTTP/1.1" and fields that stand there
// once, of visible characters, with nothing in them that changes the framing but one Content-Length. It says of such a
// head what net/http's parser says, which a fuzz test holds, in a third of its time, and of any other that it is not
// one: then nothing was read, and net/http's parser is asked. What it gives lies in the memory of the request before.
type plain struct {
	header http.Header
	values []string
	url    url.URL
}

// maxPlain is the fields of a plain head. Real clients send 30 at most.
const maxPlain = 48

// read reads the head at the beginning of b into r, whose version is 1.1 already, and returns its size; false: r says nothing.
func (p *plain) read(b []byte, r *http.Request) (size int, ok bool) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, false
	}
	line, fields, _ := strings.Cut(string(b[:end+len("\r\n")]), "\r\n")
	if !p.requestLine(line, r) {
		return 0, false
	}
	if p.header == nil {
		p.header = make(http.Header, 24)
	}
	clear(p.header)
	p.values = p.values[:0]
	for fields != "" {
		line, fields, _ = strings.Cut(fields, "\r\n")
		name, value, colon := strings.Cut(line, ":")
		name, ok = canonical(name)
		if !ok || !colon || len(p.values) == maxPlain || !ascii.Printable(value) || !p.field(r, name, strings.Trim(value, " ")) {
			return 0, false
		}
	}
	r.Header = p.header
	return end + len("\r\n\r\n"), r.Host != ""
}

// requestLine reads the line of a request whose target is a path in which no character means anything but itself.
func (p *plain) requestLine(line string, r *http.Request) bool {
	method, rest, _ := strings.Cut(line, " ")
	target, is11 := strings.CutSuffix(rest, " HTTP/1.1")
	if method != http.MethodPost && method != http.MethodGet || !is11 || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "//") {
		return false
	}
	for i := range len(target) {
		if c := target[i]; !letterOrDigit(c) && c != '/' && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	p.url = url.URL{Path: target}
	r.Method, r.RequestURI, r.URL = method, target, &p.url
	return true
}

// field notes one field; false for one that is there already, and for those that mean something to a connection.
func (p *plain) field(r *http.Request, name, value string) bool {
	var err error
	switch name {
	case "Host":
		again := r.Host != ""
		r.Host = value
		return !again && value != "" && httpguts.ValidHostHeader(value)
	case "Content-Length":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 63)
		r.ContentLength = int64(n)
	case "Connection":
		if r.Close = value == "close"; !r.Close && !strings.EqualFold(value, "keep-alive") {
			return false
		}
	case "Transfer-Encoding", "Trailer", "Expect", "Upgrade", "Pragma", "Http2-Settings", "Proxy-Connection", "Te":
		return false
	}
	before, last := len(p.header), len(p.values)
	p.values = append(p.values, value) // the slices that were cut off a shorter array keep that one
	p.header[name] = p.values[last : last+1 : last+1]
	return err == nil && len(p.header) > before
}

// canonical is the name as net/http spells it; false for one that is not of letters, digits and hyphens.
func canonical(name string) (string, bool) {
	spelt, last := true, byte('-')
	for i := range len(name) {
		c := name[i]
		if !letterOrDigit(c) && c != '-' {
			return "", false
		}
		spelt = spelt && (c < 'A' || (c <= 'Z') == (last == '-')) // a capital where a word begins, and nowhere else
		last = c
	}
	if !spelt {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return name, name != ""
}

func letterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
