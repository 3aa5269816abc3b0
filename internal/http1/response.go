package http1

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/vallum/vallum/internal/sock"
)

// response is the answer to one request. It is used again for the next one: handlers must not keep it.
type response struct {
	conn     *conn
	header   http.Header
	req      *http.Request
	status   int // 0 until the header is written
	length   int64
	written  int64
	chunked  bool
	bodiless bool
	close    bool // the connection ends with this answer
	line     [24]byte
}

func (w *response) reset(c *conn, req *http.Request) {
	header := w.header
	if header == nil {
		header = http.Header{}
	}
	clear(header)
	*w = response{conn: c, header: header, req: req, length: -1, close: req.Close || !req.ProtoAtLeast(1, 1)}
}

// Header is the answer's header until WriteHeader.
func (w *response) Header() http.Header { return w.header }

// WriteHeader fixes the status. Without a Content-Length the body is chunked, or ends with the connection for HTTP/1.0.
func (w *response) WriteHeader(status int) {
	if w.status != 0 || status < 200 || status > 999 {
		return
	}
	w.status = status
	w.bodiless = w.req.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	if n, err := strconv.ParseUint(w.header.Get("Content-Length"), 10, 63); err == nil {
		w.length = int64(n)
	}
	w.chunked = w.length < 0 && !w.bodiless && w.req.ProtoAtLeast(1, 1)
	b := w.conn.body
	// A body that nobody read: the next request stands behind it.
	w.close = w.close || w.conn.server.closing.Load() || w.header.Get("Connection") == "close" || w.length < 0 && !w.chunked && !w.bodiless ||
		b.left && (b.promised || w.req.ContentLength > maxDiscard)
	w.writeHead()
}

func (w *response) writeHead() {
	bw := &w.conn.bw
	_, _ = bw.WriteString("HTTP/1.1 ")
	_, _ = bw.Write(strconv.AppendInt(w.line[:0], int64(w.status), 10))
	_, _ = bw.WriteString(" ")
	_, _ = bw.WriteString(http.StatusText(w.status))
	_, _ = bw.WriteString("\r\n")
	var names [16]string
	keys := names[:0]
	for name := range w.header {
		switch name {
		case "Connection", "Content-Length", "Date", "Transfer-Encoding":
		default:
			keys = append(keys, name)
		}
	}
	slices.Sort(keys)
	for _, name := range keys {
		for _, v := range w.header[name] {
			field(bw, name, v)
		}
	}
	field(bw, "Date", w.conn.server.dateNow())
	switch {
	case w.chunked:
		field(bw, "Transfer-Encoding", "chunked")
	case w.length >= 0 && w.status != http.StatusNoContent:
		_, _ = bw.WriteString("Content-Length: ")
		_, _ = bw.Write(strconv.AppendInt(w.line[:0], w.length, 10))
		_, _ = bw.WriteString("\r\n")
	}
	if w.close {
		field(bw, "Connection", "close")
	}
	_, _ = bw.WriteString("\r\n")
}

// field writes one field; one whose value could end it early is left out.
func field(bw *sock.Writer, name, value string) {
	for i := range len(value) {
		if c := value[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return
		}
	}
	_, _ = bw.WriteString(name)
	_, _ = bw.WriteString(": ")
	_, _ = bw.WriteString(value)
	_, _ = bw.WriteString("\r\n")
}

// Write writes a part of the body. Its error is http.ErrContentLength beyond the declared length, and
// http.ErrBodyNotAllowed where an answer has none; to HEAD it writes nothing.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.req.Method == http.MethodHead:
		return len(p), nil
	case w.bodiless:
		return 0, http.ErrBodyNotAllowed
	case w.length >= 0 && w.written+int64(len(p)) > w.length:
		w.close = true
		return 0, http.ErrContentLength
	case len(p) == 0:
		return 0, nil
	}
	w.written += int64(len(p))
	bw := &w.conn.bw
	if !w.chunked {
		return bw.Write(p)
	}
	_, _ = bw.Write(append(strconv.AppendInt(w.line[:0], int64(len(p)), 16), "\r\n"...))
	n, err := bw.Write(p)
	if err != nil {
		return n, err
	}
	_, err = bw.WriteString("\r\n")
	return n, err
}

// FlushError sends what was written.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.conn.bw.Flush()
}

// SetReadDeadline bounds the reading of the body; it takes effect when the connection has to be waited for.
func (w *response) SetReadDeadline(t time.Time) error {
	w.conn.until(t, 0)
	return nil
}

// SetWriteDeadline bounds writes, to about a second, in the place of the server's own deadline for each. One that has passed cuts
// the connection, as it resets a stream of HTTP/2, whatever is waited for on it; such a one any goroutine may set.
func (w *response) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() && !t.After(time.Now()) {
		w.conn.cut()
		return nil
	}
	w.conn.ownWrite = true
	w.conn.writeUntil(t)
	return nil
}

// finish ends the answer and sends it. A body shorter than declared cannot be ended well: the connection is cut.
func (w *response) finish() error {
	if w.status == 0 {
		if w.header.Get("Content-Length") == "" {
			w.header["Content-Length"] = []string{"0"}
		}
		w.WriteHeader(http.StatusOK)
	}
	if w.chunked {
		_, _ = w.conn.bw.WriteString("0\r\n\r\n")
	}
	if err := w.conn.bw.Flush(); err != nil {
		return err
	}
	if w.length >= 0 && w.written != w.length && !w.bodiless {
		return http.ErrContentLength
	}
	return nil
}
