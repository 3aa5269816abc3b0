package inspect

import (
	"bytes"
	"strconv"

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
