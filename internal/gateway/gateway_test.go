package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakes are all the stages that the gateway does not know; each can be told to refuse, to forget or to panic.
type fakes struct {
	key      verdict.Verdict
	slot     verdict.Verdict
	reserve  verdict.Verdict
	pick     verdict.Verdict
	write    error
	outcome  verdict.Outcome
	panics   string
	answer   string
	sent     []Call
	bodies   []string
	records  []audit.Record
	counted  []string
	samples  []Sample
	slots    int
	reserved int64
	settled  int64
	running  int
	revoke   func(error)
	during   func(context.Context)
	room     int64 // bytes that the reply takes
	found    bool  // and whether there was room
}

func (f *fakes) Authenticate(h http.Header, _ netip.Addr, _ time.Time) (identity.Principal, verdict.Verdict) {
	if f.panics == "identify" {
		panic("identify")
	}
	if f.key.Refused() {
		return identity.Nobody, f.key
	}
	role := h.Get("Test-Role")
	return identity.New("app", "k1", "", []string{role}), f.key
}

func (f *fakes) Take(string, policy.Limits, time.Time) (Slot, verdict.Verdict) {
	if f.slot.Refused() {
		return nil, f.slot
	}
	f.slots++
	return &fakeSlot{f: f}, f.slot
}

type fakeSlot struct {
	f             *fakes
	mine          int64
	given, closed bool
}

func (s *fakeSlot) Reserve(n int64, _ time.Time) verdict.Verdict {
	if !s.f.reserve.Refused() {
		s.f.reserved += n
		s.mine = n
	}
	return s.f.reserve
}

func (s *fakeSlot) Settle(n int64, _ time.Time) {
	if s.f.panics == "settle" {
		s.f.panics = ""
		panic("settle")
	}
	if !s.closed {
		s.closed = true
		s.f.reserved -= s.mine
		s.f.settled += n
	}
}

func (s *fakeSlot) Release(now time.Time) {
	s.Settle(s.mine, now)
	if !s.given {
		s.given = true
		s.f.slots--
	}
}

func (f *fakes) Append(r audit.Record) (uint64, error) {
	if f.panics == "record" && r.Event == audit.Admitted {
		panic("record")
	}
	if f.write != nil && r.Event == audit.Admitted {
		return 0, f.write
	}
	f.records = append(f.records, r)
	return uint64(len(f.records)), nil
}

func (f *fakes) Count(reason string, _ netip.Addr) { f.counted = append(f.counted, reason) }

func (f *fakes) Pick(policy.Grant, []string) (Upstream, verdict.Verdict) { return f, f.pick }

func (f *fakes) Name() string { return "llama" }

func (f *fakes) Send(ctx context.Context, w http.ResponseWriter, c Call) verdict.Outcome {
	if !c.Grant.Valid() {
		panic("sent without a grant")
	}
	f.sent = append(f.sent, c)
	f.bodies = append(f.bodies, string(c.Body.Bytes))
	c.Sent()
	f.found = c.Room(f.room)
	if f.panics == "forward" {
		panic("forward")
	}
	if f.during != nil {
		f.during(ctx)
	}
	if f.outcome.Written {
		out, v := c.Reply.Whole(200, "application/json", []byte(f.answer))
		if v.Refused() {
			return verdict.Outcome{Refusal: v, UpStatus: 200}
		}
		_, _ = w.Write(out)
	}
	f.outcome.BytesUp = c.Body.Length
	return f.outcome
}

func (f *fakes) Salt(tenant string) string { return "salt-of-" + tenant }

func (f *fakes) Register(_ string, _ []string, cancel func(error)) func() {
	f.running++
	f.revoke = cancel
	return func() { f.running-- }
}

func (f *fakes) Began(string)     {}
func (f *fakes) Observe(s Sample) { f.samples = append(f.samples, s) }

const usage = `{"id":"x","object":"chat.completion","model":"llama","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}`

func build(t *testing.T) (*Gateway, *fakes) {
	t.Helper()
	f := &fakes{key: verdict.Allow(), slot: verdict.Allow(), reserve: verdict.Allow(), pick: verdict.Allow(), answer: usage}
	f.outcome = verdict.Outcome{Refusal: verdict.Allow(), Written: true, Status: 200, UpStatus: 200, Ended: verdict.Complete}
	p, problems := policy.Build(policy.Rules{
		Models:    []policy.Model{{Name: "llama", Upstreams: []string{"llama"}, MaxModelLen: 1000}, {Name: "qwen", Upstreams: []string{"llama"}}},
		Upstreams: []string{"llama"},
		Aliases:   map[string]string{"gpt": "llama"},
		Roles: []policy.Role{
			{Name: "chat", Operations: []policy.OperationName{{Name: "chat.create"}, {Name: "models.list"}, {Name: "models.retrieve"}}, Models: []string{"llama"}},
			{Name: "strict", Operations: []policy.OperationName{{Name: "chat.create"}}, Models: []string{"llama"}, RefuseUnknown: true, MaxOutputTokens: 50},
			{Name: "profiler", Operations: []policy.OperationName{{Name: "profile.start", Acknowledge: "profile.start"}}, Models: []string{"*"}},
		},
	})
	if problems != nil {
		t.Fatal(problems)
	}
	return &Gateway{
		Policy: p, Keys: f, Limits: f, Memory: NewMemory(1 << 20), Records: f, Upstreams: f, Salts: f, Running: f, Meter: f,
		Log: slog.New(slog.DiscardHandler), Now: time.Now, Settings: Settings{Body: inspect.Default(), BodyTimeout: time.Minute, MaxReply: 1 << 20},
	}, f
}

// request is one request as it stands on the wire.
type request struct{ method, target, role, body string }

func (r request) do(g *Gateway) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r.to(g, w)
	return w
}

func (r request) to(g *Gateway, w http.ResponseWriter) {
	req := httptest.NewRequest(r.method, "/", strings.NewReader(r.body))
	req.RequestURI = r.target
	req.Header.Set("Test-Role", r.role)
	if r.body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	g.ServeHTTP(w, req)
}

var chat = request{"POST", "/v1/chat/completions", "chat", `{"model":"llama","messages":[{"role":"user","content":"hi"}],"max_tokens":5}`}

// One row per stage: the stage refuses, or forgets to answer, and nothing is forwarded. A stage that forgot returned
// its zero verdict.
func TestNothingIsForwardedUnlessEveryStageAllowed(t *testing.T) {
	refuse := func(r verdict.Reason) verdict.Verdict {
		return verdict.Refuse(r, errors.New("the cause, for the operator"))
	}
	for name, row := range map[string]struct {
		request request
		set     func(*Gateway, *fakes)
		want    verdict.Reason
	}{
		"match: ambiguous":         {request{"POST", "/v1/%63hat/completions", "chat", chat.body}, nil, verdict.AmbiguousPath},
		"match: unknown":           {request{"POST", "/v1/chat/completion", "chat", chat.body}, nil, verdict.UnknownOperation},
		"match: wrong method":      {request{"GET", "/v1/chat/completions", "chat", ""}, nil, verdict.UnknownOperation},
		"identify refuses":         {chat, func(_ *Gateway, f *fakes) { f.key = refuse(verdict.NoCredential) }, verdict.NoCredential},
		"identify forgets":         {chat, func(_ *Gateway, f *fakes) { f.key = verdict.Verdict{} }, verdict.Unanswered},
		"identify panics":          {chat, func(_ *Gateway, f *fakes) { f.panics = "identify" }, verdict.InternalError},
		"attempt: no such role":    {request{"POST", "/v1/chat/completions", "other", chat.body}, nil, verdict.NotPermitted},
		"attempt: other operation": {request{"POST", "/pause", "chat", ""}, nil, verdict.NotPermitted},
		"attempt: never":           {request{"POST", "/invocations", "inference", chat.body}, nil, verdict.NotPermitted},
		"attempt: no policy":       {chat, func(g *Gateway, _ *fakes) { g.Policy = &policy.Policy{} }, verdict.NotPermitted},
		"slot refuses":             {chat, func(_ *Gateway, f *fakes) { f.slot = refuse(verdict.TooManyRequests) }, verdict.TooManyRequests},
		"slot forgets":             {chat, func(_ *Gateway, f *fakes) { f.slot = verdict.Verdict{} }, verdict.Unanswered},
		"read: no memory":          {chat, func(g *Gateway, _ *fakes) { g.Memory = NewMemory(10) }, verdict.Busy},
		"read: too large":          {chat, func(g *Gateway, _ *fakes) { g.Settings.Body.MaxJSONBytes = 20 }, verdict.BodyTooLarge},
		"read: no limits given":    {chat, func(g *Gateway, _ *fakes) { g.Settings.Body = inspect.Limits{} }, verdict.BodyTooLarge},
		"read: not JSON":           {request{"POST", "/v1/chat/completions", "chat", `{"model":"llama",}`}, nil, verdict.BadBody},
		"read: duplicate model":    {request{"POST", "/v1/chat/completions", "chat", `{"model":"llama","messages":[],"mod\u0065l":"qwen"}`}, nil, verdict.BadBody},
		"read: what nobody gets":   {request{"POST", "/v1/chat/completions", "chat", `{"model":"llama","messages":[],"kv_transfer_params":{"a":1}}`}, nil, verdict.ForbiddenParameter},
		"decide: other model":      {request{"POST", "/v1/chat/completions", "chat", `{"model":"qwen","messages":[]}`}, nil, verdict.NotPermitted},
		"decide: no such model":    {request{"POST", "/v1/chat/completions", "chat", `{"model":"none","messages":[]}`}, nil, verdict.NotPermitted},
		"decide: unknown field":    {request{"POST", "/v1/chat/completions", "strict", `{"model":"llama","messages":[],"zz":1}`}, nil, verdict.UnknownParameter},
		"decide: over the cap":     {request{"POST", "/v1/chat/completions", "strict", `{"model":"llama","messages":[],"max_tokens":51}`}, nil, verdict.ForbiddenParameter},
		"pick refuses":             {chat, func(_ *Gateway, f *fakes) { f.pick = refuse(verdict.UpstreamUnavailable) }, verdict.UpstreamUnavailable},
		"pick forgets":             {chat, func(_ *Gateway, f *fakes) { f.pick = verdict.Verdict{} }, verdict.Unanswered},
		"reserve refuses":          {chat, func(_ *Gateway, f *fakes) { f.reserve = refuse(verdict.OverBudget) }, verdict.OverBudget},
		"reserve forgets":          {chat, func(_ *Gateway, f *fakes) { f.reserve = verdict.Verdict{} }, verdict.Unanswered},
		"record fails":             {chat, func(_ *Gateway, f *fakes) { f.write = errors.New("no space left on device") }, verdict.AuditUnavailable},
		"record panics":            {chat, func(_ *Gateway, f *fakes) { f.panics = "record" }, verdict.InternalError},
		"body where none belongs":  {request{"GET", "/v1/models", "chat", `{}`}, nil, verdict.BadBody},
	} {
		t.Run(name, func(t *testing.T) {
			g, f := build(t)
			if row.set != nil {
				row.set(g, f)
			}
			w := row.request.do(g)
			if len(f.sent) != 0 {
				t.Errorf("forwarded %q", f.bodies)
			}
			if got := w.Header().Get("X-Vallum-Reason"); got != row.want.String() || w.Code != row.want.Status() {
				t.Errorf("answered %d %s, want %d %s: %s", w.Code, got, row.want.Status(), row.want, w.Body)
			}
			if strings.Contains(w.Body.String(), "for the operator") {
				t.Errorf("the caller reads the cause: %s", w.Body)
			}
			nothingHeld(t, g, f)
			if n := len(f.records) + len(f.counted); n != 1 {
				t.Errorf("%d records: %+v %q", n, f.records, f.counted)
			}
		})
	}
}

func nothingHeld(t *testing.T, g *Gateway, f *fakes) {
	t.Helper()
	if f.slots != 0 || f.reserved != 0 || f.running != 0 || g.Memory.Taken() != 0 {
		t.Errorf("still held: %d slots, %d tokens, %d running, %d bytes", f.slots, f.reserved, f.running, g.Memory.Taken())
	}
}

func TestAGrantedRequestGoesUpWithNamedEditsAndIsRecordedTwice(t *testing.T) {
	g, f := build(t)
	w := request{"POST", "/v1/chat/completions?beta=true", "strict", `{"model":"gpt","seed":9223372036854775807,"messages":[{"role":"user","content":"hi"}],"cache_salt":"mine"}`}.do(g)
	if w.Code != 200 || len(f.sent) != 1 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	var up map[string]json.RawMessage
	if err := json.Unmarshal([]byte(f.bodies[0]), &up); err != nil {
		t.Fatalf("%v: %s", err, f.bodies[0])
	}
	for field, want := range map[string]string{"model": `"llama"`, "cache_salt": `"salt-of-app"`, "seed": "9223372036854775807"} {
		if string(up[field]) != want {
			t.Errorf("%s goes up as %s, want %s", field, up[field], want)
		}
	}
	if !strings.Contains(w.Body.String(), `"model":"gpt"`) {
		t.Errorf("the reply does not say the name that was asked: %s", w.Body)
	}
	if len(f.records) != 2 || f.records[0].Event != audit.Admitted || f.records[1].Event != audit.Ended {
		t.Fatalf("records %+v", f.records)
	}
	end := f.records[1]
	if end.ID != w.Header().Get("X-Request-Id") || end.Model != "llama" || end.Rule != "strict" || end.PromptTokens != 7 || end.CompletionTokens != 3 || end.Ended != "complete" || end.Usage != audit.UsageCounted {
		t.Errorf("the last record is %+v", end)
	}
	if f.settled != 10 {
		t.Errorf("settled %d tokens, want the 10 that were used", f.settled)
	}
	nothingHeld(t, g, f)
}

func TestEverythingComesBackAfterAPanicInTheUpstream(t *testing.T) {
	g, f := build(t)
	f.panics = "forward"
	w := chat.do(g)
	if w.Code != 500 || w.Header().Get("X-Vallum-Reason") != "internal_error" || w.Header().Get("X-Should-Retry") != "false" {
		t.Errorf("answered %d %v", w.Code, w.Header())
	}
	if len(f.records) != 2 || f.records[1].Ended != "panic" || f.settled == 0 || f.records[1].PromptTokens != f.settled {
		t.Errorf("charged %d, records %+v", f.settled, f.records)
	}
	nothingHeld(t, g, f)
}

// What panics may panic again where it is told of: in the log, in the answer, in the count of what was used. The slot, the
// tokens and the memory come back all the same.
func TestEverythingComesBackAfterAPanicWithinAPanic(t *testing.T) {
	for what, set := range map[string]func(*Gateway, *fakes){
		"the log":    func(g *Gateway, f *fakes) { f.panics, g.Log = "forward", slog.New(brokenLog{}) },
		"the answer": func(_ *Gateway, f *fakes) { f.panics = "forward" },
		"the count":  func(_ *Gateway, f *fakes) { f.panics = "settle" },
	} {
		g, f := build(t)
		set(g, f)
		var w http.ResponseWriter = httptest.NewRecorder()
		if what == "the answer" {
			w = brokenWriter{}
		}
		if !panics(func() { chat.to(g, w) }) {
			t.Errorf("%s: the connection is not cut", what)
		}
		if f.settled == 0 { // the upstream may have done the work
			t.Errorf("%s: nothing was charged", what)
		}
		nothingHeld(t, g, f)
	}
}

func panics(do func()) (did bool) {
	defer func() { did = recover() != nil }()
	do()
	return false
}

// brokenLog panics at every line.
type brokenLog struct{ slog.Handler }

// brokenWriter panics when it is asked for anything but its header.
type brokenWriter struct{ http.ResponseWriter }

func (brokenWriter) Header() http.Header { return http.Header{} }

func (brokenLog) Enabled(context.Context, slog.Level) bool  { return true }
func (brokenLog) Handle(context.Context, slog.Record) error { panic("the log") }

func TestARevokedKeyEndsItsRunningRequest(t *testing.T) {
	g, f := build(t)
	var cause error
	f.during = func(ctx context.Context) {
		f.revoke(verdict.ErrRevoked)
		<-ctx.Done()
		cause = context.Cause(ctx)
	}
	chat.do(g)
	var cut *verdict.Cut
	if !errors.As(cause, &cut) || cut.Ended != verdict.KeyRevoked {
		t.Errorf("the upstream saw %v", cause)
	}
	nothingHeld(t, g, f)
}

func TestABodysMemoryIsFreeWhileTheAnswerComes(t *testing.T) {
	g, f := build(t)
	during := int64(-1)
	f.during = func(context.Context) { during = g.Memory.Taken() }
	chat.do(g)
	if during != 0 {
		t.Errorf("%d bytes are held while the answer comes", during)
	}
	nothingHeld(t, g, f)
}

// What a reply took comes back however it ends, and what is given back was taken.
func TestAReplysMemoryComesBack(t *testing.T) {
	for _, panics := range []string{"", "forward"} {
		for room, found := range map[int64]bool{1000: true, 1 << 20: true, 1<<20 + 1: false, -1000: true} {
			g, f := build(t)
			f.room, f.panics = room, panics
			f.during = func(context.Context) {
				if want := max(room, 0); found && g.Memory.Taken() != want {
					t.Errorf("%d are taken, want %d", g.Memory.Taken(), want)
				}
			}
			chat.do(g)
			if f.found != found {
				t.Errorf("room for %d: %t", room, f.found)
			}
			nothingHeld(t, g, f)
			f.room, f.during = 0, nil
			request{"POST", "/start_profile", "profiler", ""}.do(g) // without a body
			nothingHeld(t, g, f)
		}
	}
	if m := NewMemory(1 << 20); m.largest(1<<20) > 1<<19 || m.largest(1000) != 1000 {
		t.Error("a reply that finds no room even alone is not refused as too large")
	}
}

func TestModelsAreThoseOfThePrincipal(t *testing.T) {
	g, f := build(t)
	w := request{"GET", "/v1/models", "chat", ""}.do(g)
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list.Data) != 2 || list.Data[0].ID != "gpt" || list.Data[1].ID != "llama" {
		t.Errorf("%v %s", err, w.Body)
	}
	if w := (request{"GET", "/v1/models/llama", "chat", ""}).do(g); w.Code != 200 {
		t.Errorf("retrieve: %d %s", w.Code, w.Body)
	}
	if w := (request{"GET", "/v1/models/qwen", "chat", ""}).do(g); w.Code != 404 {
		t.Errorf("another's model: %d %s", w.Code, w.Body)
	}
	if len(f.sent) != 0 {
		t.Error("the model list was forwarded")
	}
	nothingHeld(t, g, f)
}

func TestHintsNameTheRightBaseURL(t *testing.T) {
	g, _ := build(t)
	for target, want := range map[string]string{
		"/v1/v1/messages":   "base URL is http(s)://HOST:PORT.",
		"/chat/completions": "base URL is http(s)://HOST:PORT/v1.",
		"/v1/models/":       "trailing slash",
	} {
		w := request{"POST", target, "chat", chat.body}.do(g)
		var body struct{ Error struct{ Message string } }
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || !strings.Contains(body.Error.Message, want) {
			t.Errorf("%s: %q does not say %q", target, body.Error.Message, want)
		}
	}
}

func TestABodyOfUnknownLengthIsHeldAsItComes(t *testing.T) {
	g, f := build(t)
	g.Memory = NewMemory(100 << 10)
	big := `{"model":"llama","messages":[{"role":"user","content":"` + strings.Repeat("x", 200<<10) + `"}]}`
	req := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader(big)))
	req.RequestURI, req.ContentLength = "/v1/chat/completions", -1
	req.Header.Set("Test-Role", "chat")
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	g.ServeHTTP(w, req)
	if w.Header().Get("X-Vallum-Reason") != "busy" || len(f.sent) != 0 {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
	nothingHeld(t, g, f)
}

func TestTooManyHeadersAreRefusedAndCounted(t *testing.T) {
	g, f := build(t)
	req := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(chat.body))
	for i := range 101 {
		req.Header.Add("X-Many", strings.Repeat("a", i))
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, req)
	if w.Code != 431 || w.Header().Get("X-Vallum-Reason") != "bad_headers" || len(f.sent) != 0 || len(f.counted) != 1 {
		t.Errorf("%d %s, counted %q", w.Code, w.Body, f.counted)
	}
}

func TestBrowsersAreRefusedUnlessListed(t *testing.T) {
	g, f := build(t)
	preflight := func(origin string) *httptest.ResponseRecorder {
		req := httptest.NewRequest("OPTIONS", "/v1/chat/completions", nil)
		req.Header.Set("Origin", origin)
		w := httptest.NewRecorder()
		g.ServeHTTP(w, req)
		return w
	}
	if w := preflight("https://chat.example.com"); w.Code != 403 || w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("no origin is listed, yet %d %v", w.Code, w.Header())
	}
	g.Settings.Origins = []string{"https://chat.example.com"}
	if w := preflight("https://chat.example.com"); w.Code != 204 || w.Header().Get("Access-Control-Allow-Origin") != "https://chat.example.com" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if w := preflight("https://evil.example.com"); w.Code != 403 {
		t.Errorf("%d", w.Code)
	}
	if len(f.sent) != 0 {
		t.Error("OPTIONS was forwarded")
	}
}

func TestForwardedAddressesAreBelievedFromNamedProxiesOnly(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, row := range []struct {
		peer, forwarded, want string
		refused               bool
	}{
		{"10.0.0.1:99", "203.0.113.7", "203.0.113.7", false},
		{"10.0.0.1:99", "1.2.3.4, 203.0.113.7", "203.0.113.7", false}, // the caller's own words come first
		{"10.0.0.1:99", "203.0.113.7, 10.0.0.2", "203.0.113.7", false},
		{"10.0.0.1:99", "", "10.0.0.1", false},
		{"10.0.0.1:99", "garbage", "10.0.0.1", false},
		{"192.0.2.1:99", "203.0.113.7", "192.0.2.1", true},
	} {
		req := httptest.NewRequest("GET", "/v1/models", nil)
		req.RemoteAddr = row.peer
		req.Header.Set("X-Forwarded-For", row.forwarded)
		got, v := remoteOf(proxies, req)
		if got.String() != row.want || v.Refused() != row.refused {
			t.Errorf("%+v: %s, refused %t", row, got, v.Refused())
		}
	}
}
