package schema

import (
	"strconv"
	"strings"
)

// What repeats inside something that is counted is bounded: xgrammar counts it out again at each token, in the engine's
// one loop, which all requests share. 12 tokens of ^(([a-z]{1,1000}){1,1000})$ took 40 s with a vocabulary of 64,000
// tokens, and ^(.*){1,100}$ 36 s; a neighbour's short requests waited 25 s (vLLM 0.32.0).
const (
	maxRepeats = 2 << 10 // of what repeats, times the count around it
	endless    = 40      // what * and + count as
)

// repeats reports whether a regular expression counts out too much. What it cannot read it takes for letters: a compiler
// refuses that.
func repeats(pattern string) bool {
	open := []int{0} // what repeats within each bracket that is open, so far
	last := 0        // the same of the last thing, which a count would repeat
	for i := 0; i < len(pattern); i++ {
		top := len(open) - 1
		switch pattern[i] {
		case '\\':
			i, last = i+1, 0
		case '[':
			i, last = afterClass(pattern, i), 0
		case '(':
			open, last = append(open, 0), 0
		case ')':
			if top > 0 {
				open, last = open[:top], open[top]
				open[top-1] += last
			}
		case '*', '+':
			open[top], last = open[top]+endless, last+endless
		case '{':
			times, end := counted(pattern, i)
			if last > 0 && times > maxRepeats/last {
				return true
			}
			if end > i {
				product := max(last, 1) * times
				open[top], last, i = open[top]+product-last, product, end
			}
		case '?':
		default:
			last = 0
		}
	}
	return false
}

// counted reads {n}, {n,}, {,m} or {n,m} at i: the most that it counts to, and where it ends; 0 and i for anything else.
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
