package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/daemon/screen"
)

// screenColumns is the width that everything for people is made for: a terminal that nobody has widened.
const screenColumns = 80

// newHelp is `vallum help COMMAND`. The library's own answers a command that there is not with 0.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Says how a command is used",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("there is no command %q\nhint: vallum --help", "vallum "+strings.Join(args, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// fitHelp lays the help of a command, and of those below it, out for a terminal's width.
func fitHelp(c *cobra.Command) {
	if !c.HasParent() {
		c.SetUsageTemplate(strings.ReplaceAll(c.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 80")) // screenColumns
	}
	var parts []string
	for part := range strings.SplitSeq(c.Long, "\n\n") {
		if !strings.HasPrefix(part, "  ") { // set in columns
			part = screen.Wrap(part, "", 0, screenColumns)
		}
		parts = append(parts, part)
	}
	c.Long = strings.Join(parts, "\n\n")
	for _, sub := range c.Commands() {
		fitHelp(sub)
	}
}
