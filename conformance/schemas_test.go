//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// brackets is a schema with a pattern of n brackets around a letter.
func brackets(n int) string {
	return `{"type":"string","pattern":"` + strings.Repeat("(", n) + "a" + strings.Repeat(")", n) + `"}`
}

// references is a schema of n definitions that lead from one to the next, each through so many objects.
func references(n, objects int) string {
	var b strings.Builder
	b.WriteString(`{"$ref":"#/$defs/a0","$defs":{`)
	for i := range n {
		fmt.Fprintf(&b, `"a%d":%s{"$ref":"#/$defs/a%d"}%s,`, i, strings.Repeat(`{"type":"object","properties":{"x":`, objects), i+1, strings.Repeat("}}", objects))
	}
	return b.String() + fmt.Sprintf(`"a%d":{"type":"string"}}}`, n)
}

// required is a schema of an object with n names that have to be there.
func required(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf(`"p%d"`, i)
	}
	return `{"type":"object","required":[` + strings.Join(names, ",") + `]}`
}

// schemasThatEndTheServer holds the bounds on schemas against vLLM's own code: what is refused kills the process that makes
// a grammar of it, and the worst that passes does not.
func schemasThatEndTheServer(p *report.Proof, _ *stand) {
	kill := []string{brackets(40_000), `{"type":"object","patternProperties":` + strings.Replace(strings.Replace(brackets(40_000), `"type":"string","pattern":`, "", 1), `"}`, `":{}}}`, 1), references(20_000, 1), references(1_500, 14), references(60, 28), required(60_000)}
	pass := []string{brackets(2_000), references(200, 1), references(40, 14), references(20, 28), required(4_000), `{"type":"array","minItems":1000000,"items":{"type":"integer"}}`}
	for i, said := range makeGrammars(p, append(append([]string{}, kill...), pass...)) {
		schema, killed := append(kill, pass...)[i], strings.HasPrefix(said, "died: SIGSEGV")
		if want := i < len(kill); killed != want {
			p.Errorf("%.60s… (%d bytes): vLLM %s; want it to die: %t", schema, len(schema), said, want)
		}
		for _, form := range []string{schema, quoted(schema)} {
			if v := readSchema(p, form); v.Refused() != (i < len(kill)) {
				p.Errorf("%.60s… (%d bytes): refused by Vallum: %t (%s)", form, len(form), v.Refused(), v.Message())
			}
		}
	}
}

func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func readSchema(p *report.Proof, schema string) verdict.Verdict {
	p.Helper()
	op, _ := vllm.ByID("chat.create")
	table, _ := vllm.FieldsOf(op.ID)
	body := `{"messages":[],"structured_outputs":{"json":` + schema + `}}`
	d, v := inspect.Read(inspect.Request{Operation: op, Table: table, ContentType: []string{"application/json"}, Length: int64(len(body)), Body: strings.NewReader(body)}, inspect.Default())
	if d != nil {
		if err := d.Close(); err != nil {
			p.Error(err)
		}
	}
	return v
}

// patternsThatKeepTheEngine holds the bound on what patterns count out against vLLM's first compiler, with a vocabulary of
// usual size: times are compared with each other only.
func patternsThatKeepTheEngine(p *report.Proof, _ *stand) {
	pattern := func(s string) string { return `{"type":"string","pattern":` + quoted(s) + `}` }
	usual := pattern(`^[a-z0-9]+(?:-[a-z0-9]+)*$`)
	pass := []string{pattern(`^([a-z]{1,1000}){1,30}$`), pattern(`^([a-z]{1,20}-){1,100}$`)}
	keep := []string{pattern(`^(([a-z]{1,1000}){1,1000})$`), pattern(`^(.*){1,100}$`)}
	all := append(append([]string{usual}, pass...), keep...)
	took := make([]float64, len(all))
	for i, line := range reader(p, "readers/steps.py", all) {
		if _, err := fmt.Sscan(line, &took[i]); err != nil {
			p.Fatalf("%q: %v", line, err)
		}
	}
	for i, schema := range all {
		kept := i > len(pass)
		if v := readSchema(p, schema); v.Refused() != kept {
			p.Errorf("%s: refused by Vallum: %t (%s)", schema, v.Refused(), v.Message())
		}
		if kept && took[i] < 20*took[0] {
			p.Errorf("%s keeps the engine for %.3f s at a token, a usual pattern %.3f s", schema, took[i], took[0])
		}
	}
}

// makeGrammars says what vLLM made of each schema.
func makeGrammars(p *report.Proof, schemas []string) []string {
	p.Helper()
	return reader(p, "readers/schema.py", schemas)
}

// reader gives lines to a program that reads them as vLLM does, in vLLM's venv, and returns its answer to each.
func reader(p *report.Proof, program string, lines []string) []string {
	p.Helper()
	dir, err := parts.Dir(parts.VLLM)
	if err != nil {
		p.NotRun("%v", err)
	}
	ctx, cancel := context.WithTimeout(p.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "venv", "bin", "python"), program)
	cmd.Env = []string{"HOME=" + p.TempDir(), "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "VLLM_LOGGING_LEVEL=ERROR"}
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		p.Fatalf("%v\n%s", err, &errs)
	}
	answers := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(answers) != len(lines) {
		p.Fatalf("%d answers to %d lines\n%s\n%s", len(answers), len(lines), &out, &errs)
	}
	return answers
}

// stopIDsEndTheEngine sends what ends a vLLM below 0.29: through Vallum nothing arrives, and directly it is one more way
// for a server to end, which every client and record has to tell of.
var stopIDsEndTheEngine = proof{"stop ids beside min_tokens end or hang vLLM, and do not pass: every client gets an end, every record says how", func(p *report.Proof, s *stand) {
	s.needGate(p)
	attack := attack{request: post("/v1/completions", doc{"model": s.vllm.Served, "prompt": "hello", "max_tokens": 4, "min_tokens": 2, "stop_token_ids": []int{2_000_000}})}
	for _, t := range refusedInBody {
		attack.sendThrough(p, s, t)
	}
	fault(p, s, func() error {
		// What is written beside the array ends the process at once, or leaves one that answers nothing but /health.
		ctx, cancel := context.WithTimeout(p.Context(), 20*time.Second)
		defer cancel()
		resp, err := s.holder().open(ctx, attack.request)
		switch {
		case err == nil && resp.StatusCode == http.StatusOK:
			resp.Body.Close()
			return errors.New("vLLM did not fall to it")
		case err == nil:
			resp.Body.Close()
		case ctx.Err() != nil:
			return nil
		}
		select {
		case <-s.vllm.Exited():
			return nil
		case <-time.After(time.Minute):
			return errors.New("vLLM answered with an error, and lives on")
		}
	})
}}
