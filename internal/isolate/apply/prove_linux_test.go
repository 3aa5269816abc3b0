package apply_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/isolate/knock"
)

// What makes this test program pose as a process of vLLM, by another name.
const (
	listenEnv = "VALLUM_TEST_LISTEN" // addresses to listen on
	dialEnv   = "VALLUM_TEST_DIAL"   // an address to connect to, again and again
)

// pose is what a copy of this program does that stands for a process of vLLM: listen, say so, wait.
func pose(addresses string) {
	for a := range strings.SplitSeq(addresses, ",") {
		if _, err := net.Listen("tcp", a); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("listening")
	if to := os.Getenv(dialEnv); to != "" {
		go func() {
			for {
				_, _ = net.DialTimeout("tcp", to, time.Minute)
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// named is this test program by a name of vLLM's.
func (h *host) named(t *testing.T, name string) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	file := filepath.Join(t.TempDir(), name)
	// A link, not a copy: a process that another test forks while a copy is written holds it open for writing, and
	// then it cannot be started (ETXTBSY).
	must(t, os.Link(self, file))
	return file
}

// vllm starts a process with a name of vLLM's that listens on the addresses.
func (h *host) vllm(t *testing.T, name string, addresses ...string) (end func()) {
	t.Helper()
	return h.posing(t, name, nil, addresses...)
}

// posing is vllm with more variables. end ends the process.
func (h *host) posing(t *testing.T, name string, env []string, addresses ...string) (end func()) {
	t.Helper()
	c := exec.Command(h.named(t, name))
	c.Env = append(append(os.Environ(), listenEnv+"="+strings.Join(addresses, ",")), env...)
	in, err := c.StdinPipe()
	must(t, err)
	out, err := c.StdoutPipe()
	must(t, err)
	h.do(func() { must(t, c.Start()) })
	end = sync.OnceFunc(func() { _ = in.Close(); _ = c.Wait() })
	t.Cleanup(end)
	said := make([]byte, 9)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "listening" {
		t.Fatalf("%s: %q %v", name, said, err)
	}
	return end
}

// lineWith is the line that has the word, with those that go on with it: they stand four columns further in.
func lineWith(text, word string) string {
	for l := range strings.SplitSeq(joined(text), "\n") {
		if strings.Contains(l, word) {
			return l
		}
	}
	return ""
}

// joined is a text in which no line is broken for a terminal.
func joined(text string) string {
	var whole []string
	indent := 0 // of the line that may go on
	for l := range strings.SplitSeq(text, "\n") {
		rest := strings.TrimLeft(l, " ")
		if own := len(l) - len(rest); len(whole) == 0 || rest == "" || own < indent+4 {
			whole, indent = append(whole, l), own
			continue
		}
		whole[len(whole)-1] += " " + rest
	}
	return strings.Join(whole, "\n")
}

func TestAuditNamesWhatIsOutsideAndTheMissingVariable(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	// Alone: what another process of vLLM's on this machine does is not this test's.
	engine := []string{"ENGINE=" + a.named(t, "vllm"), listenEnv + "=0.0.0.0:14579,127.0.0.1:7001"}
	out, code := a.alone(t, start+look, engine...)
	if got := lineWith(out, ":14579 "); code != 1 || !strings.Contains(got, "outside") || !strings.Contains(got, "KV transfer") || !strings.Contains(got, "no overlay is applied") {
		t.Errorf("without an overlay: exit %d: %s", code, got)
	}
	a.up(t)
	out, code = a.alone(t, start+look, engine...)
	if got := lineWith(out, ":14579 "); code != 0 || !strings.Contains(got, "wildcard, guarded by rule refused") {
		t.Errorf("with it: exit %d: %s\n%s", code, got, out)
	}
	a.vllm(t, "VLLM::EngineCore", a.over.String()+":7002", a.under.String()+":7003")
	out, said, code := a.run("audit")
	if got := lineWith(out, a.over.String()+":7002"); !strings.Contains(got, "inside") {
		t.Errorf("on the overlay: %s", got)
	}
	if got := lineWith(out, a.under.String()+":7003"); code != 1 || !strings.Contains(got, "outside") || !strings.Contains(said, "set VLLM_HOST_IP=10.99.0.1") {
		t.Errorf("on the underlay: exit %d: %s\n%s", code, got, said)
	}
}

func TestVerifyProvesInsideOutsideAndTheWire(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, b, x := l.hosts["a"], l.hosts["b"], l.hosts["x"]
	a.echo(t, 8000)
	l.sign(nil, "a", "b")
	eventually(t, "an outsider is answered before up", 3*open, func() bool {
		out, _, code := x.run("verify", "--as-outsider", a.under.String())
		return code == 1 && strings.Contains(out, "port 8000 is open (HTTP API)")
	})
	a.up(t)
	b.up(t)
	x.routeBy(t, a.over, true)
	if out, _, code := x.run("verify", "--as-outsider", a.under.String(), a.over.String()); code != 0 {
		t.Errorf("an outsider after up: exit %d\n%s", code, out)
	}
	verify := func(args ...string) (string, int) {
		out, said, code := a.run(append([]string{"verify", "--config", a.file("vallum.yaml")}, args...)...)
		return out + said, code
	}
	if out, code := verify(); code != 0 || !strings.Contains(out, "b answers inside the overlay at 10.99.0.2") || !strings.Contains(out, "b, at 192.0.2.2 outside the overlay, is silent") {
		t.Errorf("exit %d\n%s", code, out)
	}
	// Three different answers: the tunnel carries something, something goes past it, nothing was seen.
	stop, silent := make(chan struct{}), make(chan struct{})
	hush := sync.OnceFunc(func() { close(stop); <-silent })
	t.Cleanup(hush) // before the namespaces are given back
	go func() {
		defer close(silent)
		for {
			select {
			case <-stop:
				return
			default:
				b.reaches(a.over, 8000, open)
			}
		}
	}()
	if out, code := verify("--wire", "1s"); code != 0 || !strings.Contains(out, "wire: clean") {
		t.Errorf("traffic in the tunnel: exit %d\n%s", code, out)
	}
	// A tunnel that is started again has a device of another index: its inside is not the underlay.
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		<-time.After(knock.Wait + 4*time.Second) // in the midst of looking at the wire, after the peers were asked
		a.killTunnel(t, false)
	}()
	out, code := verify("--wire", "8s")
	<-killed
	if code != 0 || !strings.Contains(out, "wire: clean") {
		t.Errorf("a tunnel that was started again: exit %d\n%s", code, out)
	}
	// The prompt's absence counts when it was seen inside: by its text, which says of this lab sends, and not by token ids
	// that nobody has sent.
	if out, code := verify("--wire", "1s", "--text", "prompt\n"); code != 0 || !strings.Contains(out, "the marked prompt crossed inside the tunnel in") {
		t.Errorf("a marked prompt in the tunnel: exit %d\n%s", code, out)
	}
	if out, code := verify("--wire", "1s", "--tokens", "9906,11,1917"); code != 3 || !strings.Contains(out, "was not seen inside the tunnel either") {
		t.Errorf("token ids of no prompt: exit %d\n%s", code, out)
	}
	hush()
	a.vllm(t, "VLLM::EngineCore", "0.0.0.0:5557")
	clear := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-clear:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = b.dial(a.under, 5557, 50*time.Millisecond)
				b.do(func() {
					c, err := net.Dial("udp", netip.AddrPortFrom(a.under, 5557).String())
					if err == nil {
						_, _ = c.Write([]byte("xx marked prompt"))
						_ = c.Close()
					}
				})
			}
		}
	}()
	out, code = verify("--wire", "1s", "--text", "marked prompt")
	close(clear)
	<-done
	// By the process that has it, the port and the channel; who has the datagrams is not known.
	if tcp, udp := lineWith(out, "in clear: tcp"), lineWith(out, "in clear: udp"); code != 1 || !strings.Contains(tcp, ":5557, ") || !strings.Contains(tcp, ": VLLM::EngineCor (") ||
		!strings.Contains(tcp, "KV events") || !strings.Contains(udp, "with the marked prompt") || !strings.Contains(udp, "KV events") || strings.Contains(udp, "VLLM::") {
		t.Errorf("traffic past the tunnel: exit %d\n%s", code, out)
	}
	if out, code := verify("--wire", "100ms"); code != 3 || !strings.Contains(out, "inconclusive") {
		t.Errorf("nothing to see: exit %d\n%s", code, out)
	}
	b.must(t, "down")
	if out, code := verify(); code != 1 || !strings.Contains(out, "b does not answer inside the overlay") || !strings.Contains(out, "b, at 192.0.2.2 outside the overlay, answers: ") {
		t.Errorf("a peer that is down: exit %d\n%s", code, out)
	}
}

func TestExecStartsNothingWithoutTheOverlay(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	command := []string{"exec", "--topology", "dp", "--", "sh", "-c", `echo "$VLLM_HOST_IP $GLOO_SOCKET_IFNAME $*"`, "vllm"}
	if out, said, code := a.run(command...); code != 1 || out != "" || !strings.Contains(said, "vLLM is not started") {
		t.Errorf("without an overlay: exit %d %q %q", code, out, said)
	}
	if _, said, code := a.run("env", "--topology", "dp"); code != 1 || !strings.Contains(said, "no overlay is applied") {
		t.Errorf("env without an overlay: exit %d %s", code, said)
	}
	a.up(t)
	out, said, code := a.run(command...)
	if want := "10.99.0.1 " + a.device + " --data-parallel-size 2"; code != 0 || !strings.HasPrefix(out, want) {
		t.Errorf("exit %d: %q, want %q…\n%s", code, out, want, said)
	}
	for _, past := range []string{"NCCL_NET=IB", "UCX_TLS=rc,tcp", "UCX_NET_DEVICES=mlx5_0:1"} {
		c := a.command(command...)
		c.Env = append(c.Env, past)
		var both bytes.Buffer
		c.Stdout, c.Stderr = &both, &both
		a.do(func() { must(t, c.Start()) })
		_ = c.Wait()
		name, _, _ := strings.Cut(past, "=")
		if out := both.String(); c.ProcessState.ExitCode() != 1 || !strings.Contains(out, "vLLM is not started: the environment has "+name+"=") || strings.Contains(out, "10.99.0.1 ") {
			t.Errorf("with %s: exit %d %s", past, c.ProcessState.ExitCode(), out)
		}
	}
	a.do(func() { must(t, linkDownOf(t, a.device)) })
	if _, said, code := a.run(command...); code != 1 || !strings.Contains(said, "is down") {
		t.Errorf("with a device that is down: exit %d %s", code, said)
	}
}
