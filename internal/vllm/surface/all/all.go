// Package all gives tests every release that was read, oldest first. It refuses to be part of a program: it reads the
// files from the source tree, where only a test runs.
package all

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/vllm/surface"
)

// Releases reads every VERSION.json of package surface, oldest release first; it ends the test when one is damaged.
func Releases(t testing.TB) []*surface.Release {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(here), "..", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no releases beside package surface: %v", err)
	}
	var out []*surface.Release
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r, err := surface.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", filepath.Base(file), err)
		}
		if want := strings.TrimSuffix(filepath.Base(file), ".json"); r.Version != want {
			t.Fatalf("%s.json is about release %q", want, r.Version)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *surface.Release) int {
		return slices.Compare(numbers(a.Version), numbers(b.Version))
	})
	return out
}

// numbers makes 0.9.2 sort before 0.10.2.
func numbers(version string) []int {
	var out []int
	for part := range strings.SplitSeq(version, ".") {
		n, _ := strconv.Atoi(part)
		out = append(out, n)
	}
	return out
}
