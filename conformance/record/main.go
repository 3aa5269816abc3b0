// Command record runs real clients at their defaults against a recorder on
// loopback and keeps what they sent: the corpus that a strict gateway has to
// accept. It refuses to keep a credential, or anything about this machine.
//
//	go -C conformance run ./install -only record-clients
//	go -C conformance run ./record            rewrites ../testdata/clients
//	go -C conformance run ./record -only go,node
//
// The recorder answers as vLLM 0.32.0 or as the Anthropic API would, with a
// tool call first where a client offers tools, so that second turns are seen.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/conformance/parts"
)

const clientTimeout = 4 * time.Minute

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

// driver runs a group of clients against the recorder.
type driver struct {
	name string
	run  func(ctx context.Context, base string) error
}

func run() error {
	out := flag.String("out", filepath.Join("..", "testdata", "clients"), "folder for the recorded requests")
	only := flag.String("only", "", "comma-separated drivers")
	flag.Parse()

	rec, err := startRecorder()
	if err != nil {
		return err
	}
	defer rec.close()
	drivers, err := drivers()
	if err != nil {
		return err
	}
	for _, d := range drivers {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), d.name) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), clientTimeout)
		before := rec.count()
		err := d.run(ctx, rec.url)
		cancel()
		fmt.Printf("%-12s %d requests\n", d.name, rec.count()-before)
		if err != nil {
			fmt.Printf("%-12s NOT RUN to its end: %v\n", d.name, err)
		}
	}
	n, err := rec.write(*out, *only == "")
	fmt.Printf("%d files in %s\n", n, *out)
	return err
}

// drivers is every group, in order. A Python group is a venv of its own; the
// program tries the clients that are installed in it.
func drivers() ([]driver, error) {
	official, err := parts.Dir(parts.Python)
	if err != nil {
		return nil, err
	}
	more, err := parts.Dir(parts.Records)
	if err != nil {
		return nil, err
	}
	vllm, err := parts.Dir(parts.VLLM)
	if err != nil {
		return nil, err
	}
	models, err := parts.Dir(parts.Models)
	if err != nil {
		return nil, err
	}
	node := filepath.Join(more, "node")
	out := []driver{{"go", goClients}, {"python", python(filepath.Join(official, "venv"))}}
	for _, group := range []string{"old", "middle", "frameworks", "litellm"} {
		out = append(out, driver{group, python(filepath.Join(more, group, "venv"))})
	}
	return append(out,
		driver{"node", script("NODE_CLIENTS="+node, "node", "record/clients.mjs")},
		driver{"curl", script("", "sh", "record/curl.sh")},
		driver{"aider", agent("aider", filepath.Join(more, "aider", "venv", "bin", "aider"), aiderArgs)},
		driver{"codex", agent("codex", filepath.Join(node, "node_modules", ".bin", "codex"), codexArgs)},
		driver{"claude-code", agent("claude-code", filepath.Join(node, "node_modules", ".bin", "claude"), claudeArgs)},
		driver{"vllm-bench", vllmBench(filepath.Join(vllm, "venv", "bin", "vllm"), filepath.Join(models, "generate"))},
	), nil
}

func python(venv string) func(context.Context, string) error {
	return script("", filepath.Join(venv, "bin", "python"), "record/clients.py")
}

// script runs a program of this folder with BASE in its environment.
func script(env string, command ...string) func(context.Context, string) error {
	return func(ctx context.Context, base string) error {
		return runCommand(ctx, ".", []string{env, "BASE=" + base}, command...)
	}
}

// runCommand runs a client in a small environment: nothing of this machine's
// configuration steers it, no credential of ours is near it.
func runCommand(ctx context.Context, dir string, env []string, command ...string) error {
	home, err := os.MkdirTemp("", "record-home-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LANG=C.UTF-8", "NO_PROXY=*", "no_proxy=*", "OPENAI_AGENTS_DISABLE_TRACING=1", "LITELLM_LOCAL_MODEL_COST_MAP=True"}
	for _, e := range env {
		if e != "" {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(command[0]), err, out[max(0, len(out)-1500):])
	}
	if s := strings.TrimSpace(string(out)); s != "" && os.Getenv("VERBOSE") != "" {
		fmt.Println(s)
	}
	return nil
}
