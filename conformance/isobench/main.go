// Command isobench measures what the overlay of `vallum isolate` costs: two nodes in network namespaces, the same load over
// the bare Ethernet and over the overlay in turn, and each figure as a ratio. It refuses to call a figure a machine's
// property: both nodes, both ends and the tunnel share this machine's cores, so only the ratios say something.
//
// It needs root, for namespaces. The network alone takes about a minute. What is said of tensor and data parallelism is
// decoding of the real vLLM with a tiny model, whose parts `run ./install` fills; pipeline parallelism is not measured,
// because vLLM's CPU build starts it and answers 500.
//
//	go -C conformance run ./isobench
//	go -C conformance run ./isobench -only network -mtu 1500
//	go -C conformance run ./isobench -only tp -awake
//	go -C conformance run ./isobench -json
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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/busy"
	"github.com/vallum/vallum/conformance/nodes"
	"github.com/vallum/vallum/conformance/realvallum"
)

// Parts of a run.
const (
	network = "network"
	tp      = "tp"
	dp      = "dp"
)

type options struct {
	only   []string
	mtus   []int
	rounds int
	json   bool
	keep   bool
	awake  bool
	binary string
}

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "isobench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	var only, mtus string
	f := flag.NewFlagSet("isobench", flag.ContinueOnError)
	f.StringVar(&only, "only", strings.Join([]string{network, tp, dp}, ","), "comma-separated parts")
	f.StringVar(&mtus, "mtu", "1500,9000", "comma-separated MTUs of the Ethernet, for the network's part")
	f.IntVar(&o.rounds, "rounds", 5, "how often each path is measured")
	f.BoolVar(&o.json, "json", false, "print JSON instead of the table")
	f.BoolVar(&o.keep, "keep", false, "keep the folder with the nodes' logs")
	f.BoolVar(&o.awake, "awake", false, "keep every core from halting while vLLM is measured")
	f.StringVar(&o.binary, "vallum", "", "a vallum binary; default: it is built")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for part := range strings.SplitSeq(only, ",") {
		if !slices.Contains([]string{network, tp, dp}, part) {
			return o, fmt.Errorf("-only: there is no part %q; there are %s, %s, %s", part, network, tp, dp)
		}
		o.only = append(o.only, part)
	}
	for m := range strings.SplitSeq(mtus, ",") {
		n, err := strconv.Atoi(m)
		if err != nil || n < 1500 || n > 9000 {
			return o, fmt.Errorf("-mtu: %q is not a number from 1500 to 9000", m)
		}
		o.mtus = append(o.mtus, n)
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("-rounds: %d rounds measure nothing", o.rounds)
	}
	return o, nil
}

func run(args []string, out, progress io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "vallum-isobench-")
	if err != nil {
		return err
	}
	defer func() {
		if o.keep || err != nil {
			fmt.Fprintln(progress, "logs:", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	if o.binary == "" {
		if o.binary, err = realvallum.Build(ctx, "..", dir); err != nil {
			return err
		}
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	b := &bench{options: o, dir: dir, progress: progress}
	res, err := b.all(ctx)
	if err != nil {
		return err
	}
	if o.json {
		return res.writeJSON(out)
	}
	return res.write(out)
}

// bench is one run.
type bench struct {
	options
	dir      string
	progress io.Writer
	labs     int
}

func (b *bench) all(ctx context.Context) (result, error) {
	began, worked := time.Now(), busy.Time()
	var rows []row
	for _, part := range b.only {
		var more []row
		var err error
		if part == network {
			for _, mtu := range b.mtus {
				fmt.Fprintf(b.progress, "network, MTU %d\n", mtu)
				if more, err = b.network(ctx, mtu); err != nil {
					return result{}, err
				}
				rows = append(rows, more...)
			}
			continue
		}
		fmt.Fprintf(b.progress, "vLLM, %s over two nodes\n", part)
		if more, err = b.vllm(ctx, part); err != nil {
			return result{}, err
		}
		rows = append(rows, more...)
	}
	if ctx.Err() != nil {
		return result{}, ctx.Err()
	}
	r := describe(time.Since(began), busy.Time()-worked)
	r.Rows, r.Awake = rows, b.awake
	return r, nil
}

// lab makes two nodes; their overlay is not up.
func (b *bench) lab(ctx context.Context, mtu int) (*nodes.Lab, error) {
	b.labs++
	l, err := nodes.New(ctx, nodes.Options{Dir: filepath.Join(b.dir, fmt.Sprintf("lab%d", b.labs)), Vallum: b.binary, MTU: mtu}, []string{"a", "b"}, nil)
	if errors.Is(err, nodes.ErrNotRoot) {
		return nil, fmt.Errorf("%w: run it as root", err)
	}
	return l, err
}

func up(ctx context.Context, l *nodes.Lab) error {
	for _, name := range []string{"a", "b"} {
		if err := l.Node(name).Up(ctx); err != nil {
			return err
		}
	}
	return nil
}
