package apply_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/isolate/fleet"
)

// serving is a node that lets itself be measured.
type serving struct {
	cmd  *exec.Cmd
	out  *strings.Builder
	done chan struct{}
}

func (h *host) serve(t *testing.T, args ...string) *serving {
	t.Helper()
	s := &serving{h.command(append([]string{"verify", "--config", h.file("vallum.yaml"), "--measure-serve", "1m"}, args...)...), &strings.Builder{}, make(chan struct{})}
	s.cmd.Stdout = s.out
	said, err := s.cmd.StderrPipe()
	must(t, err)
	h.do(func() { must(t, s.cmd.Start()) })
	in := bufio.NewReader(said)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "peers may measure at "+h.over.String()+":51821") {
		rest, _ := io.ReadAll(in)
		t.Fatalf("measure-serve on %s: %q %v %s", h.name, line, err, rest)
	}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(io.Discard, in)
		_ = s.cmd.Wait()
	}()
	t.Cleanup(func() { s.stop() })
	return s
}

// stop ends the consent and returns who measured.
func (s *serving) stop() string {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.done
	return s.out.String()
}

// measured is verify's answer as JSON.
type measured struct {
	Status   int      `json:"status"`
	Notes    []string `json:"notes"`
	Measured []struct {
		Peer    string
		Overlay figures
		Bare    *figures
		Missing string `json:"bare_missing"`
		Means   []string
	}
}

type figures struct {
	RoundTrip float64 `json:"round_trip_us"`
	Sent      float64 `json:"sent_bytes_per_second"`
	Received  float64 `json:"received_bytes_per_second"`
	Bytes     int64
}

func (f *figures) whole() bool {
	return f != nil && f.RoundTrip > 0 && f.Sent > 0 && f.Received > 0 && f.Bytes > 0 && f.Bytes <= 256<<20
}

func (h *host) measure(t *testing.T, want int, args ...string) (m measured) {
	t.Helper()
	out, said, code := h.run(append([]string{"verify", "--config", h.file("vallum.yaml"), "--ports", "51821", "--json", "--measure"}, args...)...)
	if err := json.Unmarshal([]byte(out), &m); err != nil || code != want || m.Status != want {
		t.Fatalf("verify --measure: exit %d, want %d: %v\n%s%s", code, want, err, out, said)
	}
	return m
}

// The bare path is measured between two nodes that let nothing in, and a stranger gets in no more than before.
func TestVerifyMeasuresTheTunnelAndTheBarePath(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, b, x := l.hosts["a"], l.hosts["b"], l.hosts["x"]
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	m := a.measure(t, 3)
	if len(m.Measured) != 0 || len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "b: it does not serve measuring; run there: vallum isolate verify --measure-serve") {
		t.Errorf("a peer that was not asked: %+v", m)
	}

	s := b.serve(t)
	m = a.measure(t, 0)
	if len(m.Measured) != 1 || m.Measured[0].Peer != "b" || !m.Measured[0].Overlay.whole() || m.Measured[0].Bare != nil || len(m.Measured[0].Means) != 3 {
		t.Errorf("the overlay: %+v", m)
	}
	if m = a.measure(t, 0, "--bare"); len(m.Measured) != 1 || m.Measured[0].Bare != nil || m.Measured[0].Missing != "the peer does not offer it; add --bare there too" {
		t.Errorf("a bare path that the peer has not agreed to: %+v", m)
	}
	x.routeBy(t, b.over, true)
	for _, at := range []netip.Addr{b.under, b.over} {
		if c, err := x.dial(at, 51821, closed); err == nil {
			_ = c.Close()
			t.Errorf("an outsider reaches what measures at %s", at)
		}
	}
	// The rules let a node's own processes in; they are no peer.
	own, err := b.dial(b.over, 51821, open)
	must(t, err)
	_, err = own.Write(append([]byte("vlmeasr1"), make([]byte, 16)...))
	must(t, err)
	must(t, own.SetDeadline(time.Now().Add(open)))
	if got, _ := io.ReadAll(own); len(got) > 0 {
		t.Errorf("a process of the node itself is served: %q", got)
	}
	_ = own.Close()
	if out := s.stop(); strings.Count(out, "a measured: ") != 2 {
		t.Errorf("b says %q", out)
	}

	b.serve(t, "--bare")
	rules := func(h *host) string { out, _ := h.must(t, "status"); return out[:strings.Index(out, "\n")] }
	passed := a.passed(t)
	m = a.measure(t, 0, "--bare")
	if len(m.Measured) != 1 || !m.Measured[0].Bare.whole() || !m.Measured[0].Overlay.whole() {
		t.Fatalf("both paths: %+v", m)
	}
	if got := m.Measured[0]; !strings.Contains(got.Means[0], "(bare ") {
		t.Errorf("the bare path is not told: %+v", got)
	}
	a.beside(t, m, passed)
	for _, h := range []*host{a, b} {
		if got := rules(h); !strings.HasSuffix(got, "holds") {
			t.Errorf("after measuring, %s: %s", h.name, got)
		}
	}
	if c, err := x.dial(b.under, 51821, closed); err == nil {
		_ = c.Close()
		t.Error("an outsider reaches the bare path")
	}
	// On text, and with a peer that is down: the overlay does not hold, and that outweighs what was not measured.
	out, _, code := a.run("verify", "--config", a.file("vallum.yaml"), "--ports", "51821", "--measure", "--bare")
	for _, want := range []string{"measured b at 10.99.0.2", "overlay to bare:  round trip ", "Keep tensor parallel inside a node."} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d, lacks %q:\n%s", code, want, out)
		}
	}
	b.must(t, "down")
	if m = a.measure(t, 1); len(m.Measured) != 0 {
		t.Errorf("a peer that is down: %+v", m)
	}
}

// A peer that is trusted is not believed: what speaks another protocol at the port gives no figure and no hang.
func TestVerifyMeasuresNothingWithAPeerThatMisbehaves(t *testing.T) {
	l := newLab(t, "a", "b", "gate")
	a, b, gate := l.hosts["a"], l.hosts["b"], l.hosts["gate"]
	l.sign(nil, "a", "b", "gate")
	for _, h := range []*host{a, b, gate} {
		h.up(t)
	}
	var does atomic.Pointer[func(net.Conn)]
	b.do(func() {
		at, err := net.Listen("tcp", b.over.String()+":51821")
		must(t, err)
		t.Cleanup(func() { _ = at.Close() })
		go func() {
			for {
				c, err := at.Accept()
				if err != nil {
					return
				}
				go func() { (*does.Load())(c); _ = c.Close() }()
			}
		}()
	})
	for name, row := range map[string]struct {
		does func(net.Conn)
		want string
	}{
		"garbage": {func(c net.Conn) {
			_, _ = io.WriteString(c, strings.Repeat("\x00\xff\x1b[2J", 100))
			_, _ = io.Copy(io.Discard, c)
		}, "is not `vallum isolate verify --measure-serve`"},
		"silence": {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "i/o timeout"},
		"no end of it": {func(c net.Conn) {
			_, _ = c.Write(append([]byte("vlmeasr1"), make([]byte, 16)...))
			_, _ = io.Copy(c, endless{})
		}, "breaks the protocol"},
	} {
		does.Store(&row.does)
		began := time.Now()
		m := a.measure(t, 3)
		if notes := strings.Join(m.Notes, "\n"); len(m.Measured) != 0 || !strings.Contains(notes, row.want) || !strings.Contains(notes, "not measured: gate: a gateway reaches vLLM's API and nothing else; its round trip is the echo's") || strings.Contains(notes, "\x1b") {
			t.Errorf("%s: %+v", name, m)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s: it took %s", name, took)
		}
	}
}

// What a gateway can do instead is said on both sides.
func TestAGatewayNeitherMeasuresNorServesIt(t *testing.T) {
	l := newLab(t, "a", "gate")
	a, gate := l.hosts["a"], l.hosts["gate"]
	l.sign(nil, "a", "gate")
	a.up(t)
	gate.up(t)
	m := gate.measure(t, 3)
	if len(m.Measured) != 0 || len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "not measured: a: a gateway reaches vLLM's API and nothing else") {
		t.Errorf("%+v", m)
	}
	if _, said, code := gate.run("verify", "--config", gate.file("vallum.yaml"), "--measure-serve", "1m"); code != 1 || !strings.Contains(said, "measure throughput between two nodes of role vllm") {
		t.Errorf("exit %d %s", code, said)
	}
}

// The bare path over IPv6 is met like that over IPv4.
func TestTheBarePathIsMeasuredOverIPv6(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	l.sign(func(m *fleet.Manifest) {
		for i, n := range m.Nodes {
			m.Nodes[i].Endpoint = netip.AddrPortFrom(l.hosts[n.Name].under6, 51820)
		}
	}, "a", "b")
	a.up(t)
	b.up(t)
	b.serve(t, "--bare")
	passed := a.passed(t)
	m := a.measure(t, 0, "--bare")
	if len(m.Measured) != 1 || !m.Measured[0].Bare.whole() || !m.Measured[0].Overlay.whole() {
		t.Fatalf("%+v", m)
	}
	a.beside(t, m, passed)
}

// passed is how many bytes have passed the overlay's device, in and out.
func (h *host) passed(t *testing.T) (sum int64) {
	t.Helper()
	h.do(func() {
		s := link(t, h.device).Attrs().Statistics
		sum = int64(s.RxBytes + s.TxBytes)
	})
	return sum
}

// beside checks that what was measured beside the tunnel did not go through it: how fast it was says nothing on a busy
// machine. Round trips are not among the bytes of either path.
func (h *host) beside(t *testing.T, m measured, before int64) {
	t.Helper()
	const roundTrips = 8 << 20
	got := m.Measured[0]
	if passed := h.passed(t) - before; passed < got.Overlay.Bytes || passed > got.Overlay.Bytes*5/4+got.Bare.Bytes/2+roundTrips {
		t.Errorf("%d bytes passed the tunnel, of which %d were measured in it, and %d beside it", passed, got.Overlay.Bytes, got.Bare.Bytes)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
