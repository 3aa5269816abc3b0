package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Blocks of the pages that show a command and what it prints are run, so that no page tells what is not so.
//
// A block is fenced by ```console. Every line in it that begins with "$ vallum" is a command; the lines below it, up to
// the next "$ " or the end of the block, are what it prints, on stdout and stderr together. It runs at the top of the
// tree, or in the example's folder, without a terminal, and no shell reads it: words are separated by spaces, and quotes hold words together. In
// what is printed
//
//   - "…" within a line stands for anything, also for nothing, in that line;
//   - a line that is only "…" stands for any number of lines;
//   - runs of spaces are one space, and spaces at the end are none.
//
// The exit code is not looked at. A line "$ " of another command is not run, and nothing is compared with what it prints.
// A block for a command that would not end, such as serve, is fenced by ```sh.
func TestPagesShowWhatCommandsPrint(t *testing.T) {
	const top = "../.."
	if _, err := os.Stat(filepath.Join(top, "README.md")); errors.Is(err, fs.ErrNotExist) {
		t.Log("there is no README.md")
		return
	}
	t.Chdir(top)
	pages := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "examples/*/README.md"} {
		some, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, some...)
	}
	commands := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, shown := range shownCommands(string(b)) {
			commands++
			t.Run(fmt.Sprintf("%s:%d", filepath.ToSlash(page), shown.line), func(t *testing.T) {
				if strings.HasPrefix(page, "examples") {
					t.Chdir(filepath.Dir(page))
				}
				var out bytes.Buffer
				run(context.Background(), words(shown.command)[1:], strings.NewReader(""), &out, &out)
				if !asShown(shown.output, out.String()) {
					t.Errorf("%s:%d: $ %s\nthe page says\n%s\nit printed\n%s", page, shown.line, shown.command, shown.output, &out)
				}
			})
		}
	}
	if commands == 0 {
		t.Error("no page shows a command: did the form of the blocks change?")
	}
}

// shownCommand is a command in a page, and what the page says that it prints.
type shownCommand struct {
	line            int
	command, output string
}

func shownCommands(page string) []shownCommand {
	var all []shownCommand
	console, current := false, -1
	for i, line := range strings.Split(page, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			console, current = !console && strings.TrimSpace(line) == "```console", -1
		case !console:
		case strings.HasPrefix(line, "$ vallum"):
			all = append(all, shownCommand{line: i + 1, command: strings.TrimPrefix(line, "$ ")})
			current = len(all) - 1
		case strings.HasPrefix(line, "$ "):
			current = -1
		case current >= 0:
			all[current].output += line + "\n"
		}
	}
	return all
}

var quotedWord = regexp.MustCompile(`'[^']*'|"[^"]*"|[^\s'"]+`)

// words splits a command. Only whole words are quoted in pages.
func words(command string) []string {
	var list []string
	for _, word := range quotedWord.FindAllString(command, -1) {
		list = append(list, strings.Trim(word, `'"`))
	}
	return list
}

var spaces = regexp.MustCompile(`[ \t]+`)

// asShown reports whether a command printed what a page shows.
func asShown(page, printed string) bool {
	tidy := func(s string) string {
		lines := strings.Split(strings.TrimRight(s, "\n "), "\n")
		for i, l := range lines {
			lines[i] = strings.TrimRight(spaces.ReplaceAllString(l, " "), " ")
		}
		return strings.Join(lines, "\n") + "\n"
	}
	var pattern strings.Builder
	pattern.WriteString(`\A`)
	for line := range strings.Lines(tidy(page)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "…" {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		for i, part := range strings.Split(line, "…") {
			if i > 0 {
				pattern.WriteString(`.*?`)
				part = strings.TrimPrefix(part, " ")
			}
			if i < strings.Count(line, "…") {
				part = strings.TrimSuffix(part, " ")
			}
			pattern.WriteString(regexp.QuoteMeta(part))
		}
		pattern.WriteString(`\n`)
	}
	pattern.WriteString(`\z`)
	return regexp.MustCompile(pattern.String()).MatchString(tidy(printed))
}

func TestPagesAreComparedLineByLine(t *testing.T) {
	for _, row := range []struct {
		page, printed string
		same          bool
	}{
		{"a b\n", "a   b  \n", true},
		{"a\n", "b\n", false},
		{"a\n", "a\nb\n", false},
		{"a\n…\n", "a\nb\nc\n", true},
		{"a\n…\nc\n", "a\nc\n", true},
		{"a\n…\nd\n", "a\nb\nc\n", false},
		{"a … c\n", "a b c\n", true},
		{"a … c\n", "a c\n", true},
		{"a … c\n", "a b\nc\n", false},
		{"right… 1\n", "right: 1\n", true},
		{"(a)\n", "a\n", false},
	} {
		if got := asShown(row.page, row.printed); got != row.same {
			t.Errorf("%q and %q: %t", row.page, row.printed, got)
		}
	}
	got := shownCommands("x\n```console\n$ vallum a 'b c'\nout\n$ other\nnot\n```\n```sh\n$ vallum no\n```\n")
	if len(got) != 1 || got[0].output != "out\n" || len(words(got[0].command)) != 3 {
		t.Errorf("%+v", got)
	}
}
