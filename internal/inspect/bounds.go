package inspect

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// checkBounds holds the bounds that count everywhere, also where no field rules do: depth, members, and numbers that
// only some parsers can hold. It runs over bytes that nobody has parsed: on valid JSON it is exact, and what is not
// JSON the decoder refuses afterwards. It comes first because the decoder recurses and remembers every name.
func checkBounds(body []byte, lim Limits) error {
	depth, members := 0, 0
	for i := 0; i < len(body); {
		switch c := body[i]; c {
		case '"':
			i = skipString(body, i)
			continue
		case '{', '[':
			if depth++; depth > lim.MaxDepth {
				return outOfBounds(body, i, fmt.Sprintf("nested deeper than %d", lim.MaxDepth))
			}
		case '}', ']':
			depth--
		case ':':
			if members++; members > lim.MaxMembers {
				return outOfBounds(body, i, fmt.Sprintf("the body has more than %d members", lim.MaxMembers))
			}
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			end, plain := skipDigits(body, i)
			if !plain && overflows(body[i:end]) {
				return outOfBounds(body, i, "the number is too large")
			}
			i = end
			continue
		}
		i++
	}
	return nil
}

// outOfBounds names the place of a fault at byte at; a syntax error before it is what the caller has to mend first.
func outOfBounds(body []byte, at int, what string) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body))
	for {
		before := dec.InputOffset()
		if _, err := dec.ReadToken(); err != nil {
			return badSyntax(body, err)
		}
		if after := dec.InputOffset(); after > int64(at) || after == before {
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

func skipNumber(b []byte, i int) int {
	for i < len(b) && (b[i] >= '0' && b[i] <= '9' || b[i] == '.' || b[i] == '-' || b[i] == '+' || b[i] == 'e' || b[i] == 'E') {
		i++
	}
	return i
}

// skipDigits is the index after the number at b[i], and whether it is but a few digits.
func skipDigits(b []byte, i int) (end int, plain bool) {
	end = i + 1
	for end < len(b) && b[end] >= '0' && b[end] <= '9' {
		end++
	}
	if end-i < safeDigits && (end == len(b) || b[end] == ',' || b[end] == ']' || b[end] == '}') {
		return end, true
	}
	return skipNumber(b, i), false
}

// safeDigits is how many characters a literal without exponent may have and still be surely less than 1e308.
const safeDigits = 300

// overflows reports whether a number is beyond float64. Python reads 1e400 as infinity, and refuses integers of more
// than 4300 digits.
func overflows(literal []byte) bool {
	if len(literal) < safeDigits && bytes.IndexByte(literal, 'e') < 0 && bytes.IndexByte(literal, 'E') < 0 {
		return false
	}
	_, err := strconv.ParseFloat(string(literal), 64)
	return err != nil && isRange(err)
}
