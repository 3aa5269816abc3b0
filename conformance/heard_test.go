//go:build conformance

package conformance

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/vallum/vallum/conformance/relay"
)

// listen puts a relay in front of the gateway, which keeps every byte that it
// says to anybody: to the proofs' own requests and to the SDKs.
func (g *gate) listen(ctx context.Context) error {
	if err := os.MkdirAll(g.heard, 0o700); err != nil {
		return err
	}
	r, err := relay.Start(ctx, "tcp", strings.TrimPrefix(g.URL, "http://"), func(n int64) io.WriteCloser {
		f, err := os.Create(filepath.Join(g.heard, fmt.Sprintf("%06d", n)))
		if err != nil {
			fmt.Println("keeping what the gateway says:", err)
			return nil
		}
		return f
	})
	if err != nil {
		return err
	}
	g.direct, g.URL = g.URL, r.URL()
	return nil
}

// eachHeard calls f with all that the gateway said on each connection: the
// bytes, and then once more without the framing, which may stand in the middle
// of a word.
func (g *gate) eachHeard(f func(where string, text []byte)) (connections int, err error) {
	files, err := filepath.Glob(filepath.Join(g.heard, "*"))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		f(file, raw)
		f(file, unframed(raw))
	}
	return len(files), nil
}

// unframed is the bodies of the replies on one connection.
func unframed(raw []byte) []byte {
	var out []byte
	r := bufio.NewReader(bytes.NewReader(raw))
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return out
		}
		body, err := io.ReadAll(resp.Body)
		out = append(append(out, body...), '\n')
		if err != nil {
			return out // it was cut short: this is all that was said
		}
	}
}
