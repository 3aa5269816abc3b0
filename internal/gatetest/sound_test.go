package gatetest

import (
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// heard sends a form with a sound of a size to an operation of a key that may use so many tokens a minute.
func heard(t *testing.T, budget, path string, size int, more ...part) (*Gate, func() Answer) {
	t.Helper()
	g := Start(t, Options{
		Config: "roles:\n  ears: {operations: [audio.transcriptions, audio.translations], models: [\"*\"], limits: {tokens_per_minute: " + budget + "}}\n",
		Keys:   []store.NewKey{{Name: "app", Roles: []string{"ears"}}},
	})
	sound := part{audioFile.header, strings.Repeat("x", size)}
	var b strings.Builder
	for _, p := range append([]part{{field("model"), "tiny"}, sound}, more...) {
		b.WriteString("--theirs\r\n" + p.header + "\r\n\r\n" + p.content + "\r\n")
	}
	b.WriteString("--theirs--\r\n")
	r := Request{Path: path, Key: g.Secret("app"), Body: b.String(), Header: map[string]string{"Content-Type": "multipart/form-data; boundary=theirs"}}
	return g, func() Answer { return g.Do(r) }
}

// A sound's bytes are no tokens: under an ordinary limit a megabyte is heard. It costs the seconds that vLLM tells, or, where it tells
// none, what was reserved: never nothing.
func TestSoundCostsWhatVLLMHeard(t *testing.T) {
	t.Parallel()
	const whole = 60_000 + 21*1024 // ten minutes, in pieces of the fake's context
	for name, row := range map[string]struct {
		path       string
		more       []part
		usage      string
		prompt     int64
		completion int64 // at most; at least 1 where there are seconds
		again      bool  // a second one fits in the same minute
	}{
		"transcription":                 {"/v1/audio/transcriptions", nil, audit.UsageEstimated, 3300, 200, true},
		"transcription with timestamps": {"/v1/audio/transcriptions", []part{{field("response_format"), "verbose_json"}}, audit.UsageEstimated, 3300, 200, true},
		"translation":                   {"/v1/audio/translations", nil, audit.UsageEstimated, whole, 0, false},
		"translation with timestamps":   {"/v1/audio/translations", []part{{field("response_format"), "verbose_json"}}, audit.UsageEstimated, 3300, 200, true},
		"streamed translation":          {"/v1/audio/translations", []part{{field("stream"), "true"}}, audit.UsageCounted, 2, 5, true},
	} {
		g, send := heard(t, "100_000", row.path, 1<<20, row.more...)
		a := send()
		r := g.Record(a.ID())
		told := row.completion == 0 || r.CompletionTokens > 0
		if a.Status != 200 || r.Usage != row.usage || r.PromptTokens != row.prompt || r.CompletionTokens > row.completion || !told || r.ReservedTokens != whole {
			t.Errorf("%s: %d %s, recorded as %+v", name, a.Status, a.Body, r)
		}
		if a := send(); (a.Status == 200) != row.again || !row.again && (a.Reason() != "over_budget" || a.Header.Get("Retry-After") == "") {
			t.Errorf("%s, a second time: %d %s", name, a.Status, a.Body)
		}
	}
}

// A cap on the output makes the reservation smaller, and a budget that is smaller still refuses for good, before anything is heard.
func TestSoundIsReservedByItsLongest(t *testing.T) {
	t.Parallel()
	g, send := heard(t, "70_000", "/v1/audio/transcriptions", 1000)
	if a := send(); a.Reason() != "over_budget" || a.Header.Get("Retry-After") != "" || g.Fake.Arrived() != 0 {
		t.Errorf("%d %s, %d arrived", a.Status, a.Body, g.Fake.Arrived())
	}
	g, send = heard(t, "70_000", "/v1/audio/transcriptions", 1000, part{field("max_completion_tokens"), "3"})
	a := send()
	if r := g.Record(a.ID()); a.Status != 200 || r.ReservedTokens <= 60_000 || r.ReservedTokens > 63_000 {
		t.Errorf("%d %s, recorded as %+v", a.Status, a.Body, r)
	}
	short := Start(t, Options{Config: "bodies: {max_audio: 30s}\n"})
	a = short.form(part{field("model"), "tiny"}, audioFile)
	if r := short.Record(a.ID()); a.Status != 200 || r.ReservedTokens != 3000+2*1024 {
		t.Errorf("servers that hear half a minute: %d %s, recorded as %+v", a.Status, a.Body, r)
	}
}

// Who leaves while a sound is told has had it heard: a file's bytes do not say how much that was, so it costs what was reserved, unless
// the events told.
func TestLeavingASoundCostsItsReservation(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Hang, After: 1})
	body := "--theirs\r\n" + field("model") + "\r\n\r\ntiny\r\n--theirs\r\n" + field("stream") + "\r\n\r\ntrue\r\n--theirs\r\n" + audioFile.header + "\r\n\r\n" + audioFile.content + "\r\n--theirs--\r\n"
	resp, err := g.Open(Request{Path: "/v1/audio/transcriptions", Key: g.Secret("app"), Body: body, Header: map[string]string{"Content-Type": "multipart/form-data; boundary=theirs"}})
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if _, err := resp.Body.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	r := g.Record(resp.Header.Get("X-Request-Id"))
	if r.Ended != "client_left" || r.Usage != audit.UsageEstimated || r.PromptTokens+r.CompletionTokens != r.ReservedTokens || r.ReservedTokens < 60_000 {
		t.Errorf("recorded as %+v", r)
	}
}
