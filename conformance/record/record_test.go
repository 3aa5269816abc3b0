package main

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCredentialsAndTheMachineAreNotKept(t *testing.T) {
	req := httptest.NewRequest("POST", "/c/1/x/v1/messages", nil)
	for name, value := range map[string]string{
		"Authorization": "Bearer sk-canary", "X-Api-Key": "sk-canary", "User-Agent": "canary", "X-Session-Id": "canary", "X-Stainless-Os": "canary",
		"Content-Type": "application/json",
	} {
		req.Header.Set(name, value)
	}
	kept := headers(req)
	for name, value := range kept {
		if strings.Contains(value, "canary") {
			t.Errorf("%s: %s was kept", name, value)
		}
	}
	if kept["authorization"] != "Bearer KEY" || kept["content-type"] != "application/json" {
		t.Errorf("kept %v", kept)
	}
}

func TestAgentsPromptsAreCutWithoutBreakingTheJSON(t *testing.T) {
	for _, text := range []string{strings.Repeat("a", 500), strings.Repeat(`\"`, 200), strings.Repeat("é", 200), strings.Repeat(`\u00e9`, 80), strings.Repeat(`\\`, 150)} {
		r := scrub(recording{Client: "codex", Body: `{"a":1,"b":"` + text + `","c":[true]}`})
		var v map[string]any
		if err := json.Unmarshal([]byte(r.Body), &v); err != nil {
			t.Errorf("%q: %v", r.Body, err)
		}
		if !r.Shortened || len(r.Body) > 300 || len(v) != 3 {
			t.Errorf("shortened %v, %d bytes: %q", r.Shortened, len(r.Body), r.Body)
		}
	}
	if r := scrub(recording{Client: "curl", Body: `{"b":"` + strings.Repeat("a", 500) + `"}`}); r.Shortened {
		t.Error("an ordinary client's body was shortened")
	}
}
