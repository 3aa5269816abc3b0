package vllm

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	idForm   = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)
	pathForm = regexp.MustCompile(`^(/([A-Za-z0-9_.-]+|\{[a-z_]+\}|\*))+$`)
)

func TestOperationsAreWhole(t *testing.T) {
	type place struct{ server, method, path string }
	seen := map[place]string{}
	for _, op := range All() {
		at := place{op.Server, op.Method, op.Path}
		if other := seen[at]; other != "" {
			t.Errorf("%s and %s are both %v", other, op.ID, at)
		}
		seen[at] = op.ID
		for what, wrong := range map[string]bool{
			"id":                               !idForm.MatchString(op.ID),
			"path":                             !pathForm.MatchString(op.Path),
			"method":                           !slices.Contains([]string{"GET", "HEAD", "POST", "DELETE", "WEBSOCKET", "ANY"}, op.Method),
			"method ANY is for mounts":         op.Method == "ANY" && !op.Mount,
			"wildcards are mounts":             strings.Contains(op.Path, "*") && !op.Mount,
			"group":                            !slices.Contains(Groups(), op.Group),
			"request":                          !slices.Contains([]BodyKind{NoBody, JSONBody, FormBody}, op.Request),
			"response":                         !slices.Contains([]ReplyKind{EmptyReply, JSONReply, TextReply, BytesReply}, op.Response),
			"dialect":                          !slices.Contains([]Dialect{OpenAI, Anthropic, Responses}, op.Dialect),
			"grant":                            !slices.Contains([]Grantable{Never, ByGroup, IDOnly, Acknowledged}, op.Grant),
			"never needs a why, others none":   (op.Grant == Never) != (op.Why != ""),
			"allows: one sentence":             !strings.HasSuffix(op.Allows, ".") || strings.Contains(op.Allows, ". "),
			"opens is needed, unless ours":     (len(op.Opens) == 0) != op.Ours,
			"guarded is needed, unless ours":   (len(op.Guarded) == 0) != op.Ours,
			"ours is answered":                 op.Ours && !op.Answered,
			"a model needs a body":             op.Model && op.Request == NoBody && op.Method != "WEBSOCKET",
			"a mount is never granted":         op.Mount && op.Grant != Never,
			"another server is never granted":  op.Server != "" && op.Grant != Never,
			"a WebSocket is never granted":     op.Method == "WEBSOCKET" && op.Grant != Never,
			"development is acknowledged":      (op.Group == Development || op.Group == Profiler) != (op.Grant == Acknowledged),
			"documentation is never granted":   op.Group == Documentation && op.Grant != Never,
			"scale-out is never granted":       op.Group == Plugin && op.Grant != Never,
			"a salt needs a JSON body":         op.Salt != "" && op.Request != JSONBody,
			"a GET or DELETE takes no body":    op.Request != NoBody && op.Method != "POST",
			"what is answered is not streamed": op.Answered && op.Streams,
		} {
			if wrong {
				t.Errorf("%s: %s", op.ID, what)
			}
		}
		rangesAreWhole(t, op)
	}
}

func rangesAreWhole(t *testing.T, op *Operation) {
	t.Helper()
	bounds := []string{op.Since, op.Until, op.Salt}
	var froms, tos []string
	for i, o := range op.Opens {
		froms, tos = append(froms, o.From), append(tos, o.To)
		if i > 0 && o.Condition == op.Opens[i-1].Condition {
			t.Errorf("%s: two ranges with one condition", op.ID)
		}
	}
	ordered(t, op.ID+" opens", froms, tos)
	bounds = append(append(bounds, froms...), tos...)
	froms, tos = nil, nil
	for _, g := range op.Guarded {
		froms, tos = append(froms, g.From), append(tos, g.To)
	}
	ordered(t, op.ID+" guarded", froms, tos)
	bounds = append(append(bounds, froms...), tos...)
	for _, b := range bounds {
		if _, err := ParseRelease(b); b != "" && err != nil {
			t.Errorf("%s: %v", op.ID, err)
		}
	}
}

// ordered asserts that ranges rise, and that only the last may be open.
func ordered(t *testing.T, name string, froms, tos []string) {
	t.Helper()
	last := Release{}
	for i := range froms {
		from, err := ParseRelease(froms[i])
		if err != nil || from.Compare(last) <= 0 {
			t.Errorf("%s: range %d begins at %q, not after the one before", name, i, froms[i])
		}
		last = from
		if to, err := ParseRelease(tos[i]); err == nil {
			if to.Compare(from) < 0 {
				t.Errorf("%s: range %d ends before it begins", name, i)
			}
			last = to
		} else if i < len(froms)-1 {
			t.Errorf("%s: range %d has no end", name, i)
		}
	}
}

// What no role can ever hold, by name: removing one of these is a decision, not a slip.
func TestNeverGranted(t *testing.T) {
	for _, id := range []string{
		"invocations.create", "inference.generate", "inference.abort", "responses.retrieve", "responses.cancel",
		"realtime.connect", "cohere.chat", "cohere.render", "chat.render", "chat.derender", "completions.render",
		"completions.derender", "responses.render", "messages.render", "docs.swagger", "docs.redoc", "openapi.read",
		"kv_events.sources", "metrics.mount", "docs.static",
	} {
		if op, ok := ByID(id); !ok || op.Grant != Never || op.Why == "" {
			t.Errorf("%s: found %v, want an operation that is never granted, with a why", id, ok)
		}
	}
}

// A group grants nothing of the kind that has to be asked for one at a time.
func TestGroups(t *testing.T) {
	for _, g := range []Group{Development, Profiler} {
		if len(InGroup(g)) == 0 {
			t.Errorf("group %s is empty", g)
		}
		for _, op := range InGroup(g) {
			if op.Grant != Acknowledged {
				t.Errorf("%s of group %s is granted by %q, want %q", op.ID, g, op.Grant, Acknowledged)
			}
		}
	}
	total := 0
	for _, g := range Groups() {
		total += len(InGroup(g))
	}
	if total != len(All()) || len(InGroup("")) != 0 || len(InGroup("everything")) != 0 {
		t.Errorf("the groups hold %d operations, want all %d and none without a group", total, len(All()))
	}
	if !slices.IsSortedFunc(All(), func(a, b *Operation) int { return strings.Compare(a.ID, b.ID) }) {
		t.Error("All is not sorted by id")
	}
	if _, ok := ByID("chat"); ok {
		t.Error("ByID found an id that does not exist")
	}
}

// A misspelt member must not read as its zero value: "guraded" would say that nothing is guarded.
func TestDecodeRefuses(t *testing.T) {
	for _, raw := range []string{
		`[{"id":"a.b","guraded":[]}]`,
		`[{"id":"a.b","method":"GET","path":"/a"},{"id":"a.b","method":"GET","path":"/b"}]`,
		`[{"id":"a.b","method":"GET","path":"/a"},{"id":"a.c","method":"GET","path":"/a"}]`,
		`[{"id":"a.b"}] x`,
	} {
		if _, err := decode([]byte(raw)); err == nil {
			t.Errorf("decode(%s) succeeded", raw)
		}
	}
}
