package daemon_test

import (
	"bufio"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/vllmtest"
)

// childState is set in a process of its own that runs a gateway on that state directory, to be killed.
const childState = "VALLUM_TEST_CHILD_STATE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childState); dir != "" {
		runChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// dialects are a streamed request of each, and how an error that ends one begins and ends.
var dialects = map[string]struct{ path, body, begins, ends string }{
	"chat":        {"/v1/chat/completions", `{"model":"tiny","stream":true,"messages":[]}`, `data: {"error":`, "\n\ndata: [DONE]\n\n"},
	"completions": {"/v1/completions", `{"model":"tiny","stream":true,"prompt":"hi"}`, `data: {"error":`, "\n\ndata: [DONE]\n\n"},
	"responses":   {"/v1/responses", `{"model":"tiny","stream":true,"input":"hi"}`, "event: error\ndata: ", "\n\n"},
	"messages":    {"/v1/messages", `{"model":"tiny","stream":true,"max_tokens":99,"messages":[]}`, "event: error\ndata: {\"type\":\"error\"", "\n\n"},
}

// running is a stream of which one event has come.
type running struct {
	t    *testing.T
	id   string
	body *bufio.Reader
	resp *http.Response
}

// run begins a stream of the dialect whose upstream falls silent after its first event.
func run(t *testing.T, g *gatetest.Gate, dialect, key string) *running {
	t.Helper()
	g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Hang, After: 1})
	return open(t, g, dialect, key)
}

// stepped begins a stream that goes on with Fake.Step; one at a time.
func stepped(t *testing.T, g *gatetest.Gate, dialect, key string) *running {
	t.Helper()
	g.Fake.Next(vllmtest.Behaviour{Stepped: true})
	go g.Fake.Step()
	return open(t, g, dialect, key)
}

func open(t *testing.T, g *gatetest.Gate, dialect, key string) *running {
	t.Helper()
	d := dialects[dialect]
	resp, err := g.Open(gatetest.Request{Path: d.path, Key: key, Body: d.body})
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %v %v", dialect, resp, err)
	}
	return reading(t, resp)
}

// reading is a stream that has begun, when its first event has come.
func reading(t *testing.T, resp *http.Response) *running {
	t.Helper()
	t.Cleanup(func() { _ = resp.Body.Close() })
	r := &running{t: t, id: resp.Header.Get("X-Request-Id"), body: bufio.NewReader(resp.Body), resp: resp}
	r.event()
	return r
}

// event reads one event, for at most ten seconds.
func (r *running) event() string {
	r.t.Helper()
	late := time.AfterFunc(10*time.Second, func() { _ = r.resp.Body.Close() })
	defer late.Stop()
	var event strings.Builder
	for {
		line, err := r.body.ReadString('\n')
		event.WriteString(line)
		if err != nil || line == "\n" {
			return event.String()
		}
	}
}

// rest reads to the end, for at most ten seconds.
func (r *running) rest() string {
	r.t.Helper()
	late := time.AfterFunc(10*time.Second, func() { _ = r.resp.Body.Close() })
	defer late.Stop()
	var all strings.Builder
	if _, err := r.body.WriteTo(&all); err != nil {
		r.t.Errorf("the stream breaks off instead of ending: %v, after %q", err, all.String())
	}
	return all.String()
}

// endsFor checks that the rest of a stream says why it ended, as its dialect says such things.
func (r *running) endsFor(dialect, reason, recorded string, g *gatetest.Gate) {
	r.t.Helper()
	rest, d := r.rest(), dialects[dialect]
	if !strings.HasPrefix(rest, d.begins) || !strings.HasSuffix(rest, d.ends) || dialect != "messages" && !strings.Contains(rest, `"code":"`+reason+`"`) {
		r.t.Errorf("%s ends with %q, want the error %s", dialect, rest, reason)
	}
	if rec := g.Record(r.id); rec.Ended != recorded || rec.Usage == "counted" {
		r.t.Errorf("%s: recorded as %+v, want %q", dialect, rec, recorded)
	}
}
