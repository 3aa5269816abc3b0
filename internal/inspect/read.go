package inspect

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"github.com/vallum/vallum/internal/verdict"
)

// ErrTooLarge is what a body's reader returns when a cap of its own is reached: the answer is body_too_large.
var ErrTooLarge = errors.New("the body is larger than its reader allows")

// ErrBusy is what a body's reader returns when there is no memory for more bodies: the answer is busy.
var ErrBusy = errors.New("there is no room to buffer the body")

// firstBuffer is how many declared bytes are believed before any has arrived.
const firstBuffer = 1 << 20

// maxIdle is how often a reader may give nothing at all before it counts as broken.
const maxIdle = 100

// readAll reads a whole body of at most limit bytes.
func readAll(r io.Reader, length, limit int64) ([]byte, error) {
	if length > limit {
		return nil, tooLarge(limit)
	}
	if r == nil || length == 0 {
		return nil, badBody("", 0, "the body is empty; a JSON object is needed")
	}
	size := int64(8 << 10)
	if length > 0 {
		size = min(length, firstBuffer) + 1 // one more, so that the last Read can say EOF
	}
	body := make([]byte, 0, size)
	for idle := 0; ; {
		if len(body) == cap(body) {
			grown := make([]byte, len(body), min(2*int64(cap(body)), limit+1))
			copy(grown, body)
			body = grown
		}
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if idle++; n > 0 {
			idle = 0
		}
		switch {
		case idle > maxIdle && err == nil:
			return nil, readError(io.ErrNoProgress)
		case int64(len(body)) > limit:
			return nil, tooLarge(limit)
		case length >= 0 && int64(len(body)) > length:
			return nil, badBody("", int(length), "the body is longer than its Content-Length")
		case errors.Is(err, io.EOF) && length >= 0 && int64(len(body)) < length:
			return nil, readError(io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF) && len(body) == 0:
			return nil, badBody("", 0, "the body is empty; a JSON object is needed")
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, readError(err)
		}
	}
}

func tooLarge(limit int64) error {
	return &refusal{verdict.Refuse(verdict.BodyTooLarge, fmt.Errorf("the body has more than %d bytes", limit)).Saying("At most %d bytes are accepted.", limit)}
}

// readError is the refusal for an error of the body's reader: ErrTooLarge, ErrBusy, anything with Timeout() true, or a
// body that ended early or broke.
func readError(err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, ErrTooLarge):
		return refuse(verdict.BodyTooLarge, err)
	case errors.Is(err, ErrBusy):
		return refuse(verdict.Busy, err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return refuse(verdict.BodyTimeout, err)
	}
	return &refusal{verdict.Refuse(verdict.BadBody, fmt.Errorf("reading the body: %w", err)).Saying("The body ended before its declared length.")}
}

// single is the one value of a header that may stand only once: proxies differ on which of two they read.
func single(name string, values []string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	}
	return "", &refusal{verdict.Refuse(verdict.BadHeaders, fmt.Errorf("%d %s headers", len(values), name)).At(name).Saying("%s may stand only once.", name)}
}

// identity refuses content codings: vLLM decodes none, and what is compressed cannot be inspected.
func identity(encodings []string) error {
	coding, err := single("Content-Encoding", encodings)
	if err != nil {
		return err
	}
	if coding == "" || strings.EqualFold(strings.TrimSpace(coding), "identity") {
		return nil
	}
	return &refusal{verdict.Refuse(verdict.BadBody, fmt.Errorf("content encoding %.40q", coding)).At("Content-Encoding").Saying("The body must not be compressed.")}
}

func mediaType(values []string) (string, map[string]string, error) {
	value, err := single("Content-Type", values)
	if err != nil {
		return "", nil, err
	}
	media, params, err := mime.ParseMediaType(value)
	if err != nil {
		return "", nil, badType(value, "a media type is needed")
	}
	return media, params, nil
}

func badType(value, what string) error {
	return &refusal{verdict.Refuse(verdict.BadBody, fmt.Errorf("content type %.100q", value)).At("Content-Type").Saying("Content-Type: %s.", what)}
}

// checkJSONType wants application/json in UTF-8, unencoded. vLLM ignores the charset and guesses the encoding from the
// first bytes, so a charset that is not UTF-8 would be a promise that nobody keeps.
func checkJSONType(types, encodings []string) error {
	if err := identity(encodings); err != nil {
		return err
	}
	if len(types) == 1 && types[0] == "application/json" {
		return nil
	}
	media, params, err := mediaType(types)
	if err != nil {
		return err
	}
	if media != "application/json" {
		return badType(media, "application/json is needed")
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") && !strings.EqualFold(charset, "utf8") {
		return badType(charset, "the charset must be UTF-8")
	}
	return nil
}
