package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// explained are members that bodies are drawn from: what passes, what is dropped, unknown or refused, and what stands on
// the role or on the server's release.
var explained = map[string][]string{
	"/v1/chat/completions": {
		`"model":"tiny"`, `"model":"other"`, `"model":"small"`, `"model":""`, `"model":null`, `"messages":[{"role":"user","content":"hi"}]`,
		`"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}}]}]`,
		`"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://a/"}}]}]`,
		`"max_tokens":5`, `"max_tokens":50`, `"max_completion_tokens":7`, `"max_tokens":0`, `"n":2`, `"n":9`, `"stream":true`, `"stream":"yes"`,
		`"temperature":0.5`, `"presence_penalty":1`, `"repetition_penalty":1.0`, `"thinking_token_budget":5`, `"stop_token_ids":[5]`,
		`"min_tokens":1`, `"min_tokens":0`, `"vllm_xargs":{}`, `"vllm_xargs":{"a":1}`, `"priority":0`, `"metadata":{}`, `"nobody_knows":1`,
		`"tool_choice":"none"`, `"top_logprobs":-1`, `"chat_template":"x"`, `"cache_salt":"mine"`, `"user":7`,
	},
	"/v1/completions":   {`"model":"tiny"`, `"model":"other"`, `"prompt":"a"`, `"prompt":["a",[1,2]]`, `"max_tokens":5`, `"max_tokens":50`, `"echo":false`, `"echo":true`, `"nobody_knows":1`, `"thinking_token_budget":-1`},
	"/v1/messages":      {`"model":"tiny"`, `"model":"small"`, `"max_tokens":5`, `"max_tokens":50`, `"messages":[{"role":"user","content":"hi"}]`, `"thread":{"type":"create"}`, `"container":"c"`, `"nobody_knows":1`},
	"/v1/responses":     {`"model":"tiny"`, `"input":"hi"`, `"max_output_tokens":50`, `"store":true`, `"previous_response_id":"r"`, `"background":false`, `"nobody_knows":1`},
	"/v1/embeddings":    {`"model":"tiny"`, `"input":"hi"`, `"encoding_format":"bytes"`, `"nobody_knows":1`},
	"/tokenize":         {`"model":"tiny"`, `"prompt":"hi"`, `"nobody_knows":1`},
	"/pause":            {},
	"/v1/load_nowhere":  {},
	"/collective_rpc":   {`"method":"m"`},
	"/v1/%63ompletions": {`"model":"tiny"`},
}

// TestExplainAnswersAsTheGatewayDoes asks both the same, of bodies that nobody wrote by hand.
func TestExplainAnswersAsTheGatewayDoes(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	roles := map[string][]string{"app": {"inference"}, "strict": {"careful"}, "both": {"careful", "inference"}, "watch": {"monitor"}}
	var keys []store.NewKey
	for name, of := range roles {
		keys = append(keys, store.NewKey{Name: name, Roles: of})
	}
	g := gatetest.Start(t, gatetest.Options{State: state, Keys: keys, Fake: vllmtest.Options{Version: "0.27.1"}, Config: `
roles:
  careful: {operations: ["@inference", tokenize.create], models: [tiny], unknown_fields: refuse, max_output_tokens: 10}
aliases: {small: tiny}
`})
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	paths, names := slices.Sorted(maps.Keys(explained)), slices.Sorted(maps.Keys(roles))
	outcomes := map[string]int{}
	for range 600 {
		path, key := paths[r.IntN(len(paths))], names[r.IntN(len(names))]
		if r.IntN(2) == 0 {
			path = "/v1/chat/completions"
		}
		members, seen := []string{}, map[string]bool{}
		for _, i := range r.Perm(len(explained[path])) {
			name, _, _ := strings.Cut(explained[path][i], ":")
			if !seen[name] && len(members) < 5 {
				members, seen[name] = append(members, explained[path][i]), r.IntN(20) > 0 // or twice
			}
		}
		body := "{" + strings.Join(members, ",") + "}"
		got := g.Do(gatetest.Request{Path: path, Key: g.Secret(key), Body: body})
		reason := got.Reason()
		if strings.HasPrefix(reason, "upstream_") && reason != "upstream_not_named" || reason == "feature_not_enabled" || reason == "unsupported_by_upstream" {
			reason = "" // it was let through, and the server did not like it
		}
		var out, errs bytes.Buffer
		code := run(t.Context(), []string{"explain", "POST", path, "--state", state, "--key-name", key, "--body", "-", "--json"}, strings.NewReader(body), &out, &errs)
		var said struct {
			Allowed bool
			Reason  string
		}
		if err := json.Unmarshal(out.Bytes(), &said); err != nil {
			t.Fatalf("seed %d: POST %s as %s: %s: %v: %s%s", seed, path, key, body, err, &out, &errs)
		}
		outcomes[said.Reason]++
		if said.Reason != reason || said.Allowed != (reason == "") || (code == 0) != said.Allowed {
			t.Errorf("seed %d: POST %s as %s: %s\n gateway %q (%d)\n explain %q, exit code %d\n%s%s", seed, path, key, body, reason, got.Status, said.Reason, code, got.Body, &out)
		}
	}
	if len(outcomes) < 6 {
		t.Errorf("only %v: nothing is shown", outcomes)
	}
}
