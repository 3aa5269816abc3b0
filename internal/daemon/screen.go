package daemon

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// holder is a live key, as the screen counts it.
type holder struct {
	name  string
	roles []string
}

// screenFacts is what the first screen says beside the snapshot.
type screenFacts struct {
	Clients, Probes []string
	State           string
	FirstKey        string // the key itself on a terminal, otherwise the path of its file; "" when none was made
	Terminal        bool
	Keys            []holder
}

// surfaces are the security guide's groups in the order of the screen, each with what is behind it.
var surfaces = []struct {
	group vllm.Group
	what  string
}{
	{vllm.Inference, "chat, completions, responses, messages, embeddings …"},
	{vllm.InferenceUnprefix, "score, rerank, classify, pooling; /invocations"},
	{vllm.Probing, "health, version, load, tokenize"},
	{vllm.Metrics, "vLLM's /metrics"},
	{vllm.Control, "pause, resume, scaling"},
	{vllm.LoRA, "loading and unloading adapters"},
	{vllm.TokenizerInfo, "the chat template"},
	{vllm.Development, "weights, RPC into workers, server_info, sleep"},
	{vllm.Profiler, "start and stop profiling"},
	{vllm.Documentation, "docs, openapi.json"},
	{vllm.Plugin, "scale-out routes, other servers' ports"},
}

// writeScreen says on one screen what is open and what is not, and the line that changes it.
func writeScreen(w io.Writer, s *snapshot, f screenFacts) {
	fmt.Fprintf(w, "vallum: open to clients at %s\n\n", strings.Join(f.Clients, ", "))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, st := range s.picker.set.States() {
		fmt.Fprintf(t, "  upstream\t%s\t%s\n", st.Name, wordsOf(st.Alive, st.Version, st.Problem, len(st.Models)))
		for _, m := range st.Models {
			fmt.Fprintf(t, "  model\t%s\t%s\n", m.Name, contextWords(m.MaxModelLen))
		}
	}
	fmt.Fprintf(t, "  probes\t%s\t\n", orNone(strings.Join(f.Probes, ", ")))
	fmt.Fprintf(t, "  state\t%s\tkeys; records in audit/\n\n", f.State)
	_ = t.Flush()
	for _, st := range s.picker.set.States() {
		if st.Warning != "" {
			fmt.Fprintf(w, "  WARNING upstream %s: %s\n\n", st.Name, st.Warning)
		}
	}
	fmt.Fprintln(t, "  SURFACE\tOPEN TO\tWHAT IT IS\tTO OPEN IT")
	for _, surface := range surfaces {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", surface.group, whoHas(s.gateway.Policy, f.Keys, surface.group), surface.what, lineFor(surface.group))
	}
	_ = t.Flush()
	fmt.Fprintln(w, "\n  Everything that is not named here is refused. Every request is recorded: vallum log show")
	if f.FirstKey == "" {
		return
	}
	if f.Terminal {
		fmt.Fprintf(w, "\n  first key, role inference, shown this once:\n  %s\n", f.FirstKey)
		return
	}
	fmt.Fprintf(w, "\n  the first key, role inference, is in %s\n", f.FirstKey)
}

func wordsOf(alive bool, version, problem string, models int) string {
	if !alive {
		return "not alive: " + problem
	}
	return fmt.Sprintf("alive, vLLM %s, %d model(s)", version, models)
}

func contextWords(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("context of %d tokens", n)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// whoHas names the live keys that can do anything of the group.
func whoHas(p *policy.Policy, keys []holder, g vllm.Group) string {
	var names []string
	for _, k := range keys {
		if slices.ContainsFunc(k.roles, func(role string) bool { return grantsAny(p, role, g) }) {
			names = append(names, k.name)
		}
	}
	switch {
	case len(names) == 0:
		return "nobody"
	case len(names) > 2:
		return fmt.Sprintf("%d keys", len(names))
	}
	return strings.Join(names, ", ")
}

func grantsAny(p *policy.Policy, role string, g vllm.Group) bool {
	return slices.ContainsFunc(vllm.InGroup(g), func(op *vllm.Operation) bool { return p.Grants(role, op.ID) })
}

// lineFor is the line that opens a group, or why none does.
func lineFor(g vllm.Group) string {
	for _, role := range []string{"inference", "monitor", "operator"} {
		if slices.ContainsFunc(policy.BuiltIn[role], func(id string) bool { op, ok := vllm.ByID(id); return ok && op.Group == g }) {
			return "vallum keys create --role " + role
		}
	}
	for _, op := range vllm.InGroup(g) {
		switch op.Grant {
		case vllm.Acknowledged:
			return fmt.Sprintf("operations: [{id: %s, acknowledge: %s}]", op.ID, op.ID)
		case vllm.ByGroup, vllm.IDOnly:
			return fmt.Sprintf("operations: [%s] in a role", op.ID)
		}
	}
	return "nothing opens it"
}
