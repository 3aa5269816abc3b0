// Package gatetest is a whole gateway on loopback in one call, in front of a fake vLLM, for tests.
// It refuses to leave anything behind: a gateway that does not end, or that still holds slots, tokens or memory when
// its test is over, fails the test.
package gatetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// Options of Start. The zero Options is a gateway in plain HTTP before a fake that serves the model "tiny", with one key,
// "app", of the built-in role inference.
type Options struct {
	Fake     vllmtest.Options // its Key becomes the upstream's key_file
	Upstream string           // URL of an upstream that the test runs itself; then no fake is started
	UpExtra  string           // further lines of the upstream, as they stand in its mapping: "ca: FILE"
	Listener string           // further lines of the listener, as "terminated_by: [127.0.0.0/8]"
	Config   string           // further top-level YAML: roles, timeouts, bodies …
	TLS      bool             // clients connect by TLS, with HTTP/2
	State    string           // state directory; "" makes one
	Keys     []store.NewKey   // made before the start; nil: the key "app" of the role inference
	NoKeys   bool             // make none: the gateway makes its first key
	Terminal bool             // the screen is a terminal

	// Loaded is called when the configuration was read for the first time, and nothing was done with it yet.
	Loaded func(*Gate)

	// Panics chooses lines of the log at which the log itself panics, as a defect on the data path would. Then panics fail
	// no test.
	Panics func(slog.Record) bool
}

// Gate is a running gateway and what is in front of and behind it.
type Gate struct {
	URL    string // where clients connect
	Probes string // where /readyz and /metrics are
	Fake   *vllmtest.Server
	State  string
	Client *http.Client // trusts the gateway's certificate; HTTP/2 where TLS is on
	Log    *Text        // what the daemon logged
	Screen *Text        // what it showed

	t       *testing.T
	file    string
	store   *store.Store
	secrets map[string]string
	cert    *Certificate
	stop    context.CancelFunc
	ended   chan error
	once    sync.Once
	stopped atomic.Bool
	panics  bool // are meant to happen
}

// Text gathers what several goroutines write.
type Text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write adds to the text.
func (x *Text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(p)
}

// String is the text so far.
func (x *Text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// panicking is a log that panics at some lines.
type panicking struct {
	slog.Handler
	at func(slog.Record) bool
}

// Handle writes the line, or panics.
func (p panicking) Handle(ctx context.Context, r slog.Record) error {
	if p.at(r) {
		panic("the log panics: " + r.Message)
	}
	return p.Handler.Handle(ctx, r)
}

// Start runs a gateway until the test ends. It returns once clients are served, and the fake, unless it has TLS, is known
// to be alive.
func Start(t *testing.T, o Options) *Gate {
	t.Helper()
	g, err := Try(t, o)
	if err != nil {
		t.Fatalf("the gateway did not start: %v", err)
	}
	return g
}

// Try is Start for a gateway that may refuse to start: it gives the error with which the daemon ended.
func Try(t *testing.T, o Options) (*Gate, error) {
	t.Helper()
	g := &Gate{t: t, State: o.State, Log: &Text{}, Screen: &Text{}, secrets: map[string]string{}, ended: make(chan error, 1), panics: o.Panics != nil}
	if g.State == "" {
		g.State = filepath.Join(t.TempDir(), "state")
	}
	url := o.Upstream
	if url == "" {
		g.Fake = vllmtest.Start(t, o.Fake)
		url = g.Fake.URL()
	}
	g.cert = NewCertificate(t, "127.0.0.1")
	if err := g.makeKeys(o); err != nil {
		return nil, err
	}
	g.file = filepath.Join(t.TempDir(), "vallum.yaml")
	g.Configure(g.yaml(o, url))
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	var log slog.Handler = slog.NewTextHandler(g.Log, &slog.HandlerOptions{Level: slog.LevelDebug})
	if g.panics {
		log = panicking{log, o.Panics}
	}
	ready := make(chan []string, 1)
	var loaded sync.Once
	load := func() (*config.Config, error) {
		conf, err := g.load()
		if o.Loaded != nil {
			loaded.Do(func() { o.Loaded(g) })
		}
		return conf, err
	}
	go func() {
		g.ended <- daemon.Run(ctx, daemon.Options{
			Load: load, File: g.file, State: g.State, Out: io.Discard, Screen: g.Screen, Terminal: o.Terminal,
			Log: slog.New(log), Ready: func(urls []string) { ready <- urls },
		})
	}()
	select {
	case err := <-g.ended:
		stop()
		return nil, err
	case <-time.After(30 * time.Second):
		stop()
		return nil, fmt.Errorf("it is not ready after 30 s: %s%s", g.Screen, g.Log)
	case urls := <-ready:
		g.URL = urls[0]
	}
	if m := regexp.MustCompile(`probes +(http://\S+)`).FindStringSubmatch(g.Screen.String()); m != nil {
		g.Probes = m[1]
	}
	g.Client = &http.Client{Transport: g.transport()}
	t.Cleanup(g.finish)
	if g.Fake != nil && o.Fake.TLS == nil && g.Probes != "" { // one with TLS may not be trusted; the daemon waits 3 s, which a busy machine may take
		g.Eventually("the upstream", func() bool { status, _ := g.probe("/readyz"); return status == http.StatusOK })
	}
	return g, nil
}

func (g *Gate) transport() *http.Transport {
	tr := &http.Transport{DisableCompression: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: g.cert.Pool}, MaxIdleConnsPerHost: 64}
	return tr
}

// makeKeys fills the store as `vallum keys create` does.
func (g *Gate) makeKeys(o Options) error {
	if o.NoKeys {
		return nil
	}
	keys := o.Keys
	if keys == nil {
		keys = []store.NewKey{{Name: "app", Roles: []string{"inference"}}}
	}
	st, err := store.Open(g.t.Context(), g.State)
	if err != nil {
		return err
	}
	g.t.Cleanup(func() { _ = st.Close() })
	g.store = st
	for _, k := range keys {
		secret, _, err := st.CreateKey(g.t.Context(), k, time.Now())
		if err != nil {
			return err
		}
		g.secrets[k.Name] = secret
	}
	return nil
}

// yaml is the configuration that the options mean.
func (g *Gate) yaml(o Options, url string) string {
	var b strings.Builder
	listener, upstream := "", ""
	if o.TLS {
		listener = fmt.Sprintf("    tls: {certificate: %q, key: %q}\n", g.cert.File, g.cert.KeyFile)
	}
	if o.Listener != "" {
		listener += "    " + strings.ReplaceAll(strings.TrimSpace(o.Listener), "\n", "\n    ") + "\n"
	}
	if o.Fake.Key != "" {
		file := filepath.Join(g.t.TempDir(), "vllm-key")
		if err := os.WriteFile(file, []byte(o.Fake.Key+"\n"), 0o600); err != nil {
			g.t.Fatal(err)
		}
		upstream = fmt.Sprintf("    key_file: %q\n", file)
	}
	if o.UpExtra != "" {
		upstream += "    " + strings.ReplaceAll(strings.TrimSpace(o.UpExtra), "\n", "\n    ") + "\n"
	}
	fmt.Fprintf(&b, "version: 1\nlisten:\n  - address: 127.0.0.1:0\n%sprobes: 127.0.0.1:0\nupstreams:\n  - name: fake\n    url: %q\n%s", listener, url, upstream)
	return b.String() + o.Config + "\n"
}

// load is what the daemon reads its configuration with.
func (g *Gate) load() (*config.Config, error) {
	b, err := os.ReadFile(g.file)
	if err != nil {
		return nil, err
	}
	return config.Parse(g.file, b)
}

// Yaml is the configuration as it stands now.
func (g *Gate) Yaml() string {
	b, err := os.ReadFile(g.file)
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

// Configure replaces the configuration file as editors do; a running gateway sees it and reloads.
func (g *Gate) Configure(yaml string) {
	g.t.Helper()
	if err := os.WriteFile(g.file+".new", []byte(yaml), 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(g.file+".new", g.file); err != nil {
		g.t.Fatal(err)
	}
}

// Reload replaces the configuration and waits until it is in force.
func (g *Gate) Reload(yaml string) {
	g.t.Helper()
	reloads := func() int { return strings.Count(g.Log.String(), `"the configuration was reloaded"`) }
	before := reloads()
	g.Configure(yaml)
	g.Eventually("the reload", func() bool { return reloads() > before })
}

// Store is the key store, opened a second time as `vallum keys` opens it.
func (g *Gate) Store() *store.Store { return g.store }

// Secret is the key of that name.
func (g *Gate) Secret(name string) string {
	g.t.Helper()
	secret, ok := g.secrets[name]
	if !ok {
		g.t.Fatalf("no key %q was made", name)
	}
	return secret
}

// Key makes a key while the gateway runs and returns once it counts.
func (g *Gate) Key(name string, roles ...string) string {
	g.t.Helper()
	secret, key, err := g.store.CreateKey(g.t.Context(), store.NewKey{Name: name, Roles: roles}, time.Now())
	if err != nil {
		g.t.Fatal(err)
	}
	g.secrets[name] = secret
	g.Eventually("the new key", func() bool {
		for _, r := range g.Records() {
			if r.Event == audit.KeyChanged && r.KeyID == key.ID {
				return true
			}
		}
		return false
	})
	return secret
}

// Records are the lines of the audit log so far.
func (g *Gate) Records() []audit.Record {
	g.t.Helper()
	var all []audit.Record
	for r, err := range audit.Read(filepath.Join(g.State, "audit"), time.Time{}, nil) {
		if err != nil {
			g.t.Fatalf("reading the records: %v", err)
		}
		all = append(all, r)
	}
	return all
}

// Record waits for the last record of the request with that X-Request-Id: ended, or refused.
func (g *Gate) Record(id string) audit.Record {
	g.t.Helper()
	var found audit.Record
	g.Eventually("the record of "+id, func() bool {
		for _, r := range g.Records() {
			if r.ID == id && r.Event != audit.Admitted {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// Eventually waits for a condition for at most thirty seconds.
func (g *Gate) Eventually(what string, done func() bool) {
	g.t.Helper()
	Eventually(g.t, what, done)
}

// Eventually waits for a condition for at most thirty seconds.
func Eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); !done(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s did not come within 30 s", what)
		}
	}
}

// Gone waits until the fake has seen a client leave before its answer was whole.
func (g *Gate) Gone() {
	g.t.Helper()
	select {
	case <-g.Fake.Gone():
	case <-time.After(30 * time.Second):
		g.t.Fatal("the upstream was not cut within 30 s")
	}
}

// Gauge reads one of the gateway's metrics that has no labels. A scrape that a busy machine makes too slow is refused, and
// asked for again.
func (g *Gate) Gauge(name string) string {
	g.t.Helper()
	line, value := regexp.MustCompile(`(?m)^`+name+` (\S+)$`), ""
	g.Eventually("/metrics", func() bool {
		status, text := g.probe("/metrics")
		if status == http.StatusServiceUnavailable {
			return false
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			g.t.Fatalf("there is no metric %q in %d %s", name, status, text)
		}
		value = m[1]
		return true
	})
	return value
}

// Probe gives what the probes listener answers.
func (g *Gate) Probe(path string) string {
	g.t.Helper()
	_, text := g.probe(path)
	return text
}

func (g *Gate) probe(path string) (status int, text string) {
	g.t.Helper()
	resp, err := http.Get(g.Probes + path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// NothingHeld waits until no request holds a slot, tokens or memory any more.
func (g *Gate) NothingHeld() {
	g.t.Helper()
	for _, name := range []string{"vallum_slots", "vallum_reserved_tokens", "vallum_buffered_bytes"} {
		g.Eventually(name+" 0", func() bool { return g.Gauge(name) == "0" })
	}
}

// Stop ends the gateway as SIGTERM does and gives what the daemon returned.
func (g *Gate) Stop() error {
	var err error
	g.once.Do(func() {
		g.stopped.Store(true)
		g.Client.CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
		g.stop()
		select {
		case err = <-g.ended:
		case <-time.After(60 * time.Second):
			err = fmt.Errorf("the gateway has not ended 60 s after its stop")
		}
	})
	return err
}

// Stopping begins the end without waiting for it: Stop does.
func (g *Gate) Stopping() {
	g.stopped.Store(true)
	g.stop()
}

func (g *Gate) finish() {
	g.t.Helper()
	if g.Probes != "" && !g.stopped.Load() {
		g.NothingHeld()
	}
	if err := g.Stop(); err != nil {
		g.t.Errorf("the gateway ended with: %v", err)
	}
	if !g.panics && strings.Contains(g.Log.String(), "panic on the data path") {
		g.t.Errorf("a panic on the data path:\n%s", g.Log)
	}
}
