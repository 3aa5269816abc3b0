// Package schema looks at JSON schemas that vLLM may make a grammar of.
// It refuses those that end the server while it does: the compilers recurse as deep as a pattern's brackets or a chain of
// references go. xgrammar 0.2.8 falls at 29,000 brackets, or at 5,100 objects inside each other over 350 references;
// llguidance, which vLLM asks when a schema has more than xgrammar knows, at 1,400 over 48, or at 50,000 required names. It
// refuses too what keeps the server's one thread for minutes: counts that are counted out (llguidance at 1e9 items), and what
// keeps the engine for seconds at each token: patterns that count what repeats.
package schema

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/spare"
)

// The bounds. Schemas of clients have patterns of some hundred bytes and some dozen references.
const (
	maxPattern = 4 << 10 // bytes of a regular expression: each may be a bracket
	maxLevels  = 700     // definitions that are referred to, times the objects inside each other in each
)

// Bounds on lists: llguidance recurses over required names, and compares members with one another.
const (
	maxRequired = 4 << 10 // names in one list
	maxMembers  = 2 << 10 // of one object
	maxBranches = 8 << 10 // schemas in one list: xgrammar compares them with one another (100,000 keep the server for 11 s)
)

// most is the largest count that may stand in a schema.
var most = map[string]float64{"minItems": 1e6, "maxItems": 1e6, "minProperties": 128, "maxProperties": 1 << 10}

// isPlain reports whether a schema is too short for long lists, and has no patterns and no counts: nearly all are.
func isPlain(raw []byte) bool {
	return len(raw) <= maxPattern && !bytes.Contains(raw, []byte("attern")) && !bytes.Contains(raw, []byte("Items")) && !bytes.Contains(raw, []byte("nProperties")) &&
		!bytes.Contains(raw, []byte("xProperties")) && !bytes.Contains(raw, []byte(`\u`))
}

// Check says what is wrong with a schema, in words for the caller; "" for nothing. The schema is JSON that was checked, or,
// where text is accepted, the same as the text of a JSON string, which has to be as strict and no deeper than maxDepth.
func Check(raw []byte, maxDepth int, text bool) string {
	switch c := raw[0]; {
	case c == '"' && !text:
		return "a schema must be an object, not its text"
	case c != '"' && c != '{' && c != 't' && c != 'f':
		return "a schema must be an object"
	case isPlain(raw):
		return ""
	}
	if raw[0] == '"' {
		text, err := jsontext.AppendUnquote(nil, raw)
		if err != nil || len(text) == 0 || !jsontext.Value(text).IsValid() {
			return "a schema that is given as text must be strict JSON"
		}
		raw = text
	}
	r := spare.Decode(raw)
	defer r.GiveBack()
	w := walk{dec: &r.Decoder, patterns: make([]bool, maxDepth+1), refs: map[string]bool{}}
	for {
		switch what, err := w.token(); {
		case what != "":
			return what
		case errors.Is(err, io.EOF) && len(w.refs)*(w.deepest/2+1) > maxLevels:
			return fmt.Sprintf("the schema refers to %d definitions and has %d levels, which together are too many", len(w.refs), w.deepest)
		case errors.Is(err, io.EOF):
			return ""
		case err != nil:
			return "the schema must be strict JSON"
		}
	}
}

// walk goes over a schema token by token.
type walk struct {
	dec      *jsontext.Decoder
	name     string          // of the member whose value comes next; "" in a list
	patterns []bool          // by depth: the names of this object are patterns
	refs     map[string]bool // what is referred to: a path of references comes to each once
	deepest  int
	required int // the depth of a list of required names; 0 outside
}

// token reads the next token.
func (w *walk) token() (what string, err error) {
	t, err := w.dec.ReadToken()
	if err != nil {
		return "", err
	}
	name, depth := w.name, w.dec.StackDepth()
	if w.name = ""; depth >= len(w.patterns) {
		return fmt.Sprintf("the schema is nested deeper than %d", len(w.patterns)-1), nil
	}
	w.deepest = max(w.deepest, depth)
	if depth < w.required {
		w.required = 0
	}
	switch t.Kind() {
	case '[':
		if name == "required" {
			w.required = depth
		}
	case '0':
		limit, bounded := most[name]
		if n, err := t.Float(); bounded && (err != nil || n > limit) {
			return fmt.Sprintf("%s in a schema may be %d at most", name, int(limit)), nil
		}
	case '{':
		if kind, n := w.dec.StackIndex(depth - 1); kind == '[' && n > maxBranches {
			return fmt.Sprintf("a list of a schema may have %d objects at most", maxBranches), nil
		}
		w.patterns[depth] = name == "patternProperties"
	case '"':
		text := t.String()
		kind, n := w.dec.StackIndex(depth)
		if kind == '[' && depth == w.required && n > maxRequired {
			return fmt.Sprintf("a schema may require %d names at most in one list", maxRequired), nil
		}
		if kind == '{' && n > 2*maxMembers {
			return fmt.Sprintf("an object of a schema may have %d members at most", maxMembers), nil
		}
		if kind == '{' && n%2 == 1 {
			w.name = text
			if !w.patterns[depth] {
				return "", nil
			}
			name = "pattern"
		}
		if name == "$ref" {
			w.refs[text] = true
		}
		if name == "pattern" && len(text) > maxPattern {
			return fmt.Sprintf("a pattern in a schema may have %d bytes at most", maxPattern), nil
		}
		if name == "pattern" && repeats(text) {
			return fmt.Sprintf("a pattern in a schema may count what repeats up to %d at most, where * and + count as %d", maxRepeats, endless), nil
		}
	}
	return "", nil
}
