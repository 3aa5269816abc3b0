package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/vallum/vallum/internal/vllm"
)

func isRange(err error) bool { return errors.Is(err, strconv.ErrRange) }

// integral is the part of a number literal that is written as an integer: "4" of "4" and of "4.0". pydantic also takes
// 1e0 for an integer; no client writes that, so it is not accepted.
func integral(literal []byte) ([]byte, bool) {
	i := 0
	if i < len(literal) && literal[i] == '-' {
		i++
	}
	first := i
	for i < len(literal) && literal[i] >= '0' && literal[i] <= '9' {
		i++
	}
	switch {
	case i == first:
		return nil, false
	case i == len(literal):
		return literal, true
	case literal[i] != '.' || i+1 == len(literal):
		return nil, false
	}
	if len(bytes.TrimLeft(literal[i+1:], "0")) > 0 {
		return nil, false
	}
	return literal[:i], true
}

// checkInteger is the integer's value and its spelling without ".0".
func checkInteger(s *vllm.Shape, literal []byte) (value int64, digits []byte, ok bool) {
	digits, ok = integral(literal)
	if !ok || len(digits) > len("-9223372036854775808") {
		return 0, nil, false
	}
	value, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || s.Bounded && (value < s.Min || value > s.Max) {
		return 0, nil, false
	}
	return value, digits, true
}

// plainIntegers counts the elements of the list at b[0] when all of them are short integers in range and nothing else
// stands there: lists of token ids are long, and this is many times quicker than reading them one by one. It looks at
// bytes that nobody has checked: a list that is taken here has the same reading in JSON.
func plainIntegers(b []byte, s *vllm.Shape) (n int64, ok bool) {
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
		n++
		for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
			i++
		}
		if i == len(b) || b[i] != ',' {
			return n, i < len(b) && b[i] == ']'
		}
	}
}

func checkNumber(s *vllm.Shape, literal []byte) bool {
	if !s.Bounded {
		return true
	}
	f, err := strconv.ParseFloat(string(literal), 64)
	return err == nil && !math.IsNaN(f) && f >= float64(s.Min) && f <= float64(s.Max)
}

// wanted says what a shape accepts, in words.
func wanted(s *vllm.Shape) string {
	switch s.Kind {
	case vllm.String:
		return wantedString(s)
	case vllm.Integer:
		return "an integer" + between(s)
	case vllm.Number:
		return "a number" + between(s)
	case vllm.Boolean:
		return "true or false"
	case vllm.Object, vllm.Map, vllm.Choice:
		return "an object"
	case vllm.Array:
		return "a list"
	case vllm.Free:
		return "a JSON value"
	case vllm.Union:
		var all []byte
		for i, one := range s.Any {
			if i > 0 {
				all = append(all, " or "...)
			}
			all = append(all, wanted(one)...)
		}
		return string(all)
	}
	return "absent"
}

// between says a range; an end that is the end of int64 is no end.
func between(s *vllm.Shape) string {
	low, high := s.Bounded && s.Min > math.MinInt64, s.Bounded && s.Max < math.MaxInt64
	switch {
	case low && high:
		return fmt.Sprintf(" from %d to %d", s.Min, s.Max)
	case low:
		return fmt.Sprintf(" of at least %d", s.Min)
	case high:
		return fmt.Sprintf(" of at most %d", s.Max)
	case s.Kind == vllm.Integer:
		return " of 64 bits"
	}
	return ""
}

func wantedString(s *vllm.Shape) string {
	const most = 12 // names in one sentence
	if len(s.Enum) == 0 {
		return "a string"
	}
	all := []byte("one of ")
	for i, one := range s.Enum {
		if i == most {
			return string(append(all, ", …"...))
		}
		if i > 0 {
			all = append(all, ", "...)
		}
		all = strconv.AppendQuote(all, one)
	}
	return string(all)
}
