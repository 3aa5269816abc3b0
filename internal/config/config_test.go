package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vallum/vallum/internal/golden"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const right = `
version: 1
listen:
  - address: 0.0.0.0:8443
    tls: {certificate: tls.crt, key: tls.key}
probes: 0.0.0.0:9090
admin: unix:/run/vallum/admin.sock
state: /var/lib/vallum
upstreams:
  - name: llama
    url: unix:/run/vllm/llama.sock
    key_file: /run/secrets/vllm
    models: [llama-3-8b]
aliases: {gpt-4o-mini: llama-3-8b}
roles:
  chat-team:
    operations: [chat.create, responses.create, models.list]
    models: [llama-3-8b]
    limits: {requests_per_minute: 600, burst: 50, concurrent: 16, tokens_per_minute: 200_000}
audit: {sync: interval, retain: 90d}
`

func TestParseReadsTheIllustration(t *testing.T) {
	c, err := Parse("vallum.yaml", []byte(right))
	if err != nil {
		t.Fatal(told(err))
	}
	if c.Roles["chat-team"].Limits.TokensPerMinute != 200_000 || c.Audit.Retain.String() != "90d" || c.Bodies.MaxJSON != 8<<20 {
		t.Errorf("read %+v", c)
	}
	_, rules := c.Rules(nil)
	if len(rules.Models) != 1 || rules.Models[0].Upstreams[0] != "llama" || rules.Roles[0].Operations[0].Name != "chat.create" {
		t.Errorf("rules %+v", rules)
	}
}

func TestPrintIsReadAgain(t *testing.T) {
	c, err := Parse("a", []byte(right))
	if err != nil {
		t.Fatal(told(err))
	}
	b, err := c.Print()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("b", b)
	if err != nil {
		t.Fatalf("%s\n%s", told(err), b)
	}
	if diff := cmp.Diff(c, again); diff != "" {
		t.Errorf("printed and read again it differs:\n%s\n%s", diff, b)
	}
}

// Each file of testdata/wrong has every problem it holds told at once, with the line, a caret and what would be right.
func TestParseTellsEveryProblem(t *testing.T) {
	files, err := filepath.Glob("testdata/wrong/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(filepath.Base(name), b)
		var p *Problems
		if !errors.As(err, &p) {
			t.Errorf("%s: accepted", name)
			continue
		}
		golden.Check(t, strings.TrimSuffix(name, ".yaml")+".txt", p.Text(), *update, "go test ./internal/config -update")
		if strings.Contains(p.Text(), "sk-never") {
			t.Errorf("%s: a secret is shown:\n%s", name, p.Text())
		}
	}
}

func told(err error) string {
	var p *Problems
	if errors.As(err, &p) {
		return p.Text()
	}
	return err.Error()
}

// No input makes it panic, every problem has a place in the file, and what it accepts it prints so that it reads it again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(right))
	files, _ := filepath.Glob("testdata/wrong/*.yaml")
	for _, name := range files {
		if b, err := os.ReadFile(name); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("version: 1\n---\nversion: 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("f", b)
		var p *Problems
		if errors.As(err, &p) {
			_ = p.Text()
			for _, one := range p.List {
				if one.Line < 1 || one.Column < 1 || one.What == "" {
					t.Fatalf("%+v has no place", one)
				}
			}
			return
		}
		printed, err := c.Print()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("again", printed); err != nil {
			t.Fatalf("%s\n%s", told(err), printed)
		}
	})
}
