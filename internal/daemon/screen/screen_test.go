package screen

import "testing"

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
