package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a configuration, where it stands, and what would be right.
type Problem struct {
	Line   int    `json:"line"`   // from 1; 0 when it stands nowhere
	Column int    `json:"column"` // from 1
	Path   string `json:"path"`   // such as roles.team.models[0]
	What   string `json:"what"`
	Right  string `json:"right,omitempty"`
	hide   int    // column, from 1, from which the line is not shown: a secret may stand there; 0 shows it all
}

// Problems are all that is wrong with one file.
type Problems struct {
	File string
	List []Problem
	text []string
}

func (p *Problems) Error() string {
	return fmt.Sprintf("%s: %d problem(s)", p.File, len(p.List))
}

// Text shows every problem with its line and a caret under the place.
func (p *Problems) Text() string {
	var b strings.Builder
	for _, one := range p.List {
		fmt.Fprintf(&b, "%s:%d:%d: %s: %s\n", p.File, one.Line, one.Column, one.Path, one.What)
		if one.Line < 1 || one.Line > len(p.text) {
			if one.Right != "" {
				fmt.Fprintf(&b, "      right would be: %s\n", one.Right)
			}
			continue
		}
		line, under := p.shown(one)
		fmt.Fprintf(&b, "%5d | %s\n", one.Line, line)
		fmt.Fprintf(&b, "      | %s^ %s\n", under, one.Right)
	}
	fmt.Fprintf(&b, "%d problem(s); nothing was changed\n", len(p.List))
	return b.String()
}

// columns of a line are shown: with its number it fits a terminal of 80.
const columns = 72

// shown is the line of a problem, cut before the first thing on it that may be a secret and to what a terminal holds, and
// what stands under it as far as the caret. Columns count characters.
func (p *Problems) shown(one Problem) (line, under string) {
	whole := []rune(strings.TrimRight(p.text[one.Line-1], "\r"))
	end := len(whole)
	for _, other := range p.List {
		if other.Line == one.Line && other.hide > 0 {
			end = min(end, other.hide-1)
		}
	}
	caret := min(max(one.Column-1, 0), len(whole))
	begin := 0
	if end > columns {
		if caret > columns*2/3 { // what would be right follows the caret
			begin = min(caret-columns/3, end-columns+1)
		}
		if room := columns - min(begin, 1); end-begin > room {
			end = begin + room - 1
		}
	}
	line = string(whole[begin:end])
	if end < len(whole) {
		line += "…"
	}
	if begin > 0 {
		line, under = "…"+line, " "
	}
	for _, r := range whole[begin:caret] {
		if r != '\t' { // a tab is as wide as it is in the line above
			r = ' '
		}
		under += string(r)
	}
	return line, under
}

func (p *Problems) sort() {
	slices.SortStableFunc(p.List, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// nearest names the accepted word that is most like the one written, or that is part of it, and all of them when none is.
func nearest(word string, words []string) string {
	best, least := "", len(word)/2+1
	for _, w := range words {
		if d := distance(word, w); d < least {
			best, least = w, d
		}
	}
	if best == "" { // api_key: key; keys: keys_file
		for _, w := range words {
			if len(w) > len(best) && len(w) > 2 && strings.Contains(strings.ToLower(word), w) || len(word) > 2 && strings.HasPrefix(w, word) {
				best = w
			}
		}
	}
	if best == "" {
		return "one of: " + strings.Join(words, ", ")
	}
	return best
}

// distance is Levenshtein's, on bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
