package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/isolate/apply"
	"github.com/vallum/vallum/internal/isolate/audit"
	"github.com/vallum/vallum/internal/isolate/env"
	"github.com/vallum/vallum/internal/isolate/nft"
	"github.com/vallum/vallum/internal/isolate/observe"
)

func newIsolateAudit(s streams) *cobra.Command {
	var watch time.Duration
	var asJSON bool
	var state string
	c := &cobra.Command{
		Use:   "audit",
		Short: "Judges every socket of vLLM and Ray on this node: inside the overlay, guarded, or outside",
		Long: "Exit status 0: nothing is outside; 1: something is, or there are RDMA devices, which no rule sees; 3: no socket of\n" +
			"vLLM or Ray was seen, so that nothing was judged. Some sockets live only while vLLM starts (the handshake and the\n" +
			"store of data parallel): --watch 2m, begun before vLLM, sees those too.",
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := isolateState(state)
			if err != nil {
				return err
			}
			in, err := auditInput(c.Context(), dir, watch)
			if err != nil {
				return err
			}
			report := audit.Judge(in)
			if asJSON {
				err = printJSON(s, report)
			} else {
				err = s.printAudit(report)
			}
			switch {
			case err != nil:
				return err
			case report.Verdict == audit.Inconclusive:
				return statusError(exitInconclusive)
			case !report.OK():
				return errNo
			}
			return nil
		},
	}
	isolateStateFlag(c, &state)
	c.Flags().DurationVar(&watch, "watch", 0, "keep looking for this long, or until interrupted")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

// auditInput looks at the machine, once or for a while, and at what is applied to it.
func auditInput(ctx context.Context, dir string, watch time.Duration) (audit.Input, error) {
	snapshot, err := observeMachine(dir)
	if err != nil {
		return audit.Input{}, err
	}
	for end := time.Now().Add(watch); time.Now().Before(end) && ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
		more, _, err := observe.Sockets()
		if err != nil {
			return audit.Input{}, err
		}
		for _, k := range more {
			if !slices.Contains(snapshot.Sockets, k) {
				snapshot.Sockets = append(snapshot.Sockets, k)
			}
		}
	}
	st := apply.State{Dir: dir}
	in := audit.Input{Snapshot: snapshot}
	if in.Plan, _, err = st.Applied(); err != nil {
		return in, err
	}
	if in.Plan != nil {
		in.Rules = st.Holds()
	}
	in.Counters, err = nft.Counters()
	return in, err
}

func (s streams) printAudit(r audit.Report) error {
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, f := range r.Findings {
		ends := "listens on " + f.Socket.Local.String()
		if !f.Socket.Listening {
			ends = f.Socket.Local.String() + " with " + f.Socket.Remote.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s (%d)\t%s\t%s\n", f.Verdict, f.Channel, f.Socket.Process, f.Socket.PID, ends, f.Why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range r.NotProtected {
		fmt.Fprintf(s.out, "NOT PROTECTED: %s\n", n)
	}
	for _, h := range r.Hints {
		s.hint("%s", h)
	}
	fmt.Fprintf(s.err, "vallum: never tested here: %s\n", strings.Join(r.NotTested, "; "))
	_, err := fmt.Fprintf(s.out, "%d socket(s): %s\n", len(r.Findings), r.Verdict)
	return err
}

func newIsolateExec(s streams) *cobra.Command {
	in := &isolateInput{}
	ask := env.Ask{}
	c := &cobra.Command{
		Use:   "exec --topology T -- COMMAND",
		Short: "Starts vLLM with what the topology needs; refuses when the overlay does not hold",
		Long: "exec sets the environment, and adds the flags of `isolate env` that COMMAND does not give. A flag that COMMAND gives\n" +
			"with another value is refused: half of a setting makes vLLM hang, or talk in clear.",
		Example: "  vallum isolate exec --topology dp -- vllm serve Qwen/Qwen3-8B",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := in.read(s)
			if err != nil {
				return err
			}
			if err := overlayHolds(n.state); err != nil {
				return fmt.Errorf("vLLM is not started: %w", err)
			}
			self, ok := n.manifest.ByKey(n.public)
			if !ok {
				return errors.New("this node is not in the manifest")
			}
			ask.Node = self.Name
			snapshot, err := observeMachine(n.state)
			if err != nil {
				return err
			}
			ask.RDMA = ask.RDMA || len(snapshot.RDMA) > 0
			setting, err := env.For(n.manifest, n.conf.Device, ask)
			if err != nil {
				return usageError{err}
			}
			return execWith(s, setting, args)
		},
	}
	in.flags(c)
	askFlags(c, &ask)
	return c
}

// execWith becomes the command.
func execWith(s streams, setting *env.Setting, args []string) error {
	args, added, err := setting.Complete(args)
	if err != nil {
		return err
	}
	if len(added) > 0 {
		fmt.Fprintf(s.err, "vallum: added: %s\n", strings.Join(added, " "))
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("vLLM is not started: %w", err)
	}
	environ := os.Environ()
	for _, e := range setting.Env {
		environ = slices.DeleteFunc(environ, func(s string) bool { return strings.HasPrefix(s, e.Name+"=") })
		environ = append(environ, e.Name+"="+e.Value)
	}
	return syscall.Exec(program, args, environ)
}
