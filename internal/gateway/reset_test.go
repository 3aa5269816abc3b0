package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/spare"
	"github.com/vallum/vallum/internal/verdict"
)

// resetting is an upstream whose answer is rewritten, and cannot be written to its caller.
type resetting struct{ out []byte }

func (r *resetting) Pick(policy.Grant, []string) (Upstream, verdict.Verdict) {
	return r, verdict.Allow()
}
func (r *resetting) Name() string { return "llama" }

func (r *resetting) Send(_ context.Context, _ http.ResponseWriter, c Call) verdict.Outcome {
	c.Sent()
	r.out, _ = c.Reply.Whole(200, "application/json", []byte(`{"system_fingerprint":"x","id":"`+strings.Repeat("a", 20<<10)+`"}`))
	return verdict.Outcome{Refusal: verdict.Allow(), Written: true, Status: 200, UpStatus: 200, Ended: verdict.ClientLeft, Cause: errors.New("stream closed")}
}

// net/http's HTTP/2 may go on writing to a stream that its client reset after it has told the handler so: what is being
// written must not become another answer.
func TestAnAnswerThatCouldNotBeWrittenIsNobodyElses(t *testing.T) {
	g, _ := build(t)
	for range 20 {
		up := &resetting{}
		g.Upstreams = up
		req := httptest.NewRequest(chat.method, chat.target, strings.NewReader(chat.body))
		req.Header.Set("Test-Role", chat.role)
		req.Header.Set("Content-Type", "application/json")
		g.ServeHTTP(httptest.NewRecorder(), req)
		before := string(up.out)
		for range 4 { // somebody else's
			b := spare.Borrow(len(before))
			for i := range b.B[:cap(b.B)] {
				b.B[:cap(b.B)][i] = 'z'
			}
		}
		if before == "" || string(up.out) != before {
			t.Fatalf("an answer of %d bytes was written over: %.20q", len(before), up.out)
		}
	}
}
