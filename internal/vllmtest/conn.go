package vllmtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxHead = 64 << 20  // uvicorn with httptools took 64 MiB of headers
	maxBody = 512 << 20 // it took 200 MiB of body; more is a broken test
)

var errInvalid = errors.New("invalid HTTP request")

// serveConn is the server's own reading of HTTP/1.1: net/http would tidy up what arrives, and cannot misbehave.
func (s *Server) serveConn(c net.Conn) {
	defer func() { _ = c.Close() }()
	br := bufio.NewReaderSize(c, 16<<10)
	if _, err := br.Peek(1); err != nil {
		return
	}
	for {
		r, err := s.read(c, br)
		if err != nil {
			if errors.Is(err, errInvalid) {
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\nInvalid HTTP request received.")
			}
			return
		}
		s.rec.runs(1)
		number := s.rec.add(r)
		// Nothing is read while an answer is written but the first byte of what follows; an end of file there is how
		// vLLM learns that the client left.
		ctx, cancel := context.WithCancel(context.Background())
		next := make(chan error, 1)
		go func() {
			_, err := br.Peek(1)
			if err != nil {
				cancel()
			}
			next <- err
		}()
		x := &exchange{s: s, c: c, r: r, ctx: ctx, number: number}
		x.run()
		s.rec.runs(-1)
		cancelled := ctx.Err() != nil
		cancel()
		if x.gone || cancelled && !x.whole {
			s.gone <- number
		}
		if !x.keep() || !waitIdle(next, s.o.Idle) {
			_ = c.Close()
			<-next // the reader has ended
			return
		}
	}
}

// waitIdle reports whether another request began within the idle time.
func waitIdle(next chan error, idle time.Duration) bool {
	timer := time.NewTimer(idle)
	defer timer.Stop()
	select {
	case err := <-next:
		next <- err
		return err == nil
	case <-timer.C:
		return false
	}
}

// read takes one request off the connection.
func (s *Server) read(c net.Conn, br *bufio.Reader) (Recorded, error) {
	var r Recorded
	head, err := readHead(br)
	if err != nil {
		s.rec.arrive(false)
		return r, err
	}
	r.Head = head
	if err := r.parseHead(); err != nil {
		s.rec.arrive(false)
		return r, err
	}
	s.rec.arrive(r.isProbe())
	if strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return r, err
		}
	}
	if err := r.readBody(br); err != nil {
		s.rec.add(r) // what a sender that broke off had sent so far
		return r, err
	}
	r.Whole = true
	return r, nil
}

// readHead reads up to and including the empty line.
func readHead(br *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := br.ReadSlice('\n')
		head = append(head, line...)
		switch {
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(head) > maxHead:
			return nil, errInvalid
		case bytes.HasSuffix(head, []byte("\r\n\r\n")):
			return head, nil
		}
	}
}

func (r *Recorded) parseHead() error {
	lines := strings.Split(strings.TrimSuffix(string(r.Head), "\r\n\r\n"), "\r\n")
	parts := strings.Split(lines[0], " ")
	if len(parts) != 3 || !strings.HasPrefix(parts[2], "HTTP/") {
		return errInvalid
	}
	r.Method, r.Target, r.Proto = parts[0], parts[1], parts[2]
	target, _, _ := strings.Cut(r.Target, "?")
	if rest, ok := strings.CutPrefix(target, "http://"); ok { // absolute-form is routed by its path (measured)
		_, path, _ := strings.Cut(rest, "/")
		target = "/" + path
	}
	path, err := url.PathUnescape(target)
	if err != nil {
		path = target
	}
	if path != "*" && !strings.HasPrefix(path, "/") {
		return errInvalid
	}
	r.Path = path
	r.Header = http.Header{}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return errInvalid
		}
		key := textproto.CanonicalMIMEHeaderKey(name)
		r.Header[key] = append(r.Header[key], strings.TrimLeft(value, " \t"))
	}
	return nil
}

// readBody reads what Content-Length or Transfer-Encoding declares, and keeps its bytes.
func (r *Recorded) readBody(br *bufio.Reader) error {
	lengths, codings := r.Header["Content-Length"], r.Header["Transfer-Encoding"]
	switch {
	case len(codings) > 0:
		if len(lengths) > 0 || len(codings) > 1 || !strings.HasSuffix(strings.ToLower(codings[0]), "chunked") {
			return errInvalid
		}
		return r.readChunks(br)
	case len(lengths) == 0:
		return nil
	case len(lengths) > 1:
		return errInvalid
	}
	n, err := strconv.ParseUint(lengths[0], 10, 31)
	if err != nil || n > maxBody {
		return errInvalid
	}
	var b bytes.Buffer
	got, err := io.CopyN(&b, br, int64(n))
	r.Body, r.RawBody = b.Bytes(), b.Bytes()
	if err != nil {
		return fmt.Errorf("%d of %d bytes: %w", got, n, err)
	}
	return nil
}

func (r *Recorded) readChunks(br *bufio.Reader) error {
	for {
		line, err := br.ReadBytes('\n')
		r.RawBody = append(r.RawBody, line...)
		if err != nil {
			return err
		}
		size, _, _ := strings.Cut(strings.TrimSuffix(string(line), "\r\n"), ";")
		n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 31)
		if err != nil || len(r.RawBody)+int(n) > maxBody {
			return errInvalid
		}
		if n == 0 {
			return r.readTrailer(br)
		}
		chunk := make([]byte, n+2)
		got, err := io.ReadFull(br, chunk)
		r.RawBody = append(r.RawBody, chunk[:got]...)
		if err != nil {
			return err
		}
		r.Body = append(r.Body, chunk[:n]...)
	}
}

func (r *Recorded) readTrailer(br *bufio.Reader) error {
	for {
		line, err := br.ReadBytes('\n')
		r.RawBody = append(r.RawBody, line...)
		if err != nil {
			return err
		}
		if string(line) == "\r\n" {
			return nil
		}
	}
}
