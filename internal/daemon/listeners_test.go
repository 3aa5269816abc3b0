package daemon_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gatetest"
)

// The probes may listen where everybody reaches them: three routes, none of which is the data path or the administration.
func TestTheProbesListenerServesThreeRoutes(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{})
	for target, want := range map[string]int{
		"/livez": 200, "/readyz": 200, "/metrics": 200, "/": 404, "/status": 404, "/reload": 404, "/v1/models": 404, "/v1/chat/completions": 404, "/health": 404,
		"/pause": 404, "/debug/pprof/": 404, "/metrics/": 404, "/%6detrics": 404, "//metrics": 404, "/metrics/../status": 404,
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", g.Probes+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+g.Secret("app"))
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: %d, want %d", target, resp.StatusCode, want)
		}
	}
	// and the clients' listener serves none of them
	for _, path := range []string{"/livez", "/readyz", "/status", "/reload"} {
		if a := g.Do(gatetest.Request{Path: path, Key: g.Secret("app")}); a.Reason() != "unknown_operation" {
			t.Errorf("clients' %s: %d %s", path, a.Status, a.Body)
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d arrived", n)
	}
}

// Administration is a socket that its owner and group open; a stale file of a killed process is no obstacle, a living one is.
func TestTheAdministrationIsASocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "vallum") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "admin.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	g := gatetest.Start(t, gatetest.Options{Config: "admin: unix:" + socket + "\n"})
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("the socket: %v %v", info, err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	ask := func(method, path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://admin"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if status, body := ask("GET", "/status"); status != 200 || !strings.Contains(body, `"ready":true`) {
		t.Errorf("/status: %d %s", status, body)
	}
	if status, body := ask("POST", "/reload"); status != 200 {
		t.Errorf("/reload: %d %s", status, body)
	}
	if status, body := ask("GET", "/v1/models"); status != 404 {
		t.Errorf("the data path on the administration's socket: %d %s", status, body)
	}
	g.Configure("version: 2\n")
	g.Eventually("the file's refusal", func() bool { return strings.Contains(g.Log.String(), "not reloaded") })
	if status, body := ask("POST", "/reload"); status != 409 || !strings.Contains(body, "problem(s)") {
		t.Errorf("/reload of a bad file: %d %s", status, body)
	}
	reloads := 0
	for _, r := range g.Records() {
		if r.Event == audit.Reloaded {
			reloads++
		}
	}
	if reloads != 1 {
		t.Errorf("%d reloads are recorded", reloads)
	}
	refusesToStart(t, gatetest.Options{Config: "admin: unix:" + socket + "\n"}, "another process answers there")
}

// Nothing below TLS 1.2 is spoken, whatever the caller would take.
func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{TLS: true})
	for version, works := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c, err := tls.Dial("tcp", strings.TrimPrefix(g.URL, "https://"), &tls.Config{RootCAs: g.Certificate().Pool, MinVersion: version, MaxVersion: version})
		if (err == nil) != works {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = c.Close()
		}
	}
}
