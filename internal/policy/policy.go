package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Policy says who may do what. It is immutable; make one with Build. The zero Policy grants nothing.
type Policy struct {
	rules     map[string]*rule
	models    map[string]Model
	aliases   map[string]string
	upstreams []string
	unknown   bool // an upstream has not yet said what it serves
}

// Limits are what one key may use. A zero field sets no limit of its kind; a role without limits is legal.
type Limits struct {
	RequestsPerMinute int64 // requests, refilled evenly over the minute
	Burst             int64 // requests at once; RequestsPerMinute when zero
	Concurrent        int64 // requests running at the same time
	TokensPerMinute   int64 // prompt and completion tokens
}

// MayAttempt is the cheap half of the decision, before the body is read: could any rule ever allow this?
func (p *Policy) MayAttempt(who identity.Principal, op *vllm.Operation) verdict.Verdict {
	if who.IsNobody() || op == nil {
		return verdict.Refuse(verdict.NoCredential, nil)
	}
	if op.Grant == vllm.Never {
		return verdict.Refuse(verdict.NotPermitted, fmt.Errorf("operation %q cannot be granted: %s", op.ID, op.Why))
	}
	if len(p.granting(who, op)) == 0 {
		return verdict.Refuse(verdict.NotPermitted, fmt.Errorf("no role of key %q grants operation %q; its roles: %q", who.Name(), op.ID, who.Roles()))
	}
	return verdict.Allow()
}

// Decide is the full decision. The segments are the checked values of the path's template, nil without one.
func (p *Policy) Decide(who identity.Principal, op *vllm.Operation, segments []string, f Facts) (Grant, verdict.Verdict) {
	if v := p.MayAttempt(who, op); v.Refused() {
		return Grant{}, v
	}
	g := Grant{who: who, op: op, segments: segments, stream: f.Stream && op.Streams, cost: costOf(op, f), audio: f.Audio, hazards: f.Hazards}
	rules := p.granting(who, op)
	var v verdict.Verdict
	if op.Model {
		rules, v = p.chooseModel(&g, rules, f)
	} else {
		v = p.chooseUpstream(&g, rules, f)
	}
	if v.Refused() {
		return Grant{}, v
	}
	g.rule = rules[0].name
	if v := unknownFields(rules, f); v.Refused() {
		return Grant{}, v
	}
	if v := g.edit(rules, f); v.Refused() {
		return Grant{}, v
	}
	g.valid = true
	return g, verdict.Allow()
}

// held lists the rules of the principal's roles, in their order. A role that the configuration lacks holds none.
func (p *Policy) held(who identity.Principal) []*rule {
	var some []*rule
	for _, role := range who.Roles() {
		if r := p.rules[role]; r != nil {
			some = append(some, r)
		}
	}
	return some
}

// granting lists those that grant the operation.
func (p *Policy) granting(who identity.Principal, op *vllm.Operation) []*rule {
	return slices.DeleteFunc(p.held(who), func(r *rule) bool { return !r.operations[op.ID] })
}

// chooseModel finds the model that is asked for among those that the rules grant, and keeps the rules that grant it.
// A model that is not served and one that is not granted get the same answer: the caller learns nothing of this site.
func (p *Policy) chooseModel(g *Grant, rules []*rule, f Facts) ([]*rule, verdict.Verdict) {
	g.asked = f.Model
	if g.asked == "" {
		granted := p.modelsOf(rules)
		if len(granted) == 0 && p.unknown {
			return nil, verdict.Refuse(verdict.UpstreamUnavailable, errors.New("no upstream has said yet what it serves"))
		}
		if len(granted) != 1 {
			return nil, verdict.Refuse(verdict.BadBody, fmt.Errorf("no model named, and %d are granted", len(granted))).
				At("/model").Saying("The model is missing: name one of those that GET /v1/models lists.")
		}
		g.asked = granted[0]
	}
	g.model = g.asked
	if target, ok := p.aliases[g.asked]; ok {
		g.model = target
	}
	model, served := p.models[g.model]
	with := slices.DeleteFunc(slices.Clone(rules), func(r *rule) bool { return !r.allows(g.model) })
	if !served && len(with) > 0 && p.unknown { // it may be there soon: no client should give up
		return nil, verdict.Refuse(verdict.UpstreamUnavailable, fmt.Errorf("no upstream that has answered serves model %q, and not all have", g.model))
	}
	if !served || len(with) == 0 {
		cause := fmt.Errorf("no role of key %q grants operation %q on model %q", g.who.Name(), g.op.ID, g.model)
		if !served {
			cause = fmt.Errorf("no upstream serves model %q", g.model)
		}
		return nil, verdict.Refuse(verdict.NotPermitted, cause).At("/model").Saying("GET /v1/models lists the models of this key.")
	}
	if f.Upstream != "" {
		if !slices.Contains(model.Upstreams, f.Upstream) {
			return nil, verdict.Refuse(verdict.NotPermitted, fmt.Errorf("upstream %q does not serve model %q", f.Upstream, g.model)).At("X-Vallum-Upstream")
		}
		g.upstream = f.Upstream
	}
	return with, verdict.Allow()
}

// chooseUpstream is for operations without a model: of several upstreams the caller names one, and only one that
// serves a model of its rules.
func (p *Policy) chooseUpstream(g *Grant, rules []*rule, f Facts) verdict.Verdict {
	if g.op.Answered {
		return verdict.Allow()
	}
	var can []string
	for _, name := range p.upstreams {
		if slices.ContainsFunc(rules, func(r *rule) bool { return r.any || p.serves(name, r) }) {
			can = append(can, name)
		}
	}
	switch {
	case f.Upstream != "" && slices.Contains(can, f.Upstream):
		g.upstream = f.Upstream
	case f.Upstream != "":
		return verdict.Refuse(verdict.NotPermitted, fmt.Errorf("no role of key %q reaches upstream %q", g.who.Name(), f.Upstream)).At("X-Vallum-Upstream")
	case len(can) == 1:
		g.upstream = can[0]
	case len(can) == 0:
		return verdict.Refuse(verdict.NotPermitted, fmt.Errorf("no upstream serves a model of key %q", g.who.Name()))
	default:
		return verdict.Refuse(verdict.UpstreamNotNamed, nil).At("X-Vallum-Upstream")
	}
	return verdict.Allow()
}

func (p *Policy) serves(upstream string, r *rule) bool {
	for name := range r.models {
		if slices.Contains(p.models[name].Upstreams, upstream) {
			return true
		}
	}
	return false
}

// unknownFields refuses fields that no table names when every rule that grants the request says so.
func unknownFields(rules []*rule, f Facts) verdict.Verdict {
	if len(f.UnknownKeys) == 0 || slices.ContainsFunc(rules, func(r *rule) bool { return !r.refuseUnknown }) {
		return verdict.Allow()
	}
	return verdict.Refuse(verdict.UnknownParameter, fmt.Errorf("role %q refuses unknown fields: %q", rules[0].name, f.UnknownKeys)).At(f.UnknownKeys[0])
}

// edit collects the changes that the request needs before the upstream may see it.
func (g *Grant) edit(rules []*rule, f Facts) verdict.Verdict {
	if g.op.Model && g.op.Request != vllm.NoBody {
		g.edits = append(g.edits, Edit{Name: "model", Pointer: "/model", Value: strconv.Quote(g.model)})
	}
	if f.HasSalt {
		g.edits = append(g.edits, Edit{Name: "cache_salt", Pointer: "/cache_salt"})
	}
	if f.HasStore {
		g.edits = append(g.edits, Edit{Name: "store", Pointer: "/store", Value: "false"})
	}
	if g.stream && (f.HasOptions || f.HasUsage) && !f.Usage {
		at := "/stream_options/include_usage"
		if f.HasUsage {
			at = "/stream_include_usage"
		}
		g.edits = append(g.edits, Edit{Name: "include_usage", Pointer: at, Value: "true"})
		g.injected = true
	}
	if f.CapField == "" {
		return verdict.Allow()
	}
	g.cost.output = f.OutputCap
	most := outputCap(rules)
	if most == 0 || f.OutputCap > 0 && f.OutputCap <= most {
		return verdict.Allow()
	}
	if f.OutputCap > most {
		return verdict.Refuse(verdict.ForbiddenParameter, fmt.Errorf("role %q caps the output at %d tokens; the request asks for %d", g.rule, most, f.OutputCap)).
			At("/"+f.CapField).Saying("At most %d output tokens are permitted.", most)
	}
	g.cost.output = most
	g.edits = append(g.edits, Edit{Name: "output_cap", Pointer: "/" + f.CapField, Value: strconv.FormatInt(most, 10)})
	return verdict.Allow()
}

// outputCap is the widest of the caps of the rules that grant the request: 0, no cap, is wider than any.
func outputCap(rules []*rule) int64 {
	var widest int64
	for _, r := range rules {
		if r.maxOutput == 0 {
			return 0
		}
		widest = max(widest, r.maxOutput)
	}
	return widest
}

// LimitsOf is the strictest of the limits of all roles of the principal, kind by kind.
func (p *Policy) LimitsOf(who identity.Principal) Limits {
	var l Limits
	for _, r := range p.held(who) {
		l.RequestsPerMinute = stricter(l.RequestsPerMinute, r.limits.RequestsPerMinute)
		l.Burst = stricter(l.Burst, r.limits.Burst)
		l.Concurrent = stricter(l.Concurrent, r.limits.Concurrent)
		l.TokensPerMinute = stricter(l.TokensPerMinute, r.limits.TokensPerMinute)
	}
	return l
}

func stricter(a, b int64) int64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// ModelsOf lists the models, and the aliases of models, that the principal may use in any operation, sorted.
func (p *Policy) ModelsOf(who identity.Principal) []Model {
	rules := slices.DeleteFunc(p.held(who), func(r *rule) bool { return !r.usesModels })
	var list []Model
	for _, name := range p.modelsOf(rules) {
		list = append(list, p.models[name])
	}
	for alias, target := range p.aliases {
		m, served := p.models[target]
		if served && slices.ContainsFunc(rules, func(r *rule) bool { return r.allows(target) }) {
			m.Name = alias
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b Model) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Context is the longest context of the servers of a model in tokens; 0 when it is not known.
func (p *Policy) Context(model string) int64 {
	return max(p.models[model].LongestLen, p.models[model].MaxModelLen)
}

// modelsOf lists the served models that any of the rules allows, sorted.
func (p *Policy) modelsOf(rules []*rule) []string {
	var names []string
	for name := range p.models {
		if slices.ContainsFunc(rules, func(r *rule) bool { return r.allows(name) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// HasRole reports whether the policy has the role.
func (p *Policy) HasRole(name string) bool { return p.rules[name] != nil }

// Grants reports whether the role grants the operation, on whatever model.
func (p *Policy) Grants(role, operation string) bool {
	r := p.rules[role]
	return r != nil && r.operations[operation]
}
