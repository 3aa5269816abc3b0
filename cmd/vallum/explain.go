package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/urlpath"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// question is what `vallum explain` is asked.
type question struct {
	config, state, key, model, body, record string
	roles                                   []string
	asJSON                                  bool
}

func newExplain(s streams) *cobra.Command {
	var q question
	c := &cobra.Command{
		Use:   "explain METHOD PATH | --record ID",
		Short: "Says which rule decides a request, and what would change that",
		Long: "Answers from the configuration that the running gateway left in its state directory, with the models and releases that\n" +
			"it found, or from --config. Some fields stand on the server's release: --body says which, and what to upgrade. Exit\n" +
			"code 0 is allowed, 1 is refused, also of a record.",
		Example: "  vallum explain POST /v1/chat/completions --key-name app --model llama-3-8b\n" +
			"  vallum explain --record req_3mp2k...",
		Args: cobra.MaximumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := q.stateOfConfig(s.in); err != nil {
				return err
			}
			switch {
			case q.record != "" && len(args) == 0:
				return s.explainRecord(c.Context(), q)
			case q.record == "" && len(args) == 2:
				return s.explainRequest(c.Context(), q, args[0], args[1])
			}
			return usagef("give a method and a path, or --record ID\nhint: vallum explain POST /v1/chat/completions --key-name app --model MODEL")
		},
	}
	c.Flags().StringVar(&q.config, "config", "", "the configuration (default: the one that the gateway uses, as it left it in the state directory)")
	c.Flags().StringVar(&q.key, "key-name", "", "name or id of the key")
	c.Flags().StringSliceVar(&q.roles, "role", nil, "roles, instead of a key")
	c.Flags().StringVar(&q.model, "model", "", "the model that is asked for")
	c.Flags().StringVar(&q.body, "body", "", "file with the request's body; - for standard input")
	c.Flags().StringVar(&q.record, "record", "", "id of a record: the X-Request-Id of an answer")
	c.Flags().BoolVar(&q.asJSON, "json", false, "as JSON")
	stateFlag(c, &q.state)
	return c
}

func (s streams) explainRequest(ctx context.Context, q question, method, target string) error {
	path, err := urlpath.Parse(target)
	if err != nil {
		var ways []string
		if _, path, found := strings.Cut(target, "v1/"); found && !strings.HasPrefix(target, "/") { // a URL, or a path without its slash
			ways = append(ways, fmt.Sprintf("vallum explain %s /v1/%s", method, path))
		}
		return s.tell(refusal(verdict.AmbiguousPath, fmt.Sprintf("There is %v.", err), ways...), q.asJSON)
	}
	method = strings.ToUpper(method)
	op, segments, ok := vllm.Lookup(method, path.String())
	if !ok {
		return s.tell(refusal(verdict.UnknownOperation, verdict.UnknownOperation.Sentence(), meant(method, path.String())...), q.asJSON)
	}
	who, err := q.principal(ctx)
	if err != nil {
		return err
	}
	p, upstreams, err := q.policy(s.in)
	if err != nil {
		return err
	}
	facts := policy.Facts{Model: q.model}
	// The gateway reads no body of a request that no rule could ever allow.
	if table, ok := vllm.FieldsOf(op.ID); ok && q.body != "" && !p.MayAttempt(who, op).Refused() {
		doc, v, err := readBody(q.body, s.in, op, table)
		if err != nil {
			return err
		}
		if v.Refused() {
			e := refusal(v.Reason(), v.Message())
			e.Operation = op.ID
			if v.Cause() != nil && !strings.Contains(e.Message, v.Cause().Error()) {
				e.Cause = v.Cause().Error()
			}
			return s.tell(e, q.asJSON)
		}
		facts = doc.Facts()
		if q.model != "" {
			facts.Model = q.model
		}
		if err := doc.Close(); err != nil {
			return err
		}
	}
	e := p.Explain(who, op, segments, facts)
	if e.Reason == verdict.BadBody.String() && facts.Model == "" && q.body == "" {
		e.ToAllow = []string{"--model NAME: the question names no model"}
	}
	told := answer{Explanation: e, Dropped: slices.Concat(facts.Dropped, facts.UnknownKeys)}
	return s.tell(gated(told, facts, upstreams), q.asJSON)
}

// answer is an explanation, with the fields of the body that do not reach vLLM, and those that not every release may get.
type answer struct {
	policy.Explanation
	Dropped []string `json:"dropped,omitempty"`
	Gates   []gate   `json:"gates,omitempty"`
}

// refusal is an answer that needed no policy.
func refusal(r verdict.Reason, message string, ways ...string) answer {
	return answer{Explanation: policy.Explanation{Reason: r.String(), Message: message, ToAllow: append(ways, r.ForOperator())}}
}

// meant names operations that are like the one asked for: another method, with /v1 before it, or without.
func meant(method, path string) []string {
	var ways []string
	for _, at := range []string{path, "/v1" + path, strings.TrimPrefix(path, "/v1")} {
		for _, m := range []string{method, "GET", "POST", "DELETE"} {
			if op, _, ok := vllm.Lookup(m, at); ok {
				ways = append(ways, fmt.Sprintf("there is %s %s (%s)", m, at, op.ID))
			}
		}
	}
	slices.Sort(ways)
	return slices.Compact(ways)
}

func readBody(name string, in io.Reader, op *vllm.Operation, table *vllm.Table) (*inspect.Doc, verdict.Verdict, error) {
	var b []byte
	var err error
	if name == "-" {
		b, err = io.ReadAll(io.LimitReader(in, inspect.Default().MaxJSONBytes+1))
	} else {
		b, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, verdict.Verdict{}, fmt.Errorf("reading the body: %w", err)
	}
	doc, v := inspect.Read(inspect.Request{Operation: op, Table: table, ContentType: []string{"application/json"}, Length: int64(len(b)), Body: bytes.NewReader(b)}, inspect.Default())
	return doc, v, nil
}

// principal is who the question is about: a key of the store, or roles.
func (q question) principal(ctx context.Context) (identity.Principal, error) {
	if len(q.roles) > 0 {
		return identity.New("(roles "+strings.Join(q.roles, ", ")+")", "none", "", q.roles), nil
	}
	if q.key == "" {
		return identity.Nobody, usagef("whose request is it?\nhint: --key-name NAME of a key, or --role ROLE")
	}
	who := identity.Nobody
	err := withKeys(ctx, q.state, func(st *store.Store) error {
		keys, err := st.ListKeys(ctx)
		if err != nil {
			return err
		}
		now, gone := time.Now(), ""
		for _, k := range keys {
			switch {
			case k.ID != q.key && k.Name != q.key:
			case k.ID == q.key || k.Live(now):
				who = k.Principal()
			default:
				gone = ": it is " + stateWord(k, now)
			}
		}
		if who.IsNobody() {
			return fmt.Errorf("no live key is called %q%s\nhint: vallum keys list --all", q.key, gone)
		}
		return nil
	})
	return who, err
}

// stateOfConfig finds the keys and records where the configuration that is named says that they are.
func (q *question) stateOfConfig(in io.Reader) error {
	if q.config == "" || q.config == "-" || q.state != "" {
		return nil
	}
	conf, err := readConfig(q.config, in)
	if err != nil {
		return err
	}
	q.state = conf.State
	return nil
}

// policy is the one that the gateway uses: of the file that is named, or of the effective configuration that a running
// gateway leaves in its state directory, in which the models and the releases stand that it found.
func (q question) policy(in io.Reader) (*policy.Policy, []config.Upstream, error) {
	file := q.config
	if file == "" {
		state, err := stateOrDefault(q.state)
		if err != nil {
			return nil, nil, err
		}
		file = filepath.Join(state, daemon.EffectiveFile)
	}
	conf, err := readConfig(file, in)
	if errors.Is(err, os.ErrNotExist) && q.config == "" {
		return nil, nil, fmt.Errorf("no gateway has left its configuration in %s\nhint: --state DIR names the gateway's state directory, or --config FILE a configuration", file)
	}
	if err != nil {
		return nil, nil, err
	}
	_, rules := conf.Rules(nil)
	p, problems := policy.Build(rules)
	if len(problems) > 0 {
		return nil, nil, fmt.Errorf("%s: %s", problems[0].Where, problems[0].What)
	}
	return p, conf.Upstreams, nil
}

// tell prints an explanation: the answer first, its grounds, then what would change it.
func (s streams) tell(e answer, asJSON bool) error {
	if asJSON {
		if err := s.printJSON(e); err != nil {
			return err
		}
	} else if e.Allowed {
		fmt.Fprintf(s.out, "allowed: %s by the role %s\n", e.Operation, e.Rule)
		if e.Model != "" {
			fmt.Fprintf(s.out, "  model            %s\n", e.Model)
		}
		if len(e.Edits) > 0 {
			fmt.Fprintf(s.out, "  set by vallum    %s\n", strings.Join(e.Edits, ", "))
		}
		if len(e.Dropped) > 0 {
			fmt.Fprintf(s.out, "  dropped          %s\n", strings.Join(e.Dropped, ", "))
		}
	} else {
		fmt.Fprintf(s.out, "refused: %s\n  %s\n", e.Reason, e.Message)
		if e.Cause != "" {
			fmt.Fprintf(s.out, "  cause            %s\n", e.Cause)
		}
	}
	if !asJSON {
		for _, r := range e.Rules {
			fmt.Fprintf(s.out, "  role %-11s %s\n", r.Role, r.Why)
		}
		s.tellGates(e.Gates)
		for _, way := range e.ToAllow {
			s.hint("%s", way)
		}
	}
	if !e.Allowed {
		return errNo
	}
	return nil
}

func (s streams) explainRecord(ctx context.Context, q question) error {
	dir, err := recordsDir(q.state, nil)
	if err != nil {
		return err
	}
	records, err := audit.Find(dir, q.record)
	if errors.Is(err, audit.ErrNotFound) {
		return fmt.Errorf("no record %q: refusals before a key is known are counted, not recorded singly\nhint: vallum log show has the counts", q.record)
	}
	if err != nil {
		return err
	}
	last := records[len(records)-1]
	if q.asJSON {
		if err := s.printJSON(records); err != nil {
			return err
		}
	} else if err := s.tellRecord(ctx, q, last); err != nil {
		return err
	}
	if last.Reason != "" {
		return errNo
	}
	return nil
}

// tellRecord prints what became of a request and, where a rule refused it, what the rules of now say to it.
func (s streams) tellRecord(ctx context.Context, q question, last audit.Record) error {
	fmt.Fprintf(s.out, "%s at %s by key %s (%s) from %s\n", last.Operation, last.Time.UTC().Format(time.RFC3339), last.Principal, last.KeyID, last.Remote)
	if last.Reason == "" {
		model, end := "", "no end is recorded: it runs, or the gateway was killed"
		if last.Model != "" {
			model = " on model " + last.Model
		}
		if last.Ended != "" {
			end = "it ended: " + last.Ended
		}
		fmt.Fprintf(s.out, "allowed by the role %s%s; %s\n", last.Rule, model, end)
		return nil
	}
	reason, _ := verdict.ReasonOf(last.Reason)
	fmt.Fprintf(s.out, "refused: %s\n  %s\n", last.Reason, reason.Sentence())
	if last.Detail != "" {
		fmt.Fprintf(s.out, "  cause            %s\n", last.Detail)
	}
	op, known := vllm.ByID(last.Operation)
	if reason != verdict.NotPermitted || !known {
		s.hint("%s", reason.ForOperator())
		return nil
	}
	q.key = last.KeyID
	who, err := q.principal(ctx)
	if err != nil {
		return err
	}
	p, _, err := q.policy(s.in)
	if err != nil {
		return err
	}
	e := p.Explain(who, op, nil, policy.Facts{Model: last.Model})
	if e.Allowed {
		fmt.Fprintf(s.out, "with the configuration of now it is allowed, by the role %s\n", e.Rule)
		return nil
	}
	for _, r := range e.Rules {
		fmt.Fprintf(s.out, "  role %-11s %s\n", r.Role, r.Why)
	}
	for _, way := range e.ToAllow {
		s.hint("%s", way)
	}
	return nil
}
