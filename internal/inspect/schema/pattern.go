package schema

import (
	"strconv"
	"strings"
)

// What repeats in a pattern is bounded, one thing after another and one within another: xgrammar counts it out again at
// each token, in the engine's one loop, which all requests share. 12 tokens of ^(([a-z]{1,1000}){1,1000})$ took 40 s with a
// vocabulary of 64,000 tokens, and ^(.*){1,100}$ 36 s; a neighbour's short requests waited 25 s (vLLM 0.32.0). The dearest
// that passes takes a second or two for each.
const (
	maxRepeats = 2 << 10 // what all that repeats counts as, together
	endless    = 40      // what * and + count as
	plain      = 64      // what a count of single characters counts as, at most: it is not counted out
	optional   = 8       // what ? counts as
)

// branch is what repeats in a bracket that is open: in the alternative that is being read, and at most in those before.
type branch struct{ sum, before int }

func (b branch) total() int { return max(b.sum, b.before) }

// repeats reports whether a regular expression counts out too much. What it cannot read it takes for letters: a compiler
// refuses that.
func repeats(pattern string) bool {
	open := []branch{{}}
	last := 0 // what repeats in the last thing, which a count would repeat
	for i := 0; i < len(pattern); i++ {
		top, next := &open[len(open)-1], 0
		switch c := pattern[i]; {
		case c == '*', c == '+':
			next = last + endless
		case c == '?' && (i == 0 || pattern[i-1] != '('):
			next = last + optional
		case c == '{':
			switch times, end := counted(pattern, i); {
			case end == i:
				last = 0 // a letter
			case last == 0:
				i, next = end, min(times, plain)
			default:
				i, next = end, last*max(times, 1)
			}
		case c == ')' && len(open) > 1:
			last, next = 0, top.total()
			open = open[:len(open)-1]
			top = &open[len(open)-1]
		case c == '\\':
			i, last = i+1, 0
		case c == '[':
			i, last = afterClass(pattern, i), 0
		case c == '(':
			open, last = append(open, branch{}), 0
			continue
		case c == '|':
			top.before, top.sum, last = top.total(), 0, 0
		default:
			last = 0
		}
		top.sum += next - last
		if last = next; top.sum > maxRepeats {
			return true
		}
	}
	return false
}

// counted reads {n}, {n,}, {,m} or {n,m} at i: the most that it counts to, and where it ends. Anything else counts nothing.
func counted(pattern string, i int) (times, end int) {
	inside, _, ok := strings.Cut(pattern[i+1:], "}")
	if !ok || len(inside) > 64 {
		return 0, i
	}
	least, most, two := strings.Cut(inside, ",")
	number := func(s string) int {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 0 || n > 1<<20 {
			n = 1 << 20
		}
		return n
	}
	switch end = i + 1 + len(inside); {
	case strings.Trim(inside, " 0123456789,") != "" || strings.Trim(inside, " ,") == "":
		return 0, i
	case !two:
		return number(least), end
	case strings.TrimSpace(most) == "":
		return number(least) + endless, end
	}
	return number(most), end
}

// afterClass is where the class of characters ends that begins at i.
func afterClass(pattern string, i int) int {
	i++
	if i < len(pattern) && pattern[i] == '^' {
		i++
	}
	for first := i; i < len(pattern); i++ {
		switch {
		case pattern[i] == '\\':
			i++
		case pattern[i] == ']' && i > first:
			return i
		}
	}
	return i
}
