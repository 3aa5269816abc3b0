//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
)

const clientTimeout = 4 * time.Minute

// sdk is one official client: a program that runs a fixed list of calls.
type sdk struct {
	name    string // "Python openai 3.54.0"
	kind    string // the program's argument
	command func() (cmd []string, env []string, err error)
}

// outcome is one line that a client program printed.
type outcome struct {
	Case   string
	Result any
	Error  *struct {
		Class, Text string
		Status      any
	}
}

func (o outcome) String() string {
	b, err := json.Marshal(o)
	if err != nil {
		return err.Error()
	}
	return string(b[:min(len(b), 700)])
}

func pythonSDK(name, kind string) sdk {
	return sdk{name, kind, func() ([]string, []string, error) {
		dir, err := parts.Dir(parts.Python)
		return []string{filepath.Join(dir, "venv", "bin", "python"), "clients/python/client.py"}, nil, err
	}}
}

func nodeSDK(name, kind string) sdk {
	return sdk{name, kind, func() ([]string, []string, error) {
		dir, err := parts.Dir(parts.Node)
		return []string{"node", "clients/node/client.mjs"}, []string{"NODE_CLIENTS=" + dir}, err
	}}
}

func goSDK(name, kind string) sdk {
	return sdk{name, kind, func() ([]string, []string, error) {
		bin := filepath.Join(fleet.dir, "goclient")
		if _, err := os.Stat(bin); err == nil {
			return []string{bin}, nil, nil
		}
		out, err := exec.Command("go", "build", "-o", bin, "./clients/go").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("building the Go client: %w\n%s", err, out)
		}
		return []string{bin}, nil, err
	}}
}

func clientsPassUnchanged() []proof {
	return append(pythonClientsPassUnchanged(), unchanged(
		nodeSDK("Node openai "+parts.OpenAINode, "openai"),
		nodeSDK("Node @anthropic-ai/sdk "+parts.AnthropicNode, "anthropic"),
		goSDK("Go openai-go "+parts.OpenAIGo, "openai"),
		goSDK("Go anthropic-sdk-go "+parts.AnthropicGo, "anthropic"),
	)...)
}

func pythonClientsPassUnchanged() []proof {
	return unchanged(
		pythonSDK("Python openai "+parts.OpenAIPython, "openai"),
		pythonSDK("Python anthropic "+parts.AnthropicPython, "anthropic"),
	)
}

func embeddingClientsPassUnchanged() []proof {
	return unchanged(
		pythonSDK("Python openai "+parts.OpenAIPython, "embeddings"),
		nodeSDK("Node openai "+parts.OpenAINode, "embeddings"),
		goSDK("Go openai-go "+parts.OpenAIGo, "embeddings"),
	)
}

// differences are the cases in which the gateway is meant to answer otherwise
// than vLLM: the status that the SDK has to see through Vallum; 0 for success.
var differences = map[string]float64{
	"models.retrieve": 0,   // vLLM lacks the route: 404
	"error.model":     403, // vLLM names the models it has; the gate says only that this key may not
	"audio.key":       401, // that vLLM has no key and takes any
}

// unchanged makes a proof for each client: what it sees through Vallum is what
// it sees directly.
func unchanged(clients ...sdk) []proof {
	var out []proof
	for _, c := range clients {
		out = append(out, proof{"passes unchanged: " + c.name + " " + c.kind, func(p *report.Proof, s *stand) {
			url, err := s.vllm.Bridge(p.Context())
			if err != nil {
				p.Fatal(err)
			}
			key := s.vllm.Key
			if key == "" {
				key = "none"
			}
			direct := c.run(p, url, key, s.vllm.Served)
			again := c.run(p, url, key, s.vllm.Served)
			for i := range direct {
				if !reflect.DeepEqual(direct[i], again[i]) {
					p.Errorf("two direct runs differ, so a comparison shows nothing:\n%s\n%s", direct[i], again[i])
				}
			}
			s.needGate(p)
			compare(p, direct, c.run(p, s.gate.URL, s.gate.keys["anna"], s.vllm.Served))
		}})
	}
	return out
}

// run runs the client's program and reads what it printed.
func (c sdk) run(p *report.Proof, base, key, model string) []outcome {
	p.Helper()
	command, env, err := c.command()
	if err != nil {
		p.NotRun("%v", err)
	}
	ctx, cancel := context.WithTimeout(p.Context(), clientTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], append(command[1:], c.kind)...)
	cmd.Env = append(append(os.Environ(), env...), "BASE_URL="+base, "KEY="+key, "MODEL="+model, "NO_PROXY=*", "no_proxy=*")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.Fatalf("%s against %s: %v\n%s", c.name, base, err, &stderr)
	}
	var lines []outcome
	for line := range strings.Lines(string(out)) {
		var o outcome
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			p.Fatalf("%s printed %q: %v", c.name, line, err)
		}
		lines = append(lines, o)
	}
	if len(lines) == 0 {
		p.Fatalf("%s made no call\n%s", c.name, &stderr)
	}
	return lines
}

// compare wants equal results, and equal classes and statuses of errors, but
// for the differences that are meant. Error texts are our own.
func compare(p *report.Proof, direct, through []outcome) {
	p.Helper()
	if len(direct) != len(through) {
		p.Fatalf("%d calls directly, %d through Vallum", len(direct), len(through))
	}
	for i, d := range direct {
		t := through[i]
		want, meant := differences[d.Case]
		if d.Error != nil && statusOf(d) < 0 {
			// The SDK could not even read vLLM's error (openai-go: a bare
			// "error": "Unauthorized"). Ours it has to understand.
			want, meant = 401, true
		}
		switch {
		case meant:
			if got := statusOf(t); got != want {
				p.Errorf("%s: want status %v through Vallum, got %s", d.Case, want, t)
			}
		case d.Error != nil && t.Error != nil:
			if d.Error.Class != t.Error.Class || d.Error.Status != t.Error.Status {
				p.Errorf("%s: another error\ndirectly       %s\nthrough Vallum %s", d.Case, d, t)
			}
		case !reflect.DeepEqual(d, t):
			p.Errorf("%s: another result\ndirectly       %s\nthrough Vallum %s", d.Case, d, t)
		}
	}
}

// statusOf is the HTTP status of an error that the SDK raised, 0 for success.
func statusOf(o outcome) float64 {
	if o.Error == nil {
		return 0
	}
	if f, ok := o.Error.Status.(float64); ok {
		return f
	}
	return -1
}
