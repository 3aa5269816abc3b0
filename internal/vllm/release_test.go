package vllm

import (
	"strings"
	"testing"
)

func TestReleasesAreOrdered(t *testing.T) {
	ordered := []string{
		"0.6.6.post1", "0.8.5", "0.9.0", "0.9.2", "0.10.0", "0.10.1", "0.10.1.1", "0.10.2", "0.11.1rc2.dev123+gabcdef012", "0.11.1rc2", "0.11.1", "0.11.2", "0.11.2.post1",
		"0.32.0.dev5", "0.32.0a1", "0.32.0b1", "0.32.0rc1", "0.32.0rc10", "0.32.0", "0.32.1.dev0", "0.32.1", "0.33.0", "1.0",
	}
	last := Release{}
	for _, s := range ordered {
		r, err := ParseRelease(s)
		if err != nil {
			t.Fatal(err)
		}
		if r.Compare(last) <= 0 || last.Compare(r) >= 0 || r.Compare(r) != 0 {
			t.Errorf("%s is not after %s", r, last)
		}
		if want, _, _ := strings.Cut(s, "+"); r.String() != want && r.String() != want+".0" {
			t.Errorf("%q prints as %q", s, r)
		}
		last = r
	}
	for a, b := range map[string]string{"0.32.0+cpu": "0.32.0", "v0.9.2": "0.9.2", "0.9": "0.9.0"} {
		x, _ := ParseRelease(a)
		y, _ := ParseRelease(b)
		if !x.Known() || x.Compare(y) != 0 {
			t.Errorf("%q and %q differ", a, b)
		}
	}
}

func TestParseReleaseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "1", "x", "0.", "0..1", "0.8.5.", "0.8.5.1.1", "0.8.5-1", "-1.0.0", "0.8.5rc", "0.8.5.post", "0.8.5 ", "0.8.99999999999",
		"0.8.5x", "dev", "0.8." + strings.Repeat("1", 100),
	} {
		if r, err := ParseRelease(s); err == nil || r.Known() {
			t.Errorf("ParseRelease(%q) = %v, %v; want an error and the unknown release", s, r, err)
		}
	}
}

func FuzzParseRelease(f *testing.F) {
	f.Add("0.11.1rc2.dev123+gabcdef012")
	f.Add("0.32.0")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRelease(s)
		if err != nil {
			return
		}
		again, err := ParseRelease(r.String())
		if err != nil || again.Compare(r) != 0 {
			t.Fatalf("%q reads as %s, which reads as %s (%v)", s, r, again, err)
		}
	})
}

func TestOperationsByRelease(t *testing.T) {
	at := func(id, version string) (*Operation, Release) {
		t.Helper()
		op, ok := ByID(id)
		if !ok {
			t.Fatalf("no operation %q", id)
		}
		r, _ := ParseRelease(version)
		return op, r
	}
	for _, c := range []struct {
		id, version             string
		exists, guarded, salted bool
		opens                   string
	}{
		{"chat.create", "0.8.5", true, true, false, "always"},
		{"chat.create", "0.9.1", true, true, true, "always"},
		{"chat.create", "0.32.0+cpu", true, true, true, "task:generate"},
		{"chat.create", "not said", false, false, false, ""},
		{"rerank.v2", "0.21.0", true, false, true, "task:embed or task:token_embed or (task:classify and num_labels=1)"},
		{"rerank.v2", "0.22.1", true, true, true, "task:embed or task:token_embed or (task:classify and num_labels=1)"},
		{"embed.v2", "0.17.1", false, false, false, ""},
		{"systemone.create", "0.31.0", false, false, false, ""},
		{"systemone.create", "0.32.0", true, true, true, "always"},
		{"pooling.create", "0.15.1", true, false, false, "always"},
		{"engine.pause", "0.12.0", true, false, false, "always"},
		{"engine.pause", "0.32.0", true, false, false, "env VLLM_SERVER_DEV_MODE=1"},
		{"legacy_demo.generate", "0.24.0", true, false, false, "always"},
		{"legacy_demo.generate", "0.25.1", false, false, false, ""},
		{"models.retrieve", "0.32.0", false, false, false, ""}, // Vallum's own
	} {
		op, r := at(c.id, c.version)
		if op.Exists(r) != c.exists || op.GuardedIn(r) != c.guarded || op.Salted(r) != c.salted || op.OpensIn(r) != c.opens {
			t.Errorf("%s in %s: exists %v, guarded %v, salted %v, opens %q; want %+v",
				c.id, c.version, op.Exists(r), op.GuardedIn(r), op.Salted(r), op.OpensIn(r), c)
		}
	}
}
