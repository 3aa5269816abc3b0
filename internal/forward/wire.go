package forward

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/ascii"
)

// What an upstream may send in front of a body.
const (
	maxHead          = 64 << 10 // bytes of all header lines, informational answers included
	maxFields        = 100
	maxInformational = 8
	maxTrailer       = 4 << 10
)

// errNotHTTP is an answer that is not strict HTTP/1.1 (RFC 9112). It is never repaired: what is read differently by
// two readers is how one answer becomes two.
var errNotHTTP = errors.New("the upstream's answer is not HTTP/1.1")

func notHTTP(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errNotHTTP}, args...)...)
}

// head is what is used of an answer's head.
type head struct {
	status      int
	contentType string
	metadata    string
	retryAfter  time.Duration
	length      int64 // -1 when not given
	chunked     bool
	encoded     bool // a Content-Encoding that is not identity
	close       bool // the connection ends with this answer
	old         bool // HTTP/1.0
}

// readHead reads the head of the final answer, after at most eight informational ones.
func (c *conn) readHead(method string) (head, error) {
	budget := maxHead
	c.br.Await(c.rw)
	for range maxInformational + 1 {
		h, err := c.oneHead(&budget)
		switch {
		case err != nil:
			return head{}, err
		case h.status == 101:
			return head{}, notHTTP("it switches protocols, which nobody asked for")
		case h.status >= 200:
			return h, h.frame(method)
		}
	}
	return head{}, notHTTP("more than %d informational answers", maxInformational)
}

func (c *conn) oneHead(budget *int) (head, error) {
	line, err := c.readLine(budget)
	if err != nil {
		if err == io.EOF && *budget == maxHead {
			return head{}, fmt.Errorf("the upstream closed the connection without an answer: %w", io.ErrUnexpectedEOF)
		}
		return head{}, unexpected(err)
	}
	h := head{length: -1}
	if err := h.statusLine(line); err != nil {
		return head{}, err
	}
	for fields := 0; ; fields++ {
		line, err := c.readLine(budget)
		if err != nil {
			return head{}, unexpected(err)
		}
		if len(line) == 0 {
			return h, nil
		}
		if fields == maxFields {
			return head{}, notHTTP("more than %d header fields", maxFields)
		}
		if err := h.field(line); err != nil {
			return head{}, err
		}
	}
}

// statusLine reads "HTTP/1.1 200 OK". HTTP/1.0 is read too; its connection is not used again.
func (h *head) statusLine(line []byte) error {
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1."))
	if !ok || len(rest) < 5 || rest[0] != '0' && rest[0] != '1' || rest[1] != ' ' || len(rest) > 5 && rest[5] != ' ' {
		return notHTTP("its first line is %.40q", line)
	}
	for _, d := range rest[2:5] {
		if d < '0' || d > '9' {
			return notHTTP("its first line is %.40q", line)
		}
		h.status = h.status*10 + int(d-'0')
	}
	if h.status < 100 || h.status > 599 {
		return notHTTP("its status is %d", h.status)
	}
	h.old = rest[0] == '0'
	h.close = h.old
	return nil
}

// splitField takes a header line apart. Folded lines, spaces before the colon and control bytes are no header.
func splitField(line []byte) (name, value []byte, err error) {
	i := bytes.IndexByte(line, ':')
	if i <= 0 || !isToken(string(line[:i])) {
		return nil, nil, notHTTP("the header line %.40q", line)
	}
	name, value = line[:i], bytes.Trim(line[i+1:], " \t")
	for _, b := range value {
		if b < ' ' && b != '\t' || b == 0x7f {
			return nil, nil, notHTTP("a control byte in the header %q", name)
		}
	}
	return name, value, nil
}

// field reads one header line.
func (h *head) field(line []byte) error {
	name, raw, err := splitField(line)
	if err != nil {
		return err
	}
	switch {
	case is(name, "content-length"):
		if h.length >= 0 || len(raw) == 0 || len(raw) > 15 {
			return notHTTP("its Content-Length")
		}
		n, err := strconv.ParseUint(string(raw), 10, 63)
		if err != nil || raw[0] == '+' {
			return notHTTP("its Content-Length")
		}
		h.length = int64(n)
	case is(name, "transfer-encoding"):
		if h.chunked || !is(raw, "chunked") {
			return notHTTP("the Transfer-Encoding %.40q", raw)
		}
		h.chunked = true
	case is(name, "content-type"):
		if h.contentType != "" {
			return notHTTP("two Content-Type headers")
		}
		h.contentType = string(raw)
	case is(name, "content-encoding"):
		h.encoded = h.encoded || !is(raw, "identity")
	case is(name, "connection"):
		h.close = h.close || !is(raw, "keep-alive")
	case is(name, "metadata"):
		h.metadata = string(raw)
	case is(name, "retry-after"):
		if n, err := strconv.Atoi(string(raw)); err == nil && n > 0 {
			h.retryAfter = time.Duration(min(n, 60)) * time.Second
		}
	}
	return nil
}

// frame checks that the body's end is told in one way.
func (h *head) frame(method string) error {
	switch {
	case h.chunked && h.length >= 0:
		return notHTTP("both Content-Length and Transfer-Encoding")
	case h.chunked && h.old:
		return notHTTP("Transfer-Encoding in HTTP/1.0") // RFC 9112 §6.1
	case method == "HEAD" || h.status == 204 || h.status == 304:
		h.chunked, h.length = false, 0
	case !h.chunked && h.length < 0:
		return notHTTP("neither Content-Length nor Transfer-Encoding: a cut answer would look whole")
	}
	return nil
}

// readLine reads a line that ends in CRLF and returns it without. It is valid until the next read.
func (c *conn) readLine(budget *int) ([]byte, error) {
	c.line = c.line[:0]
	line, err := c.br.ReadSlice('\n')
	for errors.Is(err, bufio.ErrBufferFull) && len(c.line) <= *budget {
		c.line = append(c.line, line...)
		line, err = c.br.ReadSlice('\n')
	}
	if len(c.line) > 0 {
		c.line = append(c.line, line...)
		line = c.line
	}
	if *budget -= len(line); *budget < 0 {
		return nil, notHTTP("a head of more than %d bytes", maxHead)
	}
	if err != nil {
		if len(line) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if len(line) < 2 || line[len(line)-2] != '\r' || bytes.IndexByte(line[:len(line)-2], '\r') >= 0 {
		return nil, notHTTP("a line that does not end in CRLF")
	}
	return line[:len(line)-2], nil
}

// body reads the body of an answer by its one framing. It ends with io.EOF only where the framing says so.
type body struct {
	conn    *conn
	chunked bool      // there may be another chunk
	length  int64     // declared; -1 when chunked
	left    int64     // of the body, or of the chunk
	started bool      // a chunk was begun
	first   time.Time // when the first byte was read
}

func (c *conn) body(h head) *body {
	return &body{conn: c, chunked: h.chunked, length: h.length, left: max(0, h.length)}
}

// Read reads what there is.
func (b *body) Read(p []byte) (int, error) {
	if err := b.await(); err != nil {
		return 0, err
	}
	n, err := b.conn.br.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if n > 0 {
		if b.first.IsZero() {
			b.first = time.Now()
		}
		return n, nil
	}
	return 0, unexpected(err)
}

// await waits until there is something of the body, with no memory in hand; its end is io.EOF.
func (b *body) await() error {
	switch {
	case b.left > 0:
		return nil
	case b.chunked:
		return b.nextChunk()
	}
	return io.EOF
}

// nextChunk reads the end of the chunk before and the size of the next one; after the last one the trailer, and then it gives io.EOF.
func (b *body) nextChunk() error {
	budget := maxTrailer
	if b.started {
		line, err := b.conn.readLine(&budget)
		if err != nil {
			return unexpected(err)
		}
		if len(line) != 0 {
			return notHTTP("a chunk that is longer than its size")
		}
	}
	b.conn.br.Await(b.conn.rw)
	line, err := b.conn.readLine(&budget)
	if err != nil {
		return unexpected(err)
	}
	digits, _, _ := bytes.Cut(line, []byte(";")) // extensions mean nothing (RFC 9112 §7.1.1)
	if len(digits) == 0 || len(digits) > 15 || digits[0] == '+' || digits[0] == '-' {
		return notHTTP("the chunk size %.20q", line)
	}
	n, err := strconv.ParseUint(string(digits), 16, 63)
	if err != nil {
		return notHTTP("the chunk size %.20q", line)
	}
	b.started, b.left = true, int64(n)
	if n > 0 {
		return nil
	}
	for { // the trailer is read and forgotten
		line, err := b.conn.readLine(&budget)
		if err != nil {
			return unexpected(err)
		}
		if len(line) == 0 {
			b.chunked = false
			return io.EOF
		}
		if _, _, err := splitField(line); err != nil {
			return err
		}
	}
}

// unexpected makes an end that came too soon an error.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// is compares a header's name or keyword without regard to ASCII case.
func is(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// isToken reports whether s is a token of RFC 9110 §5.6.2: a method or a header's name.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// isHost reports whether s can stand in a Host header.
func isHost(s string) bool { return ascii.Visible(s) && !strings.ContainsAny(s, "/?#@\\") }

// isPath reports whether s is one spelling of a path: it came from the catalogue, so anything else is a defect.
func isPath(s string) bool {
	return strings.HasPrefix(s, "/") && ascii.Visible(s) && !strings.ContainsAny(s, "?#%\\\"<>")
}
