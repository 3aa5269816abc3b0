package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/vllmtest"
)

// vLLM's own key comes from wherever the configuration points, arrives there, and is seen nowhere else.
func TestTheUpstreamsKeyIsFoundWhereItIs(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vllm"), []byte("the-upstreams-own-key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VALLUM_TEST_KEY", "the-upstreams-own-key")
	t.Setenv("CREDENTIALS_DIRECTORY", dir) // systemd.exec(5), LoadCredential=
	for _, where := range []string{"key: ${env:VALLUM_TEST_KEY}", "key: ${credential:vllm}", "key_file: " + filepath.Join(dir, "vllm")} {
		fake := vllmtest.Start(t, vllmtest.Options{Key: "the-upstreams-own-key"})
		g := gatetest.Start(t, gatetest.Options{Upstream: fake.URL(), UpExtra: where})
		if a := g.Do(g.Chat("app")); a.Status != 200 || fake.Last().Header.Get("Authorization") != "Bearer the-upstreams-own-key" {
			t.Errorf("%s: %d %s, there arrived %q", where, a.Status, a.Body, fake.Last().Head)
		}
		b, err := os.ReadFile(filepath.Join(g.State, "effective.yaml"))
		if err != nil || strings.Contains(string(b)+g.Screen.String()+g.Log.String(), "the-upstreams-own-key") {
			t.Errorf("%s: the key is told: %v", where, err)
		}
	}
	for where, says := range map[string]string{
		"key: ${env:NO_SUCH_VARIABLE}": "NO_SUCH_VARIABLE", "key: ${credential:nothing}": "nothing", "key: ${credential:../vllm}": "is not the name of a credential", "key_file: /nowhere/key": "/nowhere/key",
	} {
		refusesToStart(t, gatetest.Options{UpExtra: where}, says)
	}
}

// A key that vLLM was given anew is used as soon as its file has it.
func TestTheUpstreamsKeyIsReadAgain(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "vllm")
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	fake := vllmtest.Start(t, vllmtest.Options{})
	g := gatetest.Start(t, gatetest.Options{Upstream: fake.URL(), UpExtra: "key_file: " + file})
	for _, key := range []string{"first", "second"} {
		write(key)
		g.Eventually("the key "+key, func() bool {
			a := g.Do(g.Chat("app"))
			return a.Status == 200 && fake.Last().Header.Get("Authorization") == "Bearer "+key
		})
	}
}

// What the operator may let out of vLLM's errors is closed unless it is written.
func TestUpstreamErrorsPassOnlyWhenItIsWritten(t *testing.T) {
	t.Parallel()
	const told = `{"error":{"message":"in /srv/models/secret-path: nonsense","type":"BadRequestError","param":null,"code":400}}`
	for config, passes := range map[string]bool{"": false, "upstream_errors: replace\n": false, "upstream_errors: pass\n": true} {
		g := gatetest.Start(t, gatetest.Options{Config: config})
		g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 400, Body: told})
		a := g.Do(g.Chat("app"))
		if a.Status != 400 || (a.Reason() != "upstream_refused") != passes || strings.Contains(a.Body, "secret-path") != passes {
			t.Errorf("%q: %d %s", config, a.Status, a.Body)
		}
		if !strings.Contains(g.Log.String(), "secret-path") {
			t.Errorf("%q: the operator does not read it: %s", config, g.Log)
		}
		g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Type: "text/event-stream", Body: "data: " + strings.Replace(told, "secret-path", "another-path", 1) + "\n\ndata: [DONE]\n\n"})
		streamed := g.Chat("app")
		streamed.Body = strings.Replace(streamed.Body, "{", `{"stream":true,`, 1)
		if a := g.Do(streamed); strings.Contains(a.Body, "another-path") != passes || !strings.Contains(g.Log.String(), "another-path") {
			t.Errorf("%q: an error within a stream: %s\nthe log: %s", config, a.Body, g.Log)
		}
		if r := g.Record(a.ID()); r.Status != 400 || strings.Contains(r.Detail, "secret-path") {
			t.Errorf("%q: recorded as %+v", config, r)
		}
		if strings.Contains(g.Screen.String(), "WARNING upstream_errors") != passes {
			t.Errorf("%q: the screen says\n%s", config, g.Screen)
		}
	}
}

// A reply that is larger than the cap is not passed on in part.
func TestARepliesCapIsTheConfigurations(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "bodies: {max_reply: 2KiB}\n"})
	g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 200, Body: `{"id":"a","choices":[],"pad":"` + strings.Repeat("x", 4<<10) + `"}`})
	if a := g.Do(g.Chat("app")); a.Status != 502 || a.Reason() != "upstream_failed" || strings.Contains(a.Body, "xxx") {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("the next one: %d %s", a.Status, a.Body)
	}
}

// Segments are sealed by size and deleted by age as the file says, and what is left verifies.
func TestTheLogIsCutAndKeptAsTheFileSays(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "audit: {max_segment: 8KiB, retain: 1s}\n"})
	dir := filepath.Join(g.State, "audit")
	first := ""
	g.Eventually("the end of the first segment", func() bool {
		if a := g.Do(g.Chat("app")); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		segments, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
		if err != nil || len(segments) == 0 {
			t.Fatalf("%q %v", segments, err)
		}
		if first == "" {
			first = segments[0]
		}
		return segments[0] != first
	})
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(dir, "log.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if report, err := audit.Verify(dir, strings.TrimSpace(string(key)), nil); err != nil || !report.OK() || report.First < 2 {
		t.Errorf("what is left does not hold: %+v %v", report, err)
	}
}

// A client that does not read is let go after the time that the file gives it, and what it held comes back.
func TestAClientThatDoesNotReadIsLetGoInTheFilesTime(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "timeouts: {write: 300ms}\n", Fake: vllmtest.Options{Words: 100_000}}) // more than sockets hold
	// Here: once the answer has begun, the client may be late itself to look at the time.
	began := time.Now()
	resp, err := g.Open(gatetest.Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: `{"model":"tiny","stream":true,"messages":[]}`})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	r := g.Record(resp.Header.Get("X-Request-Id"))
	if took := time.Since(began); r.Ended != audit.EndedClientLeft || took < 250*time.Millisecond || took > 10*time.Second {
		t.Errorf("after %s: %+v", took, r)
	}
	g.NothingHeld()
}
