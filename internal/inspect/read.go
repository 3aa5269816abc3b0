package inspect

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"github.com/vallum/vallum/internal/spare"
	"github.com/vallum/vallum/internal/verdict"
)

// ErrTooLarge is what a body's reader returns when a cap of its own is reached: the answer is body_too_large.
var ErrTooLarge = errors.New("the body is larger than its reader allows")

// ErrBusy is what a body's reader returns when there is no memory for more bodies: the answer is busy.
var ErrBusy = errors.New("there is no room to buffer the body")

// counted is a body's reader with its cap and its declared length. It remembers why reading failed, which parsers hide.
type counted struct {
	body             io.Reader
	n, length, limit int64
	boundary         string // of the Content-Type
	err              error
}

// count begins to read a body of one media type and at most limit bytes.
func count(r Request, media string, limit int64) (*counted, error) {
	params, err := checkType(r, media)
	if err != nil {
		return nil, err
	}
	if r.Length > limit {
		return nil, tooLarge(limit)
	}
	if r.Body == nil || r.Length == 0 {
		return nil, badBody("", -1, "the body is empty")
	}
	return &counted{body: r.Body, length: r.Length, limit: limit, boundary: params["boundary"]}, nil
}

func (c *counted) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.body.Read(p)
	c.n += int64(n)
	switch {
	case c.n > c.limit:
		n, err = 0, tooLarge(c.limit)
	case c.length >= 0 && c.n > c.length:
		n, err = 0, badBody("", -1, "the body is longer than its Content-Length")
	case err == io.EOF && c.n < c.length:
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

// failure is why reading failed, or else err: what the connection did comes before what a parser made of it.
func (c *counted) failure(err error) error {
	var timeout interface{ Timeout() bool }
	var r *refusal
	switch {
	case c.err == nil || c.err == io.EOF:
		return err
	case errors.As(c.err, &r):
		return r
	case errors.Is(c.err, ErrTooLarge):
		return refuse(verdict.BodyTooLarge, c.err)
	case errors.Is(c.err, ErrBusy):
		return refuse(verdict.Busy, c.err)
	case errors.As(c.err, &timeout) && timeout.Timeout():
		return refuse(verdict.BodyTimeout, c.err)
	}
	return &refusal{reason: verdict.BadBody, cause: fmt.Errorf("reading the body: %w", c.err), at: int(c.n), what: "the body ends before its declared length"}
}

// readAll reads a whole JSON body.
func readAll(r Request, limit int64) (*spare.Buffer, error) {
	source, err := count(r, "application/json", limit)
	if err != nil {
		return nil, err
	}
	body, err := spare.ReadAll(source, r.Length)
	if err != nil {
		return nil, source.failure(err)
	}
	if len(body.B) == 0 {
		body.GiveBack()
		return nil, badBody("", -1, "the body is empty")
	}
	return body, nil
}

func tooLarge(limit int64) error {
	return &refusal{reason: verdict.BodyTooLarge, at: -1, what: fmt.Sprintf("at most %d bytes are accepted", limit)}
}

// single is the one value of a header that may stand only once: proxies differ on which of two they read.
func single(name string, values []string) (string, error) {
	if len(values) > 1 {
		return "", &refusal{reason: verdict.BadHeaders, param: name, at: -1, what: "may stand only once"}
	}
	return strings.Join(values, ""), nil
}

// checkType wants one media type and no content coding: vLLM decodes none, and what is compressed cannot be inspected.
func checkType(r Request, want string) (params map[string]string, err error) {
	coding, err := single("Content-Encoding", r.ContentEncoding)
	if err != nil {
		return nil, err
	}
	if coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, &refusal{reason: verdict.BadBody, param: "Content-Encoding", at: -1, what: "the body must not be compressed"}
	}
	value, err := single("Content-Type", r.ContentType)
	if err != nil || value == want {
		return nil, err
	}
	media, params, err := mime.ParseMediaType(value)
	charset, ok := params["charset"]
	if err != nil || media != want || ok && !strings.EqualFold(charset, "utf-8") && !strings.EqualFold(charset, "utf8") {
		// vLLM ignores the charset and guesses the encoding from the first bytes.
		return nil, badBody("Content-Type", -1, want+" in UTF-8 is needed")
	}
	return params, nil
}
