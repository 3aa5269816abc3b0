package vllm

import (
	"fmt"
	"strings"
)

// maxSegment is the longest value of a template's segment in bytes; ids of vLLM have fewer than 60.
const maxSegment = 128

// modelSegment is the one segment that may hold a model's name: slashes and the bytes of "org/name:tag@rev+x".
// internal/urlpath lets nothing else through, and Vallum answers the operation itself.
const modelSegment = "{model}"

// route is a method and a literal path.
type route struct{ method, path string }

// routes finds the operation of a request.
type routes struct {
	literal   map[route]*Operation
	templates []template
}

// template is a path with declared segments: "" stands for a value.
type template struct {
	method string
	parts  []string // of the path without its leading slash
	model  bool     // the last part is a model's name and may itself hold slashes
	op     *Operation
}

// Lookup finds the operation of a method and a path that urlpath.Parse accepted, with the values of the template's
// segments in order (nil for a literal). It is exact: no prefix matches, no case is folded, nothing is cleaned.
// A WebSocket's handshake is found under GET, so that it can be refused by name. Other servers, mounts and wildcards
// are never found.
func Lookup(method, path string) (op *Operation, segments []string, ok bool) {
	return loaded().routes.lookup(method, path)
}

func (r *routes) lookup(method, path string) (*Operation, []string, bool) {
	if op := r.literal[route{method, path}]; op != nil {
		return op, nil, true
	}
	for i := range r.templates {
		if t := &r.templates[i]; t.method == method {
			if segments, ok := t.match(path); ok {
				return t.op, segments, true
			}
		}
	}
	return nil, nil, false
}

// add registers an operation of the API port.
func (r *routes) add(op *Operation) error {
	if op.Server != "" || op.Mount {
		return nil
	}
	method := op.Method
	if method == "WEBSOCKET" {
		method = "GET" // RFC 6455 §4.1: the handshake is a GET
	}
	if !strings.Contains(op.Path, "{") {
		at := route{method, op.Path}
		if other := r.literal[at]; other != nil {
			return fmt.Errorf("%q and %q are both %s %s", other.ID, op.ID, method, op.Path)
		}
		r.literal[at] = op
		return nil
	}
	t := template{method: method, op: op, model: strings.HasSuffix(op.Path, "/"+modelSegment)}
	for part := range strings.SplitSeq(op.Path[1:], "/") {
		if strings.HasPrefix(part, "{") {
			part = ""
		}
		t.parts = append(t.parts, part)
	}
	r.templates = append(r.templates, t)
	return nil
}

func (t *template) match(path string) ([]string, bool) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, false
	}
	var segments []string
	for i, part := range t.parts {
		last := i == len(t.parts)-1
		value, more := rest, ""
		if !last || !t.model {
			var cut bool
			value, more, cut = strings.Cut(rest, "/")
			if cut == last {
				return nil, false // too few segments or too many
			}
		}
		switch {
		case part != "":
			ok = value == part
		case last && t.model:
			ok = isModel(value)
		default:
			ok = isSegment(value)
		}
		if !ok {
			return nil, false
		}
		if part == "" {
			segments = append(segments, value)
		}
		rest = more
	}
	return segments, true
}

// isSegment reports whether s may stand for a template's segment: letters, digits, '-', '_' and '.', and no dot
// segment.
func isSegment(s string) bool {
	if s == "" || len(s) > maxSegment || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if !plain(s[i]) {
			return false
		}
	}
	return true
}

// isModel reports whether s may be the name of a model in a path. Its length is bounded by urlpath.
func isModel(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
		for i := range len(part) {
			if c := part[i]; !plain(c) && c != ':' && c != '@' && c != '+' {
				return false
			}
		}
	}
	return true
}

func plain(c byte) bool {
	return c == '-' || c == '_' || c == '.' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
