package surface_test

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/vllm/surface"
	"github.com/vallum/vallum/internal/vllm/surface/all"
)

// maxFile keeps the binary small: the newest file is embedded in it.
const maxFile = 250 << 10

func TestNewestIsTheNewest(t *testing.T) {
	releases := all.Releases(t)
	if last := releases[len(releases)-1].Version; surface.Newest().Version != last {
		t.Errorf("embedded %s, newest in the tree %s", surface.Newest().Version, last)
	}
}

func TestEveryFileIsSmall(t *testing.T) {
	for _, r := range all.Releases(t) {
		info, err := os.Stat(r.Version + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxFile {
			t.Errorf("%s.json: %d bytes, more than %d", r.Version, info.Size(), maxFile)
		}
	}
}

func TestRoutesAreSortedUniqueAndComplete(t *testing.T) {
	for _, r := range all.Releases(t) {
		order := func(a, b surface.Route) int {
			return cmp.Or(cmp.Compare(group(a), group(b)), cmp.Compare(a.Server, b.Server), cmp.Compare(a.Path, b.Path),
				cmp.Compare(a.Method, b.Method), cmp.Compare(a.Kind, b.Kind))
		}
		for i, route := range r.Routes {
			if i > 0 && order(r.Routes[i-1], route) >= 0 {
				t.Errorf("%s: %s %s is out of order or twice", r.Version, route.Method, route.Path)
			}
			checkRoute(t, r, route)
		}
	}
}

func group(r surface.Route) int {
	if r.Server == "api" {
		return 0
	}
	return 1
}

func checkRoute(t *testing.T, r *surface.Release, route surface.Route) {
	t.Helper()
	name := r.Version + ": " + route.Method + " " + route.Path
	if !slices.Contains([]string{"http", "websocket", "mount", "wildcard"}, route.Kind) {
		t.Errorf("%s: kind %q", name, route.Kind)
	}
	if !slices.Contains([]string{"json", "form", "none"}, route.RequestKind) {
		t.Errorf("%s: request kind %q", name, route.RequestKind)
	}
	if len(route.Conditions) == 0 || slices.Contains(route.Conditions, "never") || len(route.Sources) == 0 {
		t.Errorf("%s: conditions %q, sources %q", name, route.Conditions, route.Sources)
	}
	if !strings.HasPrefix(route.Path, "/") || route.Method != strings.ToUpper(route.Method) {
		t.Errorf("%s: not a route", name)
	}
	if _, ok := r.Models[route.RequestModel]; route.RequestModel != "" && !ok {
		t.Errorf("%s: model %q is not in the file", name, route.RequestModel)
	}
	begins := func(p string) bool { return strings.HasPrefix(route.Path, p) }
	if route.Server == "api" && route.GuardedByKey != slices.ContainsFunc(r.GuardedPrefixes, begins) {
		t.Errorf("%s: guarded %t, prefixes %q", name, route.GuardedByKey, r.GuardedPrefixes)
	}
	for _, list := range [][]string{route.Conditions, route.Sources, route.Query, route.Headers} {
		if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Errorf("%s: %q is not sorted and unique", name, list)
		}
	}
}

func TestModelsHaveFieldsOrMembers(t *testing.T) {
	for _, r := range all.Releases(t) {
		for _, name := range slices.Sorted(maps.Keys(r.Models)) {
			m := r.Models[name]
			if m.Kind == "" || m.Source == "" {
				t.Errorf("%s: model %s: kind %q, source %q", r.Version, name, m.Kind, m.Source)
			}
			seen := map[string]bool{}
			for _, f := range m.Fields {
				if f.Name == "" || seen[f.Name] || f.Required && f.Default != "" {
					t.Errorf("%s: %s.%s: nameless, twice, or required with a default", r.Version, name, f.Name)
				}
				seen[f.Name] = true
			}
		}
	}
}

// The extractor only reads; testdata says what servers were seen to serve, and where that list comes from.
func TestTheSurfaceIsWhatWasMeasured(t *testing.T) {
	text, err := os.ReadFile("testdata/measured-0.32.0.txt")
	if err != nil {
		t.Fatal(err)
	}
	measured := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			measured[line] = true
		}
	}
	read := map[string]bool{}
	for _, r := range all.Releases(t) {
		for _, route := range r.Routes {
			if r.Version == "0.32.0" && route.Server == "api" {
				read[route.Method+" "+route.Path] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(measured)) {
		if !read[name] {
			t.Errorf("%s was measured, and was not read", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(read)) {
		if !measured[name] {
			t.Errorf("%s was read, and was not measured", name)
		}
	}
}

func TestParseRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, text := range []string{``, `{}`, `{"release":""}`, `{"release":"1","rooutes":[]}`, `{"release":"1"}{}`, `[]`} {
		if _, err := surface.Parse([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
