package inspect

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/vallum/vallum/internal/vllm"
)

// checkInteger is the integer's value and its spelling: "4" of "4" and of "4.0". pydantic also takes 1e0 for an integer;
// no client writes that, so it is not accepted.
func checkInteger(s *vllm.Shape, literal []byte) (value int64, digits []byte, ok bool) {
	digits, fraction, _ := bytes.Cut(literal, []byte("."))
	if len(bytes.Trim(fraction, "0")) > 0 {
		return 0, nil, false
	}
	value, err := strconv.ParseInt(string(digits), 10, 64)
	return value, digits, err == nil && (!s.Bounded || value >= s.Min && value <= s.Max)
}

func checkNumber(s *vllm.Shape, literal []byte) bool {
	f, err := strconv.ParseFloat(string(literal), 64)
	return !s.Bounded || err == nil && f >= float64(s.Min) && f <= float64(s.Max)
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
