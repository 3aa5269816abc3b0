package gatetest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// Secrets and what callers write are planted as canaries, sent on every way that there is, and looked for in everything
// that leaves the process: answers, log (for debugging), screen, metrics, probes and every file of the state directory.
func TestSecretsAndPromptsAppearNowhere(t *testing.T) {
	t.Parallel()
	const upKey, prompt = "canary-upstream-4b1d", "canary-prompt-77ac"
	g := Start(t, Options{
		Fake: vllmtest.Options{Key: upKey}, Config: lieTimeouts,
		Keys: []store.NewKey{{Name: "app", Roles: []string{"inference"}}, {Name: "operator", Roles: []string{"operator", "monitor"}}, {Name: "revoked", Roles: []string{"inference"}}},
	})
	key := g.Secret("app")
	secret := key[strings.LastIndex(key, "_")+1:]
	var answers []Answer
	send := func(r Request) { answers = append(answers, g.Do(r)) }
	q := fmt.Sprintf("%q", prompt)
	for _, body := range []string{
		`{"model":"tiny","messages":[{"role":"user","content":` + q + `}]}`,
		`{"model":"tiny","messages":[{"role":"user","content":` + q + `}],"stream":true}`,
		`{"model":"tiny","messages":[{"role":"user","content":` + q + `}],"max_tokens":999999999}`,
		`{"model":"tiny","messages":[{"role":"user","content":` + q + `}],"tools":[{"type":"function","function":{"name":` + q + `}}]}`,
		`{"model":"tiny","messages":[{"role":` + q + `,"content":1}]}`,
		`{"model":"tiny","messages":[],"temperature":` + q + `}`,
		`{"model":"tiny","messages":[],"user":` + q + `,"zz":` + q + `}`,
		`{"model":"tiny","messages":[],"chat_template":` + q + `}`,
		`{"model":"tiny","messages":` + q + `}`,
		`{"model":"tiny","messages":[` + q,
		q, prompt,
	} {
		send(Request{Path: "/v1/chat/completions", Key: key, Body: body})
	}
	for _, s := range []struct{ path, body string }{
		{"/v1/completions", `{"model":"tiny","prompt":` + q + `}`},
		{"/v1/responses", `{"model":"tiny","input":` + q + `,"instructions":` + q + `}`},
		{"/v1/messages", `{"model":"tiny","max_tokens":5,"system":` + q + `,"messages":[{"role":"user","content":` + q + `}]}`},
		{"/v1/embeddings", `{"model":"tiny","input":` + q + `}`},
		{"/v1/rerank", `{"model":"tiny","query":` + q + `,"documents":["a"]}`},
		{"/v1/score", `{"model":"tiny","text_1":` + q + `,"text_2":"a"}`},
	} {
		send(Request{Path: s.path, Key: key, Body: s.body})
	}
	// on paths, in queries, in headers, and where no key belongs
	send(Request{Path: "/v1/models?api_key=" + key, Key: key})
	send(Request{Path: "/" + key})
	send(Request{Path: "/v1/models", Key: upKey})
	send(Request{Path: "/v1/models", Key: key, Header: map[string]string{"x-api-key": key + "x"}})
	send(Request{Path: "/v1/models", Header: map[string]string{"Authorization": "Basic " + key}})
	send(Request{Path: "/v1/models", Key: key[:len(key)-1] + "A"})
	send(Request{Path: "/v1/models", Header: map[string]string{"Cookie": "k=" + key}})
	// what the upstream says of them
	for _, kind := range []vllmtest.Kind{vllmtest.DieBefore, vllmtest.NotHTTP, vllmtest.EngineDead, vllmtest.ServerHeaders, vllmtest.NeverAnswer} {
		g.Fake.Next(vllmtest.Behaviour{Kind: kind})
		send(g.Chat("app"))
	}
	for _, body := range []string{`{"error":{"message":"%s %s","code":400}}`, `{"error":"%s %s"}`, `{"detail":"%s %s"}`, `%s %s`} {
		g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 400, Body: fmt.Sprintf(body, "0x7fbeef", "/srv/models/canary-path")})
		send(g.Chat("app"))
	}
	send(Request{Path: "/metrics", Key: g.Secret("operator")})
	g.NothingHeld()

	places := map[string]string{"the screen": g.Screen.String(), "/metrics": g.Probe("/metrics"), "/readyz": g.Probe("/readyz"), "/livez": g.Probe("/livez")}
	for i, a := range answers {
		places[fmt.Sprintf("answer %d", i)] = fmt.Sprint(a.Status, a.Header, a.Body)
	}
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	places["the log"] = g.Log.String()
	files := 0
	err := filepath.WalkDir(g.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		places[path] = string(b)
		files++
		return err
	})
	if err != nil || files < 3 {
		t.Fatalf("%d files: %v", files, err)
	}
	for place, text := range places {
		for _, canary := range []string{secret, upKey, g.Secret("operator"), "canary-path", "0x7fbeef"} {
			if place == "the log" && strings.HasPrefix(canary, "canary-path") || place == "the log" && canary == "0x7fbeef" {
				continue // the upstream's own words are the operator's to read
			}
			if strings.Contains(text, canary) {
				t.Errorf("%q stands in %s:\n%.2000s", canary, place, around(text, canary))
			}
		}
		if strings.Contains(text, prompt) {
			t.Errorf("the prompt stands in %s:\n%.2000s", place, around(text, prompt))
		}
	}
}

// around is the text near a word.
func around(text, word string) string {
	i := strings.Index(text, word)
	return text[max(0, i-300):min(len(text), i+300)]
}
