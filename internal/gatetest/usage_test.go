package gatetest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// Every operation with tokens is counted by what the reply says, in whatever words it says it.
func TestTokensAreCountedInEveryDialect(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for _, row := range []struct {
		op, path, body     string
		prompt, completion int64
	}{
		{"chat.create", "/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`, 8, 5},
		{"chat.create", "/v1/chat/completions", `{"model":"tiny","n":3,"messages":[{"role":"user","content":"hi"}]}`, 8, 15},
		{"chat.create", "/v1/chat/completions", `{"model":"tiny","stream":true,"n":3,"messages":[{"role":"user","content":"hi"}]}`, 8, 15},
		{"completions.create", "/v1/completions", `{"model":"tiny","prompt":["aaaa","bbbb"],"max_tokens":2}`, 3, 4},
		{"completions.create", "/v1/completions", `{"model":"tiny","stream":true,"prompt":"aaaa"}`, 1, 5},
		{"responses.create", "/v1/responses", `{"model":"tiny","input":"hi"}`, 3, 5},
		{"responses.create", "/v1/responses", `{"model":"tiny","stream":true,"input":"hi"}`, 3, 5},
		{"messages.create", "/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}`, 10, 5},
		{"messages.create", "/v1/messages", `{"model":"tiny","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}`, 10, 5},
		{"embeddings.create", "/v1/embeddings", `{"model":"tiny","input":["aaaa","bbbb"]}`, 2, 0},
		{"score.create", "/v1/score", `{"model":"tiny","text_1":"a","text_2":["b","c"]}`, 3, 0},
		{"rerank.v1", "/v1/rerank", `{"model":"tiny","query":"a","documents":["b","c"]}`, 3, 0},
		{"classify.create", "/classify", `{"model":"tiny","input":"aaaa"}`, 1, 0},
		{"pooling.create", "/pooling", `{"model":"tiny","input":"aaaa"}`, 1, 0},
	} {
		a := g.Do(Request{Path: row.path, Key: g.Secret("app"), Body: row.body})
		r := g.Record(a.ID())
		if a.Status != 200 || r.Usage != audit.UsageCounted || r.PromptTokens != row.prompt || r.CompletionTokens != row.completion || r.Operation != row.op {
			t.Errorf("%s: %d, recorded as %+v, want %d and %d tokens", row.body, a.Status, r, row.prompt, row.completion)
		}
	}
	// A form asks in a field of its own, and so does the gateway; who did not ask sees no chunk with usage.
	for _, asked := range []bool{false, true} {
		parts := []part{{field("model"), "tiny"}, audioFile, {field("stream"), "true"}}
		if asked {
			parts = append(parts, part{field("stream_include_usage"), "true"})
		}
		a := g.form(parts...)
		r := g.Record(a.ID())
		if a.Status != 200 || r.Usage != audit.UsageCounted || r.CompletionTokens == 0 || strings.Contains(a.Body, `"usage":{`) != asked {
			t.Errorf("a streamed transcription, usage asked for %t: %d, recorded as %+v, the caller reads %s", asked, a.Status, r, a.Body)
		}
	}
	metrics := g.Probe("/metrics")
	if !strings.Contains(metrics, `vallum_tokens_total{kind="completion",model="tiny",operation="messages.create",role="inference"} 10`) {
		t.Errorf("the metrics do not have the tokens of messages:\n%s", regexp.MustCompile(`(?m)^vallum_tokens.*$`).FindAllString(metrics, -1))
	}
}

// vLLM tells how much of a prompt it had cached, which tells one caller what another sent: callers do not see it unless
// the configuration says so; the record does.
func TestCachedTokensAreForTheRecord(t *testing.T) {
	t.Parallel()
	long := `{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat("a long prompt ", 30) + `"}]}`
	for show, config := range map[bool]string{false: "", true: "show_cached_tokens: true\n"} {
		g := Start(t, Options{Fake: vllmtest.Options{PromptDetails: true}, Config: config})
		ask := func() (Answer, audit.Record) {
			a := g.Do(Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: long})
			return a, g.Record(a.ID())
		}
		ask()
		a, r := ask()
		told := regexp.MustCompile(`"cached_tokens":[1-9]`).MatchString(a.Body)
		if r.CachedTokens == 0 || told != show {
			t.Errorf("shown: %t, %d recorded, the caller reads %s", show, r.CachedTokens, a.Body)
		}
	}
}

// A role's cap on output is written into requests that have none, and is on the record.
func TestAnOutputCapIsInjectedAndRecorded(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Config: "roles:\n  capped: {operations: [\"@inference\"], models: [\"*\"], max_output_tokens: 2}\n", Keys: []store.NewKey{{Name: "app", Roles: []string{"capped"}}}})
	for _, s := range streams {
		if s.name == "messages" {
			continue // it always has one
		}
		a := g.Do(Request{Path: s.path, Key: g.Secret("app"), Body: s.body})
		r := g.Record(a.ID())
		if a.Status != 200 || r.CompletionTokens != 2 || !strings.Contains(strings.Join(r.Edits, " "), "output_cap") {
			t.Errorf("%s: %d, recorded as %+v", s.name, a.Status, r)
		}
	}
	if a := g.Do(Request{Path: "/v1/messages", Key: g.Secret("app"), Body: streams[3].body}); a.Reason() != "forbidden_parameter" {
		t.Errorf("above the cap: %d %s", a.Status, a.Body)
	}
}

// Twenty callers at once, again and again, with answers that fail, against a budget that fits a few: what gets through
// never uses more than the budget, and what was reserved and not used comes back.
func TestTwentyAtOnceNeverPassTheBudget(t *testing.T) {
	t.Parallel()
	const budget, each = 300, 13 // a minute; what one chat uses in truth, of 80 that are reserved for it
	g := Start(t, Options{
		Config: fmt.Sprintf("roles:\n  poor: {operations: [chat.create], models: [\"*\"], limits: {tokens_per_minute: %d}}\n", budget),
		Keys:   []store.NewKey{{Name: "app", Roles: []string{"poor"}}},
	})
	began := time.Now()
	counts := map[string]int{}
	var mu sync.Mutex
	for round := range 4 {
		if round == 1 {
			g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.EngineDead})
		}
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() {
				a := g.Do(g.Chat("app"))
				mu.Lock()
				defer mu.Unlock()
				counts[strconv.Itoa(a.Status)+a.Reason()]++
			})
		}
		callers.Wait()
		g.NothingHeld()
	}
	for g.Do(g.Chat("app")).Status == 200 { // one after the other, until no more fits
		counts["200"]++
		counts["more"]++
	}
	used := counts["200"] * each
	most := budget + int(time.Since(began).Seconds()+1)*budget/60
	// The one whose engine died may be charged its reservation: the work may have been done although nobody counted it.
	if used > most || counts["200"] < (budget-80-80*counts["502upstream_failed"])/each {
		t.Errorf("%d tokens were used of %d: %v", used, most, counts)
	}
	if counts["200"]+counts["429over_budget"]+counts["502upstream_failed"] != 80+counts["more"] || g.Fake.Arrived() != counts["200"]+counts["502upstream_failed"] {
		t.Errorf("%v, %d arrived", counts, g.Fake.Arrived())
	}
}

// Fifty callers at once, some of whom leave, against three slots: never more than three arrive at a time.
func TestManyAtOnceNeverPassTheSlots(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{
		Config: "roles:\n  few: {operations: [chat.create], models: [\"*\"], limits: {concurrent: 3}}\n",
		Keys:   []store.NewKey{{Name: "app", Roles: []string{"few"}}},
	})
	for range 3 {
		g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Hang, After: 1})
	}
	var held []func()
	for range 3 {
		resp, err := g.Open(Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: streams[0].body})
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		held = append(held, func() { _ = resp.Body.Close() })
	}
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			if a := g.Do(g.Chat("app")); a.Status != 429 || a.Reason() != "too_many_requests" || a.Header.Get("Retry-After") == "" {
				t.Errorf("%d %s", a.Status, a.Body)
			}
		})
	}
	callers.Wait()
	if n := g.Fake.Arrived(); n != 3 {
		t.Errorf("%d arrived", n)
	}
	for _, leave := range held {
		leave()
	}
	g.NothingHeld()
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("the slots did not come back: %d %s", a.Status, a.Body)
	}
}
