package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Explanation is a decision with its grounds: which rule decided, why the others did not, and what would change it.
type Explanation struct {
	Allowed   bool         `json:"allowed"`
	Reason    string       `json:"reason,omitempty"` // the refusal's code
	Message   string       `json:"message,omitempty"`
	Cause     string       `json:"cause,omitempty"`
	Operation string       `json:"operation,omitempty"`
	Model     string       `json:"model,omitempty"` // what the upstream is asked for
	Rule      string       `json:"rule,omitempty"`  // the role that granted it
	Rules     []RuleAnswer `json:"rules"`           // what each role of the key says
	Edits     []string     `json:"edits,omitempty"`
	ToAllow   []string     `json:"to_allow,omitempty"` // changes, each of which would be one step towards allowing it
}

// RuleAnswer is what one role says to the request.
type RuleAnswer struct {
	Role   string `json:"role"`
	Grants bool   `json:"grants"`
	Why    string `json:"why"`
}

// Explain decides as Decide does, and says why. The facts are those of the body, or of the flags of `vallum explain`.
func (p *Policy) Explain(who identity.Principal, op *vllm.Operation, segments []string, f Facts) Explanation {
	grant, v := p.Decide(who, op, segments, f)
	e := Explanation{Allowed: !v.Refused(), Operation: op.ID}
	model := f.Model
	if target, ok := p.aliases[model]; ok {
		model = target
	}
	for _, role := range who.Roles() {
		e.Rules = append(e.Rules, p.answer(role, op, model))
	}
	if e.Allowed {
		e.Model, e.Rule = grant.Model(), grant.Rule()
		for _, edit := range grant.Edits() {
			e.Edits = append(e.Edits, edit.Name)
		}
		return e
	}
	e.Reason, e.Message = v.Reason().String(), v.Message()
	if v.Cause() != nil {
		e.Cause = v.Cause().Error()
	}
	e.ToAllow = p.toAllow(who, op, model, v)
	return e
}

func (p *Policy) answer(role string, op *vllm.Operation, model string) RuleAnswer {
	r := p.rules[role]
	switch {
	case r == nil:
		return RuleAnswer{role, false, "there is no such role in the configuration"}
	case !r.operations[op.ID]:
		return RuleAnswer{role, false, "does not grant the operation " + op.ID}
	case op.Model && model != "" && !r.allows(model):
		return RuleAnswer{role, false, fmt.Sprintf("grants %s, but not on the model %q", op.ID, model)}
	case op.Model && model != "" && p.models[model].Name == "":
		return RuleAnswer{role, false, fmt.Sprintf("grants %s, but no upstream serves %q", op.ID, model)}
	}
	return RuleAnswer{role, true, "grants " + op.ID}
}

// toAllow says what to change, in the words of the configuration and the command line.
func (p *Policy) toAllow(who identity.Principal, op *vllm.Operation, model string, v verdict.Verdict) []string {
	if v.Reason() != verdict.NotPermitted {
		return []string{v.Reason().ForOperator()}
	}
	if op.Grant == vllm.Never {
		return []string{fmt.Sprintf("nothing allows it: %s", op.Why)}
	}
	if op.Model && model != "" && p.models[model].Name == "" {
		return []string{fmt.Sprintf("no upstream serves %q; served: %s", model, strings.Join(p.modelsOf([]*rule{{any: true}}), ", "))}
	}
	var ways []string
	for name, ids := range BuiltIn {
		if slices.Contains(ids, op.ID) && !who.Has(name) {
			ways = append(ways, fmt.Sprintf("a key with the role %s: vallum keys create --name NAME --role %s", name, name))
		}
	}
	entry := op.ID
	if op.Grant == vllm.Acknowledged {
		entry = fmt.Sprintf("{id: %s, acknowledge: %q}", op.ID, op.ID)
	}
	for _, role := range who.Roles() {
		r := p.rules[role]
		if r == nil || BuiltIn[role] != nil {
			continue
		}
		if !r.operations[op.ID] {
			ways = append(ways, fmt.Sprintf("in vallum.yaml, roles.%s.operations: add %s", role, entry))
		}
		if op.Model && model != "" && !r.allows(model) {
			ways = append(ways, fmt.Sprintf("in vallum.yaml, roles.%s.models: add %q", role, model))
		}
	}
	if len(ways) == 0 {
		ways = append(ways, fmt.Sprintf("a role in vallum.yaml with operations: [%s], and a key that holds it", entry))
	}
	slices.Sort(ways)
	return ways
}
