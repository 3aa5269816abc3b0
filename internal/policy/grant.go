package policy

import (
	"fmt"
	"strings"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Grant is the permission to send one request upstream. Only Decide makes a valid one; the zero Grant is not valid,
// and forward sends nothing without a valid one.
type Grant struct {
	valid    bool
	who      identity.Principal
	op       *vllm.Operation
	segments []string
	model    string
	asked    string
	upstream string
	rule     string
	stream   bool
	edits    []Edit
	cost     cost
	injected bool
	audio    bool
	hazards  []Hazard
}

// Valid reports whether a policy made this grant.
func (g Grant) Valid() bool { return g.valid }

// Who is the principal that it was given to.
func (g Grant) Who() identity.Principal { return g.who }

// Operation is what is granted; nil in the zero Grant.
func (g Grant) Operation() *vllm.Operation { return g.op }

// Method is the method to send: the catalogue's literal, never the caller's bytes.
func (g Grant) Method() string { return g.op.Method }

// Path is the path to send: the catalogue's literal, with the checked segments in the places of a template.
func (g Grant) Path() string {
	path, segments := g.op.Path, g.segments
	for strings.Contains(path, "{") && len(segments) > 0 {
		open, shut := strings.IndexByte(path, '{'), strings.IndexByte(path, '}')
		path, segments = path[:open]+segments[0]+path[shut+1:], segments[1:]
	}
	return path
}

// Model is the model that the upstream is asked for; "" when the operation has none.
func (g Grant) Model() string { return g.model }

// Asked is the name that the caller used, which the reply repeats: an alias, or the model itself.
func (g Grant) Asked() string { return g.asked }

// Upstream is the name of the one upstream that may answer; "" when any that serves the model may.
func (g Grant) Upstream() string { return g.upstream }

// Rule names the role that granted it.
func (g Grant) Rule() string { return g.rule }

// Stream reports whether the answer is to be a stream.
func (g Grant) Stream() bool { return g.stream }

// Edits are the named changes of the body. A cache_salt edit has no value: the gateway, which holds the secret, fills
// it in. The slice must not be changed.
func (g Grant) Edits() []Edit { return g.edits }

// UsageInjected reports whether usage is asked of the upstream although the caller did not ask for it.
func (g Grant) UsageInjected() bool { return g.injected }

// Picky reports whether some releases may not have the request.
func (g Grant) Picky() bool { return len(g.hazards) > 0 }

// For refuses the request for a server of a release that a field of it would harm: the operator reads the advisory.
func (g Grant) For(r vllm.Release) verdict.Verdict {
	for _, h := range g.hazards {
		if h.In(r, g.audio) {
			return verdict.Refuse(verdict.ForbiddenParameter, fmt.Errorf("field %q on vLLM %s: %s", h.Pointer, r, h.Field.Why)).
				At(h.Pointer).Saying("%q: the model server's release may not be given it.", h.Pointer)
		}
	}
	return verdict.Allow()
}
