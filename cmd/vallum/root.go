package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/config"
)

// Exit codes: every command answers with one of them.
const (
	exitYes   = 0
	exitNo    = 1 // the answer is no, or what was asked for could not be done
	exitUsage = 2 // asked wrongly
)

// errNo ends a command with exit code 1 without a message: the command has said it all.
var errNo = errors.New("no")

// usageError is a mistake of the caller: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// streams are where a command reads and writes: stdout is the answer, stderr the rest.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// hint prints what to do next, on a line of its own.
func (s streams) hint(format string, args ...any) {
	fmt.Fprintf(s.err, "hint: "+format+"\n", args...)
}

// printJSON prints an answer for machines.
func (s streams) printJSON(v any) error {
	enc := json.NewEncoder(s.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// run is main without the process: arguments and streams in, exit code out.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	s := streams{in, out, errw}
	root := newRoot(s)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	var problems *config.Problems
	var usage usageError
	var status statusError
	switch {
	case err == nil:
		return exitYes
	case errors.Is(err, errNo):
		return exitNo
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &problems):
		fmt.Fprint(errw, problems.Text())
		return exitNo
	case errors.As(err, &usage):
		fmt.Fprintf(errw, "vallum: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(errw, "vallum: %v\n", err)
		return exitNo
	}
}

func newRoot(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "vallum",
		Short: "Guards vLLM: lets through only what was granted, and records it",
		Long: "Vallum stands in front of vLLM servers and lets through only what was granted: by key, operation,\n" +
			"model and field. Every request is on a record that cannot be quietly changed.",
		Version:           version(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		Args:              cobra.NoArgs,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w\nhint: %s --help", err, c.CommandPath())
	})
	root.AddCommand(newServe(s), newCheck(s), newKeys(s), newExplain(s), newLog(s), newDemo(s), newIsolate(s), newVersion(s))
	root.SetHelpCommand(newHelp())
	root.SetVersionTemplate(versionWords())
	root.Flags().Bool("version", false, "print the version, as vallum version does")
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		c.Short, c.RunE = "Prints the completions of a shell, to be read by it", func(c *cobra.Command, _ []string) error { return c.Help() }
		c.Long = "Prints what a shell reads to complete commands and flags. The help of each shell says where that goes."
		for _, shell := range c.Commands() {
			shell.Short = "Prints the completions of " + shell.Name()
		}
	}
	fitHelp(root)
	wrapArgs(root)
	return root
}

// wrapArgs makes mistakes in arguments end with exit code 2, in every command, and says what would be right.
func wrapArgs(c *cobra.Command) {
	check := c.Args
	if check == nil {
		check = cobra.NoArgs
	}
	c.Args = func(c *cobra.Command, args []string) error {
		err := check(c, args)
		switch {
		case err == nil:
			return nil
		case len(args) == 0:
			return usagef("an argument is missing\nhint: %s", c.UseLine())
		case !c.HasSubCommands():
			last, hint := args[len(args)-1], c.UseLine()
			if flag := flagFor(last); c.Flags().Lookup(flag) != nil {
				hint = c.CommandPath() + " --" + flag + " " + last
			}
			return usagef("%s does not take %q\nhint: %s", c.CommandPath(), last, hint)
		}
		c.SuggestionsMinimumDistance = 2 // without it only beginnings are found
		if like := c.SuggestionsFor(args[0]); len(like) > 0 {
			return usagef("there is no command %q\nhint: did you mean %s?", c.CommandPath()+" "+args[0], strings.Join(like, " or "))
		}
		return usagef("there is no command %q\nhint: %s --help", c.CommandPath()+" "+args[0], c.CommandPath())
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// flagFor is the flag that an argument without one is likely meant for; "" when there is none.
func flagFor(argument string) string {
	switch {
	case strings.HasSuffix(argument, ".yaml"), strings.HasSuffix(argument, ".yml"):
		return "config"
	case strings.HasPrefix(argument, "http://"), strings.HasPrefix(argument, "https://"), strings.HasPrefix(argument, "unix:"):
		return "upstream"
	}
	return ""
}

func newVersion(s streams) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Prints the version, and the vLLM releases whose surface it knows",
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return s.printJSON(struct {
					Version  string `json:"version"`
					Platform string `json:"platform"`
					Go       string `json:"go"`
					VLLM     string `json:"newest_vllm"`
				}{version(), runtime.GOOS + "/" + runtime.GOARCH, runtime.Version(), newestRelease()})
			}
			_, err := io.WriteString(s.out, versionWords())
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func versionWords() string {
	return fmt.Sprintf("vallum %s %s/%s %s\nknows vLLM up to %s\n", version(), runtime.GOOS, runtime.GOARCH, runtime.Version(), newestRelease())
}

// version is the module's version as the build recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
