//go:build conformance

package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vallum/vallum/conformance/realvllm"
	"github.com/vallum/vallum/conformance/report"
	"github.com/vallum/vallum/internal/vllm"
)

var update = flag.Bool("update", false, "rewrite the recorded route tables")

// routesAreCatalogued shows that the running server serves nothing that the
// catalogue does not name. Three accounts of it are compared: what it printed
// at start, what its /openapi.json says, and what an earlier run recorded.
var routesAreCatalogued = proof{"every route of the running server is in the catalogue", func(p *report.Proof, s *stand) {
	printed, err := s.vllm.Routes()
	if err != nil {
		p.Fatal(err)
	}
	for _, r := range openapiRoutes(p, s) {
		if !slices.Contains(printed, r) {
			p.Errorf("/openapi.json has %s, which was not printed at start", r)
		}
	}
	compareRecorded(p, s.config.Release()+"-"+s.name(), printed)
	var unnamed []string
	for _, r := range printed {
		if _, _, found := vllm.Lookup(lookupMethod(r.Method), sample(r.Path)); !found {
			unnamed = append(unnamed, r.String())
		}
	}
	if len(unnamed) > 0 {
		p.Errorf("vLLM %s serves what the catalogue does not name:\n\t%s", s.config.Release(), strings.Join(unnamed, "\n\t"))
	}
}}

// lookupMethod is the method under which the catalogue looks a route up: a
// WebSocket's handshake is a GET.
func lookupMethod(printed string) string {
	if printed == "WEBSOCKET" {
		return "GET"
	}
	return printed
}

// sample fills a template's segments.
func sample(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, "{") {
			parts[i] = "x"
		}
	}
	return strings.Join(parts, "/")
}

// openapiRoutes is the routes of the server's own /openapi.json.
func openapiRoutes(p *report.Proof, s *stand) []realvllm.Route {
	p.Helper()
	var api struct {
		Paths map[string]map[string]json.RawMessage
	}
	got := s.direct().do(p, get("/openapi.json"))
	if err := json.Unmarshal(got.body, &api); err != nil || len(api.Paths) == 0 {
		p.Fatalf("reading /openapi.json: %v: %s", err, got)
	}
	var out []realvllm.Route
	for path, methods := range api.Paths {
		for method := range methods {
			out = append(out, realvllm.Route{Method: strings.ToUpper(method), Path: path})
		}
	}
	return out
}

// compareRecorded holds the table against testdata/routes, which tests without
// a vLLM read. -update rewrites it.
func compareRecorded(p *report.Proof, name string, printed []realvllm.Route) {
	p.Helper()
	file := filepath.Join("testdata", "routes", name+".txt")
	var now bytes.Buffer
	for _, r := range printed {
		now.WriteString(r.String() + "\n")
	}
	then, err := os.ReadFile(file)
	if *update || errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			p.Fatal(err)
		}
		if err := os.WriteFile(file, now.Bytes(), 0o644); err != nil {
			p.Fatal(err)
		}
		return
	}
	if err != nil {
		p.Fatal(err)
	}
	if !bytes.Equal(then, now.Bytes()) {
		p.Errorf("%s differs from the running server; -update rewrites it. Now:\n%s", file, &now)
	}
}
