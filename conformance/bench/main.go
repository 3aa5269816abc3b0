// Command bench runs nginx, a proxy of the standard library and Vallum with everything on in front of one fast fake
// upstream, in turn, and prints what each costs as a ratio to nginx. It refuses to judge: the table has DESIGN's bounds
// beside the figures, the exit status says only whether it could measure.
//
// Everything is on loopback, bounded in count and in time: less than four minutes, with -short less than one. nginx is
// Debian's, out of the cache that `run ./install -only debian` fills; it is run first where that is empty.
//
//	go -C conformance run ./bench
//	go -C conformance run ./bench -short -json
//	go -C conformance run ./bench -only unary16,streams -targets nginx,vallum -perf profiles
//	go -C conformance run ./bench -only unary16 -targets nginx,vallum -before /path/of/another/vallum
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/busy"
)

type options struct {
	short   bool
	json    bool
	only    []string
	targets []string
	binary  string
	before  string
	perf    string
	symbols bool
}

func (o options) wants(target string) bool { return slices.Contains(o.targets, target) }

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string, out, progress io.Writer) error {
	// The small servers are this program again: nothing else has to be built or found.
	switch {
	case len(args) == 1 && args[0] == "upstream":
		return serveFake()
	case len(args) == 2 && args[0] == "stdlib":
		return serveStdlib(args[1])
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "vallum-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return bench(ctx, o, dir, out, progress)
}

func parse(args []string) (options, error) {
	var o options
	var only, targets string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.BoolVar(&o.short, "short", false, "fewer and smaller rounds: less than a minute")
	flags.BoolVar(&o.json, "json", false, "print JSON instead of the table")
	flags.StringVar(&only, "only", "", "comma-separated scenarios; default: all")
	flags.StringVar(&targets, "targets", strings.Join([]string{nginx, envoy, stdlib, vallum}, ","), "comma-separated targets")
	flags.StringVar(&o.binary, "vallum", "", "a vallum binary; default: it is built")
	flags.StringVar(&o.before, "before", "", "another vallum binary, measured in the same rounds: what a change is worth")
	flags.StringVar(&o.perf, "perf", "", "folder for `perf record` profiles of vallum, one for each scenario")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	split := func(s string) []string {
		return slices.DeleteFunc(strings.Split(s, ","), func(s string) bool { return s == "" })
	}
	o.only, o.targets, o.symbols = split(only), split(targets), o.perf != ""
	if o.before != "" {
		o.targets = append(o.targets, before)
	}
	return o, nil
}

// What a run may take in all. The measuring stops early enough for what follows it.
const (
	longest      = 215 * time.Second
	longestShort = 50 * time.Second
)

func bench(ctx context.Context, o options, dir string, out, progress io.Writer) error {
	began, worked := time.Now(), busy.Time()
	end := began.Add(longest)
	if o.short {
		end = began.Add(longestShort)
	}
	chosen, err := choose(scenarios(o), o.only)
	if err != nil {
		return err
	}
	s, err := setUp(ctx, o, dir, progress)
	if err != nil {
		return err
	}
	defer s.upstream.stop()
	r := &runner{stand: s, progress: progress, running: map[string]*target{}}
	if o.perf != "" {
		r.profile = perfInto(o.perf)
	}
	rows, err := r.run(ctx, chosen, end)
	if err != nil {
		return err
	}
	s.upstream.stop()
	res := result{
		Machine: machine(), CPUs: runtime.NumCPU(), Go: runtime.Version(), Nginx: s.nginxVersion(), Commit: commit(),
		Short: o.short, Seconds: time.Since(began).Round(100 * time.Millisecond).Seconds(), Rows: rows,
	}
	all := time.Since(began).Seconds() * float64(res.CPUs)
	res.Others = max(0, 100*(busy.Time()-worked-ownTime()).Seconds()/all)
	res.Comments = []string{
		"nginx, envoy: bare proxying, no log. stdlib: httputil.ReverseProxy, nothing looked",
		"at. vallum: keys, strict inspection, limits and signed records on. ×: to nginx,",
		"round by round, the median; +: to no proxy at all.",
		fmt.Sprintf("%.0f s; meanwhile other programs used %.0f %% of the machine: the busier, the less p99 means.", res.Seconds, res.Others),
	}
	for _, row := range rows {
		if row.Missing != "" && !slices.Contains(res.Comments, row.missing()) {
			res.Comments = append(res.Comments, row.missing())
		}
	}
	if o.json {
		return res.writeJSON(out)
	}
	res.write(out)
	return nil
}

func choose(all []scenario, only []string) ([]scenario, error) {
	if len(only) == 0 {
		return all, nil
	}
	var names []string
	for _, s := range all {
		names = append(names, s.name)
	}
	for _, name := range only {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("no scenario %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(all, func(s scenario) bool { return !slices.Contains(only, s.name) }), nil
}

// perfInto records what vallum does while it is measured. The figures of such a run are slower.
func perfInto(dir string) func(context.Context, scenario, *target, func() error) error {
	return func(ctx context.Context, s scenario, t *target, f func() error) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "perf", "record", "-q", "-F", "997", "-g", "-p", fmt.Sprint(t.cmd.Process.Pid),
			"-o", filepath.Join(dir, s.name+".perf"))
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("recording a profile: %w", err)
		}
		err := f()
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it ends by the signal, and calls that a failure
		// The binary goes with the run; perf report wants its symbols.
		return errors.Join(err, copyFile(fmt.Sprintf("/proc/%d/exe", t.cmd.Process.Pid), filepath.Join(dir, "vallum")))
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
