package verdict

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/golden"
)

var update = flag.Bool("update", false, "rewrite docs/reasons.md")

func TestTheZeroVerdictRefuses(t *testing.T) {
	var v Verdict
	if !v.Refused() || v.Reason() != Unanswered || v.Reason().Status() != 500 {
		t.Errorf("the zero verdict is %+v", v)
	}
	if Allow().Refused() || Allow().Err() != nil {
		t.Error("Allow refuses")
	}
}

func TestTheCauseIsForTheOperatorOnly(t *testing.T) {
	v := Refuse(NoCredential, errors.New("key abc: expired")).At("x-api-key").Saying("Byte %d.", 7)
	if strings.Contains(v.Message(), "expired") || !strings.Contains(v.Err().Error(), "expired") {
		t.Errorf("caller %q, operator %q", v.Message(), v.Err())
	}
	if v.Message() != "A valid API key is required. Byte 7." || v.Param() != "x-api-key" {
		t.Errorf("%q at %q", v.Message(), v.Param())
	}
	if p := Refuse(BadBody, nil).At(strings.Repeat("x", 1000)).Param(); len(p) > 260 {
		t.Errorf("a parameter of %d bytes", len(p))
	}
	if Refuse(OverBudget, nil).After(1500*time.Millisecond).RetryAfter() != 1500*time.Millisecond {
		t.Error("After is lost")
	}
}

func TestEveryReasonIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Reasons() {
		i := r.info()
		if i.code == "" || seen[i.code] || strings.ToLower(i.code) != i.code || i.status < 400 || i.openai == "" || i.anthropic == "" || i.operator == "" {
			t.Errorf("reason %d is %+v", r, i)
		}
		if !strings.HasSuffix(i.sentence, ".") || i.sentence[0] < 'A' || i.sentence[0] > 'Z' {
			t.Errorf("%s: %q is not a sentence", r, i.sentence)
		}
		seen[i.code] = true
		if back, ok := ReasonOf(i.code); !ok || back != r {
			t.Errorf("%s is not found by its code", r)
		}
	}
	if Reason(200) != 200 || Reason(200).String() != "unanswered" {
		t.Error("a reason that does not exist is not read as unanswered")
	}
}

func TestEndsHaveNames(t *testing.T) {
	for e := range endedCount {
		if e.String() == "" {
			t.Errorf("end %d has no name", e)
		}
	}
	if Ended(99).String() != "not_forwarded" || ErrRevoked.Reason() != Revoked || ErrDrained.Reason() != ShuttingDown {
		t.Error("the ends do not name themselves")
	}
}

func TestReasonsDocument(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Reasons\n\nGenerated from internal/verdict/reasons.go by `make golden`. A refusal carries its reason in `error.code` (OpenAI's form),\n" +
		"in the header `x-vallum-reason`, in the record and in the metric label `reason`: one word, everywhere.\n\n" +
		"`vallum explain --record ID` says which rule decided; the table says what an operator can do.\n\n" +
		"| reason | status | the caller reads | what it means for the operator | try again |\n|---|---|---|---|---|\n")
	for _, r := range Reasons() {
		retry := "no"
		switch {
		case r.ShouldNotRetry():
			retry = "no (`x-should-retry: false`)"
		case Refuse(r, nil).RetryAfter() > 0:
			retry = fmt.Sprintf("after `Retry-After`, %s or more", Refuse(r, nil).RetryAfter())
		case r.Status() >= 500:
			retry = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %d | %s | %s | %s |\n", r, r.Status(), r.Sentence(), r.ForOperator(), retry)
	}
	golden.Check(t, "../../docs/reasons.md", b.String(), *update, "go test ./internal/verdict -update")
}
