package daemon_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/vllmtest"
)

// adminSocket is a place for one: its path has at most 107 bytes.
func adminSocket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vallum")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "admin.sock")
}

// askReload asks for a reload and hangs up once it is answered.
func askReload(t *testing.T, socket string) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	resp, err := (&http.Client{Transport: transport}).Post("http://admin/reload", "", nil)
	if err != nil {
		t.Error(err)
		return
	}
	if _ = resp.Body.Close(); resp.StatusCode != 200 {
		t.Errorf("/reload: %s", resp.Status)
	}
}

// What a reload starts does not end with the request that asked for it: an upstream that it brought is watched.
func TestAnUpstreamOfAReloadThatWasAskedForIsWatched(t *testing.T) {
	t.Parallel()
	socket := adminSocket(t)
	g := gatetest.Start(t, gatetest.Options{Config: "admin: unix:" + socket + "\n"})
	address := nobodyAt(t)
	g.Configure(strings.Replace(g.Yaml(), g.Fake.URL(), "http://"+address, 1))
	askReload(t, socket)
	g.Eventually("the upstream that is not there", func() bool { return g.Do(g.Chat("app")).Reason() == "upstream_unavailable" })
	for range 2 {
		_, _, end := serve(t, address, vllmtest.Options{})
		g.Eventually("an answer", func() bool { return g.Do(g.Chat("app")).Status == 200 })
		end()
		g.Eventually("the refusal", func() bool { return g.Do(g.Chat("app")).Reason() == "upstream_unavailable" })
	}
}

// Of two reloads the one that read the older file must not be the last to put it in force.
func TestAnOlderFileDoesNotWin(t *testing.T) {
	t.Parallel()
	fake := vllmtest.Start(t, vllmtest.Options{})
	socket, state := adminSocket(t), filepath.Join(t.TempDir(), "state")
	yaml := func(alias string) string {
		return fmt.Sprintf("version: 1\nlisten:\n  - address: 127.0.0.1:0\nprobes: 127.0.0.1:0\nadmin: unix:%s\nupstreams:\n  - name: fake\n    url: %q\naliases: {%s: tiny}\n", socket, fake.URL(), alias)
	}
	var file atomic.Value
	file.Store(yaml("one"))
	var loads atomic.Int64
	read, newer := make(chan bool), make(chan bool)
	load := func() (*config.Config, error) {
		text := file.Load().(string)
		if loads.Add(1) == 2 { // the first reload is slow
			close(read)
			select {
			case <-newer:
			case <-time.After(300 * time.Millisecond):
			}
		}
		return config.Parse("vallum.yaml", []byte(text))
	}
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan bool), make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, daemon.Options{
			Load: load, State: state, Out: io.Discard, Screen: io.Discard,
			Log: slog.New(slog.DiscardHandler), Ready: func([]string) { close(ready) },
		})
	}()
	<-ready
	first := make(chan bool)
	go func() {
		askReload(t, socket)
		close(first)
	}()
	<-read
	file.Store(yaml("two"))
	askReload(t, socket)
	close(newer)
	<-first
	b, err := os.ReadFile(filepath.Join(state, daemon.EffectiveFile))
	if err != nil || !strings.Contains(string(b), "two: tiny") {
		t.Errorf("in force is %s, %v", b, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The probes may listen where strangers reach them: a body that is announced and never comes holds no connection.
func TestAProbeWithABodyThatNeverComesIsLetGo(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "timeouts: {header: 2s}"})
	c, err := net.Dial("tcp", strings.TrimPrefix(g.Probes, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK") {
		t.Errorf("%q, %v", b, err)
	}
}
