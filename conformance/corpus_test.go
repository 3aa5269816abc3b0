//go:build conformance

package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vallum/vallum/conformance/report"
)

// recorded is one file of testdata/clients.
type recorded struct {
	Client, Version, Case, Method, Path, Body string
	Headers                                   map[string]string
	Base64                                    []byte `json:"body_base64"`
}

// meant are the recorded requests that the gateway answers otherwise than
// vLLM, by a part of the file's name, with the reason it has to give.
var meant = []struct{ part, reason string }{
	{"tokenize.create", "not_permitted"},     // vllm bench goes on without
	{"metrics.read", "not_permitted"},        // likewise
	{"-other-", "unknown_operation"},         // Azure's paths, which vLLM has not either
	{"models.retrieve", "unknown_operation"}, // asks for a model that nobody granted; vLLM lacks the route
}

// atATime is how many recorded requests are under way: most ask for as many
// tokens as fit, and vLLM makes those of several requests in one step.
const atATime = 8

// corpusPasses sends every recorded client request as it was recorded to vLLM
// and through the gateway: what vLLM answers with success, the gateway does.
var corpusPasses = proof{"every recorded client request is answered as vLLM answers it", func(p *report.Proof, s *stand) {
	files, err := filepath.Glob(filepath.Join("..", "testdata", "clients", "*.json"))
	if err != nil || len(files) == 0 {
		p.NotRun("no recorded requests: %v", err)
	}
	s.needGate(p)
	var tried, served atomic.Int64
	var wg sync.WaitGroup
	room := make(chan struct{}, atATime)
	seen := map[string]bool{} // old releases of an SDK mostly send the same bytes
	for _, file := range files {
		r := readRecorded(p, file)
		same := r.Method + r.Path + r.Body
		if r.Base64 != nil || !s.serves(r.Path) || seen[same] {
			continue
		}
		seen[same] = true
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			tried.Add(1)
			ok, err := s.replay(p.Context(), filepath.Base(file), r)
			if err != nil {
				p.Errorf("%s: %v", filepath.Base(file), err)
			}
			if ok {
				served.Add(1)
			}
		})
	}
	wg.Wait()
	p.Logf("%d different requests of %d recorded were sent, %d of them answered with success by vLLM", tried.Load(), len(files), served.Load())
	if served.Load() < tried.Load()/2 {
		p.Errorf("too few were answered by vLLM alone to show anything")
	}
}}

// replay sends one recorded request both ways and compares. It tells whether
// vLLM alone answered with success.
func (s *stand) replay(ctx context.Context, file string, r recorded) (served bool, err error) {
	direct, err := s.holder().try(ctx, r.call(false))
	if err != nil {
		return false, fmt.Errorf("directly: %w", err)
	}
	through, err := s.as("anna").try(ctx, r.call(true))
	if err != nil {
		return false, fmt.Errorf("through Vallum: %w", err)
	}
	reason := through.header.Get("X-Vallum-Reason")
	switch want := meantReason(file, r); {
	case want != "" && reason != want:
		err = fmt.Errorf("want reason %q, got %q with %s", want, reason, through)
	case want == "" && direct.status != through.status:
		err = fmt.Errorf("directly %s\n\tthrough Vallum %s (%s)", direct, through, reason)
	}
	return direct.status == http.StatusOK, err
}

func readRecorded(p *report.Proof, file string) recorded {
	p.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		p.Fatal(err)
	}
	var r recorded
	if err := json.Unmarshal(b, &r); err != nil {
		p.Fatalf("%s: %v", file, err)
	}
	return r
}

// serves tells whether the stand's vLLM has the recorded path at all: the
// generating model has no embeddings, rerank or audio.
func (s *stand) serves(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	for _, without := range []string{"/embeddings", "/rerank", "/audio/"} {
		if strings.Contains(path, without) {
			return false
		}
	}
	return true
}

func meantReason(file string, r recorded) string {
	if strings.Contains(r.Body, `"thread":{`) {
		return "thread_unsupported" // vLLM ignores it and answers about half a conversation
	}
	for _, m := range meant {
		if strings.Contains(file, m.part) {
			return m.reason
		}
	}
	return ""
}

// call is the request again. Directly, the headers that vLLM's HTTP server
// trips over are left out: with Upgrade: h2c it reads an empty body.
func (r recorded) call(through bool) call {
	c := call{method: r.Method, path: r.Path, body: r.Body, header: maps.Clone(r.Headers)}
	maps.DeleteFunc(c.header, func(name, _ string) bool {
		if slices.Contains([]string{"authorization", "x-api-key", "api-key", "transfer-encoding", "accept-encoding"}, name) {
			return true
		}
		return !through && slices.Contains([]string{"connection", "upgrade", "http2-settings", "expect"}, name)
	})
	return c
}
