package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// keyEvents are what the log says of keys, oldest first.
func keyEvents(g *gatetest.Gate, name string) (all []string) {
	for _, r := range g.Records() {
		if r.Event == audit.KeyChanged && r.Principal == name {
			all = append(all, r.Detail)
		}
	}
	return all
}

func TestAKeyThatIsMadeWhileRunningWorks(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{})
	key, took := "", time.Hour
	for i := 0; i < 5 && took > time.Second; i++ { // a busy machine may be late, and not every time
		began := time.Now()
		key = g.Key(fmt.Sprint("late", i), "inference")
		took = min(took, time.Since(began))
	}
	if took > time.Second {
		t.Errorf("a new key took %s at best, more than a second", took)
	}
	r := g.Chat("app")
	r.Key = key
	if a := g.Do(r); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if got := keyEvents(g, "late0"); len(got) != 1 || !strings.HasPrefix(got[0], "created") {
		t.Errorf("the log says of it: %q", got)
	}
}

// A revoked key opens nothing, and its running streams end as their dialect ends one: as soon as a new key counts, for both
// are seen by one look.
func TestARevokedKeyEndsItsStreams(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Keys: []store.NewKey{{Name: "app", Roles: []string{"inference"}}, {Name: "other", Roles: []string{"inference"}}}})
	streams := map[string]*running{}
	for dialect := range dialects {
		streams[dialect] = run(t, g, dialect, g.Secret("app"))
	}
	bystander := stepped(t, g, "chat", g.Secret("other"))
	if _, err := g.Store().RevokeKey(t.Context(), "app", time.Now()); err != nil {
		t.Fatal(err)
	}
	for dialect, s := range streams {
		s.endsFor(dialect, "revoked", audit.EndedRevoked, g)
	}
	for range streams {
		g.Gone() // vLLM stops too
	}
	if a := g.Do(g.Chat("app")); a.Status != 401 || a.Reason() != "no_credential" {
		t.Errorf("the revoked key: %d %s", a.Status, a.Body)
	}
	for range 5 + 2 { // its words, the usage and the end
		g.Fake.Step()
	}
	if rest := bystander.rest(); !strings.HasSuffix(rest, "data: [DONE]\n\n") || strings.Contains(rest, "error") {
		t.Errorf("another key's stream ends with %q", rest)
	}
	if r := g.Record(bystander.id); r.Ended != audit.EndedComplete {
		t.Errorf("another key's stream: %+v", r)
	}
	g.Eventually("the record of the revocation", func() bool { got := keyEvents(g, "app"); return len(got) == 1 && got[0] == "revoked" })
}

// A key that expires does what a revoked one does.
func TestAnExpiredKeyEndsItsStreams(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{})
	g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Hang, After: 1})
	secret := ""
	var s *running
	for life := 3 * time.Second; s == nil; life *= 2 { // it has to live until the stream has begun
		if life > time.Minute {
			t.Fatal("no key lives long enough for a stream to begin")
		}
		name := fmt.Sprint("short", life)
		var err error
		if secret, _, err = g.Store().CreateKey(t.Context(), store.NewKey{Name: name, Roles: []string{"inference"}, Expires: time.Now().Add(life)}, time.Now()); err != nil {
			t.Fatal(err)
		}
		g.Eventually("the new key", func() bool { return len(keyEvents(g, name)) > 0 })
		resp, err := g.Open(gatetest.Request{Path: dialects["chat"].path, Key: secret, Body: dialects["chat"].body})
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == 200 {
			s = reading(t, resp)
		} else {
			_ = resp.Body.Close()
		}
	}
	s.endsFor("chat", "revoked", audit.EndedRevoked, g)
	r := g.Chat("app")
	r.Key = secret
	if a := g.Do(r); a.Reason() != "no_credential" {
		t.Errorf("the expired key: %d %s", a.Status, a.Body)
	}
}

func TestARotatedKeyKeepsWorkingForItsOverlap(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{})
	old := g.Secret("app")
	rotate := func(overlap time.Duration) string {
		secret, key, err := g.Store().RotateKey(t.Context(), "app", overlap, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		g.Eventually("the rotated key", func() bool {
			for _, r := range g.Records() {
				if r.Event == audit.KeyChanged && r.KeyID == key.ID {
					return true
				}
			}
			return false
		})
		return secret
	}
	status := func(key string) int {
		return g.Do(gatetest.Request{Path: "/v1/models", Key: key}).Status
	}
	second := rotate(time.Hour)
	if status(old) != 200 || status(second) != 200 {
		t.Errorf("within the overlap: %d and %d", status(old), status(second))
	}
	running := run(t, g, "chat", second)
	third := rotate(0)
	running.endsFor("chat", "revoked", audit.EndedRevoked, g)
	if status(second) != 401 || status(third) != 200 {
		t.Errorf("without an overlap: %d and %d", status(second), status(third))
	}
}

// Taking a role away is taking the key away from what runs by it.
func TestARoleThatGoesEndsItsStreams(t *testing.T) {
	t.Parallel()
	roles := "roles:\n  team: {operations: [chat.create], models: [\"*\"]}\n"
	g := gatetest.Start(t, gatetest.Options{Config: roles, Keys: []store.NewKey{{Name: "app", Roles: []string{"team"}}, {Name: "both", Roles: []string{"inference"}}}})
	s := run(t, g, "chat", g.Secret("app"))
	g.Reload(strings.Replace(g.Yaml(), "team:", "others:", 1))
	s.endsFor("chat", "revoked", audit.EndedRevoked, g)
	if a := g.Do(g.Chat("app")); a.Reason() != "not_permitted" {
		t.Errorf("the key without its role: %d %s", a.Status, a.Body)
	}
}

// Without a terminal the first key is in a file that only its owner reads, and in no output; it goes with the key.
func TestTheFirstKeyIsInAPrivateFile(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{NoKeys: true})
	file := filepath.Join(g.State, "first-key")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(string(b))
	if a := g.Do(gatetest.Request{Path: "/v1/chat/completions", Key: key, Body: gatetest.ChatBody}); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if text := g.Screen.String() + g.Log.String(); strings.Contains(text, key) || !strings.Contains(text, file) {
		t.Errorf("the screen says %s", text)
	}
	st, err := store.Open(t.Context(), g.State)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.RevokeKey(t.Context(), "first", time.Now()); err != nil {
		t.Fatal(err)
	}
	g.Eventually("the file's end", func() bool { _, err := os.Stat(file); return os.IsNotExist(err) })
	if err := st.Close(); err != nil {
		t.Error(err)
	}
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	again := gatetest.Start(t, gatetest.Options{NoKeys: true, State: g.State})
	if _, err := os.Stat(file); err == nil || strings.Contains(again.Screen.String(), "first key") {
		t.Error("a store that held a key once gets another first key")
	}
}

// On a terminal it is shown once and is in no file.
func TestTheFirstKeyIsShownOnATerminal(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{NoKeys: true, Terminal: true})
	i := strings.Index(g.Screen.String(), "vlm_")
	if _, err := os.Stat(filepath.Join(g.State, "first-key")); err == nil || i < 0 {
		t.Fatalf("the screen says %s", g.Screen)
	}
	key := strings.Fields(g.Screen.String()[i:])[0]
	if a := g.Do(gatetest.Request{Path: "/v1/models", Key: key}); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if strings.Contains(g.Log.String(), key) {
		t.Error("the key is in the log")
	}
}
