package vllm

import (
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/vllm/surface"
	"github.com/vallum/vallum/internal/vllm/surface/all"
)

type place struct{ server, method, path string }

func placeOf(op *Operation) place { return place{op.Server, op.Method, op.Path} }

// ownDocumentation are pages that FastAPI adds to every server. On the API port they are operations; other servers'
// are no exposure of their own, and are left out.
func ownDocumentation(r *surface.Route) bool {
	return r.Server != "api" && slices.Contains([]string{"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}, r.Path)
}

// What vLLM really serves is what the catalogue says it serves, release by release: a route without a name, a name
// without a route, another condition, another guard, a query key or a cache salt that is not written down, all fail.
func TestCatalogueIsWhatReleasesServe(t *testing.T) {
	named := map[place]*Operation{}
	for _, op := range All() {
		named[placeOf(op)] = op
	}
	kinds := map[*Operation]map[BodyKind]bool{}
	for _, release := range all.Releases(t) {
		version, err := ParseRelease(release.Version)
		if err != nil {
			t.Fatal(err)
		}
		served := map[*Operation]bool{}
		for i := range release.Routes {
			r := &release.Routes[i]
			op := named[place{strings.TrimPrefix(r.Server, "api"), r.Method, r.Path}]
			if op == nil {
				if !ownDocumentation(r) {
					t.Errorf("%s serves %s %s (server %s, %v), which no operation names", release.Version, r.Method, r.Path, r.Server, r.Conditions)
				}
				continue
			}
			served[op] = true
			if kinds[op] == nil {
				kinds[op] = map[BodyKind]bool{}
			}
			kinds[op][BodyKind(strings.TrimPrefix(r.RequestKind, "none"))] = true
			agrees(t, release, version, r, op)
		}
		for _, op := range All() {
			if op.Exists(version) && !served[op] {
				t.Errorf("%s does not serve %s (%s %s), which is in the catalogue for it", release.Version, op.ID, op.Method, op.Path)
			}
		}
	}
	for op, of := range kinds {
		// The profiler takes parameters since 0.26; they name files, and without them it starts all the same.
		if !of[op.Request] && op.ID != "profile.start" {
			t.Errorf("%s takes %q, but no release does", op.ID, op.Request)
		}
	}
}

// agrees compares one row with one route of one release.
func agrees(t *testing.T, release *surface.Release, version Release, r *surface.Route, op *Operation) {
	t.Helper()
	if !op.Exists(version) {
		t.Errorf("%s serves %s, which the catalogue has from %q to %q", release.Version, op.ID, op.Since, op.Until)
		return
	}
	if got, want := op.OpensIn(version), strings.Join(r.Conditions, " | "); got != want {
		t.Errorf("%s in %s opens by %q, the catalogue says %q", op.ID, release.Version, want, got)
	}
	if got := op.GuardedIn(version); got != r.GuardedByKey {
		t.Errorf("%s in %s: guarded by vLLM's key %v, the catalogue says %v", op.ID, release.Version, r.GuardedByKey, got)
	}
	if op.Mount != (r.Kind == "mount" || r.Kind == "wildcard") {
		t.Errorf("%s is of kind %q, the catalogue says mount %v", op.ID, r.Kind, op.Mount)
	}
	for _, key := range r.Query {
		if !slices.Contains(op.Query, key) {
			t.Errorf("%s in %s reads the query key %q, which the catalogue does not name", op.ID, release.Version, key)
		}
	}
	if got := readsSalt(release, r.RequestModel, 0); got != op.Salted(version) {
		t.Errorf("%s in %s: has a cache_salt %v, the catalogue says %v (since %q)", op.ID, release.Version, got, !got, op.Salt)
	}
}

// readsSalt looks for the field in a model and in the alternatives of a union.
func readsSalt(release *surface.Release, model string, depth int) bool {
	m, ok := release.Models[model]
	if !ok || depth > 4 {
		return false
	}
	for _, f := range m.Fields {
		if f.Name == "cache_salt" {
			return true
		}
	}
	return m.Kind == "union" && slices.ContainsFunc(m.Members, func(member string) bool {
		return readsSalt(release, member, depth+1)
	})
}

// The key covers what it covers, by prefix: the catalogue's guards, read the other way round.
func TestGuardsAreThePrefixesOfTheNewestRelease(t *testing.T) {
	release := surface.Newest()
	version := mustRelease(release.Version)
	for _, op := range All() {
		if op.Server != "" || !op.Exists(version) {
			continue
		}
		prefixed := slices.ContainsFunc(release.GuardedPrefixes, func(p string) bool { return strings.HasPrefix(op.Path, p) })
		if prefixed != op.GuardedIn(version) {
			t.Errorf("%s (%s): guarded %v, by prefix %v", op.ID, op.Path, op.GuardedIn(version), prefixed)
		}
		if op.Group == Inference && !prefixed || op.Group == InferenceUnprefix && prefixed {
			t.Errorf("%s (%s) is in group %s, but its path has a guarded prefix: %v", op.ID, op.Path, op.Group, prefixed)
		}
	}
}
