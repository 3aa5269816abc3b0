package daemon_test

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"

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
