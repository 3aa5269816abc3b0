// Package realvllm starts a real vLLM as a child process and stops it again. It
// refuses to call a server ready that has not answered /health, and to leave
// one running when the program that started it ends.
package realvllm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/parts"
)

// The time a server gets to become ready, and to go after SIGTERM.
const (
	ReadyDeadline = 300 * time.Second
	stopGrace     = 15 * time.Second
	tailLines     = 40
)

// Config is one way to start vLLM.
type Config struct {
	Name    string   // "A": names the folder and the log
	Version string   // of vLLM; "" is the newest that is installed, parts.VLLMVersion
	Model   string   // folder of the models part: generate, embed, classify, multimodal, speech
	Served  string   // --served-model-name
	Also    []string // further names of the same model
	Key     string   // VLLM_API_KEY; "" starts without a key
	Socket  bool     // listen on a UNIX socket instead of loopback TCP
	Args    []string // further flags; {run} becomes the run folder
	Env     []string // further NAME=value
}

// Release is the version of vLLM that the configuration starts.
func (c Config) Release() string {
	if c.Version == "" {
		return parts.VLLMVersion
	}
	return c.Version
}

// Server is a vLLM that has answered /health.
type Server struct {
	Config
	URL     string        // http://127.0.0.1:PORT, or http://vllm for a socket
	Path    string        // the socket's path, "" for TCP
	Log     string        // the file that holds its output
	Ready   time.Duration // from exec to the first 200 on /health
	cmd     *exec.Cmd
	exited  chan struct{}
	exitErr error
	stop    sync.Once
	guard   *exec.Cmd
	hold    io.Closer // our end of the guard's standard input
}

// Start starts a server and waits until it is ready. Everything it writes lies
// under dir. The server ends when ctx does, and when this process dies.
func Start(ctx context.Context, dir string, cfg Config) (*Server, error) {
	s, err := launch(dir, cfg)
	if err != nil {
		return nil, fmt.Errorf("starting vLLM %s: %w", cfg.Name, err)
	}
	context.AfterFunc(ctx, s.Stop)
	began := time.Now()
	if err := s.waitReady(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("vLLM %s: %w\nlog: %s\n%s", cfg.Name, err, s.Log, Tail(s.Log, tailLines))
	}
	s.Ready = time.Since(began)
	return s, nil
}

// launch starts the process and returns at once.
func launch(dir string, cfg Config) (*Server, error) {
	part, err := parts.VLLMOf(cfg.Release())
	if err != nil {
		return nil, err
	}
	venv, err := parts.Dir(part)
	if err != nil {
		return nil, err
	}
	models, err := parts.Dir(parts.Models)
	if err != nil {
		return nil, err
	}
	run, err := filepath.Abs(filepath.Join(dir, "vllm-"+cfg.Name))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(run, "tmp"), 0o755); err != nil {
		return nil, err
	}
	s := &Server{Config: cfg, Log: filepath.Join(run, "log"), exited: make(chan struct{})}
	where, err := s.address(run)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(s.Log)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	args := append([]string{"serve", filepath.Join(models, cfg.Model)}, where...)
	args = append(append(args, "--dtype", "bfloat16", "--enforce-eager", "--served-model-name", cfg.Served), cfg.Also...)
	for _, a := range cfg.Args {
		args = append(args, strings.ReplaceAll(a, "{run}", run))
	}
	s.cmd = exec.Command(filepath.Join(venv, "venv", "bin", "vllm"), args...)
	s.cmd.Dir = run
	s.cmd.Env = append(environment(run, cfg), cfg.Env...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.start(); err != nil {
		return nil, err
	}
	if err := s.startGuard(); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// startGuard starts a shell that waits for our end of a pipe to close, which
// happens however we end, and then kills the group: the engine's processes
// outlive an API server that was killed.
func (s *Server) startGuard() error {
	s.guard = exec.Command("sh", "-c", fmt.Sprintf("read -r _; kill -s KILL -- -%d 2>/dev/null", s.PID()))
	s.guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := s.guard.StdinPipe()
	if err != nil {
		return err
	}
	s.hold = in
	return s.guard.Start()
}

// start runs the child from a thread that lives as long as the child does: the
// kernel sends Pdeathsig when the thread that forked ends, not the process.
func (s *Server) start() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		s.exitErr = s.cmd.Wait()
		close(s.exited)
	}()
	return <-started
}

// address chooses where the server listens and returns the flags that say so.
// vLLM does not take port 0, so a free port is looked for first.
func (s *Server) address(run string) ([]string, error) {
	if s.Socket {
		// A stale socket file stops vLLM from starting (EADDRINUSE).
		s.Path = filepath.Join(run, "vllm.sock")
		if err := os.Remove(s.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		s.URL = "http://vllm"
		return []string{"--uds", s.Path}, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	s.URL = fmt.Sprintf("http://127.0.0.1:%d", port)
	return []string{"--host", "127.0.0.1", "--port", fmt.Sprint(port)}, nil
}

// environment is what a CPU server needs, and nothing of ours that could steer
// it: VLLM_* and HF_* of the caller are left out.
func environment(run string, cfg Config) []string {
	var env []string
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "VLLM_") || strings.HasPrefix(kv, "HF_") || strings.HasPrefix(kv, "VALLUM_") {
			continue
		}
		env = append(env, kv)
	}
	env = append(env,
		"VLLM_CPU_KVCACHE_SPACE=1", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1",
		"PYTHONUNBUFFERED=1", "OMP_NUM_THREADS=2", "VLLM_CPU_OMP_THREADS_BIND=nobind",
		"VLLM_CACHE_ROOT="+filepath.Join(run, "cache"),
		// Its UNIX sockets stay behind after exit: keep them in our folder.
		"VLLM_RPC_BASE_PATH="+filepath.Join(run, "tmp"), "TMPDIR="+filepath.Join(run, "tmp"),
	)
	if cfg.Key != "" {
		env = append(env, "VLLM_API_KEY="+cfg.Key)
	}
	return env
}

// waitReady polls /health until it answers 200.
func (s *Server) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ReadyDeadline)
	defer cancel()
	client := s.Client()
	client.Timeout = 5 * time.Second
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := client.Get(s.URL + "/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-s.exited:
			return fmt.Errorf("it ended before it was ready: %v", s.exitErr)
		case <-ctx.Done():
			return fmt.Errorf("no 200 on /health within %s: %w", ReadyDeadline, ctx.Err())
		case <-tick.C:
		}
	}
}

// Client is an HTTP client that reaches this server, over its socket if it has
// one. It follows no redirect and keeps no connection.
func (s *Server) Client() *http.Client {
	t := &http.Transport{DisableKeepAlives: true}
	if s.Path != "" {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.Path)
		}
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// PID is the process id of the API server, which leads the process group.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Exited is closed when the API server's process has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Stop ends the whole process group: SIGTERM, and SIGKILL for what is left. It
// may be called more than once.
func (s *Server) Stop() {
	s.stop.Do(func() {
		group := -s.PID()
		_ = syscall.Kill(group, syscall.SIGCONT) // a frozen process takes no SIGTERM
		_ = syscall.Kill(group, syscall.SIGTERM)
		select {
		case <-s.exited:
		case <-time.After(stopGrace):
		}
		_ = syscall.Kill(group, syscall.SIGKILL)
		<-s.exited
		if s.hold != nil {
			s.hold.Close()
			_ = s.guard.Wait() // nothing is left to kill: its status says nothing
		}
	})
}

// Signal sends a signal to the API server and all its processes.
func (s *Server) Signal(sig syscall.Signal) error { return syscall.Kill(-s.PID(), sig) }

// Tail is the last n lines of a file, or why it cannot be read.
func Tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
