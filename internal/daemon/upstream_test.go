package daemon_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// serve runs a fake on an address until the function is called.
func serve(t *testing.T, address string, o vllmtest.Options) (s *vllmtest.Server, url string, end func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s = vllmtest.New(o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	end = func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		gatetest.Eventually(t, "the end of the connections to "+l.Addr().String(), func() bool { return !connected(l.Addr()) })
	}
	return s, "http://" + l.Addr().String(), end
}

// connected reports whether a connection to the address still looks open to who made it: on a busy machine the kernel takes
// its time to carry the news of a close, and what is sent until then is lost. Where the kernel does not tell, none does.
func connected(to net.Addr) bool {
	b, err := os.ReadFile("/proc/net/tcp")
	at, ok := to.(*net.TCPAddr)
	if err != nil || !ok || at.IP.To4() == nil {
		return false
	}
	const established = " 01 "
	return bytes.Contains(b, fmt.Appendf(nil, " %08X:%04X%s", binary.NativeEndian.Uint32(at.IP.To4()), at.Port, established))
}

// nobodyAt is an address at which nobody listens, until a test serves there.
func nobodyAt(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", vllmtest.Apart())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// An upstream that is not up at the start: the gate listens, says so, and serves as soon as it comes; when it goes, the
// same, and nothing hangs.
func TestAnUpstreamThatComesLaterAndGoes(t *testing.T) {
	t.Parallel()
	address := nobodyAt(t)
	g := gatetest.Start(t, gatetest.Options{Upstream: "http://" + address})
	down := func() {
		t.Helper()
		a := g.Do(g.Chat("app"))
		if a.Status != 503 || a.Reason() != "upstream_unavailable" || a.Header.Get("Retry-After") == "" {
			t.Errorf("without an upstream: %d %v %s", a.Status, a.Header, a.Body)
		}
		if strings.Contains(a.Body, address) || strings.Contains(g.Probe("/readyz"), address) {
			t.Errorf("callers read the upstream's address: %s %s", a.Body, g.Probe("/readyz"))
		}
	}
	down()
	if ready := g.Probe("/readyz"); !strings.HasPrefix(ready, "not ready") || !strings.Contains(ready, "upstream fake: not alive") {
		t.Errorf("/readyz says %q", ready)
	}
	if live := g.Probe("/livez"); live != "alive\n" {
		t.Errorf("/livez says %q", live)
	}
	if !strings.Contains(g.Screen.String(), "not alive") {
		t.Errorf("the screen says %s", g.Screen)
	}
	for range 2 {
		_, _, end := serve(t, address, vllmtest.Options{})
		g.Eventually("the upstream", func() bool { return strings.HasPrefix(g.Probe("/readyz"), "ready") })
		g.Eventually("an answer", func() bool { return g.Do(g.Chat("app")).Status == 200 })
		end()
		g.Eventually("the refusal", func() bool { return g.Do(g.Chat("app")).Reason() == "upstream_unavailable" })
		down()
		g.Eventually("not ready", func() bool { return strings.HasPrefix(g.Probe("/readyz"), "not ready") })
	}
}

func TestAnUpstreamOnAUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "vallum") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	g := gatetest.Start(t, gatetest.Options{Fake: vllmtest.Options{UDS: filepath.Join(dir, "vllm.sock"), Key: "its-own-key"}})
	if a := g.Do(g.Chat("app")); a.Status != 200 || g.Fake.Last().Header.Get("Authorization") != "Bearer its-own-key" || g.Fake.Last().Header.Get("Host") != "localhost" {
		t.Errorf("%d %s, there arrived %q", a.Status, a.Body, g.Fake.Last().Head)
	}
}

// An https upstream is believed when the named authority signed it, and asks who Vallum is.
func TestAnUpstreamByTLS(t *testing.T) {
	t.Parallel()
	server, client, stranger := gatetest.NewCertificate(t, "127.0.0.1"), gatetest.NewCertificate(t, "vallum"), gatetest.NewCertificate(t, "127.0.0.1")
	fake := vllmtest.Options{TLS: &tls.Config{Certificates: []tls.Certificate{server.Pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: client.Pool}}
	for name, row := range map[string]struct {
		ca, cert *gatetest.Certificate
		works    bool
	}{
		"both":                          {server, client, true},
		"no client certificate":         {server, nil, false},
		"another client certificate":    {server, stranger, false},
		"another authority":             {stranger, client, false},
		"only the system's authorities": {nil, client, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			extra := ""
			if row.ca != nil {
				extra += fmt.Sprintf("ca: %q\n", row.ca.File)
			}
			if row.cert != nil {
				extra += fmt.Sprintf("certificate: %q\ncertificate_key: %q\n", row.cert.File, row.cert.KeyFile)
			}
			g := gatetest.Start(t, gatetest.Options{Fake: fake, UpExtra: extra})
			a := g.Do(g.Chat("app"))
			if (a.Status == 200) != row.works || !row.works && (a.Reason() != "upstream_unavailable" || g.Fake.Arrived() != 0) {
				t.Errorf("%d %s, %d arrived", a.Status, a.Body, g.Fake.Arrived())
			}
		})
	}
}

// A key that the upstream does not ask for is a warning: --root-path and the like switch its check off.
func TestAnUpstreamWhoseKeyCheckIsOffIsTold(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("a-key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := gatetest.Start(t, gatetest.Options{UpExtra: fmt.Sprintf("key_file: %q", key)})
	if !strings.Contains(g.Screen.String(), "WARNING upstream fake") || !strings.Contains(g.Screen.String(), "key check is off") {
		t.Errorf("the screen says %s", g.Screen)
	}
	wrong := gatetest.Start(t, gatetest.Options{Upstream: startKeyed(t).URL(), UpExtra: fmt.Sprintf("key_file: %q", key)})
	if a := wrong.Do(wrong.Chat("app")); a.Reason() != "upstream_unavailable" || !strings.Contains(wrong.Screen.String(), "it refuses the key") {
		t.Errorf("with a wrong key: %d %s, the screen says %s", a.Status, a.Body, wrong.Screen)
	}
}

func startKeyed(t *testing.T) *vllmtest.Server {
	return vllmtest.Start(t, vllmtest.Options{Key: "another-key"})
}

// Two upstreams: by model, in turn where both have it, and by name where there is no model; one that is gone is passed over.
func TestSeveralUpstreams(t *testing.T) {
	t.Parallel()
	second, url, end := serve(t, "127.0.0.1:0", vllmtest.Options{Models: []string{"tiny", "only-second"}})
	defer end()
	first, firstURL, endFirst := serve(t, vllmtest.Apart(), vllmtest.Options{})
	t.Cleanup(first.Close)
	g := gatetest.Start(t, gatetest.Options{
		Upstream: firstURL, UpExtra: "models: [tiny]", Keys: []store.NewKey{{Name: "app", Roles: []string{"inference", "operator"}}},
	})
	g.Reload(strings.Replace(g.Yaml(), "upstreams:\n", fmt.Sprintf("upstreams:\n  - {name: second, url: %q}\n", url), 1))
	ask := func(r gatetest.Request) gatetest.Answer { r.Key = g.Secret("app"); return g.Do(r) }
	g.Eventually("the second upstream", func() bool {
		return ask(gatetest.Request{Path: "/v1/chat/completions", Body: `{"model":"only-second","messages":[]}`}).Status == 200
	})
	g.Eventually("both", func() bool {
		return strings.HasPrefix(g.Probe("/readyz"), "ready") && !strings.Contains(g.Probe("/readyz"), "not alive")
	})
	if first.Arrived() != 0 {
		t.Error("the model of the second went to the first")
	}
	for range 10 {
		ask(gatetest.Request{Path: "/v1/chat/completions", Body: gatetest.ChatBody})
	}
	if a, b := first.Arrived(), second.Arrived()-1; a != 5 || b != 5 {
		t.Errorf("in turn: %d and %d", a, b)
	}
	if a := ask(gatetest.Request{Method: "POST", Path: "/pause"}); a.Reason() != "upstream_not_named" {
		t.Errorf("without a name: %d %s", a.Status, a.Body)
	}
	if a := ask(gatetest.Request{Method: "POST", Path: "/pause", Header: map[string]string{"X-Vallum-Upstream": "third"}}); a.Reason() != "not_permitted" {
		t.Errorf("a name that is none: %d %s", a.Status, a.Body)
	}
	if a := ask(gatetest.Request{Method: "POST", Path: "/resume", Header: map[string]string{"X-Vallum-Upstream": "second"}}); a.Status >= 500 || second.Last().Path != "/resume" || second.Last().Header.Get("X-Vallum-Upstream") != "" {
		t.Errorf("by name: %d %s, %q", a.Status, a.Body, second.Last().Head)
	}
	endFirst()
	failed := 0
	for range 10 {
		if a := ask(gatetest.Request{Path: "/v1/chat/completions", Body: gatetest.ChatBody}); a.Status != 200 {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("one of two is gone, and %d of 10 requests failed", failed)
	}
}

// `vallum explain` answers by the releases that the running gateway found, also when a server comes back as another one.
func TestTheEffectiveConfigurationHasTheReleasesThatWereFound(t *testing.T) {
	t.Parallel()
	_, url, end := serve(t, vllmtest.Apart(), vllmtest.Options{Version: "0.27.1"})
	g := gatetest.Start(t, gatetest.Options{Upstream: url})
	holds := func(release string) func() bool {
		return func() bool {
			b, err := os.ReadFile(filepath.Join(g.State, daemon.EffectiveFile))
			return err == nil && strings.Contains(string(b), "release: "+release+"\n")
		}
	}
	g.Eventually("the release", holds("0.27.1"))
	end()
	g.Eventually("its end", func() bool { return g.Do(g.Chat("app")).Status == 503 })
	_, _, end = serve(t, strings.TrimPrefix(url, "http://"), vllmtest.Options{Version: "0.32.0+cpu"})
	defer end()
	g.Eventually("the other release", holds("0.32.0"))
}
