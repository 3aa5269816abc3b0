// Package screen is what a gateway says to people when it starts: what is open, to whom, and the line that changes it.
// It refuses to leave out a warning; it only tells, and decides nothing.
package screen

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/upstream"
	"github.com/vallum/vallum/internal/vllm"
)

// Holder is a live key, as the screen counts it.
type Holder struct {
	Name  string
	Roles []string
}

// Facts are what the screen says.
type Facts struct {
	Config          *config.Config
	Policy          *policy.Policy
	Upstreams       []upstream.State
	Clients, Probes []string // URLs
	Admin           []string
	State           string // the state directory
	StateFlag       string // what `vallum keys` has to be told of it: " --state DIR", or "" when it looks there by itself
	FirstKey        string // the key itself on a terminal, otherwise the path of its file; "" when none was made
	Terminal        bool
	Keys            []Holder
}

// surfaces are the security guide's groups in the order of the screen, each with what is behind it.
var surfaces = []struct {
	group vllm.Group
	what  string
}{
	{vllm.Inference, "chat, embeddings, audio"},
	{vllm.InferenceUnprefix, "score, rerank, pooling"},
	{vllm.Probing, "health; tokenize by id"},
	{vllm.Metrics, "vLLM's /metrics"},
	{vllm.Control, "pause, resume, scaling"},
	{vllm.LoRA, "loading of adapters"},
	{vllm.TokenizerInfo, "the chat template"},
	{vllm.Development, "weights, RPC, sleep"},
	{vllm.Profiler, "start, stop profiling"},
	{vllm.Documentation, "docs, openapi.json"},
	{vllm.Plugin, "scale-out routes"},
}

// The screen is made for a terminal that nobody has widened, and for servers that may have hundreds of adapters.
const (
	screenColumns   = 80
	maxHolder       = 17 // columns of "first (15 of 16)"
	maxScreenModels = 6

	maxScreenUpstreams = 4
)

// Write says on one screen what is open and what is not, and the line that changes it.
func Write(w io.Writer, f Facts) {
	fmt.Fprintf(w, "vallum: open to clients at %s\n\n", strings.Join(f.Clients, ", "))
	field := func(name, text string) {
		fmt.Fprintf(w, "  %-10s%s\n", name, Wrap(text, strings.Repeat(" ", 12), 12, screenColumns))
	}
	shown, rest := fold(f.Upstreams)
	for _, st := range shown {
		field("upstream", st.Name+": "+wordsOf(st))
	}
	if len(rest) > 0 {
		field("", more(rest))
	}
	field("probes", orNone(strings.Join(f.Probes, ", ")))
	if len(f.Admin) > 0 {
		field("admin", strings.Join(f.Admin, ", "))
	}
	fmt.Fprintf(w, "  state     %s (keys; records in audit/)\n\n", f.State)
	for _, warning := range warnings(f) {
		fmt.Fprintf(w, "  WARNING %s\n\n", Wrap(warning, "  ", 10, screenColumns))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  SURFACE\tOPEN TO\tOPENED BY\tWHAT IT IS")
	for _, surface := range surfaces {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", surface.group, whoHas(f.Policy, f.Keys, surface.group), openedBy(surface.group), surface.what)
	}
	_ = t.Flush()
	fmt.Fprintf(w, "\n  OPENED BY    HOW\n  role ROLE    vallum keys create --name NAME --role ROLE%s\n", f.StateFlag)
	fmt.Fprintln(w, "  its id       in vallum.yaml, in a role: operations: [tokenizer.info]")
	fmt.Fprintln(w, "  acknowledge  there too: [{id: server.info, acknowledge: server.info}]")
	fmt.Fprintf(w, "\n  All else is refused. Every request is recorded:\n  vallum log show%s\n", f.StateFlag)
	f.writeFirstKey(w)
}

// fold parts the upstreams into those that have a line of their own and the others.
func fold(all []upstream.State) (shown, rest []upstream.State) {
	if len(all) <= maxScreenUpstreams {
		return all, nil
	}
	return all[:maxScreenUpstreams-1], all[maxScreenUpstreams-1:]
}

// more is what is said of the upstreams that have no line: how many, and the first of those that are not alive.
func more(rest []upstream.State) string {
	var dead []string
	for _, st := range rest {
		if !st.Alive {
			dead = append(dead, st.Name)
		}
	}
	text := fmt.Sprintf("and %d more", len(rest))
	if n := len(dead); n > maxScreenUpstreams {
		dead = append(dead[:maxScreenUpstreams-1], fmt.Sprintf("%d others", n-maxScreenUpstreams+1))
	}
	if len(dead) > 0 {
		text += ", of which not alive: " + strings.Join(dead, ", ")
	}
	return text + "; vallum check --print lists them, /readyz says how they are"
}

// Wrap breaks a text between words into lines of at most that many columns, where its words allow it. The first line
// begins at a column of the caller's, from 0; those after it begin with the indent.
func Wrap(text, indent string, at, columns int) string {
	var b strings.Builder
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > columns:
			b.WriteString("\n" + indent)
			at = utf8.RuneCountInString(indent)
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}

// writeFirstKey shows the key that was made, or its file, and a line that uses it.
func (f Facts) writeFirstKey(w io.Writer) {
	if f.FirstKey == "" {
		return
	}
	if f.Terminal {
		fmt.Fprintf(w, "\n  the first key, role inference, shown this once; and a line to try it:\n  KEY=%s\n", f.FirstKey)
	} else {
		fmt.Fprintf(w, "\n  the first key, role inference, is in %s\n", f.FirstKey)
	}
	if len(f.Clients) > 0 && strings.HasPrefix(f.Clients[0], "http://") {
		if !f.Terminal {
			fmt.Fprintf(w, "  KEY=$(cat %s)\n", f.FirstKey)
		}
		fmt.Fprintf(w, "  curl %s/v1/models -H \"Authorization: Bearer $KEY\"\n", f.Clients[0])
	}
}

// warnings are what is not safe: what the upstreams showed, and what the configuration was told to allow.
func warnings(f Facts) []string {
	var list []string
	for _, st := range f.Upstreams {
		if st.Warning != "" {
			list = append(list, "upstream "+st.Name+": "+st.Warning)
		}
	}
	for _, l := range f.Config.Listen {
		if l.Insecure {
			list = append(list, "listener "+l.Address+": insecure_plain_http: keys and prompts may cross the network in clear")
		}
	}
	for _, u := range f.Config.Upstreams {
		if u.SharedCache {
			list = append(list, "upstream "+u.Name+": insecure_shared_prefix_cache: a tenant can tell another's prompts from timing")
		}
	}
	if f.Config.Errors == "pass" {
		list = append(list, "upstream_errors: pass: callers read vLLM's own error texts, which may hold paths and input")
	}
	return append(list, Unserved(f.Config, f.Upstreams)...)
}

// Unserved are the models of roles and aliases that no upstream serves: a name mistyped, or a server that was started with
// another one. Nothing is said while an upstream has not told what it serves.
func Unserved(conf *config.Config, states []upstream.State) []string {
	served := map[string]bool{}
	for _, st := range states {
		if !st.Alive {
			return nil
		}
		for _, m := range st.Models {
			served[m.Name] = true
		}
	}
	var list []string
	say := func(who, model string) {
		if model != "*" && !served[model] && conf.Aliases[model] == "" {
			list = append(list, fmt.Sprintf("%s: no upstream serves %q; served: %s", who, model, strings.Join(slices.Sorted(maps.Keys(served)), ", ")))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(conf.Roles)) {
		for _, model := range conf.Roles[name].Models {
			say("role "+name, model)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(conf.Aliases)) {
		say("alias "+name, conf.Aliases[name])
	}
	return list
}

func wordsOf(st upstream.State) string {
	if !st.Alive {
		return "not alive: " + st.Problem
	}
	var models []string
	for i, m := range st.Models {
		if i == maxScreenModels {
			models = append(models, fmt.Sprintf("and %d more", len(st.Models)-i))
			break
		}
		name := m.Name
		if m.MaxModelLen > 0 {
			name += fmt.Sprintf(" (%d tokens)", m.MaxModelLen)
		}
		models = append(models, name)
	}
	version := st.Version
	if st.Assumed {
		version += " as the configuration says"
	}
	return fmt.Sprintf("alive, vLLM %s, serves %s", version, orNone(strings.Join(models, ", ")))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// whoHas names the live keys that can do anything of the group, and how many of its operations when not all.
func whoHas(p *policy.Policy, keys []Holder, g vllm.Group) string {
	var names []string
	for _, k := range keys {
		if slices.ContainsFunc(k.Roles, func(role string) bool { return grantsAny(p, role, g) }) {
			names = append(names, k.Name)
		}
	}
	grantable, granted := 0, 0
	for _, op := range vllm.InGroup(g) {
		if op.Grant == vllm.Never {
			continue
		}
		grantable++
		if slices.ContainsFunc(keys, func(k Holder) bool {
			return slices.ContainsFunc(k.Roles, func(role string) bool { return p.Grants(role, op.ID) })
		}) {
			granted++
		}
	}
	if len(names) == 0 {
		return "nobody"
	}
	some := ""
	if granted < grantable {
		some = fmt.Sprintf(" (%d of %d)", granted, grantable)
	}
	if who := strings.Join(names, ", ") + some; len(who) <= maxHolder {
		return who
	}
	return fmt.Sprintf("%d key(s)%s", len(names), some)
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
			return "acknowledge"
		case vllm.ByGroup, vllm.IDOnly:
			return "its id"
		}
	}
	return "nothing"
}
