//go:build conformance

package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gateway"
	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
)

const classProperty = "every refusal raises its class, plain and streamed, and is tried again only where that can help"

// classClient is an official SDK that is asked which exceptions it raises.
type classClient struct {
	name, version, program, kind string
	other                        string // the class of statuses that have none of their own
	command                      func() (program, env string, err error)
}

func classClients() []classClient {
	python := func() (string, string, error) {
		dir, err := parts.Dir(parts.Python)
		return filepath.Join(dir, "venv", "bin", "python"), "", err
	}
	node := func() (string, string, error) {
		dir, err := parts.Dir(parts.Node)
		return "node", "NODE_CLIENTS=" + dir, err
	}
	return []classClient{
		{"Python openai", parts.OpenAIPython, "clients/python/classes.py", "openai", "APIStatusError", python},
		{"Python anthropic", parts.AnthropicPython, "clients/python/classes.py", "anthropic", "APIStatusError", python},
		{"Node openai", parts.OpenAINode, "clients/node/classes.mjs", "openai", "APIError", node},
		{"Node @anthropic-ai/sdk", parts.AnthropicNode, "clients/node/classes.mjs", "anthropic", "APIError", node},
	}
}

// TestClasses needs no vLLM: the refusals are the gateway's own.
func TestClasses(t *testing.T) {
	for _, c := range classClients() {
		table.Prove(t, c.name, c.version, classProperty, func(p *report.Proof) {
			program, env, err := c.command()
			if err != nil {
				p.NotRun("%v", err)
			}
			askForRefusals(p, []string{program, c.program, c.kind}, env, c.kind, c.other)
		})
	}
}

// refuser is every stage of a gateway that refuses each request for the reason that stands in the place of its key.
type refuser struct {
	mu    sync.Mutex
	tries map[string]int
}

func (r *refuser) Authenticate(h http.Header, _ netip.Addr, _ time.Time) (identity.Principal, verdict.Verdict) {
	code := strings.TrimPrefix(h.Get("Authorization"), "Bearer ")
	if code == "" {
		code = h.Get("X-Api-Key")
	}
	r.mu.Lock()
	r.tries[code]++
	r.mu.Unlock()
	reason, ok := verdict.ReasonOf(code)
	if !ok {
		reason = verdict.InternalError
	}
	return identity.Nobody, verdict.Refuse(reason, errors.New("the cause"))
}

func (*refuser) Append(audit.Record) (uint64, error) { return 1, nil }
func (*refuser) Count(string, netip.Addr)            {}
func (*refuser) Began(string)                        {}
func (*refuser) Observe(gateway.Sample)              {}

// raised is what a program printed of one call.
type raised struct {
	Code       string
	Stream     bool
	Classes    []string
	Said       *string
	Reason     *string
	RetryAfter *string `json:"retry_after"`
	RequestID  *string `json:"request_id"`
}

func askForRefusals(p *report.Proof, command []string, env, kind, other string) {
	stages := &refuser{tries: map[string]int{}}
	g := &gateway.Gateway{Keys: stages, Records: stages, Meter: stages, Memory: gateway.NewMemory(1 << 20), Log: slog.New(slog.DiscardHandler), Now: time.Now}
	server := httptest.NewServer(g)
	p.Cleanup(server.Close)
	var codes strings.Builder
	asked := 0
	for _, reason := range verdict.Reasons() {
		if reason != verdict.CallerLeft { // nobody is there to read it
			fmt.Fprintln(&codes, reason)
			asked += 2
		}
	}
	cmd := exec.CommandContext(p.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "BASE_URL="+server.URL, "NO_PROXY=*", "no_proxy=*", env)
	cmd.Stdin = strings.NewReader(codes.String())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.Fatalf("%q: %v\n%s", command, err, &stderr)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != asked {
		p.Fatalf("%d calls were answered, of %d:\n%s", len(lines), asked, out)
	}
	for _, line := range lines {
		var r raised
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			p.Fatalf("%s: %v", line, err)
		}
		judgeClass(p, r, kind, other, line)
	}
	for code, tries := range stages.tries {
		reason, _ := verdict.ReasonOf(code)
		want := 2 // plain and streamed
		if again := reason.Status() == http.StatusRequestTimeout || reason.Status() == http.StatusTooManyRequests || reason.Status() >= 500; again && !reason.ShouldNotRetry() {
			want = 4 // one retry each
		}
		if tries != want {
			p.Errorf("%s was tried %d times, want %d", code, tries, want)
		}
	}
}

// judgeClass wants the class that the SDKs' own pages give for the status, and our words where a program finds them.
func judgeClass(p *report.Proof, r raised, kind, other, line string) {
	p.Helper()
	reason, _ := verdict.ReasonOf(r.Code)
	class := map[int]string{400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError", 429: "RateLimitError"}[reason.Status()]
	switch {
	case reason.Status() >= 500:
		class = "InternalServerError"
	case class == "":
		class = other
	}
	if !slices.Contains(r.Classes, class) {
		p.Errorf("%s: want %s: %s", reason, class, line)
	}
	if r.Reason == nil || *r.Reason != reason.String() || kind == "openai" && (r.Said == nil || *r.Said != reason.String()) {
		p.Errorf("%s: a program does not find the reason: %s", reason, line)
	}
	if want := verdict.Refuse(reason, nil).RetryAfter() > 0; want != (r.RetryAfter != nil) {
		p.Errorf("%s: want Retry-After: %t: %s", reason, want, line)
	}
	if r.RequestID == nil || !strings.HasPrefix(*r.RequestID, "req_") {
		p.Errorf("%s: no request id: %s", reason, line)
	}
}
