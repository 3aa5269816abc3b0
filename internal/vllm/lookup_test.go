package vllm

import (
	"slices"
	"strings"
	"testing"
)

func TestLookup(t *testing.T) {
	find := func(method, path, want string, segments ...string) {
		t.Helper()
		op, got, ok := Lookup(method, path)
		if !ok {
			t.Fatalf("Lookup(%s %s) found nothing, want %s", method, path, want)
		}
		if op.ID != want || !slices.Equal(got, segments) {
			t.Errorf("Lookup(%s %s) = %s %q, want %s %q", method, path, op.ID, got, want, segments)
		}
	}
	find("POST", "/v1/chat/completions", "chat.create")
	find("POST", "/score", "score.root")
	find("GET", "/metrics", "metrics.read")
	find("GET", "/v1/models", "models.list")
	find("GET", "/v1/models/llama", "models.retrieve", "llama")
	find("GET", "/v1/models/org/name:tag@main+x", "models.retrieve", "org/name:tag@main+x")
	find("GET", "/v1/responses/resp_a-1.b", "responses.retrieve", "resp_a-1.b")
	find("POST", "/v1/responses/resp_1/cancel", "responses.cancel", "resp_1")
	find("DELETE", "/adapters/ad1", "adapters.unload", "ad1")
	find("GET", "/v1/realtime", "realtime.connect")
	find("HEAD", "/docs", "docs.swagger_head")
}

func TestLookupIsExact(t *testing.T) {
	long := strings.Repeat("a", maxSegment+1)
	for _, r := range []route{
		{"GET", "/v1/chat/completions"},
		{"post", "/v1/chat/completions"},
		{"POST", "/V1/chat/completions"},
		{"POST", "/v1/chat/completions/"},
		{"POST", "//v1/chat/completions"},
		{"POST", "v1/chat/completions"},
		{"POST", "/v1/chat/completions/x"},
		{"POST", ""},
		{"GET", "/"},
		{"", "/health"},
		{"ANY", "/metrics"},
		{"POST", "/metrics"},
		{"HEAD", "/metrics"},
		{"GET", "/metricsfoo"},
		{"GET", "/metrics/x"},
		{"GET", "/static/*"},
		{"GET", "/static/swagger.css"},
		{"WEBSOCKET", "/v1/realtime"},
		{"POST", "/v1/realtime"},
		{"GET", "/v1/models/"},
		{"GET", "/v1/models//x"},
		{"GET", "/v1/models/a/../b"},
		{"GET", "/v1/models/a%2Fb"},
		{"POST", "/v1/models/a"},
		{"GET", "/v1/responses/"},
		{"GET", "/v1/responses/a:b"},
		{"GET", "/v1/responses/.."},
		{"GET", "/v1/responses/" + long},
		{"GET", "/v1/responses/a/b"},
		{"POST", "/v1/responses/cancel"},
		{"POST", "/v1/responses//cancel"},
		{"DELETE", "/v1/responses/a"},
		{"GET", "/v1/responses/{response_id}"},
		{"GET", "/v1/models/{model}"},
		{"POST", "/generate"},
		{"POST", "/clear"},
		{"POST", "/rank/0/initialize"},
		{"GET", "/ready"}, // other servers
	} {
		if op, _, ok := Lookup(r.method, r.path); ok {
			t.Errorf("Lookup(%q %q) found %s, want nothing", r.method, r.path, op.ID)
		}
	}
}

func TestLookupOfALiteralDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { Lookup("POST", "/v1/chat/completions") }); n != 0 {
		t.Errorf("Lookup allocated %v times, want 0", n)
	}
}

// The oracle is a second reading of the table: a request matches the rows that equal it segment by segment.
func FuzzLookup(f *testing.F) {
	for _, op := range All() {
		f.Add(op.Method, op.Path)
		f.Add(op.Method, op.Path+"/")
		f.Add(op.Method, strings.ToUpper(op.Path))
		f.Add(strings.ToLower(op.Method), op.Path)
		f.Add(op.Method, strings.NewReplacer("{", "", "}", "").Replace(op.Path))
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		op, segments, ok := Lookup(method, path)
		var want *Operation
		for _, row := range All() {
			if row.Server == "" && !row.Mount && named(row, method, path) {
				want = row
			}
		}
		if ok != (want != nil) || op != want {
			t.Fatalf("Lookup(%q %q) = %v, want %v", method, path, op, want)
		}
		for _, s := range segments {
			if !strings.Contains(path, s) || s == "" || strings.ContainsAny(s, "%?#\\; \x00") || strings.Contains("/"+s+"/", "/../") {
				t.Fatalf("Lookup(%q %q) gave the segment %q", method, path, s)
			}
		}
	})
}

func named(op *Operation, method, path string) bool {
	asked := op.Method
	if asked == "WEBSOCKET" {
		asked = "GET"
	}
	if asked != method {
		return false
	}
	want, got := strings.Split(op.Path, "/"), strings.Split(path, "/")
	if op.ID == "models.retrieve" && len(got) > len(want) {
		got = append(got[:len(want)-1:len(want)-1], strings.Join(got[len(want)-1:], "/"))
	}
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		switch {
		case !strings.HasPrefix(want[i], "{"):
			if want[i] != got[i] {
				return false
			}
		case op.ID == "models.retrieve":
			if !isModel(got[i]) {
				return false
			}
		case !isSegment(got[i]):
			return false
		}
	}
	return true
}
