package inspect

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/inspect/scan"
)

// This file holds the bounds that count everywhere, also where no field rules do: depth, members, and numbers that only
// some parsers can hold. Where the walk goes member by member it counts itself; what it lets the decoder read as one
// value is looked through first, because the decoder recurses and remembers every name.

// within looks through the object or list at b[at], over bytes that nobody has parsed: on valid JSON it is exact, and
// what is not JSON the decoder refuses afterwards.
func (w *walker) within(at int) error {
	body, outer := w.body, w.dec.StackDepth()
	for i, depth := at, outer; i < len(body); {
		switch c := body[i]; c {
		case '"':
			i = scan.String(body, i)
			continue
		case '{', '[':
			if depth++; depth > w.limits.MaxDepth {
				return w.tooDeep(i)
			}
		case '}', ']':
			if depth--; depth <= outer {
				return nil
			}
		case ':':
			if err := w.countMember(i); err != nil {
				return err
			}
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			end, plain := scan.Number(body, i)
			if !plain && scan.Overflows(body[i:end]) {
				return outOfBounds(body, i, hugeNumber)
			}
			i = end
			continue
		}
		i++
	}
	return nil
}

const hugeNumber = "the number is too large"

// tooDeep refuses what opens at b[at].
func (w *walker) tooDeep(at int) error {
	return outOfBounds(w.body, at, fmt.Sprintf("nested deeper than %d", w.limits.MaxDepth))
}

// countMember counts the member whose colon is at or before b[at], and not before its name.
func (w *walker) countMember(at int) error {
	if w.members++; w.members > w.limits.MaxMembers {
		return outOfBounds(w.body, at, fmt.Sprintf("the body has more than %d members", w.limits.MaxMembers))
	}
	return nil
}

// outOfBounds names the place of a fault at byte at; a syntax error before it is what the caller has to mend first.
func outOfBounds(body []byte, at int, what string) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body))
	for {
		if _, err := dec.ReadToken(); err != nil {
			return badSyntax(body, err)
		}
		if dec.InputOffset() > int64(at) {
			return badBody(printable(string(dec.StackPointer())), at, what)
		}
	}
}
