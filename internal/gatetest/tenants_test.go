package gatetest

import (
	"encoding/json"
	"testing"

	"github.com/vallum/vallum/internal/store"
)

// A tenant's prompts are cached under a value that no other tenant can name, the same for all its keys and after a
// restart, and another with another secret.
func TestASaltIsTheTenantsOwn(t *testing.T) {
	t.Parallel()
	keys := []store.NewKey{
		{Name: "a1", Tenant: "a", Roles: []string{"inference"}}, {Name: "a2", Tenant: "a", Roles: []string{"inference"}}, {Name: "b", Roles: []string{"inference"}}, {Name: "c", Roles: []string{"inference"}},
	}
	g := Start(t, Options{Keys: keys})
	seen := map[string]string{}
	salt := func(g *Gate, name, body string) string {
		t.Helper()
		a := g.Do(Request{Path: "/v1/chat/completions", Key: g.Secret(name), Body: body})
		var up struct {
			Salt string `json:"cache_salt"`
		}
		if err := json.Unmarshal(g.Fake.Last().Body, &up); err != nil || a.Status != 200 || len(up.Salt) != 43 {
			t.Fatalf("%s: %d %s, %v in %s", name, a.Status, a.Body, err, g.Fake.Last().Body)
		}
		return up.Salt
	}
	for _, k := range keys {
		seen[k.Name] = salt(g, k.Name, ChatBody)
	}
	if seen["a1"] != seen["a2"] || seen["a1"] == seen["b"] || seen["b"] == seen["c"] {
		t.Errorf("the salts are %v", seen)
	}
	if got := salt(g, "b", `{"model":"tiny","messages":[],"cache_salt":"`+seen["a1"]+`"}`); got != seen["b"] {
		t.Errorf("b took a's salt: %s", got)
	}
	for _, path := range []struct{ path, body string }{
		{"/v1/completions", `{"model":"tiny","prompt":"a"}`}, {"/v1/responses", `{"model":"tiny","input":"a"}`}, {"/v1/messages", `{"model":"tiny","max_tokens":5,"messages":[]}`}, {"/v1/embeddings", `{"model":"tiny","input":"a"}`},
	} {
		a := g.Do(Request{Path: path.path, Key: g.Secret("b"), Body: path.body})
		var up struct {
			Salt string `json:"cache_salt"`
		}
		if err := json.Unmarshal(g.Fake.Last().Body, &up); err != nil || a.Status != 200 || up.Salt != seen["b"] {
			t.Errorf("%s: %d %s, %v in %s", path.path, a.Status, a.Body, err, g.Fake.Last().Body)
		}
	}
	secrets := g.secrets
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	again := Start(t, Options{State: g.State, NoKeys: true})
	again.secrets = secrets
	if got := salt(again, "a1", ChatBody); got != seen["a1"] {
		t.Error("after a restart the salt is another: the tenant's cache would be lost")
	}
	other := Start(t, Options{Keys: keys})
	if got := salt(other, "a1", ChatBody); got == seen["a1"] {
		t.Error("another installation has the same salt: it is no secret")
	}
}
