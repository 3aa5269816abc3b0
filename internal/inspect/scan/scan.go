// Package scan looks ahead in JSON that nobody has parsed yet.
// It refuses nothing and fails on nothing: on valid JSON it is exact, and what it finds in what is none must not be used.
package scan

import (
	"bytes"
	"errors"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/vllm"
)

// String is the index after the string that begins at b[i], or len(b).
func String(b []byte, i int) int {
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

// Number is the index after the number at b[i], and whether it is but a few digits.
func Number(b []byte, i int) (end int, plain bool) {
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

// Overflows reports whether a number is beyond float64. Python reads 1e400 as infinity, and refuses integers of more
// than 4300 digits.
func Overflows(literal []byte) bool {
	_, err := strconv.ParseFloat(string(literal), 64)
	return errors.Is(err, strconv.ErrRange)
}

// Member finds the text of a string member in the object at b[0]; nil when it is absent or no string, which the walk
// refuses when it comes to it. It must not fail on anything, as nothing has been checked yet; what it finds in what is
// not JSON is never used.
func Member(b []byte, name string) []byte {
	for i, depth := 0, 0; i < len(b); {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return nil
			}
		case '"':
			end := String(b, i)
			rest := bytes.TrimLeft(b[end:], " \t\r\n")
			if depth > 1 || len(rest) == 0 || rest[0] != ':' || string(Unquoted(b[i:end])) != name {
				i = end
				continue
			}
			if rest = rest[Space(rest, 0):]; len(rest) == 0 || rest[0] != '"' {
				return nil
			}
			return Unquoted(rest[:String(rest, 0)])
		}
		i++
	}
	return nil
}

// Space is the index after white space and separators.
func Space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n' || b[i] == ',' || b[i] == ':') {
		i++
	}
	return i
}

// Unquoted is a string literal's text; the literal's own bytes when it has no escapes.
func Unquoted(raw []byte) []byte {
	if len(raw) < 2 {
		return nil
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	text, err := jsontext.AppendUnquote([]byte{}, raw)
	if err != nil {
		return nil
	}
	return text
}

// PlainIntegers counts the elements of the list at b[0] when all of them are short integers in range and nothing else
// stands there: lists of token ids are long, and this is many times quicker than reading them one by one. It looks at
// bytes that nobody has checked: a list that is taken here has the same reading in JSON.
func PlainIntegers(b []byte, s *vllm.Shape) (n int64, ok bool) {
	const digits = 18 // these never overflow int64
	for i := 1; ; i++ {
		for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
			i++
		}
		first, value := i, int64(0)
		for i < len(b) && b[i] >= '0' && b[i] <= '9' && i-first < digits {
			value = value*10 + int64(b[i]-'0')
			i++
		}
		if i == first || i == len(b) || b[first] == '0' && i-first > 1 || s.Bounded && (value < s.Min || value > s.Max) {
			return 0, false
		}
		if n++; b[i] != ',' {
			return n, b[i] == ']'
		}
	}
}

// IsPlain reports whether a value is surely JSON: a string of ASCII without escapes.
func IsPlain(value string) bool {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return false
	}
	for i := 1; i < len(value)-1; i++ {
		if c := value[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
