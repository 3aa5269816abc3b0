package gatetest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/store"
)

// POST /v1/decisions is in no role but one that names it, its body goes up as vLLM takes it, and its answer is metered.
func TestDecisionsAreGrantedByName(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{
		Config: "roles:\n  judge: {operations: [decisions.create], models: [\"*\"]}\n  group: {operations: [\"@inference\"], models: [\"*\"]}\n",
		Keys: []store.NewKey{
			{Name: "judge", Roles: []string{"judge"}},
			{Name: "other", Roles: []string{"judge"}},
			{Name: "inference", Roles: []string{"inference"}},
			{Name: "operator", Roles: []string{"operator"}},
			{Name: "group", Roles: []string{"group"}},
		},
	})
	body := `{"model":"tiny","input":"` + strings.Repeat("long ", 100) + `","questions":[{"type":"predicate","name":"q","instructions":"is it?"}],"cache_salt":"mine","safety_identifier":"x","user":"y"}`
	for _, name := range []string{"inference", "operator", "group"} {
		a := g.Do(Request{Path: "/v1/decisions", Key: g.Secret(name), Body: body})
		if a.Status != 403 || a.Reason() != "not_permitted" {
			t.Errorf("%s: %d %s", name, a.Status, a.Body)
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Fatalf("%d requests arrived", n)
	}
	cached := map[string]int64{}
	salts := map[string]bool{}
	for _, name := range []string{"judge", "other", "judge"} {
		a := g.Do(Request{Path: "/v1/decisions", Key: g.Secret(name), Body: body})
		r := g.Record(a.ID())
		if a.Status != 200 || !strings.Contains(a.Body, `"probability":0.5`) || !strings.Contains(a.Body, `"cached_tokens":0`) || r.PromptTokens == 0 || r.CompletionTokens != 1 || r.Usage != "counted" {
			t.Fatalf("%s: %d %s, recorded as %+v", name, a.Status, a.Body, r)
		}
		cached[name] = r.CachedTokens
		var up map[string]any
		if err := json.Unmarshal(g.Fake.Last().Body, &up); err != nil || len(up) != 4 || len(up["cache_salt"].(string)) != 43 {
			t.Errorf("%s: %v goes up, %v", name, up, err)
		}
		salts[up["cache_salt"].(string)] = true
		if got := a.Header.Get("X-Vallum-Dropped"); got != "/user, /safety_identifier" {
			t.Errorf("dropped: %q", got)
		}
	}
	if cached["judge"] == 0 || cached["other"] != 0 || len(salts) != 2 {
		t.Errorf("cached %v under %v", cached, salts)
	}
	a := g.Do(Request{Path: "/v1/decisions", Key: g.Secret("judge"), Body: `{"model":"tiny","input":[{"role":"user","content":[{"type":"input_image","image_url":"http://127.0.0.1/"}]}],"questions":[{"type":"predicate","instructions":"x"}]}`})
	if a.Status != 403 || a.Reason() != "forbidden_parameter" {
		t.Errorf("an address: %d %s", a.Status, a.Body)
	}
}
