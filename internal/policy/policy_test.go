package policy

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

func id(s string) OperationName { return OperationName{Name: s} }

// site is the configuration that the rows below speak of.
func site(t testing.TB) *Policy {
	t.Helper()
	p, problems := Build(Rules{
		Models: []Model{
			{Name: "llama", Upstreams: []string{"a", "b"}, MaxModelLen: 1000},
			{Name: "qwen", Upstreams: []string{"b"}},
			{Name: "bert", Upstreams: []string{"c"}},
		},
		Upstreams: []string{"a", "b", "c"},
		Aliases:   map[string]string{"gpt": "llama", "lost": "gone"},
		Roles: []Role{
			{
				Name: "chat", Operations: []OperationName{id("chat.create"), id("models.list")}, Models: []string{"llama"}, MaxOutputTokens: 100,
				Limits: Limits{RequestsPerMinute: 60, Concurrent: 4},
			},
			{Name: "wide", Operations: []OperationName{id("@inference")}, Models: []string{"qwen", "gone"}, Limits: Limits{RequestsPerMinute: 600, TokensPerMinute: 9}},
			{Name: "strict", Operations: []OperationName{id("chat.create")}, Models: []string{"*"}, RefuseUnknown: true},
			{Name: "health", Operations: []OperationName{id("health.read")}, Models: []string{"bert"}},
			{Name: "profiler", Operations: []OperationName{{Name: "profile.start", Acknowledge: "profile.start"}}, Models: []string{"bert"}},
		},
	})
	if problems != nil {
		t.Fatal(problems)
	}
	return p
}

// rows asks the site's policy and tells the row when the answer is another one.
type rows struct {
	*testing.T
	p *Policy
}

func (r rows) decide(roles, op string, f Facts) (Grant, verdict.Verdict) {
	r.Helper()
	operation, ok := vllm.ByID(op)
	if !ok {
		r.Fatalf("no operation %q", op)
	}
	return r.p.Decide(identity.New("app", "k", "", strings.Fields(roles)), operation, nil, f)
}

func (r rows) allow(roles, op, model string) Grant {
	r.Helper()
	g, v := r.decide(roles, op, Facts{Model: model})
	if v.Refused() || !g.Valid() {
		r.Errorf("[%s] %s on %q is refused: %v", roles, op, model, v.Err())
	}
	return g
}

func (r rows) refuse(roles, op, model string, why verdict.Reason) {
	r.Helper()
	g, v := r.decide(roles, op, Facts{Model: model})
	if !v.Refused() || g.Valid() || v.Reason() != why {
		r.Errorf("[%s] %s on %q: refused %t with %s, want %s", roles, op, model, v.Refused(), v.Reason(), why)
	}
}

func TestRolesGrantOperationsOnModels(t *testing.T) {
	r := rows{t, site(t)}
	r.allow("chat", "chat.create", "llama")
	r.allow("chat", "chat.create", "gpt") // an alias of llama
	r.allow("chat", "chat.create", "")    // one model is granted, so that one is meant
	r.allow("wide", "embeddings.create", "qwen")
	r.allow("chat wide", "chat.create", "qwen") // the union of what the roles grant
	r.allow("inference", "chat.create", "bert") // the built-in role: every served model
	r.allow("profiler", "profile.start", "")

	r.refuse("chat", "chat.create", "qwen", verdict.NotPermitted)             // a model no rule names
	r.refuse("chat", "completions.create", "llama", verdict.NotPermitted)     // an operation no rule names
	r.refuse("chat wide", "embeddings.create", "llama", verdict.NotPermitted) // each by another role: neither grants both
	r.refuse("wide", "chat.create", "gone", verdict.NotPermitted)             // granted, but nobody serves it
	r.refuse("strict", "chat.create", "lost", verdict.NotPermitted)           // an alias of what nobody serves
	r.refuse("strict", "chat.create", "", verdict.BadBody)                    // three are granted: which?
	r.refuse("wide", "rpc.collective", "", verdict.NotPermitted)              // nobody was given it
	r.refuse("inference", "invocations.create", "llama", verdict.NotPermitted)
	r.refuse("nothing", "chat.create", "llama", verdict.NotPermitted) // a role that does not exist
	r.refuse("", "chat.create", "llama", verdict.NotPermitted)
}

// A client of a server that still loads its weights has to come again, not to give up.
func TestModelsThatMayStillComeAreUnavailableNotForbidden(t *testing.T) {
	p, problems := Build(Rules{
		Upstreams: []string{"a"}, Unknown: true,
		Roles: []Role{{Name: "one", Operations: []OperationName{id("chat.create")}, Models: []string{"llama"}}},
	})
	if problems != nil {
		t.Fatal(problems)
	}
	r := rows{t, p}
	r.refuse("inference", "chat.create", "llama", verdict.UpstreamUnavailable)
	r.refuse("inference", "chat.create", "", verdict.UpstreamUnavailable)
	r.refuse("one", "chat.create", "llama", verdict.UpstreamUnavailable)
	r.refuse("one", "chat.create", "qwen", verdict.NotPermitted)                   // no rule names it, whoever may serve it
	r.refuse("monitor", "chat.create", "llama", verdict.NotPermitted)              // no rule grants the operation
	rows{t, site(t)}.refuse("strict", "chat.create", "none", verdict.NotPermitted) // every upstream has answered
}

func TestNobodyAndTheZeroPolicyGetNothing(t *testing.T) {
	chat, _ := vllm.ByID("chat.create")
	if _, v := site(t).Decide(identity.Nobody, chat, nil, Facts{Model: "llama"}); v.Reason() != verdict.NoCredential {
		t.Errorf("nobody: %v", v.Err())
	}
	who := identity.New("app", "k", "", []string{"inference"})
	if _, v := new(Policy).Decide(who, chat, nil, Facts{Model: "llama"}); v.Reason() != verdict.NotPermitted {
		t.Errorf("the zero policy: %v", v.Err())
	}
	if v := site(t).MayAttempt(who, nil); !v.Refused() {
		t.Error("no operation is allowed")
	}
	if (Grant{}).Valid() {
		t.Error("the zero grant is valid")
	}
}

// Whatever the roles and facts, an operation that cannot be granted never is.
func TestWhatIsNeverGrantableIsNeverGranted(t *testing.T) {
	p := site(t)
	rapid.Check(t, func(t *rapid.T) {
		op := rapid.SampledFrom(vllm.All()).Draw(t, "op")
		roles := rapid.SliceOfN(rapid.SampledFrom([]string{"chat", "wide", "strict", "health", "profiler", "inference", "monitor", "operator", "x"}), 0, 4).Draw(t, "roles")
		f := Facts{Model: rapid.SampledFrom([]string{"", "llama", "qwen", "bert", "gpt", "gone"}).Draw(t, "model"), Upstream: rapid.SampledFrom([]string{"", "a", "b", "z"}).Draw(t, "up")}
		g, v := p.Decide(identity.New("app", "k", "", roles), op, nil, f)
		if g.Valid() == v.Refused() {
			t.Fatalf("valid %t, refused %t", g.Valid(), v.Refused())
		}
		if !g.Valid() {
			return
		}
		if op.Grant == vllm.Never || op.Server != "" || op.Group == vllm.Development && !slices.Contains(roles, "profiler") {
			t.Fatalf("%s is granted to %q", op.ID, roles)
		}
		if op.Model && p.models[g.Model()].Name == "" {
			t.Fatalf("%s is granted on %q, which nobody serves", op.ID, g.Model())
		}
	})
}

func TestOperationsWithoutAModelNeedAnUpstreamThatTheRoleReaches(t *testing.T) {
	r := rows{t, site(t)}
	r.refuse("monitor", "health.read", "", verdict.UpstreamNotNamed)
	if g, v := r.decide("monitor", "health.read", Facts{Upstream: "b"}); v.Refused() || g.Upstream() != "b" {
		t.Errorf("named: %v", v.Err())
	}
	if _, v := r.decide("monitor", "health.read", Facts{Upstream: "z"}); v.Reason() != verdict.NotPermitted {
		t.Errorf("no such upstream: %v", v.Err())
	}
	if g := r.allow("health", "health.read", ""); g.Upstream() != "c" { // only c serves its model
		t.Errorf("picked %q", g.Upstream())
	}
	if _, v := r.decide("health", "health.read", Facts{Upstream: "a"}); v.Reason() != verdict.NotPermitted {
		t.Errorf("another's upstream: %v", v.Err())
	}
	if _, v := r.decide("chat", "chat.create", Facts{Model: "llama", Upstream: "c"}); v.Reason() != verdict.NotPermitted {
		t.Errorf("an upstream that does not serve the model: %v", v.Err())
	}
}

func TestEditsAreNamedAndTheCapIsNeverSilent(t *testing.T) {
	r := rows{t, site(t)}
	f := Facts{Model: "gpt", Stream: true, HasSalt: true, HasOptions: true, CapField: "max_tokens", BodyBytes: 40, Inputs: 1, Choices: 2}
	g, v := r.decide("chat", "chat.create", f)
	if v.Refused() {
		t.Fatal(v.Err())
	}
	var names []string
	for _, e := range g.Edits() {
		names = append(names, e.Name+"="+e.Value)
	}
	if want := []string{`model="llama"`, "cache_salt=", "include_usage=true", "output_cap=100"}; !slices.Equal(names, want) {
		t.Errorf("edits %q, want %q", names, want)
	}
	if g.Asked() != "gpt" || !g.UsageInjected() || g.Tokens(Bounds{Context: 1000}) != 40+2*100 {
		t.Errorf("%+v, %d tokens", g, g.Tokens(Bounds{Context: 1000}))
	}
	form := f
	form.HasOptions, form.HasUsage = false, true
	if g, _ := r.decide("chat", "chat.create", form); !g.UsageInjected() || g.Edits()[2].Pointer != "/stream_include_usage" {
		t.Errorf("a form asks in a field of its own: %+v", g.Edits())
	}
	f.Usage, f.OutputCap = true, 60
	if g, _ := r.decide("chat", "chat.create", f); g.UsageInjected() || g.Tokens(Bounds{Context: 1000}) != 40+2*60 {
		t.Errorf("usage that was asked for is injected; %d tokens", g.Tokens(Bounds{Context: 1000}))
	}
	f.OutputCap = 101
	if _, v := r.decide("chat", "chat.create", f); v.Reason() != verdict.ForbiddenParameter || v.Param() != "/max_tokens" {
		t.Errorf("over the cap: %v at %q", v.Err(), v.Param())
	}
	if g, v := r.decide("chat strict", "chat.create", f); v.Refused() || g.Tokens(Bounds{Context: 1000}) != 40+2*101 { // another role has no cap
		t.Errorf("%v", v.Err())
	}
}

func TestUnknownFieldsAreRefusedOnlyWhereEveryRuleSaysSo(t *testing.T) {
	r := rows{t, site(t)}
	f := Facts{Model: "llama", UnknownKeys: []string{"/zz"}}
	if _, v := r.decide("strict", "chat.create", f); v.Reason() != verdict.UnknownParameter || v.Param() != "/zz" {
		t.Errorf("%v at %q", v.Err(), v.Param())
	}
	if _, v := r.decide("strict chat", "chat.create", f); v.Refused() {
		t.Errorf("the role chat drops them: %v", v.Err())
	}
}

func TestLimitsAreTheStrictestOfAllRoles(t *testing.T) {
	p := site(t)
	got := p.LimitsOf(identity.New("app", "k", "", []string{"chat", "wide", "inference"}))
	if want := (Limits{RequestsPerMinute: 60, Concurrent: 4, TokensPerMinute: 9}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestModelsAreThoseThatTheRolesUse(t *testing.T) {
	p := site(t)
	var names []string
	for _, m := range p.ModelsOf(identity.New("app", "k", "", []string{"chat", "health"})) {
		names = append(names, m.Name)
	}
	if want := []string{"gpt", "llama"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if got := p.ModelsOf(identity.New("app", "k", "", []string{"monitor"})); len(got) != 0 {
		t.Errorf("a monitor sees %v", got)
	}
}

func TestPathsAreBuiltOfLiteralsAndCheckedSegments(t *testing.T) {
	op, segments, ok := vllm.Lookup("DELETE", "/adapters/sql-v2")
	if !ok {
		t.Fatal("no such operation")
	}
	p, problems := Build(Rules{Upstreams: []string{"a"}})
	if problems != nil {
		t.Fatal(problems)
	}
	g, v := p.Decide(identity.New("ops", "k", "", []string{"operator"}), op, segments, Facts{})
	if v.Refused() || g.Path() != "/adapters/sql-v2" || g.Method() != "DELETE" {
		t.Errorf("%v %q", v.Err(), g.Path())
	}
}

func TestExplainSaysWhatWouldAllow(t *testing.T) {
	p := site(t)
	chat, _ := vllm.ByID("chat.create")
	pause, _ := vllm.ByID("engine.pause")
	invoke, _ := vllm.ByID("invocations.create")
	who := identity.New("app", "k", "", []string{"chat", "profiler"})
	for _, row := range []struct {
		op   *vllm.Operation
		f    Facts
		want string
	}{
		{chat, Facts{Model: "qwen"}, `in vallum.yaml, roles.chat.models: add "qwen"`},
		{chat, Facts{Model: "none"}, `no upstream serves "none"`},
		{pause, Facts{}, "--role operator"},
		{invoke, Facts{Model: "llama"}, "nothing allows it"},
	} {
		e := p.Explain(who, row.op, nil, row.f)
		if e.Allowed || !strings.Contains(strings.Join(e.ToAllow, "\n"), row.want) {
			t.Errorf("%s: %+v", row.op.ID, e)
		}
	}
	if e := p.Explain(who, chat, nil, Facts{Model: "gpt"}); !e.Allowed || e.Rule != "chat" || e.Model != "llama" {
		t.Errorf("%+v", e)
	}
}
