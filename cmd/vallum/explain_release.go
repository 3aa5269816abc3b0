package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon/screen"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// gate is a rule of a field that stands on the release of the server which gets the request.
type gate struct {
	Pointer  string       `json:"pointer"`  // the field
	Affected string       `json:"affected"` // the releases that may not get it, in words
	Until    string       `json:"until"`    // the first release that may again
	Why      string       `json:"why"`      // the advisory
	Servers  []gateAnswer `json:"servers"`  // those that serve the model
}

// gateAnswer is what a gate says of one server.
type gateAnswer struct {
	Name    string `json:"name"`
	Release string `json:"release"` // "unknown" when nobody has told it
	May     bool   `json:"may"`
}

// gated adds to an allowed request what hangs on its server's release, and takes the permission back where no server may
// have it, as the gateway's picker would.
func gated(e answer, f policy.Facts, upstreams []config.Upstream) answer {
	var hazards []policy.Hazard
	for _, h := range f.Hazards {
		if f.Audio || !h.Field.Affected.WithAudio {
			hazards = append(hazards, h)
		}
	}
	if !e.Allowed || len(hazards) == 0 {
		return e
	}
	fit, needs := 0, newest(hazards)
	e.Gates = gates(hazards, f.Audio)
	for _, u := range upstreams {
		if !slices.Contains(u.Models, e.Model) {
			continue
		}
		release, _ := vllm.ParseRelease(u.Release) // checked; "" is not known
		may := true
		for i, h := range hazards {
			harmed := h.In(release, f.Audio)
			e.Gates[i].Servers = append(e.Gates[i].Servers, gateAnswer{u.Name, release.String(), !harmed})
			may = may && !harmed
		}
		if may {
			fit++
		} else {
			e.ToAllow = append(e.ToAllow, upgrade(u.Name, release, needs))
		}
	}
	if fit > 0 {
		return e
	}
	reason := verdict.ForbiddenParameter
	e.Allowed, e.Reason, e.Message = false, reason.String(), reason.Sentence()
	for _, h := range hazards {
		e.ToAllow = append(e.ToAllow, fmt.Sprintf("or leave %q out of the request", h.Pointer))
	}
	return e
}

func gates(hazards []policy.Hazard, audio bool) []gate {
	var all []gate
	for _, h := range hazards {
		a := h.Field.Affected
		words := "before " + a.Until
		if a.From != "" {
			words = "from " + a.From + " to " + words
		}
		if a.WithAudio && audio {
			words += ", beside sound"
		}
		if a.With != "" {
			words += ", beside " + a.With
		}
		all = append(all, gate{Pointer: h.Pointer, Affected: words, Until: a.Until, Why: h.Field.Why})
	}
	return all
}

// newest is the first release that may have all of the fields.
func newest(hazards []policy.Hazard) vllm.Release {
	var needs vllm.Release
	for _, h := range hazards {
		if r, err := vllm.ParseRelease(h.Field.Affected.Until); err == nil && r.Compare(needs) > 0 {
			needs = r
		}
	}
	return needs
}

// upgrade says what would let a server have the request.
func upgrade(name string, is, needs vllm.Release) string {
	if !is.Known() {
		return fmt.Sprintf("the release of upstream %q is not known here, which counts as harmed: a running gateway asks the server, and one that does not tell it needs release: in vallum.yaml (%s or newer may have the request)", name, needs)
	}
	return fmt.Sprintf("upgrade upstream %q from vLLM %s to %s or newer", name, is, needs)
}

// tellGates prints what stands on the release of the server that gets the request.
func (s streams) tellGates(gates []gate) {
	const column = 19
	indent := strings.Repeat(" ", column)
	for _, g := range gates {
		fmt.Fprintf(s.out, "  release          %s: not for vLLM %s\n", g.Pointer, g.Affected)
		for _, line := range []string{g.Why, g.those(true, "may have it"), g.those(false, "may not have it")} {
			if line != "" {
				fmt.Fprintf(s.out, "%s%s\n", indent, screen.Wrap(line, indent, column, screenColumns))
			}
		}
	}
}

// those names the upstreams of one answer, each with its release; "" when there are none.
func (g gate) those(may bool, words string) string {
	var names []string
	for _, one := range g.Servers {
		if one.May == may {
			names = append(names, fmt.Sprintf("%s (vLLM %s)", one.Name, one.Release))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return words + ": " + strings.Join(names, ", ")
}
