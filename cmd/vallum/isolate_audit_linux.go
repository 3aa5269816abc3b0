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
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/daemon/screen"
	"github.com/vallum/vallum/internal/isolate"
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
		Short: "Judges every socket of vLLM and Ray: inside, guarded or outside",
		Long: "Exit status 0: nothing is outside; 1: something is; 3: no socket of vLLM or Ray was seen, or not everything could\n" +
			"be looked at; 4: no socket is outside, but there are RDMA devices or NVLink, or settings that lead to them, which no rule\n" +
			"and no tunnel sees. Of the processes' environments only the variables are read that say how NCCL, UCX, gloo and\n" +
			"vLLM reach other nodes. Some sockets live only while vLLM starts (the handshake and the store of data parallel):\n" +
			"--watch 2m, begun before vLLM, sees those too, and counts what the rules refuse meanwhile.",
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := isolateState(state)
			if err != nil {
				return err
			}
			in, err := s.auditInput(c.Context(), dir, watch)
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
			case report.Verdict == audit.NotProtected:
				return statusError(exitNotProtected)
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
func (s streams) auditInput(ctx context.Context, dir string, watch time.Duration) (audit.Input, error) {
	snapshot, err := observeMachine(dir)
	if err != nil {
		return audit.Input{}, err
	}
	in := audit.Input{Snapshot: snapshot}
	before := map[string]uint64{}
	if watch > 0 {
		if before, err = nft.Counters(); err != nil {
			return in, err
		}
		if err := s.watch(ctx, snapshot, watch); err != nil {
			return in, err
		}
	}
	st := apply.State{Dir: dir}
	if in.Plan, _, err = st.Applied(); err != nil {
		return in, err
	}
	if in.Plan != nil {
		in.Rules, in.Overlay = nft.Check(in.Plan.Rules), st.Holds()
	}
	if in.Counters, err = nft.Counters(); err != nil {
		return in, err
	}
	for name, n := range before {
		if in.Counters[name] >= n { // less when the rules were loaded anew meanwhile
			in.Counters[name] -= n
		}
	}
	return in, nil
}

// watch adds to the snapshot what shows up for a while: some sockets are there only while vLLM starts.
func (s streams) watch(ctx context.Context, snapshot *isolate.Snapshot, long time.Duration) error {
	ctx, stop := context.WithTimeout(ctx, long)
	defer stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	all := newSeen(snapshot)
	fmt.Fprintf(s.err, "vallum: watching for %s; start vLLM now\n", long)
	for ended := false; ; ended = ctx.Err() != nil {
		sockets, unseen, err := observe.Sockets()
		if err != nil {
			return err
		}
		if unseen > 0 && len(snapshot.Missing) == 0 {
			snapshot.Missing = append(snapshot.Missing, isolate.Missing{What: "sockets", Cause: fmt.Sprintf("%d process(es) of vLLM or Ray could not be looked into at some time; run it as root", unseen)})
		}
		for _, k := range sockets {
			if all.addSocket(k) && k.Of != "" && k.Listening {
				fmt.Fprintf(s.err, "vallum: seen: %s (%d) listens on %s (%s)\n", k.Process, k.PID, k.Local, audit.Channel(k, 8000))
			}
		}
		processes, err := observe.Processes()
		if err != nil {
			return err
		}
		for _, p := range processes {
			all.addProcess(p)
		}
		// What begins to listen when its watcher is told to stop is there when that looks for the last time.
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// seen is a snapshot to which later ones are added.
type seen struct {
	*isolate.Snapshot
	sockets   map[isolate.Socket]int
	processes map[int]int
}

func newSeen(s *isolate.Snapshot) *seen {
	w := &seen{s, map[isolate.Socket]int{}, map[int]int{}}
	first := *s
	s.Sockets, s.Processes = nil, nil
	for _, k := range first.Sockets {
		w.addSocket(k)
	}
	for _, p := range first.Processes {
		w.addProcess(p)
	}
	return w
}

// addSocket reports whether the socket is new. A process gives itself its name some time after it has begun: the name
// that was seen last is the one that says what the socket is for.
func (w *seen) addSocket(k isolate.Socket) bool {
	nameless := k
	nameless.Process, nameless.Of = "", ""
	i, known := w.sockets[nameless]
	if known {
		w.Sockets[i] = k
		return false
	}
	w.sockets[nameless] = len(w.Sockets)
	w.Sockets = append(w.Sockets, k)
	return true
}

// addProcess keeps what was read of a process itself: with its name it overwrites its environment.
func (w *seen) addProcess(p isolate.Process) {
	i, known := w.processes[p.PID]
	if !known {
		w.processes[p.PID] = len(w.Processes)
		w.Processes = append(w.Processes, p)
		return
	}
	w.Processes[i].Name = p.Name
	if p.From != 0 && w.Processes[i].From != p.PID {
		w.Processes[i].Settings, w.Processes[i].From = p.Settings, p.From
	}
}

// findingIndent is where a finding's text begins, behind the longest verdict.
const findingIndent = len(audit.NotProtected) + 2

func (s streams) printAudit(r audit.Report) error {
	for _, f := range r.Findings {
		ends := "listens on " + f.Socket.Local.String()
		if !f.Socket.Listening {
			ends = f.Socket.Local.String() + " with " + f.Socket.Remote.String()
		}
		// Two lines for each: names of processes and IPv6 addresses leave no room for columns.
		mark := fmt.Sprintf("%-*s", findingIndent, f.Verdict)
		what := fmt.Sprintf("%s: %s (%d) %s", f.Channel, f.Socket.Process, f.Socket.PID, ends)
		fmt.Fprintln(s.out, mark+screen.Wrap(what, strings.Repeat(" ", findingIndent+4), findingIndent, screenColumns))
		fmt.Fprintln(s.out, strings.Repeat(" ", findingIndent)+screen.Wrap(f.Why, strings.Repeat(" ", findingIndent), findingIndent, screenColumns))
	}
	for _, v := range r.Settings {
		what := "not known"
		switch {
		case v.Set:
			what = fmt.Sprintf("%s=%q", v.Name, v.Value)
		case v.Name != "":
			what = v.Name + " is not set"
		}
		fmt.Fprintf(s.out, "setting of %d process(es): %s: %s: %s\n", len(v.Processes), what, v.Verdict, v.Why)
	}
	for _, n := range r.NotProtected {
		fmt.Fprintf(s.out, "NOT PROTECTED: %s\n", n)
	}
	if r.Broken != "" {
		fmt.Fprintln(s.out, r.Broken)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(s.out, "not observed: %s\n", m)
	}
	for _, h := range r.Hints {
		s.hint("%s", h)
	}
	fmt.Fprintln(s.err, "vallum: nobody has tested this program with:")
	for _, n := range r.NotTested {
		fmt.Fprintln(s.err, "  "+screen.Wrap("- "+n, "    ", 2, screenColumns))
	}
	_, err := fmt.Fprintf(s.out, "%d socket(s): %s\n", len(r.Findings), r.Verdict)
	return err
}

func newIsolateExec(s streams) *cobra.Command {
	in := &isolateInput{}
	ask := env.Ask{}
	c := &cobra.Command{
		Use:   "exec --topology T -- COMMAND",
		Short: "Starts vLLM as the topology needs it, if the overlay holds",
		Long: "exec sets the environment, and adds the flags of `isolate env` that COMMAND does not give. A flag that COMMAND gives\n" +
			"with another value is refused: half of a setting makes vLLM hang, or talk in clear. So is an environment that sends\n" +
			"NCCL or UCX past the overlay.",
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
			ask.RDMA = ask.RDMA || snapshot.HasRDMA()
			setting, err := env.For(n.manifest, n.conf.Device, ask)
			if err != nil {
				return usageError{err}
			}
			plan, _, err := apply.State{Dir: n.state}.Applied()
			if err != nil {
				return err
			}
			environ := withSetting(os.Environ(), setting)
			if err := refuseEnvironment(environ, snapshot, plan); err != nil {
				return fmt.Errorf("vLLM is not started: %w", err)
			}
			return execWith(s, setting, args, environ)
		},
	}
	in.flags(c)
	askFlags(c, &ask)
	return c
}

// execWith becomes the command.
func execWith(s streams, setting *env.Setting, args, environ []string) error {
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
	return syscall.Exec(program, args, environ)
}

// withSetting is the environment with the setting's variables in the place of what it had.
func withSetting(environ []string, setting *env.Setting) []string {
	for _, e := range setting.Env {
		environ = slices.DeleteFunc(environ, func(s string) bool { return strings.HasPrefix(s, e.Name+"=") })
		environ = append(environ, e.Name+"="+e.Value)
	}
	return environ
}

// refuseEnvironment refuses what audit would find in the running process: a variable that exec does not set itself may
// still send NCCL or UCX past the overlay.
func refuseEnvironment(environ []string, snapshot *isolate.Snapshot, plan *isolate.Plan) error {
	one := isolate.Process{PID: os.Getpid(), Of: "vllm", From: os.Getpid(), Settings: map[string]string{}}
	for _, e := range environ {
		if name, value, _ := strings.Cut(e, "="); slices.Contains(isolate.SettingNames, name) {
			one.Settings[name] = value
		}
	}
	// Of the machine only its devices: other processes are the audit's to judge.
	alone := &isolate.Snapshot{Bypasses: snapshot.Bypasses, Processes: []isolate.Process{one}}
	var wrong []error
	for _, v := range audit.Judge(audit.Input{Snapshot: alone, Plan: plan}).Settings {
		if v.Verdict == audit.NotProtected || v.Verdict == audit.Outside {
			wrong = append(wrong, fmt.Errorf("the environment has %s=%q: %s", v.Name, v.Value, v.Why))
		}
	}
	return errors.Join(wrong...)
}
