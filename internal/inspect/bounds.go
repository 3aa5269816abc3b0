package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
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
			i = skipString(body, i)
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
			end, plain := skipNumber(body, i)
			if !plain && overflows(body[i:end]) {
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

// skipString is the index after the string that begins at b[i], or len(b).
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return len(b)
		}
		end := i + n
		slashes := 0
		for end-slashes-1 >= i && b[end-slashes-1] == '\\' {
			slashes++
		}
		if i = end; slashes%2 == 0 {
			return end + 1
		}
	}
	return len(b)
}

// safeDigits is how many characters a literal without exponent may have and still be surely less than 1e308.
const safeDigits = 300

// skipNumber is the index after the number at b[i], and whether it is but a few digits.
func skipNumber(b []byte, i int) (end int, plain bool) {
	plain = true
	for end = i + 1; end < len(b); end++ {
		switch c := b[end]; {
		case c >= '0' && c <= '9', c == '.':
		case c == 'e', c == 'E', c == '-', c == '+':
			plain = false
		default:
			return end, plain && end-i < safeDigits
		}
	}
	return end, plain && end-i < safeDigits
}

// overflows reports whether a number is beyond float64. Python reads 1e400 as infinity, and refuses integers of more
// than 4300 digits.
func overflows(literal []byte) bool {
	_, err := strconv.ParseFloat(string(literal), 64)
	return errors.Is(err, strconv.ErrRange)
}
