package schema

import (
	"strings"
	"testing"
	"time"
)

// What was seen to keep the engine, and the same in other spellings.
func TestPatternsThatKeepTheEngineAreRefused(t *testing.T) {
	for _, pattern := range []string{
		`^(([a-z]{1,1000}){1,1000})$`, `^((([a-z]{1,1000}){1,1000}){1,1000}){1,1000}$`, `^(.*){1,100}$`, `^(.*.*.*.*){1,50}$`, `(a+){52}`,
		`(?:a{100}){100}`, `(?P<x>a{100}?){100}?`, `((a*)){60}`, `(a|b*|c){52,}`, `(x{0,50}y{0,50}){30}`, `(a{2}){,2000}`, `((a{13}){13}){13}`,
		`([)a]{2000}){60}`, `([^]a]{2000}){60}`, `(\[*){60}`, `(\\*){60}`, `(a{99999999999999999999}){60}`, `a*{60}`, `(a{ 50 , 50 }){50}`, `(({+){60}`, `)(a*){60}`, `(b|a*){60}`, `(a*|b){60}`, `(a?){300}`,
		strings.Repeat(".*", 60), strings.Repeat(".*{", 60), strings.Repeat(".*{x}", 60), strings.Repeat(".*{0}", 60), strings.Repeat("a?", 300), strings.Repeat("[a-z]{1,1000}", 40), `((` + strings.Repeat("a+", 60), `x|` + strings.Repeat("a+?", 60),
	} {
		if !repeats(pattern) {
			t.Errorf("%s: may pass", pattern)
		}
		for _, schema := range []string{`{"type":"string","pattern":` + quoted(t, pattern) + `}`, `{"patternProperties":{` + quoted(t, pattern) + `:{}}}`} {
			if what := Check([]byte(schema), 64, true); !strings.Contains(what, "count what repeats") {
				t.Errorf("%s: %q", schema, what)
			}
			if what := Check([]byte(quoted(t, schema)), 64, true); !strings.Contains(what, "count what repeats") {
				t.Errorf("%s as text: %q", schema, what)
			}
		}
	}
}

// What libraries write into schemas for addresses, names and times, and what people write.
func TestUsualPatternsPass(t *testing.T) {
	for _, pattern := range []string{
		``, `^`, `a`, `[`, `(`, `)`, `{`, `\`, `a{`, `a{}`, `a{,}`, `a{x}`, `[a`, `x{1,1000000}`, `^[a-z]{1,4096}-[a-z]{1,4096}$`, `(a{1000}){2}`, `a{2}*`, `(\*){2000}`, `(\{9){2000}`, `([*+]){2000}`, `(a{1000}){30}`,
		strings.Repeat("[a-z]*[b-z]*|", 200), strings.Repeat("(?:a)", 500), strings.Repeat("a{1,1000}-", 8),
		`^[a-z0-9]+(?:-[a-z0-9]+)*$`, `^[a-zA-Z0-9_-]{1,64}$`, `^(\S+\s+){0,25}\S+$`, `^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$`,
		`^[0-9a-fA-F]{8}\b-[0-9a-fA-F]{4}\b-[0-9a-fA-F]{4}\b-[0-9a-fA-F]{4}\b-[0-9a-fA-F]{12}$`,
		`^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$`,
		`^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA-Z])?)*\.?$`,
		`^(([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}:){1,7}:|([0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4})$`,
		`^(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])$`,
		`^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$`, `^(?:(?:\d{1,3},)*\d{3}|\d+)(?:\.\d{2})?$`,
	} {
		if repeats(pattern) {
			t.Errorf("%s: is refused", pattern)
		}
	}
}

// A pattern is read once, whatever stands in it.
func TestReadingAPatternTakesNoTime(t *testing.T) {
	for _, unit := range []string{"(", "[", "{", "{1,", "a{1}", "(a*)", `\`, "*", ")", "{1}"} {
		start := time.Now()
		repeats(strings.Repeat(unit, maxPattern/len(unit)))
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%q, repeated: %v", unit, took)
		}
	}
}

func FuzzRepeats(f *testing.F) {
	for _, seed := range []string{`^(.*){1,100}$`, `[^]a]{2}`, `a{,3}{`, `\`, `(?:a{1,2}b)+`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		if len(pattern) > maxPattern || !repeats(pattern) {
			return
		}
		// Whatever stands around it, it counts as much.
		if !repeats("x" + pattern) {
			t.Errorf("%q may pass behind a letter", pattern)
		}
	})
}
