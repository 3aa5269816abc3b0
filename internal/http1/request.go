package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// malformed is what arrived and is no request, with the status that says so and a sentence for its sender.
type malformed struct {
	status int
	says   string
}

func (m malformed) Error() string { return m.says }

// readRequest waits for the next request and reads its head. The parser is net/http's, but for plain heads; what its
// server asks of a request besides is asked here, a little more strictly: no empty Host, no HTTP/2 preface, no other
// expectation.
func (c *conn) readRequest() (*http.Request, error) {
	s := c.server
	c.headLeft = -1
	c.until(c.since.Add(s.IdleTimeout), s.IdleTimeout/8)
	if len(c.watch.early) == 0 && c.setDeadline() == nil {
		c.br.Await(c.rwc)
	}
	if _, err := c.br.Peek(1); err != nil {
		return nil, errNothingCame
	}
	if since := c.state.Load(); since == closed || !c.state.CompareAndSwap(since, active) {
		return nil, errNothingCame
	}
	c.until(time.Now().Add(s.HeaderTimeout), 0)
	c.headLeft = max(0, int64(s.MaxHeaderBytes-c.br.Buffered()))
	if before := c.response.req; before != nil && before.Method == http.MethodPost { // RFC 9112 §2.2: old clients end a body with a line too much
		if b, _ := c.br.Peek(2); string(b) == "\r\n" {
			_, _ = c.br.Discard(2)
		}
	}
	if req, ok := c.plainRequest(); ok {
		return req, nil
	}
	return c.anyRequest()
}

// plainRequest reads a head that is plain; false when it is not, and nothing was read.
func (c *conn) plainRequest() (*http.Request, bool) {
	if c.blank == nil {
		blank := http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody, RemoteAddr: c.remote, TLS: c.tls}
		c.blank = blank.WithContext(c.ctx)
	}
	c.request = *c.blank
	req := &c.request
	head, _ := c.br.Peek(c.br.Buffered())
	size, ok := c.plain.read(head, req)
	if !ok {
		return nil, false
	}
	_, _ = c.br.Discard(size)
	c.headLeft, c.ownWrite = -1, false
	c.body = body{conn: c, from: &c.br, declared: req.ContentLength, left: req.ContentLength > 0}
	if c.body.left {
		req.Body = &c.body
	}
	return req, true
}

// anyRequest reads a head with net/http's parser.
func (c *conn) anyRequest() (*http.Request, error) {
	head, length, err := c.head()
	if err != nil {
		return nil, err
	}
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return nil, c.statusOf(err)
	}
	c.headLeft = -1
	if err := check(req); err != nil {
		return nil, err
	}
	chunked := len(req.TransferEncoding) > 0
	req.Close = req.Close || chunked && length // or a proxy that went by the length, and shares the connection, takes a body for the next request (RFC 9112 §6.1)
	c.body = body{conn: c, from: &c.br, declared: max(0, req.ContentLength), left: req.Body != http.NoBody}
	if chunked {
		c.body.from = &chunks{Reader: httputil.NewChunkedReader(c.br.Bufio()), conn: c}
	}
	req = req.WithContext(c.ctx)
	req.RemoteAddr, req.TLS, c.ownWrite = c.remote, c.tls, false
	if c.body.left {
		req.Body = &c.body
	}
	return req, c.expect(req)
}

// head reads a header block as it stands, and whether it has a Content-Length. Lines that end in LF alone, or are folded, are
// refused (RFC 9112 §2.2, §5.2): where one ends must not hang on who reads it.
func (c *conn) head() (head []byte, length bool, err error) {
	for begin := 0; ; {
		part, err := c.br.ReadSlice('\n')
		head = append(head, part...)
		switch line := head[begin:]; {
		case err == bufio.ErrBufferFull:
			continue
		case err != nil:
			return nil, false, c.statusOf(err)
		case !bytes.HasSuffix(line, []byte("\r\n")), line[0] == ' ', line[0] == '\t':
			return nil, false, malformed{http.StatusBadRequest, "a line of the header block is folded, or does not end in CRLF"}
		case len(line) == len("\r\n"):
			return head, length, nil
		}
		length = length || bytes.HasPrefix(bytes.ToLower(head[begin:]), []byte("content-length:"))
		begin = len(head)
	}
}

// errNothingCame ends a connection on which no byte of a request arrived.
var errNothingCame = errors.New("no request came")

// statusOf is the answer to what net/http's parser refused.
func (c *conn) statusOf(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, errHeadTooLarge):
		return malformed{http.StatusRequestHeaderFieldsTooLarge, "the header block is too large"}
	case errors.As(err, &timeout) && timeout.Timeout():
		return malformed{http.StatusRequestTimeout, "the request's header block did not come in time"}
	case strings.HasPrefix(err.Error(), "unsupported transfer encoding"), strings.HasPrefix(err.Error(), "too many transfer encodings"):
		return malformed{http.StatusNotImplemented, "the transfer encoding is not chunked"}
	case c.readErr != nil, errors.Is(err, io.ErrUnexpectedEOF):
		return malformed{0, "the connection ended within a header block"}
	}
	return malformed{http.StatusBadRequest, "what came is no HTTP request"} // the parser's own words quote the sender's bytes
}

// check is what net/http's server asks of a parsed request: RFC 9112 §3.2 (Host) and §2.3 (version), RFC 9110 §5
// (names and values).
func check(req *http.Request) error {
	if req.ProtoMajor != 1 {
		return malformed{http.StatusHTTPVersionNotSupported, "the version is not 1.1; version 2 is spoken over TLS only"}
	}
	if req.ProtoAtLeast(1, 1) && req.Host == "" {
		return malformed{http.StatusBadRequest, "there is no Host header"}
	}
	if !httpguts.ValidHostHeader(req.Host) {
		return malformed{http.StatusBadRequest, "the Host header is no host"}
	}
	for name, values := range req.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return malformed{http.StatusBadRequest, "there is a header whose name is no name"}
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return malformed{http.StatusBadRequest, "there is a header with a byte that no value may hold"}
			}
		}
	}
	return nil
}

// expect makes the body say "100 Continue" once it is read, where the client waits for that (RFC 9110 §10.1.1).
func (c *conn) expect(req *http.Request) error {
	values := req.Header["Expect"]
	if len(values) == 0 {
		return nil
	}
	if len(values) > 1 || !strings.EqualFold(values[0], "100-continue") {
		return malformed{http.StatusExpectationFailed, "only 100-continue can be expected"}
	}
	c.body.promised = c.body.left && req.ProtoAtLeast(1, 1)
	return nil
}

// refuse answers what was no request with a bare status and lets the connection end.
func (c *conn) refuse(err error) {
	m, ok := errors.AsType[malformed](err)
	if !ok {
		return
	}
	c.server.malformed()
	c.server.Log.Debug("not a request", "remote", c.remote, "error", err)
	if m.status == 0 {
		return
	}
	_, _ = fmt.Fprintf(&c.bw, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%d %s: %s\n",
		m.status, http.StatusText(m.status), m.status, http.StatusText(m.status), m.says)
	if c.bw.Flush() == nil {
		c.lingeringClose(lingerHead)
	}
}

// chunks is a chunked body. Its chunks are read by net/http's reader, which ends behind the last one's line.
type chunks struct {
	io.Reader
	conn *conn
	err  error // how it ended
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.Reader.Read(p)
	if err == io.EOF {
		c.err = c.conn.trailer()
		err = c.err
	}
	return n, err
}

// maxTrailer bounds what stands behind the last chunk, in bytes.
const maxTrailer = 4 << 10

var errTrailer = errors.New("behind the last chunk stands no trailer, but something else")

// trailer reads what stands behind the last chunk: io.EOF when it is as it should be. Nobody needs a trailer here; but where
// it ends some see elsewhere (net/http for one takes LF for CRLF), so there is none of a doubtful form, and behind one
// nothing is read as a request.
func (c *conn) trailer() error {
	for left := maxTrailer; ; {
		line, err := c.br.ReadSlice('\n')
		left -= len(line)
		line, crlf := bytes.CutSuffix(line, []byte("\r\n"))
		name, value, colon := bytes.Cut(line, []byte(":"))
		switch {
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case crlf && len(line) == 0:
			return io.EOF
		case !crlf || !colon || left < 0 || !httpguts.ValidHeaderFieldName(string(name)) || !httpguts.ValidHeaderFieldValue(string(value)):
			return errTrailer
		}
		c.response.close = true
	}
}

// body is a request's body on its way to the handler.
type body struct {
	conn     *conn
	from     io.Reader
	declared int64 // what is left of the Content-Length, where from does not end with the body; 0 where it does
	left     bool  // there may be more to read
	promised bool  // the client waits for "100 Continue"
}

func (b *body) Read(p []byte) (int, error) {
	if !b.left {
		return 0, io.EOF
	}
	if b.promised && b.conn.response.status == 0 { // behind a head it would be a part of the answer
		b.promised = false
		_, _ = b.conn.bw.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
		if err := b.conn.bw.Flush(); err != nil {
			return 0, err
		}
	}
	if b.declared > 0 {
		p = p[:min(int64(len(p)), b.declared)]
	}
	n, err := b.from.Read(p)
	if b.declared > 0 {
		if b.declared -= int64(n); b.declared == 0 {
			err = io.EOF // it comes with the last bytes, as net/http's does
		} else if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == io.EOF {
		b.left = false
		b.conn.watch.start()
	}
	return n, err
}

// Close leaves what is left of the body to the connection.
func (b *body) Close() error { return nil }
