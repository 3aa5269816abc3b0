package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// fitted are the streams of commands that print names which others have chosen: processes, devices, containers. A line
// that a terminal would break anywhere is broken between words, and goes on further in. What programs read is printed on
// whole().
func (s streams) fitted() streams {
	return streams{in: s.in, out: &fitter{w: s.out}, err: &fitter{w: s.err}}
}

// whole are the streams as they were given, for what has to stay as it is: JSON, nft's rules, units, environments.
func (s streams) whole() streams {
	if f, ok := s.out.(*fitter); ok {
		s.out = f.w
	}
	if f, ok := s.err.(*fitter); ok {
		s.err = f.w
	}
	return s
}

// fitter breaks the lines that are written to it.
type fitter struct{ w io.Writer }

// Write takes whole lines, as all printing here does.
func (f *fitter) Write(b []byte) (int, error) {
	if _, err := f.w.Write(fit(b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func fit(b []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(b) {
		text := string(bytes.TrimRight(line, "\n"))
		end := line[len(text):]
		text = strings.Map(shown, text)
		if utf8.RuneCountInString(text) > screenColumns {
			text = broken(text)
		}
		out.WriteString(text)
		out.Write(end)
	}
	return out.Bytes()
}

// broken is a line in lines of a terminal's width, where its words allow it. Between words that stay on a line there is
// what was: it may be a column.
func broken(line string) string {
	rest := strings.TrimLeft(line, " ")
	lead := line[:len(line)-len(rest)]
	var b strings.Builder
	b.WriteString(lead)
	for at, gap := len(lead), 0; rest != ""; {
		word, after, _ := strings.Cut(rest, " ")
		if n := utf8.RuneCountInString(word); gap > 0 && at+gap+n > screenColumns {
			b.WriteString("\n" + lead + "    ")
			at = len(lead) + 4 + n
		} else {
			b.WriteString(strings.Repeat(" ", gap))
			at += gap + n
		}
		b.WriteString(word)
		trimmed := strings.TrimLeft(after, " ")
		gap, rest = 1+len(after)-len(trimmed), trimmed
	}
	return b.String()
}

// shown is a character as it may reach a terminal: what is printed holds names that others chose, and a terminal obeys
// some characters.
func shown(r rune) rune {
	switch {
	case r == '\t':
		return ' '
	case unicode.IsControl(r):
		return unicode.ReplacementChar
	}
	return r
}

// fitErrors lays the errors of a command, and of those below it, out for a terminal's width.
func fitErrors(c *cobra.Command) {
	if do := c.RunE; do != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			err := do(c, args)
			if err == nil || errors.Is(err, errNo) {
				return err
			}
			return &fittedError{err}
		}
	}
	for _, sub := range c.Commands() {
		fitErrors(sub)
	}
}

// fittedError is an error whose text has room behind "vallum: ".
type fittedError struct{ error }

// Unwrap is what says how the command ends.
func (e *fittedError) Unwrap() error { return e.error }

func (e *fittedError) Error() string {
	const said = "vallum: "
	text, _ := strings.CutPrefix(string(fit([]byte(said+e.error.Error()))), said)
	return text
}
