// Package realvallum builds the product, starts `vallum serve` as a child
// process and makes keys with `vallum keys create`, as a script of an operator
// would. It refuses to reach into the product: no package of it is imported,
// and all that is known about a gateway is what the process prints.
package realvallum

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The time a gateway gets to say that it listens, and to end after SIGTERM.
const (
	readyDeadline = 30 * time.Second
	stopGrace     = 40 * time.Second
	commandTime   = 30 * time.Second // for a command that answers and ends
	readyPrefix   = "listening on "
)

// Build compiles the command in the repository folder repo into dir and
// returns the binary's path.
func Build(ctx context.Context, repo, dir string) (string, error) {
	bin := filepath.Join(dir, "vallum")
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "grpcnotrace", "-o", bin, "./cmd/vallum")
	cmd.Dir = repo
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building vallum: %w\n%s", err, out)
	}
	return bin, nil
}

// Options is how to start a gateway.
type Options struct {
	Binary string
	Config string   // path of vallum.yaml; "" for the zero-config form
	State  string   // state directory
	Args   []string // further arguments of serve
	Env    []string // further NAME=value
	Log    string   // file for its standard error
}

// Gateway is a `vallum serve` that has said where it listens.
type Gateway struct {
	Options
	URL     string // http://127.0.0.1:PORT
	cmd     *exec.Cmd
	exited  chan struct{}
	exitErr error
	stop    sync.Once
	mu      sync.Mutex
	stdout  bytes.Buffer
}

// Start starts a gateway on a free loopback port and waits for its
// "listening on" line. It ends when ctx does, and when this process dies.
func Start(ctx context.Context, o Options) (*Gateway, error) {
	args := []string{"serve", "--state", o.State, "--listen", "127.0.0.1:0"}
	if o.Config != "" {
		args = append(args, "--config", o.Config)
	}
	log, err := os.OpenFile(o.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	g := &Gateway{Options: o, exited: make(chan struct{})}
	g.cmd = exec.Command(o.Binary, append(args, o.Args...)...)
	g.cmd.Env = append(os.Environ(), o.Env...)
	g.cmd.Stderr = log
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdout, err := g.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	ready := make(chan string, 1)
	if err := g.start(stdout, ready); err != nil {
		return nil, fmt.Errorf("starting vallum: %w", err)
	}
	context.AfterFunc(ctx, g.Stop)
	select {
	case g.URL = <-ready:
		return g, nil
	case <-g.exited:
		err = fmt.Errorf("it ended before it listened: %v", g.exitErr)
	case <-time.After(readyDeadline):
		err = fmt.Errorf("no %q line on its standard output within %s", readyPrefix, readyDeadline)
	case <-ctx.Done():
		err = ctx.Err()
	}
	g.Stop()
	return nil, fmt.Errorf("vallum serve: %w\nlog: %s\n%s", err, o.Log, tail(o.Log, 40))
}

// start runs the child from a thread that lives as long as it does, because
// Pdeathsig is sent when the forking thread ends.
func (g *Gateway) start(stdout io.Reader, ready chan<- string) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := g.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			g.mu.Lock()
			g.stdout.Write(append(lines.Bytes(), '\n'))
			g.mu.Unlock()
			if url, ok := strings.CutPrefix(lines.Text(), readyPrefix); ok && len(ready) == 0 {
				ready <- strings.TrimSpace(url)
			}
		}
		g.exitErr = g.cmd.Wait()
		close(g.exited)
	}()
	return <-started
}

// PID is the process id of the gateway.
func (g *Gateway) PID() int { return g.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (g *Gateway) Exited() <-chan struct{} { return g.exited }

// Stop ends the gateway: SIGTERM, then SIGKILL. It may be called repeatedly.
func (g *Gateway) Stop() {
	g.stop.Do(func() {
		group := -g.PID()
		_ = syscall.Kill(group, syscall.SIGCONT)
		_ = syscall.Kill(group, syscall.SIGTERM)
		select {
		case <-g.exited:
		case <-time.After(stopGrace):
		}
		_ = syscall.Kill(group, syscall.SIGKILL)
		<-g.exited
	})
}

// Said is everything that the gateway wrote: standard output and error. The
// search for secrets reads it.
func (g *Gateway) Said() ([]byte, error) {
	stderr, err := os.ReadFile(g.Log)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return append(slices.Clone(g.stdout.Bytes()), stderr...), nil
}

// probesLine is the line of the first screen that names the probes' address.
var probesLine = regexp.MustCompile(`(?m)^  probes +(http://\S+)`)

// Probes is the URL of the listener of /livez, /readyz and /metrics, as the
// gateway printed it.
func (g *Gateway) Probes() (string, error) {
	said, err := g.Said()
	if err != nil {
		return "", err
	}
	m := probesLine.FindSubmatch(said)
	if m == nil {
		return "", fmt.Errorf("the first screen names no probes; it is in %s", g.Log)
	}
	return string(m[1]), nil
}

// Signal sends the gateway a signal.
func (g *Gateway) Signal(sig syscall.Signal) error { return syscall.Kill(g.PID(), sig) }

// Run runs another command of the gateway's binary, with its state directory,
// and returns what it printed.
func (g *Gateway) Run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, g.Binary, append(args, "--state", g.State)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("vallum %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Key names a key to make.
type Key struct {
	Name   string
	Role   string
	Tenant string // "" : the key's tenant is its own name
}

// CreateKey makes a key in a state directory, with or without a daemon running
// on it, and returns the secret.
func CreateKey(ctx context.Context, binary, state string, k Key) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	args := []string{"keys", "create", "--name", k.Name, "--role", k.Role, "--state", state}
	if k.Tenant != "" {
		args = append(args, "--tenant", k.Tenant)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("vallum %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	key := strings.TrimSuffix(string(out), "\n")
	if key == "" || strings.ContainsAny(key, " \n\t") {
		return "", fmt.Errorf("vallum keys create: want nothing but the key on standard output, got %d bytes", len(out))
	}
	return key, nil
}

// VerifyLog runs `vallum log verify` on the state directory's records.
func VerifyLog(ctx context.Context, binary, state string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "log", "verify", filepath.Join(state, "audit")).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("vallum log verify: %w\n%s", err, out)
	}
	return string(out), nil
}

// Record is one line of the audit log, as written.
type Record map[string]any

// Records reads every record of a state directory, in order. Lines that are
// not JSON fail: the log has to be readable by anybody at any time, but for a
// last line that is being written.
func Records(state string) ([]Record, error) {
	dir := filepath.Join(state, "audit")
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".jsonl") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finding the records: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no *.jsonl in %q", dir)
	}
	slices.Sort(files)
	var out []Record
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		whole := b[:bytes.LastIndexByte(b, '\n')+1]
		for line := range bytes.Lines(whole) {
			var r Record
			if err := json.Unmarshal(line, &r); err != nil {
				return nil, fmt.Errorf("%s: %w: %q", f, err, line)
			}
			out = append(out, r)
		}
	}
	return out, nil
}

func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
