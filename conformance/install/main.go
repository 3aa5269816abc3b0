// Command install fetches the real parts that the proofs run against into a
// cache folder outside the tree. It refuses to leave a half-done install
// standing: a part without its completion marker is removed and made anew.
//
// It needs Go, Python 3.11 or newer and Node, and takes everything else by name
// from PyPI, npm and Debian through their own clients. No root, no GPU.
//
//	go -C conformance run ./install            everything that the proofs need
//	go -C conformance run ./install -only vllm,models
//	go -C conformance run ./install -list      what there is, and where
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/parts"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
}

func run() error {
	only := flag.String("only", "", "comma-separated parts (with what they need); default: all but the recorder's clients")
	list := flag.Bool("list", false, "print each part, whether it is complete, and its folder")
	limit := flag.Duration("timeout", 30*time.Minute, "give up after this long")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("%q is not understood; name parts behind -only, with commas", flag.Args())
	}

	steps := recipes()
	if *list {
		return printList(steps)
	}
	chosen, err := choose(steps, *only)
	if err != nil {
		return err
	}
	root, err := parts.Root()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	unlock, err := lock(root)
	if err != nil {
		return err
	}
	defer unlock()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()

	began := time.Now()
	fmt.Printf("installing into %s\n", root)
	if err := installAll(ctx, root, chosen); err != nil {
		return err
	}
	fmt.Printf("all parts are in place after %s\n", time.Since(began).Round(time.Second))
	return nil
}

// choose is the steps named by only, with all they need, in the order of steps.
func choose(steps []step, only string) ([]step, error) {
	wanted := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		i := slices.IndexFunc(steps, func(s step) bool { return s.part.Name == name })
		if i < 0 {
			return fmt.Errorf("no part is called %q; there are %s", name, strings.Join(names(steps), ", "))
		}
		wanted[name] = true
		for _, need := range steps[i].needs {
			if err := add(need); err != nil {
				return err
			}
		}
		return nil
	}
	for _, s := range steps {
		if only == "" && !s.optional {
			wanted[s.part.Name] = true
		}
	}
	for name := range strings.SplitSeq(only, ",") {
		if name == "" {
			continue
		}
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(steps), func(s step) bool { return !wanted[s.part.Name] }), nil
}

func names(steps []step) []string {
	var out []string
	for _, s := range steps {
		out = append(out, s.part.Name)
	}
	return out
}

func printList(steps []step) error {
	for _, s := range steps {
		dir, err := parts.Path(s.part)
		if err != nil {
			return err
		}
		state := "absent"
		if parts.Complete(dir) {
			state = "complete"
		}
		fmt.Printf("%-16s %-10s %-9s %s\n", s.part.Name, s.part.Version, state, dir)
	}
	return nil
}

// lock keeps two installs from working on one cache at the same time.
func lock(root string) (unlock func(), err error) {
	f, err := os.OpenFile(root+"/.lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("locking the cache %q: %w", root, err)
	}
	return func() { f.Close() }, nil
}
