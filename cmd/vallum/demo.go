package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

func newDemo(s streams) *cobra.Command {
	var exit, asJSON bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Shows what Vallum guards: a fake vLLM, the gateway, no GPU",
		Long: "Starts a fake vLLM that serves every route of the newest release, dangerous ones included, with its own key set\n" +
			"as a careful operator would, and the gateway in front. Tries every route directly and through the gateway,\n" +
			"streams a chat, shows the records, and stays up for trying with curl. Everything is on loopback and in a\n" +
			"temporary directory. Exits with 1 if anything got through that should not, or the other way round.",
		Example: "  vallum demo\n" +
			"  vallum demo --exit    end after the records, for scripts\n" +
			"  vallum demo --exit --json",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := untilHangup(c.Context()) // the directory goes with the terminal
			defer stop()
			return s.demo(ctx, exit, asJSON)
		},
	}
	c.Flags().BoolVar(&exit, "exit", false, "end after the records, instead of staying up for trying")
	c.Flags().BoolVar(&asJSON, "json", false, "print the results as JSON")
	return c
}

// demo is the fake vLLM, the gateway before it and two keys.
type demo struct {
	fake         *vllmtest.Server
	direct, gate string // URLs
	state        string
	ordinary     string // a key with the role inference
	admin        string // a key with the role operator
	model        string
	ended        chan error // of the gateway
}

// demoModel is what the fake vLLM is said to serve.
const demoModel = "tiny"

func (s streams) demo(ctx context.Context, exit, asJSON bool) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d, closeAll, err := startDemo(ctx, s.err)
	if err != nil {
		return fmt.Errorf("starting the demo: %w", err)
	}
	defer func() {
		stop()
		err = errors.Join(err, closeAll())
	}()
	p := demoPrinter{w: s.out, color: s.colors(), narrow: s.narrow(), quiet: asJSON}
	p.head(d)
	result := demoResult{Direct: d.direct, Gateway: d.gate, State: d.state, Model: d.model, Keys: map[string]string{"ordinary": d.ordinary, "admin": d.admin}}
	if result.Rows, err = d.tryAll(ctx, p.row); err != nil {
		return err
	}
	result.count()
	p.sum(result)
	if result.Chat, err = d.chat(ctx, p.piece); err != nil {
		return fmt.Errorf("streaming a chat: %w", err)
	}
	p.chatEnd(result.Chat)
	if result.Records, err = d.records(ctx, result); err != nil {
		return fmt.Errorf("reading the records: %w", err)
	}
	p.records(result.Records)
	if exit {
		if result.Records.Chain, err = d.verify(stop); err != nil {
			return fmt.Errorf("verifying the records: %w", err)
		}
		p.chain(result.Records)
	}
	if asJSON {
		if err := json.NewEncoder(s.out).Encode(result); err != nil {
			return err
		}
	}
	if result.Wrong > 0 {
		return errNo
	}
	if exit {
		return nil
	}
	p.toTry(d)
	return d.wait(ctx)
}

// verify ends the gateway, which signs what it wrote, and says whether the records hold.
func (d *demo) verify(stop context.CancelFunc) (string, error) {
	stop()
	ended := <-d.ended
	d.ended <- nil
	dir := filepath.Join(d.state, "audit")
	pub, err := publicKey(dir, "")
	if err = errors.Join(ended, err); err != nil {
		return "", err
	}
	report, err := audit.Verify(dir, pub, nil)
	if err == nil && !report.OK() {
		err = errors.New(report.String())
	}
	return report.String(), err
}

// wait stays up until somebody ends the demo.
func (d *demo) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.ended:
		d.ended <- nil
		return fmt.Errorf("the gateway ended: %w", err)
	}
}

// startDemo starts the fake and the gateway on free ports. closeAll ends both once ctx has ended, and forgets the state.
func startDemo(ctx context.Context, errw io.Writer) (d *demo, closeAll func() error, err error) {
	const key = "the-key-that-vllm-was-started-with"
	fake := vllmtest.New(vllmtest.Options{
		Key: key, Models: []string{demoModel}, DevMode: true, ScaleOut: true, PromptDetails: true, Words: 9, Interval: 40 * time.Millisecond,
	})
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	served := make(chan error, 1)
	go func() { served <- fake.Serve(l) }()
	state, err := os.MkdirTemp("", "vallum-demo-")
	if err != nil {
		fake.Close()
		return nil, nil, errors.Join(err, <-served)
	}
	d = &demo{fake: fake, direct: "http://" + l.Addr().String(), state: state, model: demoModel, ended: make(chan error, 1)}
	closeAll = func() error {
		var ended error
		if d.gate != "" {
			ended = <-d.ended
		}
		fake.Close()
		return errors.Join(ended, <-served, os.RemoveAll(state))
	}
	if err := d.makeKeys(ctx, key); err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	if err := d.startGateway(ctx, errw); err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	return d, closeAll, nil
}

// makeKeys fills the state directory as `vallum keys create` does.
func (d *demo) makeKeys(ctx context.Context, upstreamKey string) error {
	if err := os.WriteFile(filepath.Join(d.state, "vllm-key"), []byte(upstreamKey+"\n"), 0o600); err != nil {
		return err
	}
	return withStore(ctx, d.state, func(st *store.Store) error {
		var err error
		if d.ordinary, _, err = st.CreateKey(ctx, store.NewKey{Name: "ordinary", Roles: []string{"inference"}}, time.Now()); err != nil {
			return err
		}
		d.admin, _, err = st.CreateKey(ctx, store.NewKey{Name: "admin", Roles: []string{"operator"}}, time.Now())
		return err
	})
}

// startGateway runs what `vallum serve --upstream` runs, and returns once clients are served.
func (d *demo) startGateway(ctx context.Context, errw io.Writer) error {
	flags := serveFlags{upstream: d.direct, upstreamKey: filepath.Join(d.state, "vllm-key"), listen: "127.0.0.1:0", probes: "127.0.0.1:0"}
	conf, err := flags.configuration()
	if err != nil {
		return err
	}
	ready := make(chan string, 1)
	go func() {
		d.ended <- daemon.Run(ctx, daemon.Options{
			Load: func() (*config.Config, error) { return conf, nil }, State: d.state, Out: io.Discard, Screen: io.Discard,
			Log:   slog.New(slog.NewTextHandler(errw, &slog.HandlerOptions{Level: slog.LevelError})),
			Ready: func(urls []string) { ready <- urls[0] },
		})
	}()
	select {
	case d.gate = <-ready:
		return nil
	case err := <-d.ended:
		if err == nil {
			err = ctx.Err()
		}
		return err
	}
}
