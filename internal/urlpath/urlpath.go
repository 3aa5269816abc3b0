// Package urlpath knows the one spelling of a request path.
// It refuses every path that two readers could read differently; it never decodes, cleans or redirects one.
package urlpath

import (
	"fmt"
	"strings"
)

// maxPath is the longest accepted path in bytes; the longest of the catalogue has 44, a model's name may add 256.
const maxPath = 512

// modelPrefix is where the one exception lives: see Parse.
const modelPrefix = "/v1/models/"

// Path is a path that has exactly one reading: what stands in it is what every server reads. Make one with Parse.
type Path struct{ s string }

// String is the path, which begins with a slash; "" for the zero Path.
func (p Path) String() string { return p.s }

// Ambiguous says why a request target is refused, in words that its sender may read.
type Ambiguous struct {
	What string // what is wrong
	At   int    // the byte of the target, from 0
}

func (e *Ambiguous) Error() string {
	return fmt.Sprintf("%s at byte %d; use the base URL http(s)://HOST:PORT/v1 without a trailing slash", e.What, e.At)
}

// Parse takes a request target (RFC 9112 §3.2) as it stood on the request line and gives its path, or an *Ambiguous.
// Only origin-form is accepted. The query, if any, is cut off: granted operations ignore it and it is never forwarded.
//
// uvicorn decodes %2F before routing, so /v1%2Fmodels is /v1/models to vLLM and something else to a proxy. Nothing
// that Vallum forwards needs an encoded byte, so none is accepted. The one exception is what follows /v1/models/:
// clients ask for org%2Fname there. Vallum answers that itself and never forwards it, so %2F is read as a slash, and
// ':', '@' and '+' are taken.
func Parse(target string) (Path, error) {
	path, _, _ := strings.Cut(target, "?")
	if path == "" || path[0] != '/' {
		return Path{}, &Ambiguous{"no path in the target (absolute, authority and asterisk form are refused)", 0}
	}
	if len(path) > maxPath {
		return Path{}, &Ambiguous{"a path that is too long", maxPath}
	}
	if rest, ok := strings.CutPrefix(path, modelPrefix); ok && rest != "" {
		return parseModel(rest)
	}
	for i := range len(path) {
		if !plain(path[i]) {
			return Path{}, &Ambiguous{naming(path[i]), i}
		}
	}
	if path == "/" {
		return Path{path}, nil
	}
	return segments(path)
}

func parseModel(rest string) (Path, error) {
	name := strings.ReplaceAll(strings.ReplaceAll(rest, "%2F", "/"), "%2f", "/")
	for i := range len(name) {
		if c := name[i]; !plain(c) && c != ':' && c != '@' && c != '+' {
			return Path{}, &Ambiguous{naming(c), len(modelPrefix) + i}
		}
	}
	return segments(modelPrefix + name)
}

// segments refuses what Starlette, nginx and net/url each read in a way of their own: empty and dot segments and a
// trailing slash, which Starlette answers with a redirect built from the Host header.
func segments(path string) (Path, error) {
	start := 1
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		switch path[start:i] {
		case "":
			if i == len(path) {
				return Path{}, &Ambiguous{"a trailing slash", i - 1}
			}
			return Path{}, &Ambiguous{"an empty segment", i}
		case ".", "..":
			return Path{}, &Ambiguous{"a dot segment", start}
		}
		start = i + 1
	}
	return Path{path}, nil
}

// plain lists the bytes that no reader changes. A list of what is refused would miss '"', which net/url encodes.
func plain(c byte) bool {
	return c == '/' || c == '-' || c == '_' || c == '.' ||
		'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func naming(c byte) string {
	switch {
	case c == '%':
		return "percent-encoding"
	case c < 0x20 || c == 0x7f:
		return "a control byte"
	case c >= 0x80:
		return "a byte that is not ASCII"
	default:
		return fmt.Sprintf("the byte %q", c)
	}
}
