package gatetest

import (
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllm/surface"
	"github.com/vallum/vallum/internal/vllmtest"
)

// guideRoutes are the routes that vLLM's security guide warns of (docs/usage/security.md, "API Key Authentication
// Limitations" and what follows), with a body that each takes.
var guideRoutes = map[string]string{
	"POST /invocations": ChatBody, "POST /inference/v1/generate": `{"token_ids":[1]}`, "POST /pooling": `{"model":"tiny","input":"a"}`,
	"POST /classify": `{"model":"tiny","input":"a"}`, "POST /score": `{"model":"tiny","text_1":"a","text_2":"b"}`, "POST /rerank": `{"model":"tiny","query":"a","documents":["b"]}`,
	"POST /generative_scoring": `{"model":"tiny","query":"a","items":["b"]}`,
	"POST /pause":              "", "POST /resume": "", "POST /scale_elastic_ep": `{"new_data_parallel_size":2}`, "POST /is_scaling_elastic_ep": "", "POST /abort_requests": `{"request_ids":["a"]}`,
	"POST /tokenize": `{"model":"tiny","prompt":"a"}`, "POST /detokenize": `{"model":"tiny","tokens":[97]}`, "GET /ping": "", "GET /load": "", "GET /tokenizer_info": "",
	"GET /server_info": "", "POST /reset_prefix_cache": "", "POST /reset_mm_cache": "", "POST /reset_encoder_cache": "", "POST /sleep": "", "POST /wake_up": "", "GET /is_sleeping": "",
	"POST /collective_rpc": `{"method":"sleep"}`, "POST /init_weight_transfer_engine": `{}`, "POST /update_weights": `{}`, "GET /get_world_size": "",
	"POST /start_profile": "", "POST /stop_profile": "",
	"POST /v1/load_lora_adapter": `{"lora_name":"a","lora_path":"/etc"}`, "POST /v1/unload_lora_adapter": `{"lora_name":"a"}`, "POST /adapters": `{"name":"a","src":"/etc"}`, "DELETE /adapters/a": "",
	"GET /docs": "", "GET /redoc": "", "GET /openapi.json": "", "GET /metrics": "", "GET /metricsfoo": "", "GET /kv_event_sources": "",
}

// granted are the routes of the list that the built-in roles open, by the name of the key that holds the role.
var granted = map[string][]string{
	"ordinary": {"POST /pooling", "POST /classify", "POST /score", "POST /rerank"},
	"operator": {"POST /pause", "POST /resume", "POST /scale_elastic_ep", "POST /is_scaling_elastic_ep", "POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter", "POST /adapters", "DELETE /adapters/a"},
	"monitor":  {"GET /ping", "GET /load", "GET /metrics"},
}

func dangerous(t *testing.T) *Gate {
	t.Helper()
	return Start(t, Options{
		Fake: vllmtest.Options{DevMode: true, ScaleOut: true, Tools: true, Key: "the-key-that-only-vallum-knows"},
		Keys: []store.NewKey{{Name: "ordinary", Roles: []string{"inference"}}, {Name: "operator", Roles: []string{"operator"}}, {Name: "monitor", Roles: []string{"monitor"}}},
	})
}

// Each route of the guide: sent directly it works, without vLLM's key where its check does not look; through the gate it
// arrives only with a key whose role has it, and every refusal says why.
func TestTheGuidesRoutesAreOutOfReachUnlessGranted(t *testing.T) {
	t.Parallel()
	g := dangerous(t)
	reached := func() int { return g.Fake.Arrived() }
	for route, body := range guideRoutes {
		method, path, _ := strings.Cut(route, " ")
		direct := Request{Method: method, Path: path, Body: body}
		guarded := strings.HasPrefix(path, "/v1") || strings.HasPrefix(path, "/inference")
		if guarded {
			direct.Key = "the-key-that-only-vallum-knows"
		}
		before := reached()
		if a := g.Direct(direct); a.Status >= 400 || reached() != before+1 {
			t.Errorf("%s directly: %d %s: the attack has to work without Vallum, or the test shows nothing", route, a.Status, a.Body)
		}
		for _, caller := range []struct{ name, key, reason string }{
			{"nobody", "", "no_credential"},
			{"wrong", "vlm_aaaaaaaaaaaa_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "no_credential"},
			{"upstream's own", "the-key-that-only-vallum-knows", "no_credential"},
			{"ordinary", g.Secret("ordinary"), "not_permitted"},
			{"operator", g.Secret("operator"), "not_permitted"},
			{"monitor", g.Secret("monitor"), "not_permitted"},
		} {
			before := reached()
			a := g.Do(Request{Method: method, Path: path, Body: body, Key: caller.key})
			switch arrived := reached() - before; {
			case slices.Contains(granted[caller.name], route):
				if a.Status != 200 || arrived != 1 {
					t.Errorf("%s as %s: %d %s, %d arrived; the role grants it", route, caller.name, a.Status, a.Body, arrived)
				}
			case arrived != 0:
				t.Errorf("%s as %s reached vLLM and answered %d %s", route, caller.name, a.Status, a.Body)
			case route == "GET /metricsfoo":
				if a.Reason() != "unknown_operation" {
					t.Errorf("%s as %s: %d %s", route, caller.name, a.Status, a.Body)
				}
			case a.Reason() != caller.reason && a.Reason() != "too_many_failures" || a.Code() != a.Reason():
				t.Errorf("%s as %s: %d %s, want %s", route, caller.name, a.Status, a.Body, caller.reason)
			}
		}
	}
}

// Every route that the newest release serves, whatever the guide says of it: strangers reach none.
func TestNoRouteIsOpenToStrangers(t *testing.T) {
	t.Parallel()
	g := dangerous(t)
	for _, r := range surface.Newest().Routes {
		method := r.Method
		if method == "ANY" {
			method = "DELETE"
		}
		path := strings.NewReplacer("{response_id}", "resp_1", "{adapter_name}", "a", "{rank}", "0", "*", "a").Replace(r.Path)
		header := map[string]string{}
		if method == "WEBSOCKET" {
			method, header = "GET", map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
		}
		a := g.Do(Request{Method: method, Path: path, Header: header})
		if a.Status < 400 || g.Fake.Arrived() != 0 {
			t.Fatalf("%s %s without a key: %d %s, %d arrived", r.Method, r.Path, a.Status, a.Body, g.Fake.Arrived())
		}
	}
	// strangers are counted, never recorded singly
	for _, r := range g.Records() {
		if r.Event == audit.Refused || r.Event == audit.Admitted {
			t.Errorf("a stranger has a record of its own: %+v", r)
		}
	}
}

// paths are other spellings of routes, and targets that are none: each is refused whole, never repaired, never forwarded.
// The first column is what vLLM itself does with it, for those that do harm there.
var paths = []struct{ target, reason string }{
	{"/%70ause", "ambiguous_path"}, // uvicorn decodes before routing: this pauses the engine
	{"/%76%31/models", "ambiguous_path"},
	{"/v1%2Fmodels", "ambiguous_path"},
	{"/v1%2fchat%2fcompletions", "ambiguous_path"},
	{"//v1/models", "ambiguous_path"},
	{"/v1//models", "ambiguous_path"},
	{"/v1/models/", "ambiguous_path"},
	{"/v1/models//", "ambiguous_path"},
	{"/./v1/models", "ambiguous_path"},
	{"/x/../v1/models", "ambiguous_path"},
	{"/v1/../pause", "ambiguous_path"},
	{"/v1/chat/completions/../../../pause", "ambiguous_path"},
	{"/%2e%2e/v1/models", "ambiguous_path"},
	{"/health/../v1/models", "ambiguous_path"},
	{"/v1;x/models", "ambiguous_path"},
	{"/v1/models;x", "ambiguous_path"},
	{"/pause;.png", "ambiguous_path"},
	{"/v1/models%00", "ambiguous_path"},
	{"/%00/v1/models", "ambiguous_path"},
	{`/v1/models\..\pause`, "ambiguous_path"},
	{`/\pause`, "ambiguous_path"},
	{"/%25%37%36%31/models", "ambiguous_path"},
	{"/%c3%a9", "ambiguous_path"},
	{"/%ff", "ambiguous_path"},
	{"/metrics/../v1/models", "ambiguous_path"},
	{"/metrics/", "ambiguous_path"},
	{"/invocations/", "ambiguous_path"},
	{"/V1/models", "unknown_operation"},
	{"/PAUSE", "unknown_operation"},
	{"/v1models", "unknown_operation"},
	{"/v1foo", "unknown_operation"},
	{"/healthfoo", "unknown_operation"},
	{"/v1/v1/models", "unknown_operation"},
	{"/chat/completions", "unknown_operation"},
	{"/inference/v2/generate", "unknown_operation"},
	{"http://evil/pause", "ambiguous_path"}, // absolute-form: vLLM routes it by its path
	{"http://evil/v1/models", "ambiguous_path"},
	{"https://u:p@evil:99/health", "ambiguous_path"},
	{"*", "ambiguous_path"},
}

func TestOtherSpellingsOfAPathAreRefused(t *testing.T) {
	t.Parallel()
	g := dangerous(t)
	auth := "Authorization: Bearer " + g.Secret("operator") + "\r\n"
	paused := g.RawDirect("POST /%70ause HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	if len(paused) != 1 || paused[0].Status != 200 || g.Fake.Arrived() != 1 {
		t.Fatalf("directly the attack has to work: %+v", paused)
	}
	for _, row := range paths {
		for _, method := range []string{"GET", "POST"} {
			answers := g.Raw(method + " " + row.target + " HTTP/1.1\r\nHost: h\r\n" + auth + "Content-Length: 0\r\nConnection: close\r\n\r\n")
			if len(answers) != 1 {
				t.Errorf("%s %s: %d answers", method, row.target, len(answers))
				continue
			}
			a := answers[0]
			bare := a.Status == 400 && a.ID() == "" // net/http's own: no request existed
			if a.Reason() != row.reason && !bare {
				t.Errorf("%s %s: %d %s, want %s", method, row.target, a.Status, a.Body, row.reason)
			}
			if loc := a.Header.Get("Location"); loc != "" {
				t.Errorf("%s %s is redirected to %s", method, row.target, loc)
			}
		}
	}
	if n := g.Fake.Arrived(); n != 1 {
		t.Errorf("%d requests arrived, want the direct one only: %q", n, g.Fake.Last().Head)
	}
}

// vLLM lets OPTIONS past its key check, routes unknown methods to 400, and ignores overrides; none of them passes here.
func TestOtherMethodsAreRefused(t *testing.T) {
	t.Parallel()
	g := dangerous(t)
	auth := "Authorization: Bearer " + g.Secret("operator") + "\r\n"
	for _, method := range []string{"OPTIONS", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "QUERY", "LINK", "post", "Post", "GET"} {
		for _, a := range g.Raw(method + " /pause HTTP/1.1\r\nHost: h\r\n" + auth + "X-HTTP-Method-Override: POST\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") {
			if a.Status < 400 {
				t.Errorf("%s /pause: %d %s", method, a.Status, a.Body)
			}
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived: %q", n, g.Fake.Last().Head)
	}
}
