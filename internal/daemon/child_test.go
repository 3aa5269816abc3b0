package daemon_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// runChild is the gateway of the child process: the same daemon.Run, until it is killed.
func runChild(dir string) {
	file := filepath.Join(filepath.Dir(dir), "vallum.yaml")
	err := daemon.Run(context.Background(), daemon.Options{
		Load: func() (*config.Config, error) {
			b, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			return config.Parse(file, b)
		},
		State: dir, Out: os.Stdout, Screen: os.Stderr, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	fmt.Fprintln(os.Stderr, err)
}

// child is a gateway in a process of its own, before a fake that lives on here.
type child struct {
	t      *testing.T
	fake   *vllmtest.Server
	state  string
	key    string
	url    string
	client *http.Client
	files  int // the process may open; 0 is what this one may
	cmd    *exec.Cmd
	log    gatetest.Text
}

// newChild prepares a state directory with a key; start runs a gateway on it, more than once if wanted.
func newChild(t *testing.T) *child {
	t.Helper()
	c := &child{t: t, fake: vllmtest.Start(t, vllmtest.Options{}), state: filepath.Join(t.TempDir(), "state"), client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
	c.configure("probes: off\n")
	st, err := store.Open(t.Context(), c.state)
	if err != nil {
		t.Fatal(err)
	}
	if c.key, _, err = st.CreateKey(t.Context(), store.NewKey{Name: "app", Roles: []string{"inference"}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

// configure writes the configuration, with these lines of YAML.
func (c *child) configure(more string) {
	c.t.Helper()
	yaml := fmt.Sprintf("version: 1\nlisten: [{address: \"127.0.0.1:0\"}]\nupstreams: [{name: fake, url: %q}]\n%s", c.fake.URL(), more)
	if err := os.WriteFile(filepath.Join(filepath.Dir(c.state), "vallum.yaml"), []byte(yaml), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// start runs a gateway and returns once clients are served.
func (c *child) start() {
	c.t.Helper()
	c.cmd = exec.Command(os.Args[0])
	if c.files > 0 {
		c.cmd = exec.Command("sh", "-c", fmt.Sprintf("ulimit -Sn 64 && ulimit -Hn %d && exec \"$0\"", c.files), os.Args[0]) // the soft limit is raised to the hard one
	}
	c.cmd.Env = append(os.Environ(), childState+"="+c.state)
	c.cmd.Stderr = &c.log
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		c.kill()
		c.t.Fatalf("the gateway did not start: %q %v %s", line, err, &c.log)
	}
	c.url = url
}

// kill ends it as SIGKILL does: nothing of it runs any more.
func (c *child) kill() {
	if c.cmd != nil && c.cmd.Process != nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		c.cmd = nil
	}
	c.client.CloseIdleConnections()
}

// chat sends one request; the zero Answer when the gateway is gone.
func (c *child) chat(stream bool) (status int, reason string) {
	body := gatetest.ChatBody
	if stream {
		body = `{"model":"tiny","stream":true,"messages":[]}`
	}
	req, err := http.NewRequestWithContext(c.t.Context(), "POST", c.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return 0, ""
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.key)
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Vallum-Reason")
}

// auditDir is where its records are.
func (c *child) auditDir() string { return filepath.Join(c.state, "audit") }

// size is the bytes of all segments.
func (c *child) size() (n int64) {
	files, _ := filepath.Glob(filepath.Join(c.auditDir(), "*"))
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && strings.HasSuffix(f, "jsonl") {
			n += info.Size()
		}
	}
	return n
}

// everyArrivalIsRecorded compares what reached the fake with the log: no arrival without its admitted record.
func (c *child) everyArrivalIsRecorded() {
	c.t.Helper()
	admitted := map[string]bool{}
	for r, err := range audit.Read(c.auditDir(), time.Time{}, nil) {
		if err != nil {
			c.t.Fatalf("reading the log: %v", err)
		}
		if r.Event == audit.Admitted {
			admitted[r.ID] = true
		}
	}
	work := c.fake.Work()
	for _, r := range work {
		if id := r.Header.Get("X-Request-Id"); !admitted[id] {
			c.t.Errorf("%s %s with id %s arrived and is in no record", r.Method, r.Path, id)
		}
	}
	key, err := os.ReadFile(filepath.Join(c.auditDir(), "log.pub"))
	if err != nil {
		c.t.Fatal(err)
	}
	if report, err := audit.Verify(c.auditDir(), strings.TrimSpace(string(key)), nil); err != nil || report.BrokenAt != 0 {
		c.t.Errorf("the log does not hold: %+v %v", report, err)
	}
}
