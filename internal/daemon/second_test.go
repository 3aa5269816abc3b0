package daemon_test

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllm/surface"
	"github.com/vallum/vallum/internal/vllm/surface/all"
	"github.com/vallum/vallum/internal/vllmtest"
)

// member is one server of a fleet that serves the model "tiny".
type member struct {
	*vllmtest.Server
	name, url string
	end       func() // as kill -9 does; when it returns nobody listens
}

// fleet is a gate before several servers, all of them alive.
func fleet(t *testing.T, keys []store.NewKey, fakes ...vllmtest.Options) (*gatetest.Gate, []*member) {
	t.Helper()
	var members []*member
	for i, o := range fakes {
		m := &member{name: string(rune('a' + i))}
		m.Server, m.url, m.end = serve(t, vllmtest.Apart(), o)
		t.Cleanup(m.Close)
		members = append(members, m)
	}
	return gateBefore(t, keys, members), members
}

func gateBefore(t *testing.T, keys []store.NewKey, members []*member) *gatetest.Gate {
	t.Helper()
	g := gatetest.Start(t, gatetest.Options{Upstream: members[0].url, Keys: keys})
	list := ""
	for _, m := range members {
		list += fmt.Sprintf("  - {name: %s, url: %q}\n", m.name, m.url)
	}
	g.Reload(strings.Replace(g.Yaml(), fmt.Sprintf("  - name: fake\n    url: %q\n", members[0].url), list, 1))
	g.Eventually("the whole fleet", func() bool {
		ready := g.Probe("/readyz")
		return strings.HasPrefix(ready, "ready") && !strings.Contains(ready, "not alive")
	})
	return g
}

// justLookedAt waits until the gateway has looked at the servers once more. It does so every five seconds: who dies now is
// found dead by a request, and not by a look that comes first.
func justLookedAt(t *testing.T, members ...*member) {
	t.Helper()
	looks := func(m *member) (n int) {
		for _, r := range m.Requests() {
			if r.Path == "/health" {
				n++
			}
		}
		return n
	}
	before := map[*member]int{}
	for _, m := range members {
		before[m] = looks(m)
	}
	gatetest.Eventually(t, "a look at each server", func() bool {
		return !slices.ContainsFunc(members, func(m *member) bool { return looks(m) == before[m] || !m.Idle() })
	})
}

// passedOn counts the requests that were recorded as admitted for one upstream and answered by another.
func passedOn(g *gatetest.Gate, from, to string) int {
	n, admitted := 0, map[string]string{}
	for _, r := range g.Records() {
		switch {
		case r.Event == audit.Admitted:
			admitted[r.ID] = r.Upstream
		case r.Event == audit.Ended && admitted[r.ID] == from && r.Upstream == to && r.Ended == "complete" && r.Status == 200:
			n++
		}
	}
	return n
}

// The first new request after a server's death is answered by another, and arrives there once. So is a form that lies in
// a file. What is admitted for the dead one is recorded as ended by the one that answered.
func TestTheFirstRequestAfterADeathGoesElsewhere(t *testing.T) {
	t.Parallel()
	g, m := fleet(t, nil, vllmtest.Options{}, vllmtest.Options{})
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	file, err := w.CreateFormFile("file", "a.wav")
	if err != nil {
		t.Fatal(err)
	}
	sound := strings.Repeat("sound", 600_000)
	_, _ = file.Write([]byte("RIFF" + sound))
	_ = w.WriteField("model", "tiny")
	_ = w.Close()
	audio := gatetest.Request{Path: "/v1/audio/transcriptions", Key: g.Secret("app"), Body: form.String(), Header: map[string]string{"Content-Type": w.FormDataContentType()}}
	for round, request := range []gatetest.Request{g.Chat("app"), audio, g.Chat("app")} {
		for range 2 { // both have a connection to use again
			if a := g.Do(g.Chat("app")); a.Status != 200 {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
		}
		address := strings.TrimPrefix(m[0].url, "http://")
		m[0].end()
		before := len(m[1].Work())
		for range 2 { // one of them is for the dead one
			if a := g.Do(request); a.Status != 200 {
				t.Errorf("round %d: %d %s", round, a.Status, a.Body)
			}
		}
		work := m[1].Work()[before:]
		if len(work) != 2 || work[0].Header.Get("X-Request-Id") == work[1].Header.Get("X-Request-Id") {
			t.Errorf("round %d: %d requests arrived", round, len(work))
		}
		for _, r := range work {
			if request.Path == audio.Path && !strings.Contains(string(r.Body), sound) {
				t.Errorf("round %d: a form arrived with %d bytes", round, len(r.Body))
			}
		}
		m[0].Server, _, m[0].end = serve(t, address, vllmtest.Options{})
		t.Cleanup(m[0].Close)
		g.Eventually("its return", func() bool { return !strings.Contains(g.Probe("/readyz"), "not alive") })
	}
	if n := passedOn(g, "a", "b"); n < 1 || !strings.Contains(g.Log.String(), "an upstream could not be reached") { // some may have been seen to die in time
		t.Errorf("%d requests of 3 deaths were passed on: %s", n, g.Log)
	}
}

// With all of them dead each is tried once, and the caller is told to come again.
func TestWithAllDeadTheCallerIsToldToComeAgain(t *testing.T) {
	t.Parallel()
	g, m := fleet(t, nil, vllmtest.Options{}, vllmtest.Options{}, vllmtest.Options{})
	justLookedAt(t, m...)
	for _, one := range m {
		one.end()
	}
	for range 3 {
		a := g.Do(g.Chat("app"))
		if a.Status != 503 || a.Reason() != "upstream_unavailable" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%d %s %v", a.Status, a.Reason(), a.Header)
		}
	}
	for _, one := range m {
		if n := strings.Count(g.Log.String(), "upstream="+one.name+" to="); n > 1 {
			t.Errorf("%s was passed over %d times: %s", one.name, n, g.Log)
		}
	}
	before, _, _ := strings.Cut(g.Log.String(), "msg=refused")
	if n := strings.Count(g.Log.String(), "an upstream could not be reached"); n > 2 || n == 0 && strings.Count(before, "is not alive") < 2 { // looks may have come first after all
		t.Errorf("%d times another one was tried: %s", n, g.Log)
	}
}

// door turns connections away right after they were made.
type door struct {
	net.Listener
	shut   atomic.Bool
	turned atomic.Int32
}

func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil || !d.shut.Load() {
			return c, err
		}
		d.turned.Add(1)
		_ = c.Close()
	}
}

// A server that accepts and closes may have read the request, for all that we can know: it is not sent again.
func TestWhatAServerMayHaveReadIsNotSentElsewhere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Listener: l}
	shy := vllmtest.New(vllmtest.Options{})
	done := make(chan error, 1)
	go func() { done <- shy.Serve(d) }()
	t.Cleanup(func() { shy.Close(); <-done })
	second, url, end := serve(t, "127.0.0.1:0", vllmtest.Options{})
	t.Cleanup(end)
	g := gateBefore(t, nil, []*member{{Server: shy, name: "a", url: "http://" + l.Addr().String()}, {Server: second, name: "b", url: url}})
	ask := func(n int) (well, failed []string) {
		for range n {
			switch a := g.Do(g.Chat("app")); {
			case a.Status == 200:
				well = append(well, a.ID())
			case a.Reason() == "upstream_failed":
				failed = append(failed, a.ID())
			default:
				t.Errorf("%d %s", a.Status, a.Body)
			}
		}
		return well, failed
	}
	arrived := func(s *vllmtest.Server, ids []string) (n int) {
		for _, r := range s.Work() {
			if slices.Contains(ids, r.Header.Get("X-Request-Id")) {
				n++
			}
		}
		return n
	}

	shy.Next(vllmtest.Behaviour{Kind: vllmtest.DieBefore})
	well, failed := ask(2)
	if len(failed) != 1 || arrived(shy, failed) != 1 || arrived(second, failed) != 0 || arrived(second, well) != 1 {
		t.Errorf("read and closed: %d failed, of which %d arrived at the first and %d at the second", len(failed), arrived(shy, failed), arrived(second, failed))
	}
	ask(2)
	shy.BreakConnections() // what is pooled is closed; the next connection is turned away
	d.shut.Store(true)
	well, failed = ask(4)
	if len(failed) == 0 || d.turned.Load() == 0 || arrived(second, failed) != 0 || arrived(second, well) != len(well) {
		t.Errorf("accepted and closed: %d failed, %d were turned away, %d of those arrived at the second, and %d of %d others", len(failed), d.turned.Load(), arrived(second, failed), arrived(second, well), len(well))
	}
}

// What is sent elsewhere is judged anew: the release that a field harms does not get it, and one that may have it does.
func TestASecondServerIsAskedForItsRelease(t *testing.T) {
	t.Parallel()
	g, m := fleet(t, nil, vllmtest.Options{}, vllmtest.Options{Version: "0.27.1"})
	budget := gatetest.Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: `{"model":"tiny","messages":[{"role":"user","content":"hi"}],"thinking_token_budget":5}`}
	for range 3 {
		if a := g.Do(budget); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	justLookedAt(t, m[0])
	m[0].end()
	if seen := strings.Contains(g.Log.String(), "is not alive"); !seen { // a look may have come first after all
		if a := g.Do(budget); a.Status != 503 || a.Reason() != "upstream_unavailable" {
			t.Errorf("the one that may have it just died: %d %s\n%s", a.Status, a.Body, g.Log)
		}
	}
	if a := g.Do(budget); a.Reason() != "forbidden_parameter" {
		t.Errorf("only the harmed one is left: %d %s", a.Status, a.Body)
	}
	if a := g.Do(g.Chat("app")); a.Status != 200 || len(m[1].Work()) != 1 {
		t.Errorf("%d %s, %d arrived at the harmed release", a.Status, a.Body, len(m[1].Work()))
	}

	g, m = fleet(t, nil, vllmtest.Options{}, vllmtest.Options{Version: "0.27.1"}, vllmtest.Options{})
	m[0].end()
	budget.Key = g.Secret("app")
	for range 4 {
		if a := g.Do(budget); a.Status != 200 {
			t.Errorf("the third may have it: %d %s\n%s", a.Status, a.Body, g.Log)
		}
	}
	if len(m[1].Work()) != 0 || len(m[2].Work()) != 4 {
		t.Errorf("%d arrived at the harmed release, %d at the other", len(m[1].Work()), len(m[2].Work()))
	}
}

// A server that has no cache_salt belongs to its first tenant: others' requests go past it, also when theirs has died.
func TestASecondServerKeepsTenantsApart(t *testing.T) {
	t.Parallel()
	releases := all.Releases(t)
	old := releases[slices.IndexFunc(releases, func(r *surface.Release) bool { return r.Version == "0.8.5" })]
	keys := []store.NewKey{{Name: "a1", Tenant: "a", Roles: []string{"inference"}}, {Name: "b1", Tenant: "b", Roles: []string{"inference"}}}
	g, m := fleet(t, keys, vllmtest.Options{}, vllmtest.Options{Surface: old})
	first := g.Chat("b1")
	first.Header = map[string]string{"X-Vallum-Upstream": "b"}
	if a := g.Do(first); a.Status != 200 || len(m[1].Work()) != 1 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	for range 4 {
		if a := g.Do(g.Chat("a1")); a.Status != 200 {
			t.Errorf("another one may have it: %d %s", a.Status, a.Reason())
		}
	}
	justLookedAt(t, m[0])
	m[0].end()
	reasons := []string{"upstream_unavailable", "cache_not_isolated"}
	if strings.Contains(g.Log.String(), "is not alive") { // a look may have come first after all
		reasons = reasons[1:]
	}
	for _, reason := range reasons {
		if a := g.Do(g.Chat("a1")); a.Reason() != reason {
			t.Errorf("%d %s, want %s\n%s", a.Status, a.Reason(), reason, g.Log)
		}
	}
	if n := len(m[1].Work()); n != 1 {
		t.Errorf("%d requests of another tenant arrived", n-1)
	}
}
