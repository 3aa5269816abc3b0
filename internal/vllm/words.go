package vllm

import (
	"fmt"
	"math"
	"strings"
)

// kindWords say what a shape accepts.
var kindWords = [...]string{
	String: "a string", Integer: "an integer", Number: "a number", Boolean: "true or false", Object: "an object",
	Map: "an object", Choice: "an object", Array: "a list", Free: "a JSON value", Union: "one of several types", File: "a file",
}

// Wanted says in words what a shape accepts, with its range or its values; an end that is the end of int64 is no end.
func (s *Shape) Wanted() string {
	low, high := s.Bounded && s.Min > math.MinInt64, s.Bounded && s.Max < math.MaxInt64
	switch {
	case low && high:
		return fmt.Sprintf("%s from %d to %d", kindWords[s.Kind], s.Min, s.Max)
	case low:
		return fmt.Sprintf("%s of at least %d", kindWords[s.Kind], s.Min)
	case high:
		return fmt.Sprintf("%s of at most %d", kindWords[s.Kind], s.Max)
	case s.Kind == Integer:
		return "an integer of 64 bits"
	case len(s.Enum) > 0:
		return "one of " + strings.Join(s.Enum, ", ")
	case s.Kind == Union:
		arms := make([]string, len(s.Any))
		for i, one := range s.Any {
			arms[i] = one.Wanted()
		}
		return strings.Join(arms, " or ")
	}
	return kindWords[s.Kind]
}
