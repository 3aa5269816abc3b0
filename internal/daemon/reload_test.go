package daemon_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// team is a configuration with one role and one alias.
func team(alias, cap string) string {
	return "aliases: {" + alias + ": tiny}\nroles:\n  team: {operations: [chat.create, models.list], models: [tiny], max_output_tokens: " + cap + "}\n"
}

func teamKeys() []store.NewKey { return []store.NewKey{{Name: "app", Roles: []string{"team"}}} }

// Two configurations take turns while eight callers ask: each answer is that of one of them, whole. The alias "one" goes
// with three tokens of output, "two" with four.
func TestReloadIsAllOrNothing(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: team("one", "3"), Keys: teamKeys()})
	one := g.Yaml()
	two := strings.Replace(one, team("one", "3"), team("two", "4"), 1)
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				alias, tokens := "one", `"completion_tokens":3`
				if i%2 == 1 {
					alias, tokens = "two", `"completion_tokens":4`
				}
				a := g.Do(gatetest.Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: `{"model":"` + alias + `","messages":[]}`})
				if a.Reason() != "not_permitted" && (a.Status != 200 || !strings.Contains(a.Body, tokens) || !strings.Contains(a.Body, `"model":"`+alias+`"`)) {
					t.Errorf("%s: %d %s", alias, a.Status, a.Body)
				}
				if list := names(t, g); list != "one tiny" && list != "tiny two" {
					t.Errorf("the models are %q", list)
				}
			}
		})
	}
	for _, yaml := range []string{two, one, two, one, two} {
		g.Reload(yaml)
	}
	close(stop)
	callers.Wait()
	if list := names(t, g); list != "tiny two" {
		t.Errorf("in the end the models are %q", list)
	}
}

func names(t *testing.T, g *gatetest.Gate) string {
	t.Helper()
	a := g.Do(gatetest.Request{Path: "/v1/models", Key: g.Secret("app")})
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal([]byte(a.Body), &list); err != nil {
		t.Errorf("%v: %s", err, a.Body)
	}
	var all []string
	for _, m := range list.Data {
		all = append(all, m.ID)
	}
	return strings.Join(all, " ")
}

// A reload in the middle of a window refills nothing: rate, slots and tokens go on from where they were.
func TestAReloadRefillsNothing(t *testing.T) {
	t.Parallel()
	roles := "roles:\n" +
		"  rate: {operations: [chat.create], models: [\"*\"], limits: {requests_per_minute: 2, burst: 2}}\n" +
		"  slots: {operations: [chat.create], models: [\"*\"], limits: {concurrent: 1}}\n" +
		"  tokens: {operations: [chat.create], models: [\"*\"], limits: {tokens_per_minute: 100}}\n"
	g := gatetest.Start(t, gatetest.Options{Config: roles, Keys: []store.NewKey{{Name: "rate", Roles: []string{"rate"}}, {Name: "slots", Roles: []string{"slots"}}, {Name: "tokens", Roles: []string{"tokens"}}}})
	refused := func(name, reason string) {
		t.Helper()
		before := g.Fake.Arrived()
		if a := g.Do(g.Chat(name)); a.Reason() != reason || a.Status != 429 || a.Header.Get("Retry-After") == "" || g.Fake.Arrived() != before {
			t.Errorf("%s: %d %v %s, want %s and nothing forwarded", name, a.Status, a.Header, a.Body, reason)
		}
	}
	for range 2 {
		if a := g.Do(g.Chat("rate")); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	for g.Do(g.Chat("tokens")).Status == 200 { // 13 tokens each, 80 while it runs
		continue
	}
	stream := run(t, g, "chat", g.Secret("slots"))
	for _, yaml := range []string{g.Yaml() + "aliases: {x: tiny}\n", g.Yaml()} {
		refused("rate", "too_many_requests")
		refused("slots", "too_many_requests")
		refused("tokens", "over_budget")
		g.Reload(yaml)
	}
	refused("rate", "too_many_requests")
	refused("slots", "too_many_requests")
	refused("tokens", "over_budget")
	_ = stream.resp.Body.Close()
	g.Record(stream.id)
	g.NothingHeld()
	if a := g.Do(g.Chat("slots")); a.Status != 200 {
		t.Errorf("the slot did not come back: %d %s", a.Status, a.Body)
	}
}

// A file with problems changes nothing; all of them are printed, where they stand.
func TestABadFileKeepsTheConfigurationThatWorks(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: team("one", "3"), Keys: teamKeys()})
	good := g.Yaml()
	for i, bad := range []struct{ yaml, says string }{
		{strings.Replace(good, "roles:", "rules:", 1), `rules`},
		{strings.Replace(good, "models: [tiny]", "models: []\n", 1), "models"},
		{good + "nonsense: 1\n: :\n", "vallum.yaml"},
		{"", "version"},
		{strings.Replace(good, "127.0.0.1:0", "127.0.0.1:1", 1), "restart"},
		{strings.Replace(good, "    url:", "    key_file: /nowhere/key\n    url:", 1), "/nowhere/key"},
		{good + "keys_file: /nowhere/keys\n", "/nowhere/keys"},
	} {
		g.Configure(bad.yaml)
		g.Eventually("the refusal of "+bad.says, func() bool {
			return strings.Count(g.Log.String(), "the configuration was not reloaded") == i+1 && strings.Contains(g.Screen.String()+g.Log.String(), bad.says)
		})
		if list := names(t, g); list != "one tiny" {
			t.Fatalf("after %q the models are %q", bad.says, list)
		}
	}
	if !strings.Contains(g.Screen.String(), "^") {
		t.Errorf("the problems are not shown where they stand:\n%s", g.Screen)
	}
	g.Reload(strings.Replace(good, team("one", "3"), team("two", "4"), 1))
	if list := names(t, g); list != "tiny two" {
		t.Errorf("the good file after them: the models are %q", list)
	}
}

// Requests that run keep the configuration, and the upstream, that they began with.
func TestARunningStreamKeepsItsConfiguration(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: team("one", "3"), Keys: teamKeys()})
	g.Fake.Next(vllmtest.Behaviour{Stepped: true})
	go g.Fake.Step()
	resp, err := g.Open(gatetest.Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: `{"model":"one","stream":true,"messages":[]}`})
	if err != nil {
		t.Fatal(err)
	}
	other := vllmtest.Start(t, vllmtest.Options{})
	g.Reload(strings.NewReplacer(team("one", "3"), team("two", "4"), g.Fake.URL(), other.URL(), "name: fake", "name: another").Replace(g.Yaml()))
	g.Eventually("the other upstream", func() bool { return names(t, g) == "tiny two" })
	if a := g.Do(g.Chat("app")); a.Status != 200 && a.Reason() != "forbidden_parameter" || other.Arrived() > 1 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	for range 3 + 2 { // three words, the usage and the end
		if !g.Fake.Step() {
			t.Fatal("the stream went with the reload")
		}
	}
	var b strings.Builder
	buf := make([]byte, 1<<16)
	for err == nil {
		var n int
		n, err = resp.Body.Read(buf)
		b.Write(buf[:n])
	}
	_ = resp.Body.Close()
	if got := b.String(); !strings.HasSuffix(got, "data: [DONE]\n\n") || strings.Count(got, `"model":"one"`) != 4 {
		t.Errorf("the stream is\n%s", got)
	}
	if r := g.Record(resp.Header.Get("X-Request-Id")); r.Ended != audit.EndedComplete || r.Upstream != "fake" || r.CompletionTokens != 3 {
		t.Errorf("recorded as %+v", r)
	}
}

// A renewed certificate is served without a restart; one that does not fit its key is not.
func TestCertificatesAreReloaded(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{TLS: true})
	cert := g.Certificate()
	first := cert.Serial.String()
	if got := g.Serial(); got != first {
		t.Fatalf("it shows %s, not %s", got, first)
	}
	good, err := os.ReadFile(cert.File)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cert.File, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	g.Eventually("the complaint", func() bool { return strings.Contains(g.Log.String(), "loading its certificate") })
	if got := g.Serial(); got != first {
		t.Errorf("with half a file it shows %s", got)
	}
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	cert.Write(t, "127.0.0.1")
	g.Eventually("the renewed certificate", func() bool { return g.Serial() == cert.Serial.String() })
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

// A file counts wherever it is and however it is replaced: by an editor that renames, through a link into another
// directory, or by the link beside it that Kubernetes swaps.
func TestAChangedFileIsSeenWhereverItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name+".new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	holder := func(name string) string { // of the key that is asked with
		sum := sha256.Sum256([]byte("sk-0123456789abcdef0123456789abcdef"))
		return name + " inference " + hex.EncodeToString(sum[:]) + "\n"
	}
	for name, change := range map[string]struct {
		before func() string // gives the keys file that the configuration names
		after  func()
	}{
		"in another directory": {
			func() string { return write("plain/keys", holder("before")) },
			func() { write("plain/keys", holder("after")) },
		},
		"behind a link": {
			func() string {
				write("far/keys", holder("before"))
				link("far/keys", "near")
				return filepath.Join(dir, "near")
			},
			func() { write("far/keys", holder("after")) },
		},
		"Kubernetes": {
			func() string {
				write("..2026_1/keys", holder("before"))
				link("..2026_1", "..data")
				link("..data/keys", "keys")
				return filepath.Join(dir, "keys")
			},
			func() { write("..2026_2/keys", holder("after")); link("..2026_2", "..data") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := gatetest.Start(t, gatetest.Options{Config: fmt.Sprintf("keys_file: %q\n", change.before())})
			asks := func() string {
				r := g.Chat("app")
				r.Key = "sk-0123456789abcdef0123456789abcdef"
				a := g.Do(r)
				if a.Reason() == "revoked" { // it ran when the key of that name went
					return ""
				}
				if a.Status != 200 {
					t.Fatalf("%d %s\n%s", a.Status, a.Body, g.Log)
				}
				return g.Record(a.ID()).Principal
			}
			if who := asks(); who != "before" {
				t.Fatalf("it is %q", who)
			}
			began := time.Now()
			change.after()
			g.Eventually("the change", func() bool { return asks() == "after" })
			if took := time.Since(began); took > 3*time.Second { // the slow look would take 5 s
				t.Errorf("it took %s", took)
			}
			reloads := func() int { return strings.Count(g.Log.String(), "was reloaded") }
			g.Eventually("the word of it", func() bool { return reloads() > 0 })
			if n := reloads(); n != 1 {
				t.Errorf("%d reloads for one change", n)
			}
		})
	}
}

// The files by which an upstream is trusted, and its own key, are read again when they change: a certificate is renewed
// beside a gateway that runs. Callers do not notice.
func TestWhatAnUpstreamIsTrustedByIsReadAgain(t *testing.T) {
	t.Parallel()
	server, client := gatetest.NewCertificate(t, "127.0.0.1"), gatetest.NewCertificate(t, "vallum")
	var shown atomic.Value // the number of the certificate that Vallum showed last
	shown.Store("")
	g := gatetest.Start(t, gatetest.Options{
		Fake: vllmtest.Options{TLS: &tls.Config{Certificates: []tls.Certificate{server.Pair}, ClientAuth: tls.RequireAnyClientCert, VerifyConnection: func(c tls.ConnectionState) error {
			shown.Store(c.PeerCertificates[0].SerialNumber.String())
			return nil
		}}},
		UpExtra: fmt.Sprintf("ca: %q\ncertificate: %q\ncertificate_key: %q\n", server.File, client.File, client.KeyFile),
	})
	works := func(after string) {
		t.Helper()
		if a := g.Do(g.Chat("app")); a.Status != 200 {
			t.Errorf("%s: %d %s\n%s", after, a.Status, a.Body, g.Log)
		}
	}
	works("the start")
	if shown.Load() != client.Serial.String() {
		t.Fatal("it shows another certificate")
	}
	client.Write(t, "vallum")
	g.Eventually("the renewed certificate", func() bool { works("the renewal"); return shown.Load() == client.Serial.String() })
	ca, err := os.ReadFile(server.File)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(client.File)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(server.File, other, 0o600); err != nil {
		t.Fatal(err)
	}
	g.Eventually("the end of its trust", func() bool { return g.Do(g.Chat("app")).Reason() == "upstream_unavailable" })
	if err := os.WriteFile(server.File, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	g.Eventually("its trust", func() bool { return g.Do(g.Chat("app")).Status == 200 })
}

// A reload that starts the upstreams' watchers anew, as a changed timeout does, is no outage.
func TestAReloadKeepsServing(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "timeouts: {connect: 5s}\n"})
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if a := g.Do(g.Chat("app")); a.Status != 200 {
					t.Errorf("%d %s", a.Status, a.Body)
				}
			}
		})
	}
	yaml := g.Yaml()
	for _, timeout := range []string{"6s", "7s", "8s"} {
		g.Reload(strings.Replace(yaml, "connect: 5s", "connect: "+timeout, 1))
	}
	close(stop)
	callers.Wait()
}
