package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/golden"
)

// The page of the commands is made of their own help, so that it cannot say something else.
func TestCommandsMarkdown(t *testing.T) {
	golden.Check(t, filepath.Join("..", "..", "docs", "commands.md"), commandsMarkdown(), *update, "go test ./cmd/vallum -run TestCommandsMarkdown -update")
}

func commandsMarkdown() string {
	var b strings.Builder
	b.WriteString("# Commands\n\n" +
		"Generated from the commands' own help; a test keeps the two equal: `go test ./cmd/vallum -run TestCommandsMarkdown -update`.\n\n" +
		"Standard output is the answer, standard error the rest: messages begin with `vallum:`, what to do about it with `hint:`. Exit code\n" +
		"0 is yes, 1 is no or could not be done, 2 is asked wrongly; `isolate audit` and `isolate verify` have 3 and 4 as well. `--json` prints the answer for machines. Colour is used on a terminal\n" +
		"only, and never where `NO_COLOR` is set. `vallum completion SHELL` prints completions.\n")
	commandMarkdown(&b, newRoot(streams{}), 1)
	return b.String()
}

// commandMarkdown writes a command and those below it.
func commandMarkdown(b *strings.Builder, c *cobra.Command, depth int) {
	if c.HasParent() {
		fmt.Fprintf(b, "\n%s %s\n\n%s.\n", strings.Repeat("#", depth), c.CommandPath(), c.Short)
		for part := range strings.SplitSeq(c.Long, "\n\n") {
			if strings.HasPrefix(part, "  ") { // set in columns
				part = "```\n" + dedent(part) + "\n```"
			}
			if part != "" {
				fmt.Fprintf(b, "\n%s\n", part)
			}
		}
		if c.Runnable() && !c.HasSubCommands() {
			fmt.Fprintf(b, "\n```\n%s\n```\n", c.UseLine())
		}
		if flags := c.LocalFlags().FlagUsages(); flags != "" && !c.HasSubCommands() {
			fmt.Fprintf(b, "\n```\n%s```\n", flags)
		}
		if c.Example != "" {
			fmt.Fprintf(b, "\n```sh\n%s\n```\n", dedent(c.Example))
		}
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			commandMarkdown(b, sub, depth+1)
		}
	}
}

// dedent takes away the two spaces by which help sets examples in.
func dedent(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}

// Help is read in a terminal that nobody has widened, and says what every flag is for.
func TestHelpIsWholeAndFits(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		var help bytes.Buffer
		if code := run(t.Context(), append(strings.Fields(c.CommandPath())[1:], "--help"), strings.NewReader(""), &help, &help); code != exitYes {
			t.Errorf("%s --help ends with %d", c.CommandPath(), code)
		}
		for line := range strings.Lines(help.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > screenColumns {
				t.Errorf("%s: a line of its help has %d columns: %s", c.CommandPath(), n, line)
			}
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its short help is %q", c.CommandPath(), c.Short)
		}
		for _, line := range strings.Split(c.LocalFlags().FlagUsages(), "\n") {
			if f := strings.Fields(line); len(f) > 0 && len(f) < 3 {
				t.Errorf("%s: a flag says too little: %s", c.CommandPath(), line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(streams{}))
}

// What a person is asked to install is as small as the pages say.
func TestTheBinaryIsAsSmallAsThePagesSay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vallum")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	size := float64(info.Size()) / 1e6
	if size > 25 {
		t.Errorf("it has %.1f MB, more than 25", size)
	}
	for page, says := range map[string]string{"README.md": `about ([0-9]+) MB`, "ARCHITECTURE.md": `it is ([0-9]+)\.`} {
		b, err := os.ReadFile(filepath.Join("..", "..", page))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(says).FindSubmatch(b)
		if m == nil {
			t.Fatalf("%s does not say %q: did its form change?", page, says)
		}
		if n, err := strconv.ParseFloat(string(m[1]), 64); err != nil || math.Abs(n-size) > 1 {
			t.Errorf("%s says %s MB, and it has %.1f", page, m[1], size)
		}
	}
}
