package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/vllm"
)

// Rules is what a policy is built from: the configuration's roles and what the upstreams serve.
type Rules struct {
	Roles     []Role
	Models    []Model
	Upstreams []string          // names of all upstreams
	Unknown   bool              // an upstream has not yet said what it serves: a model that is in no list may still come
	Aliases   map[string]string // a name that clients ask for → a served model
}

// Role grants operations on models. The zero Role grants nothing.
type Role struct {
	Name            string
	Operations      []OperationName
	Models          []string // exact names, or "*" for those that the upstreams serve
	Limits          Limits
	MaxOutputTokens int64 // cap per answer; injected when a request has none; 0 is no cap
	RefuseUnknown   bool  // refuse fields that no table names, instead of dropping them
}

// OperationName is an operation's id, or a group as "@inference". Acknowledge repeats the id of an operation that is
// too dangerous to be granted in passing.
type OperationName struct{ Name, Acknowledge string }

// Model is a model that at least one upstream serves.
type Model struct {
	Name        string
	Upstreams   []string
	MaxModelLen int64 // tokens that fit all of its servers; 0 when not known
	LongestLen  int64 // tokens that fit one of them; 0 for MaxModelLen
	Created     int64 // seconds since 1970
}

// Problem is one thing that is wrong with the rules. Where is a path such as "roles[0].operations[1]".
type Problem struct{ Where, What, Right string }

type rule struct {
	name          string
	operations    map[string]bool
	models        map[string]bool
	any           bool // "*"
	usesModels    bool // grants an operation that names a model
	limits        Limits
	maxOutput     int64
	refuseUnknown bool
}

func (r *rule) allows(model string) bool { return r.any || r.models[model] }

// BuiltIn lists the roles that every policy has, with the operations that each grants.
var BuiltIn = map[string][]string{
	"inference": {
		"chat.create", "chat.batch", "completions.create", "responses.create", "messages.create", "messages.count_tokens",
		"embeddings.create", "embed.v2", "score.create", "score.root", "rerank.v1", "rerank.root", "rerank.v2",
		"classify.create", "pooling.create", "audio.transcriptions", "audio.translations",
		"models.list", "models.retrieve", "health.read",
	},
	"monitor": {"health.read", "ping.read", "ping.create", "version.read", "load.read", "metrics.read"},
	"operator": {
		"engine.pause", "engine.resume", "engine.is_paused", "engine.scale", "engine.is_scaling",
		"lora.load", "lora.unload", "adapters.load", "adapters.unload", "health.read",
	},
}

// Build makes a policy of the rules, or says all that is wrong with them. A policy with problems is not made.
func Build(in Rules) (*Policy, []Problem) {
	p := &Policy{rules: map[string]*rule{}, models: map[string]Model{}, aliases: maps.Clone(in.Aliases), upstreams: slices.Clone(in.Upstreams), unknown: in.Unknown}
	for _, m := range in.Models {
		p.models[m.Name] = m
	}
	for name := range BuiltIn {
		p.rules[name] = &rule{name: name, operations: map[string]bool{}, any: true}
		p.rules[name].grantGroup(name)
	}
	var problems []Problem
	for i, role := range in.Roles {
		r, wrong := buildRole(fmt.Sprintf("roles[%d]", i), role)
		if p.rules[role.Name] != nil {
			wrong = append(wrong, Problem{fmt.Sprintf("roles[%d]", i), fmt.Sprintf("a role named %q exists already", role.Name), "another name; built in: inference, monitor, operator"})
		}
		p.rules[role.Name] = r
		problems = append(problems, wrong...)
	}
	for alias, target := range in.Aliases {
		if _, taken := p.models[alias]; taken {
			problems = append(problems, Problem{"aliases." + alias, fmt.Sprintf("%q is a served model itself", alias), "a name that no upstream serves"})
		}
		if _, chained := in.Aliases[target]; chained {
			problems = append(problems, Problem{"aliases." + alias, fmt.Sprintf("%q is an alias itself", target), "a served model's name"})
		}
	}
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(a, b Problem) int { return cmp.Compare(a.Where, b.Where) })
		return nil, problems
	}
	return p, nil
}

func (r *rule) add(id string) {
	op, ok := vllm.ByID(id)
	if !ok || op.Grant == vllm.Never {
		return
	}
	r.operations[id] = true
	r.usesModels = r.usesModels || op.Model
}

func buildRole(where string, role Role) (*rule, []Problem) {
	var problems []Problem
	say := func(field, what, right string) { problems = append(problems, Problem{where + field, what, right}) }
	r := &rule{name: role.Name, operations: map[string]bool{}, models: map[string]bool{}, limits: role.Limits, maxOutput: role.MaxOutputTokens, refuseUnknown: role.RefuseUnknown}
	if role.Name == "" {
		say("", "the role has no name", "a name")
	}
	if len(role.Operations) == 0 {
		say(".operations", "grants no operation, so it can allow nothing", `operation ids or groups, such as ["@inference"]`)
	}
	for i, name := range role.Operations {
		at := fmt.Sprintf(".operations[%d]", i)
		if what, right := r.grant(name); what != "" {
			say(at, what, right)
		}
	}
	for _, m := range role.Models {
		if m == "*" {
			r.any = true
			continue
		}
		r.models[m] = true
	}
	if len(r.operations) > 0 && len(role.Models) == 0 {
		say(".models", "names no model, so its operations reach no upstream", `model names, or ["*"] for all that the upstreams serve`)
	}
	return r, problems
}

// grant adds an operation or a group to the rule, or says what is wrong with it.
func (r *rule) grant(name OperationName) (what, right string) {
	if group, ok := strings.CutPrefix(name.Name, "@"); ok {
		return r.grantGroup(group)
	}
	op, ok := vllm.ByID(name.Name)
	switch {
	case !ok:
		return fmt.Sprintf("there is no operation %q", name.Name), "an id of docs/operations.md" + nearest(name.Name)
	case op.Grant == vllm.Never:
		return fmt.Sprintf("%q cannot be granted: %s", name.Name, op.Why), "leave it out"
	case op.Grant == vllm.Acknowledged && name.Acknowledge != op.ID:
		return fmt.Sprintf("%q is granted only with an acknowledgement: %s", op.ID, op.Allows), fmt.Sprintf("{id: %s, acknowledge: %q}", op.ID, op.ID)
	case name.Acknowledge != "" && name.Acknowledge != op.ID:
		return fmt.Sprintf("acknowledge %q is not the operation's id", name.Acknowledge), op.ID
	}
	r.add(op.ID)
	return "", ""
}

func (r *rule) grantGroup(group string) (what, right string) {
	ids, members := BuiltIn[group], vllm.InGroup(vllm.Group(group))
	if ids == nil {
		for _, op := range members {
			if op.Grant == vllm.ByGroup {
				ids = append(ids, op.ID)
			}
		}
	}
	for _, id := range ids {
		r.add(id)
	}
	switch {
	case len(ids) > 0:
		return "", ""
	case len(members) > 0:
		return fmt.Sprintf("group %q cannot be granted as a whole", group), "one operation at a time, by its id, with acknowledge beside it"
	}
	return fmt.Sprintf("there is no group %q", group), "@inference, @monitor, @operator, or a group of docs/operations.md"
}

// nearest names the operation that is meant: by its path, by the end of its id, or by the longest beginning that both
// share. None when that is no likeness.
func nearest(name string) string {
	if strings.Contains(name, "*") {
		return ", each by itself, or a group"
	}
	best, shared := "", 2
	for _, op := range vllm.All() {
		n := 0
		for n < len(op.ID) && n < len(name) && op.ID[n] == name[n] {
			n++
		}
		switch {
		case op.Grant == vllm.Never:
			continue
		case name == op.Path || name == op.Method+" "+op.Path:
			return "; nearest: " + op.ID
		case strings.HasSuffix(op.ID, "."+name):
			n = len(op.ID)
		}
		if n > shared {
			best, shared = op.ID, n
		}
	}
	if best == "" {
		return ""
	}
	return "; nearest: " + best
}
