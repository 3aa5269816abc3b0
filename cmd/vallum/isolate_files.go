package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func newIsolateUnit(s streams) *cobra.Command {
	in := &isolateInput{}
	c := &cobra.Command{
		Use:   "unit",
		Short: "Prints the systemd unit that makes the overlay after a reboot",
		RunE: func(c *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return err
			}
			dir, err := isolateState(in.state)
			if err != nil {
				return err
			}
			// systemd starts it in another folder than this one.
			args := []string{program, "isolate", "up", "--state", dir}
			for _, f := range []struct{ flag, file string }{{"--config", in.config}, {"--manifest", in.manifest}} {
				if f.file == "" {
					continue
				}
				if f.file == "-" {
					return usagef("%s: a unit has no standard input; name a file", f.flag)
				}
				file, err := filepath.Abs(f.file)
				if err != nil {
					return err
				}
				args = append(args, f.flag, file)
			}
			for i, a := range args {
				if args[i], err = unitWord(a); err != nil {
					return usageError{err}
				}
			}
			_, err = fmt.Fprintf(s.whole().out, unitText, strings.Join(args, " "))
			return err
		},
	}
	in.flags(c)
	return c
}

// unitWord is a word of a command line in a unit file (systemd.service(5), "Command lines").
func unitWord(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", fmt.Errorf("%q cannot stand in a unit", s)
	}
	s = strings.NewReplacer("%", "%%", "$", "$$").Replace(s)
	if strings.ContainsAny(s, " \t\"'\\;") {
		s = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s, nil
}

// up repairs without asking what was confirmed before; what was not is rolled back, for nobody is there to confirm. There
// is no ExecStop: it would run when the machine goes down, and make the next boot forget what was confirmed.
const unitText = `[Unit]
Description=Vallum's network between vLLM nodes
Wants=network-online.target
After=network-online.target
Before=vllm.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=%s
# Longer than a confirmation that does not come.
TimeoutStartSec=3min
# Stopping this unit leaves the overlay and its rules; vallum isolate down removes them. The tunnel is a unit of its own.
KillMode=process

[Install]
WantedBy=multi-user.target
`
