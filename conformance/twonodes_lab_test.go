//go:build conformance

package conformance

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/conformance/nodes"
	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
)

// How long what should not happen has to happen, and what should. Torch takes 10 s to be imported on a busy machine.
const (
	shut   = 2 * time.Second
	soon   = 15 * time.Second
	slowly = 60 * time.Second
)

// newLab makes members a and b and the outsider x, on the network that vLLM has without Vallum.
func newLab(p *report.Proof) *nodes.Lab {
	p.Helper()
	l, err := makeLab(p.T, strings.ReplaceAll(p.Name(), " ", "_"))
	if err != nil {
		p.NotRun("%v", err)
	}
	p.Cleanup(l.Close)
	return l
}

func makeLab(t *testing.T, name string) (*nodes.Lab, error) {
	binary, err := fleet.build()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(fleet.dir, "lab-")
	if err != nil {
		return nil, err
	}
	t.Logf("%s: %s", name, dir)
	return nodes.New(t.Context(), nodes.Options{Dir: dir, Vallum: binary}, []string{"a", "b"}, []string{"x"})
}

// raise brings the overlay up on the nodes.
func raise(p *report.Proof, l *nodes.Lab, names ...string) {
	p.Helper()
	for _, name := range names {
		if err := l.Node(name).Up(p.Context()); err != nil {
			p.Fatal(err)
		}
	}
}

// python is vLLM's interpreter, with torch and ZeroMQ, on a script of the folder isolate.
func python(p *report.Proof, script string, args ...string) []string {
	p.Helper()
	dir, err := parts.Dir(parts.VLLM)
	if err != nil {
		p.NotRun("%v", err)
	}
	file, err := filepath.Abs(filepath.Join("isolate", script))
	if err != nil {
		p.Fatal(err)
	}
	return append([]string{filepath.Join(dir, "venv", "bin", "python"), file}, args...)
}

// launch starts a task that ends with the proof.
func launch(p *report.Proof, n *nodes.Node, name string, args ...string) *nodes.Task {
	p.Helper()
	return launchCommand(p, n, name, exec.Command(args[0], args[1:]...))
}

func launchCommand(p *report.Proof, n *nodes.Node, name string, c *exec.Cmd) *nodes.Task {
	p.Helper()
	if c.Env == nil {
		c.Env = os.Environ()
	}
	c.Env = append(c.Env, "OMP_NUM_THREADS=1", "PYTHONUNBUFFERED=1")
	t, err := n.Launch(name, c)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(t.Stop)
	return t
}

// record records the wire while f runs.
func record(p *report.Proof, l *nodes.Lab, f func()) *nodes.Recording {
	p.Helper()
	r, err := l.Record()
	if err != nil {
		p.NotRun("%v", err)
	}
	defer r.Stop() // f may have ended the proof
	f()
	if err := r.Stop(); err != nil {
		p.NotRun("%v", err)
	}
	return r
}

// wantTunnelOnly wants a wire with the tunnel's packets, none of the overlay outside it, none of TCP between members,
// and the needles nowhere.
func wantTunnelOnly(p *report.Proof, l *nodes.Lab, r *nodes.Recording, needles [][]byte) {
	p.Helper()
	if len(r.Flows(nodes.Tunnel)) == 0 {
		p.Error("the tunnel carried nothing: a wire on which nothing was seen proves nothing")
	}
	wantNoClear(p, l, r, needles)
}

func wantNoClear(p *report.Proof, l *nodes.Lab, r *nodes.Recording, needles [][]byte) {
	p.Helper()
	if found := r.Find(needles); len(found) > 0 {
		p.Errorf("the marked data is on the wire: %s", flows(found))
	}
	a, b := l.Node("a").Under, l.Node("b").Under
	clear := r.Flows(func(f nodes.Flow) bool {
		between := f.From.Addr() == a && f.To.Addr() == b || f.From.Addr() == b && f.To.Addr() == a
		return nodes.Inside(f) || between && (f.Protocol == "tcp" || f.Protocol == "udp" && !nodes.Tunnel(f))
	})
	maps.DeleteFunc(clear, func(f nodes.Flow, _ int) bool { // up asks what size of packets the path carries
		return f.To.Port() == nodes.TunnelPort && r.Empty(f)
	})
	if len(clear) > 0 {
		p.Errorf("past the tunnel: %s", flows(clear))
	}
}

func flows(m map[nodes.Flow]int) string {
	var b strings.Builder
	for f, n := range m {
		fmt.Fprintf(&b, "\n  %s: %d", f, n)
	}
	return b.String()
}

// eventually waits for a condition.
func eventually(p *report.Proof, what string, wait time.Duration, holds func() bool) {
	p.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(wait); !holds(); <-tick.C {
		if time.Now().After(end) {
			p.Fatalf("after %s it still does not hold: %s", wait, what)
		}
	}
}

// repeated is n times the little-endian bytes of a 32 bit number.
func repeated(v uint32, n int) []byte {
	return bytes.Repeat([]byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)}, n)
}
