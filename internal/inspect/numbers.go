package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

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

// kindWords say what a shape accepts.
var kindWords = [...]string{
	vllm.String: "a string", vllm.Integer: "an integer", vllm.Number: "a number", vllm.Boolean: "true or false", vllm.Object: "an object",
	vllm.Map: "an object", vllm.Choice: "an object", vllm.Array: "a list", vllm.Free: "a JSON value", vllm.Union: "one of several types", vllm.File: "a file",
}

// wanted says what a shape accepts, with its range or its values; an end that is the end of int64 is no end.
func wanted(s *vllm.Shape) string {
	low, high := s.Bounded && s.Min > math.MinInt64, s.Bounded && s.Max < math.MaxInt64
	switch {
	case low && high:
		return fmt.Sprintf("%s from %d to %d", kindWords[s.Kind], s.Min, s.Max)
	case low:
		return fmt.Sprintf("%s of at least %d", kindWords[s.Kind], s.Min)
	case high:
		return fmt.Sprintf("%s of at most %d", kindWords[s.Kind], s.Max)
	case s.Kind == vllm.Integer:
		return "an integer of 64 bits"
	case len(s.Enum) > 0:
		return "one of " + strings.Join(s.Enum, ", ")
	case s.Kind == vllm.Union:
		arms := make([]string, len(s.Any))
		for i, one := range s.Any {
			arms[i] = wanted(one)
		}
		return strings.Join(arms, " or ")
	}
	return kindWords[s.Kind]
}
