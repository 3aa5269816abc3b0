package main

import (
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// What stands on a server's release is said with the server, as the gateway would decide it: one server that may have the
// request is enough, and an unknown release is none.
func TestExplainSaysWhatStandsOnTheRelease(t *testing.T) {
	budget := policy.Hazard{Pointer: "/thinking_token_budget", Field: &vllm.Field{Why: "an advisory", Affected: &vllm.Affected{From: "0.21.0", Until: "0.28.0"}}}
	penalty := policy.Hazard{Pointer: "/presence_penalty", Field: &vllm.Field{Why: "another", Affected: &vllm.Affected{Until: "0.30.0", WithAudio: true}}}
	tools := policy.Hazard{Pointer: "/tools", Field: &vllm.Field{Why: "a third", Affected: &vllm.Affected{From: "0.10.0", Until: "0.10.1.1", Known: true}}}
	for name, row := range map[string]struct {
		a, b    string // releases
		f       policy.Facts
		model   string
		allowed bool
		gates   int
		servers string // of the last gate
		hints   string
	}{
		"nothing hangs on it":     {"0.27.1", "", policy.Facts{}, "m", true, 0, "", ""},
		"both may":                {"0.20.2", "0.28.0", policy.Facts{Hazards: []policy.Hazard{budget}}, "m", true, 1, "a 0.20.2 true, b 0.28.0 true", ""},
		"one may":                 {"0.27.1", "0.28.0", policy.Facts{Hazards: []policy.Hazard{budget}}, "m", true, 1, "a 0.27.1 false, b 0.28.0 true", `upgrade upstream "a" from vLLM 0.27.1 to 0.28.0 or newer`},
		"none may":                {"0.27.1", "", policy.Facts{Hazards: []policy.Hazard{budget}}, "m", false, 1, "a 0.27.1 false, b unknown false", `release of upstream "b" is not known`},
		"the field can be left":   {"0.27.1", "", policy.Facts{Hazards: []policy.Hazard{budget}}, "m", false, 1, "a 0.27.1 false, b unknown false", `leave "/thinking_token_budget" out`},
		"each may one field only": {"0.20.2", "0.27.1", policy.Facts{Audio: true, Hazards: []policy.Hazard{budget, penalty}}, "m", false, 2, "a 0.20.2 false, b 0.27.1 false", `upgrade upstream "b" from vLLM 0.27.1 to 0.30.0 or newer`},
		"not beside sound":        {"0.29.0", "0.29.0", policy.Facts{Hazards: []policy.Hazard{penalty}}, "m", true, 0, "", ""},
		"only where it is known":  {"0.10.1", "", policy.Facts{Hazards: []policy.Hazard{tools}}, "m", true, 1, "a 0.10.1 false, b unknown true", `upgrade upstream "a" from vLLM 0.10.1 to 0.10.1.1 or newer`},
		"another model's server":  {"0.32.0", "0.32.0", policy.Facts{Hazards: []policy.Hazard{budget}}, "other", false, 1, "c unknown false", `release of upstream "c" is not known`},
	} {
		t.Run(name, func(t *testing.T) {
			upstreams := []config.Upstream{{Name: "a", Models: []string{"m"}, Release: row.a}, {Name: "b", Models: []string{"m"}, Release: row.b}, {Name: "c", Models: []string{"other"}}}
			e := gated(answer{Explanation: policy.Explanation{Allowed: true, Model: row.model}}, row.f, upstreams)
			if e.Allowed != row.allowed || (e.Reason == "forbidden_parameter") == row.allowed || len(e.Gates) != row.gates {
				t.Fatalf("%+v", e)
			}
			if row.gates > 0 {
				var said []string
				for _, s := range e.Gates[row.gates-1].Servers {
					may := " false"
					if s.May {
						may = " true"
					}
					said = append(said, s.Name+" "+s.Release+may)
				}
				if got := strings.Join(said, ", "); got != row.servers {
					t.Errorf("%s; want %s", got, row.servers)
				}
			}
			if hints := strings.Join(e.ToAllow, "\n"); !strings.Contains(hints, row.hints) || (hints == "") != (row.hints == "") {
				t.Errorf("hints %q", hints)
			}
		})
	}
	if e := gated(answer{}, policy.Facts{Hazards: []policy.Hazard{budget}}, nil); e.Allowed || len(e.Gates) > 0 || len(e.ToAllow) > 0 {
		t.Errorf("a refusal for another reason: %+v", e)
	}
}
