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
	Admin           []string
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
	{vllm.Inference, "chat, responses, messages, embeddings …"},
	{vllm.InferenceUnprefix, "score, rerank, classify, pooling"},
	{vllm.Probing, "health, version; tokenize by its id"},
	{vllm.Metrics, "vLLM's /metrics"},
	{vllm.Control, "pause, resume, scaling"},
	{vllm.LoRA, "loading and unloading adapters"},
	{vllm.TokenizerInfo, "the chat template"},
	{vllm.Development, "weights, RPC into workers, sleep"},
	{vllm.Profiler, "start and stop profiling"},
	{vllm.Documentation, "docs, openapi.json"},
	{vllm.Plugin, "scale-out routes, other servers"},
}

// maxScreenModels bounds the list of models: a server may have hundreds of adapters.
const maxScreenModels = 6

// writeScreen says on one screen what is open and what is not, and the line that changes it. It fits 100 columns, but
// for long names.
func writeScreen(w io.Writer, s *snapshot, f screenFacts) {
	fmt.Fprintf(w, "vallum: open to clients at %s\n\n", strings.Join(f.Clients, ", "))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, st := range s.picker.set.States() {
		fmt.Fprintf(t, "  upstream\t%s\t%s\n", st.Name, wordsOf(st.Alive, st.Version, st.Problem, len(st.Models)))
		for i, m := range st.Models {
			if i == maxScreenModels {
				fmt.Fprintf(t, "  \tand %d more\t\n", len(st.Models)-i)
				break
			}
			fmt.Fprintf(t, "  model\t%s\t%s\n", m.Name, contextWords(m.MaxModelLen))
		}
	}
	fmt.Fprintf(t, "  probes\t%s\t\n", orNone(strings.Join(f.Probes, ", ")))
	if len(f.Admin) > 0 {
		fmt.Fprintf(t, "  admin\t%s\t\n", strings.Join(f.Admin, ", "))
	}
	fmt.Fprintf(t, "  state\t%s\tkeys; records in audit/\n\n", f.State)
	_ = t.Flush()
	for _, warning := range warnings(s) {
		fmt.Fprintf(w, "  WARNING %s\n\n", warning)
	}
	fmt.Fprintln(t, "  SURFACE\tOPEN TO\tOPENED BY\tWHAT IT IS")
	for _, surface := range surfaces {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", surface.group, whoHas(s.gateway.Policy, f.Keys, surface.group), openedBy(surface.group), surface.what)
	}
	_ = t.Flush()
	state := stateFlag(f.State)
	fmt.Fprintf(w, "\n  to open by a role:  vallum keys create --name NAME --role ROLE%s\n", state)
	fmt.Fprintln(w, "  by its id:          in vallum.yaml, in a role: operations: [tokenizer.info]")
	fmt.Fprintln(w, "  by acknowledgement: the same, one at a time: [{id: server.info, acknowledge: server.info}]")
	fmt.Fprintf(w, "\n  All else is refused. Every request is recorded: vallum log show%s\n", state)
	f.writeFirstKey(w)
}

// writeFirstKey shows the key that was made, or its file, and a line that uses it.
func (f screenFacts) writeFirstKey(w io.Writer) {
	if f.FirstKey == "" {
		return
	}
	key := f.FirstKey
	if f.Terminal {
		fmt.Fprintf(w, "\n  first key, role inference, shown this once:\n  %s\n", f.FirstKey)
	} else {
		fmt.Fprintf(w, "\n  the first key, role inference, is in %s\n", f.FirstKey)
		key = "$(cat " + f.FirstKey + ")"
	}
	if len(f.Clients) > 0 && strings.HasPrefix(f.Clients[0], "http://") {
		fmt.Fprintf(w, "  curl %s/v1/models \\\n    -H \"Authorization: Bearer %s\"\n", f.Clients[0], key)
	}
}

// stateFlag is what `vallum` has to be told when the state is not where it looks by itself.
func stateFlag(state string) string {
	if dir, err := StateDir(); err == nil && dir == state {
		return ""
	}
	return " --state " + state
}

// warnings are what is not safe: what the upstreams showed, and what the configuration was told to allow.
func warnings(s *snapshot) []string {
	var list []string
	for _, st := range s.picker.set.States() {
		if st.Warning != "" {
			list = append(list, "upstream "+st.Name+": "+st.Warning)
		}
	}
	for _, l := range s.conf.Listen {
		if l.Insecure {
			list = append(list, "listener "+l.Address+": insecure_plain_http: keys and prompts may cross the network in clear")
		}
	}
	for _, u := range s.conf.Upstreams {
		if u.SharedCache {
			list = append(list, "upstream "+u.Name+": insecure_shared_prefix_cache: a tenant can tell another's prompts from timing")
		}
	}
	if s.conf.Errors == "pass" {
		list = append(list, "upstream_errors: pass: callers read vLLM's own error texts, which may hold paths and input")
	}
	return list
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

// whoHas names the live keys that can do anything of the group, and how many of its operations when not all.
func whoHas(p *policy.Policy, keys []holder, g vllm.Group) string {
	var names []string
	for _, k := range keys {
		if slices.ContainsFunc(k.roles, func(role string) bool { return grantsAny(p, role, g) }) {
			names = append(names, k.name)
		}
	}
	grantable, granted := 0, 0
	for _, op := range vllm.InGroup(g) {
		if op.Grant == vllm.Never {
			continue
		}
		grantable++
		if slices.ContainsFunc(keys, func(k holder) bool {
			return slices.ContainsFunc(k.roles, func(role string) bool { return p.Grants(role, op.ID) })
		}) {
			granted++
		}
	}
	who := strings.Join(names, ", ")
	switch {
	case len(names) == 0:
		return "nobody"
	case len(names) > 2:
		who = fmt.Sprintf("%d keys", len(names))
	}
	if granted < grantable {
		who += fmt.Sprintf(" (%d of %d)", granted, grantable)
	}
	return who
}

func grantsAny(p *policy.Policy, role string, g vllm.Group) bool {
	return slices.ContainsFunc(vllm.InGroup(g), func(op *vllm.Operation) bool { return p.Grants(role, op.ID) })
}

// openedBy names the built-in role that grants most of a group, or how else its operations are granted.
func openedBy(g vllm.Group) string {
	best, most := "", 0
	for _, role := range []string{"inference", "monitor", "operator"} {
		n := 0
		for _, id := range policy.BuiltIn[role] {
			if op, ok := vllm.ByID(id); ok && op.Group == g {
				n++
			}
		}
		if n > most {
			best, most = "role "+role, n
		}
	}
	if best != "" {
		return best
	}
	for _, op := range vllm.InGroup(g) {
		switch op.Grant {
		case vllm.Acknowledged:
			return "acknowledgement"
		case vllm.ByGroup, vllm.IDOnly:
			return "its id"
		}
	}
	return "nothing"
}
