package gateway

import (
	"testing"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/verdict"
)

// A whole answer that tells no tokens costs its reservation, unless its operation runs no model: an upstream that forgets to count,
// or a caller who finds out how to make it forget, must not have it for nothing.
func TestAnAnswerWithoutItsCostCostsItsReservation(t *testing.T) {
	long := request{"POST", "/v1/chat/completions", "inference", `{"model":"llama","messages":[{"role":"user","content":"hi"}]}`}
	for name, row := range map[string]struct {
		request request
		answer  string
		settled int64
		usage   string
	}{
		"counted":               {long, usage, 10, audit.UsageCounted},
		"no usage":              {long, `{"id":"x","object":"chat.completion","model":"llama","choices":[]}`, 1000, audit.UsageEstimated},
		"usage of nonsense":     {long, `{"model":"llama","choices":[],"usage":{"prompt_tokens":-7,"completion_tokens":3}}`, 1000, audit.UsageEstimated},
		"no usage, with a cap":  {request{"POST", "/v1/chat/completions", "inference", chat.body}, `{"model":"llama","choices":[]}`, int64(len(chat.body)) + 5, audit.UsageEstimated},
		"pooling without usage": {request{"POST", "/v1/rerank", "inference", `{"model":"llama","query":"q","documents":["d"]}`}, `{"results":[]}`, 47 + 3 + 2, audit.UsageEstimated},
		"what runs no model":    {request{"POST", "/v1/messages/count_tokens", "inference", `{"model":"llama","messages":[{"role":"user","content":"hi"}]}`}, `{"input_tokens":3}`, 0, audit.UsageNone},
	} {
		g, f := build(t)
		f.answer = row.answer
		w := row.request.do(g)
		if w.Code != 200 || len(f.records) != 2 {
			t.Fatalf("%s: %d %s", name, w.Code, w.Body)
		}
		end := f.records[1]
		if f.settled != row.settled || end.Usage != row.usage || end.PromptTokens+end.CompletionTokens != row.settled {
			t.Errorf("%s: settled %d of %d, recorded as %+v; want %d", name, f.settled, end.ReservedTokens, end, row.settled)
		}
		nothingHeld(t, g, f)
	}
	g, f := build(t)
	f.outcome = verdict.Outcome{Refusal: verdict.Refuse(verdict.BadBody, nil), UpStatus: 400}
	long.do(g)
	if f.settled != 0 || f.records[1].PromptTokens != 0 {
		t.Errorf("a request that the upstream refused: settled %d, %+v", f.settled, f.records[1])
	}
}
