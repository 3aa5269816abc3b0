package conns

import (
	"strings"
	"testing"
)

func TestLimitsFitTheFiles(t *testing.T) {
	for _, row := range []struct {
		wanted Limits
		files  int
		fit    Limits
		says   string
	}{
		{Limits{}, 0, Limits{16384, 4096}, ""},
		{Limits{}, 1 << 20, Limits{16384, 4096}, ""},
		{Limits{}, 1024, Limits{456, 114}, ""},
		{Limits{}, 128, Limits{8, 2}, ""},
		{Limits{}, 127, Limits{}, "may open 127 files, and needs 128"},
		{Limits{}, 20, Limits{}, "may open 20 files, and needs 128"},
		{Limits{8, 8}, 127, Limits{}, "may open 127 files, and needs 128"},
		{Limits{All: 456}, 1024, Limits{456, 114}, ""},
		{Limits{All: 457}, 1024, Limits{}, "457 connections need 1026 files, and the process may open 1024: raise that limit (LimitNOFILE, ulimit -n), or 456 connections or less"},
		{Limits{All: 20000, Address: 20000}, 1 << 20, Limits{20000, 20000}, ""},
		{Limits{All: 1_000_000}, 0, Limits{1_000_000, 250_000}, ""},
		{Limits{Address: 9}, 1024, Limits{456, 9}, ""},
		{Limits{Address: 9000}, 1024, Limits{456, 456}, ""},
	} {
		got, err := Fit(row.wanted, row.files)
		if got != row.fit || (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
			t.Errorf("%+v of %d files: %+v %v, want %+v %q", row.wanted, row.files, got, err, row.fit, row.says)
		}
	}
}
