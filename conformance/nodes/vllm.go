package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vallum/vallum/conformance/parts"
)

// The model that VLLM serves, and where.
const (
	Served  = "tiny"
	APIPort = 8000
)

// VLLM is one node's part of a real vLLM over several nodes.
type VLLM struct {
	Topology string   // for `isolate exec`; "" starts vLLM as it is, without Vallum
	Events   bool     // KV events are published; without a Topology Args say so
	Args     []string // further flags
	Env      []string // further NAME=value
}

// command is `vllm serve` of the tiny model with the flags that a CPU needs.
func (v VLLM) command() ([]string, error) {
	venv, err := parts.Dir(parts.VLLM)
	if err != nil {
		return nil, err
	}
	models, err := parts.Dir(parts.Models)
	if err != nil {
		return nil, err
	}
	return append([]string{
		filepath.Join(venv, "venv", "bin", "vllm"), "serve", filepath.Join(models, "generate"),
		"--served-model-name", Served, "--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager",
	}, v.Args...), nil
}

// Serve starts the node's part of vLLM and returns at once; its log is NAME.log in the node's folder.
func (n *Node) Serve(ctx context.Context, name string, v VLLM) (*Task, error) {
	args, err := v.command()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	if v.Topology != "" {
		ask := []string{"exec", "--topology", v.Topology}
		if v.Events {
			ask = append(ask, "--kv-events")
		}
		c = n.Command(ctx, append(append(ask, "--"), args...)...)
	}
	c.Env = nil
	for _, kv := range os.Environ() { // nothing of the caller's may steer it
		if !strings.HasPrefix(kv, "VLLM_") && !strings.HasPrefix(kv, "HF_") && !strings.HasPrefix(kv, "VALLUM_") && !strings.HasPrefix(kv, "GLOO_") {
			c.Env = append(c.Env, kv)
		}
	}
	c.Env = append(c.Env,
		"VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind", "OMP_NUM_THREADS=1", "PYTHONUNBUFFERED=1",
		"HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "VLLM_CACHE_ROOT="+n.cache,
		// The machine's own memory file system: short enough for the names of UNIX sockets, and gone with the machine.
		"TMPDIR=/dev/shm", "VLLM_RPC_BASE_PATH=/dev/shm",
	)
	c.Env = append(c.Env, v.Env...)
	return n.Launch(name, c)
}

// Setting is what `isolate env` says that the node's vLLM needs, for those who start it without `isolate exec`.
func (n *Node) Setting(ctx context.Context, args ...string) (env, flags []string, err error) {
	r, err := n.Vallum(ctx, append([]string{"env", "--json"}, args...)...)
	if err != nil {
		return nil, nil, err
	}
	var s struct {
		Env   []struct{ Name, Value string }
		Flags []string
	}
	if err := json.Unmarshal([]byte(r.Out), &s); err != nil {
		return nil, nil, fmt.Errorf("reading isolate env: %w: %s", err, r)
	}
	for _, e := range s.Env {
		env = append(env, e.Name+"="+e.Value)
	}
	return env, s.Flags, nil
}

// WaitServing waits until the vLLM whose first node this is says 200 on /health. It gives up when one of the tasks ends.
func (n *Node) WaitServing(ctx context.Context, wait time.Duration, tasks ...*Task) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	client := n.Client(2 * time.Second)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/health", APIPort))
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		for _, t := range tasks {
			select {
			case <-t.Exited():
				return fmt.Errorf("vLLM ended before it was ready; %s: %s", t.Log, tail(t.Said()))
			default:
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			said := ""
			for _, t := range tasks {
				said += fmt.Sprintf("\n%s: %s", t.Log, tail(t.Said()))
			}
			return fmt.Errorf("vLLM is not ready after %s%s", wait, said)
		}
	}
}
