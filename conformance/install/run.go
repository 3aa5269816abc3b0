package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/parts"
)

// step is one part and how it is made. Steps that do not need each other run
// side by side: downloads wait for the network, not for the processor.
type step struct {
	part     parts.Part
	needs    []string
	optional bool
	install  func(ctx context.Context, w *worker) error
}

// worker is what an install function may use: the folders, and a way to run
// commands whose output goes to the part's log.
type worker struct {
	root string // the cache
	dir  string // this part's folder, empty at the start
	log  *os.File
	name string
}

// installAll runs every step once what it needs is there. The first failure
// ends the rest.
func installAll(ctx context.Context, root string, steps []step) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := map[string]chan struct{}{}
	for _, s := range steps {
		done[s.part.Name] = make(chan struct{})
	}
	errs := make([]error, len(steps))
	var wg sync.WaitGroup
	for i, s := range steps {
		wg.Go(func() {
			for _, need := range s.needs {
				select {
				case <-done[need]:
				case <-ctx.Done():
					return
				}
			}
			if errs[i] = installOne(ctx, root, s); errs[i] != nil {
				cancel()
				return
			}
			close(done[s.part.Name])
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// installOne makes a part from nothing unless it is there complete.
func installOne(ctx context.Context, root string, s step) error {
	dir := filepath.Join(root, s.part.Key())
	if parts.Complete(dir) {
		fmt.Printf("%-16s %-10s there\n", s.part.Name, s.part.Version)
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	logPath := filepath.Join(root, s.part.Key()+".log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()

	fmt.Printf("%-16s %-10s …\n", s.part.Name, s.part.Version)
	began := time.Now()
	w := &worker{root: root, dir: dir, log: log, name: s.part.Name}
	if err := s.install(ctx, w); err != nil {
		return fmt.Errorf("%s %s: %w\nlog: %s\n%s", s.part.Name, s.part.Version, err, logPath, tail(logPath, 20))
	}
	took := time.Since(began).Round(time.Second)
	fmt.Printf("%-16s %-10s %s\n", s.part.Name, s.part.Version, took)
	return parts.MarkComplete(dir, fmt.Sprintf("%s in %s", s.part.Key(), took))
}

// say prints one line of progress.
func (w *worker) say(format string, args ...any) {
	fmt.Printf("%-16s %s\n", w.name, fmt.Sprintf(format, args...))
}

// run starts a command in dir (the part's folder when empty) and waits. The
// environment is ours plus env. The whole process group goes when ctx ends.
func (w *worker) run(ctx context.Context, dir string, env []string, name string, args ...string) error {
	if dir == "" {
		dir = w.dir
	}
	fmt.Fprintf(w.log, "+ %s %s\n", name, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = w.log, w.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return nil
}

// output is run with the standard output returned.
func (w *worker) output(ctx context.Context, name string, args ...string) (string, error) {
	fmt.Fprintf(w.log, "+ %s %s\n", name, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = w.dir
	cmd.Stderr = w.log
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return string(out), nil
}

// tail is the last n lines of a file, for a failure's message.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
