package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/daemon/resolve"
)

func newCheck(s streams) *cobra.Command {
	var file string
	var show, files, asJSON bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Says what is wrong with a configuration, and what would be right",
		Long: "Names every problem of the file, with the line and what would be right there. It reads that one file. With --files\n" +
			"it also looks at what the file names (keys, certificates, variables, directories), on this machine and as this user.\n" +
			"serve does so too, when it starts and at each reload, but for what it can run with: an expired certificate.",
		Example: "  vallum check --config vallum.yaml\n" +
			"  vallum check --config vallum.yaml --files    where, and as who, it serves\n" +
			"  vallum check --config vallum.yaml --print    with every default",
		RunE: func(c *cobra.Command, _ []string) error {
			if show && asJSON {
				return usagef("--print prints YAML, --json the problems: give one of them")
			}
			read := readConfig
			if files {
				read = func(file string, in io.Reader) (*config.Config, error) {
					return readWithFiles(file, in, func(conf *config.Config) []config.Problem { return resolve.CheckMachine(conf, time.Now()) })
				}
			}
			conf, err := read(file, s.in)
			if asJSON {
				return checkJSON(s, err)
			}
			if errors.Is(err, os.ErrNotExist) && !c.Flags().Changed("config") {
				return usagef("there is no vallum.yaml here\nhint: vallum check --config FILE")
			}
			var problems *config.Problems
			if errors.As(err, &problems) { // they are the answer
				fmt.Fprint(s.out, problems.Text())
				return errNo
			}
			if err != nil {
				return err
			}
			if show {
				if conf.State == "" {
					if conf.State, err = daemon.StateDir(); err != nil {
						return err
					}
				}
				b, err := conf.Print()
				if err != nil {
					return err
				}
				_, err = s.out.Write(b)
				return err
			}
			_, err = fmt.Fprintf(s.out, "%s: right: %d upstream(s), %d role(s) beside the built-in ones, %d listener(s)\n", file, len(conf.Upstreams), len(conf.Roles), len(conf.Listen))
			return err
		},
	}
	c.Flags().StringVar(&file, "config", "vallum.yaml", "the configuration; - for standard input")
	c.Flags().BoolVar(&files, "files", false, "look at the files, variables and directories that it names, too")
	c.Flags().BoolVar(&show, "print", false, "print the effective configuration with every default")
	c.Flags().BoolVar(&asJSON, "json", false, "print the problems as JSON")
	return c
}

func checkJSON(s streams, err error) error {
	var problems *config.Problems
	list := []config.Problem{}
	if errors.As(err, &problems) {
		list = problems.List
	} else if err != nil {
		return err
	}
	if err := s.printJSON(struct {
		Right    bool             `json:"right"`
		Problems []config.Problem `json:"problems"`
	}{len(list) == 0, list}); err != nil {
		return err
	}
	if len(list) > 0 {
		return errNo
	}
	return nil
}

// readConfig reads and parses a configuration file, or standard input for "-".
func readConfig(file string, in io.Reader) (*config.Config, error) {
	b, err := readText(file, in)
	if err != nil {
		return nil, err
	}
	return config.Parse(file, b)
}

// readWithFiles is readConfig, and looks at what the file names, as look does.
func readWithFiles(file string, in io.Reader, look func(*config.Config) []config.Problem) (*config.Config, error) {
	b, err := readText(file, in)
	if err != nil {
		return nil, err
	}
	conf, err := config.Parse(file, b)
	if err != nil {
		return nil, err
	}
	if found := look(conf); len(found) > 0 {
		return nil, config.Locate(file, b, found)
	}
	return conf, nil
}

func readText(file string, in io.Reader) ([]byte, error) {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(in, 8<<20))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return b, nil
}
