package screen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/upstream"
)

// However many upstreams there are, the screen is one: the first few have a line, the rest are counted, and of them those
// that are not alive are named as far as there is room. A warning is never left out.
func TestManyUpstreamsAreFolded(t *testing.T) {
	for _, row := range []struct {
		alive    string // an a for each that is, an x for each that is not
		lines    int    // that begin with "upstream"
		says     string
		saysNone string
	}{
		{"aaaa", 4, "up4: alive", "more"},
		{"aaaaa", 3, "and 2 more; vallum check --print lists them", "up4"},
		{"xaaaxa", 3, "and 3 more, of which not alive: up5; vallum check --print", "up4"},
		{"aaa" + strings.Repeat("x", 60), 3, "and 60 more, of which not alive: up4, up5, up6, 57 others; vallum check", "up7"},
		{"aaaxxxx", 3, "and 4 more, of which not alive: up4, up5, up6, up7; vallum check", "others"},
	} {
		conf, err := config.Parse("vallum.yaml", []byte("version: 1\nupstreams: [{name: a, url: \"http://127.0.0.1:1\"}]\n"))
		if err != nil {
			t.Fatal(err)
		}
		f := Facts{Config: conf, Policy: &policy.Policy{}}
		for i, c := range row.alive {
			st := upstream.State{Name: fmt.Sprintf("up%d", i+1), Alive: c == 'a', Version: "0.32.0", Models: []upstream.Model{{Name: "m"}}, Problem: "connection refused"}
			if i == len(row.alive)-1 {
				st.Warning = "its key check is off"
			}
			f.Upstreams = append(f.Upstreams, st)
		}
		var b strings.Builder
		Write(&b, f)
		text := b.String()
		head, _, _ := strings.Cut(strings.Join(strings.Fields(text), " "), "probes none")
		if n := strings.Count(text, "\n  upstream  "); n != row.lines || !strings.Contains(head, row.says) || strings.Contains(head, row.saysNone) {
			t.Errorf("%s: %d lines, %s", row.alive, n, text)
		}
		if !strings.Contains(text, fmt.Sprintf("WARNING upstream up%d: its key check is off", len(row.alive))) {
			t.Errorf("%s: the last one's warning is not there: %s", row.alive, text)
		}
		if n := strings.Count(text, "\n"); n > 36 {
			t.Errorf("%s: %d lines: %s", row.alive, n, text)
		}
		for line := range strings.SplitSeq(text, "\n") {
			if len(line) > screenColumns {
				t.Errorf("%d columns: %s", len(line), line)
			}
		}
	}
}

func TestWrapBreaksBetweenWordsOnly(t *testing.T) {
	for _, row := range []struct {
		text    string
		at      int
		columns int
		want    string
	}{
		{"", 0, 10, ""},
		{"one two three", 0, 80, "one two three"},
		{"one two three", 0, 7, "one two\n  three"},
		{"one two three", 5, 8, "one\n  two\n  three"},
		{"aVeryLongPath two", 0, 5, "aVeryLongPath\n  two"},
		{"ünü ünü", 0, 7, "ünü ünü"},
	} {
		if got := Wrap(row.text, "  ", row.at, row.columns); got != row.want {
			t.Errorf("%q at %d of %d: %q, want %q", row.text, row.at, row.columns, got, row.want)
		}
	}
}
