package gatetest

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vallum/vallum/internal/vllmtest"
)

// Whole replies share max_buffered with each other and with request bodies: what finds no room is refused as busy, and
// what is held comes back when its client hangs up.
func TestManyLargeRepliesNeverPassTheSharedMemory(t *testing.T) {
	t.Parallel()
	const most = 8 << 20
	g := Start(t, Options{Fake: vllmtest.Options{Words: 200_000, MaxModelLen: 1 << 30}, Config: "bodies: {max_buffered: 8MiB}"})
	ask := Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: `{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`}
	whole := g.Do(ask)
	size := len(whole.Body)
	if whole.Status != 200 || size < most/10 {
		t.Fatalf("the fake's answer has %d bytes: %d", size, whole.Status)
	}

	// four are half here and go on for ever: a fifth finds no room
	hold, hangUp := context.WithCancel(t.Context())
	var held sync.WaitGroup
	for range most / (2 * size) {
		g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Hang})
		req, err := http.NewRequestWithContext(hold, "POST", g.URL+ask.Path, strings.NewReader(ask.Body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+ask.Key)
		req.Header.Set("Content-Type", "application/json")
		held.Go(func() {
			if resp, err := g.Client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	g.Eventually("the memory is taken", func() bool { return g.buffered(t) > most-2*int64(size) })
	for _, r := range []Request{ask, {Path: "/v1/responses", Key: ask.Key, Body: `{"model":"tiny","input":"hi"}`}} {
		a := g.Do(r)
		if a.Status != 503 || a.Reason() != "busy" || a.Code() != "busy" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s without room: %d %v %.100s", r.Path, a.Status, a.Header, a.Body)
		}
		if rec := g.Record(a.ID()); rec.Ended != "no_memory" || rec.Reason != "busy" || rec.Upstream == "" || !strings.Contains(rec.Detail, "memory for bodies") {
			t.Errorf("recorded as %+v", rec)
		}
	}
	if a := g.Do(Request{Path: "/v1/models", Key: ask.Key}); a.Status != 200 {
		t.Errorf("what needs no memory: %d %s", a.Status, a.Body)
	}
	hangUp()
	held.Wait()
	g.Eventually("the memory is free", func() bool { return g.buffered(t) == 0 })

	// many at once: each is whole or refused, and the server is not blamed
	var clients sync.WaitGroup
	var mu sync.Mutex
	count := map[string]int{}
	for range 60 {
		clients.Go(func() {
			a := g.Do(ask)
			mu.Lock()
			defer mu.Unlock()
			count[a.Reason()]++
			if a.Reason() == "" && (a.Status != 200 || len(a.Body) != size) || a.Reason() != "" && a.Reason() != "busy" {
				t.Errorf("%d with %d bytes, %q", a.Status, len(a.Body), a.Reason())
			}
		})
	}
	clients.Wait()
	if count[""] == 0 {
		t.Errorf("none got an answer: %v", count)
	}
	if a := g.Do(ask); a.Status != 200 {
		t.Errorf("after them: %d %.100s", a.Status, a.Body)
	}
}

// buffered is what of max_buffered is taken.
func (g *Gate) buffered(t *testing.T) int64 {
	n, err := strconv.ParseFloat(g.Gauge("vallum_buffered_bytes"), 64)
	if err != nil {
		t.Fatal(err)
	}
	return int64(n)
}
