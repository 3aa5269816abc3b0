package gatetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// limitRow is one limit, and what it lets through of a crowd.
type limitRow struct {
	name, limits, reloaded string                                     // limits of the role, at first and after the first reload
	reason                 string                                     // of those who are refused
	most                   int                                        // arrive of a crowd that comes at once and of which nobody has an answer yet
	slots                  int                                        // may be at the upstream at the same time; 0: any number
	every                  time.Duration                              // brings one more; an hour where time brings nothing
	again                  func(used int64, passed time.Duration) int // arrive of a second crowd, once as many tokens were used
}

// crowdTokens are reserved for each request of a crowd: its bytes, and its max_tokens.
var crowdTokens = len(crowdBody("tiny", "a000", true)) + 5

func crowdBody(model, who string, stream bool) string {
	return fmt.Sprintf(`{"model":%q,"stream":%-5t,"messages":[{"role":"user","content":%q}],"max_tokens":5}`, model, stream, who)
}

// Two hundred callers at once against each limit. The recorder holds every request that arrives until all callers were
// either refused or have arrived: so many are exactly what the limit allows. Then the configuration is loaded again, the
// answers come, fail, break off, make the gateway panic, or never come until their clients leave; two hundred more press
// on while they do. What arrives is never more than the limit allows, and in the end nothing is held.
func TestTwoHundredAtOnceNeverPassALimit(t *testing.T) {
	const twelve = 12
	for _, row := range []limitRow{
		{
			name: "requests per minute and burst", limits: "requests_per_minute: 1, burst: 12", reloaded: "requests_per_minute: 2, burst: 12",
			reason: "too_many_requests", most: twelve, every: 30 * time.Second, again: func(_ int64, passed time.Duration) int { return int(passed / (30 * time.Second)) },
		},
		{
			name: "concurrent", limits: "concurrent: 12", reloaded: "concurrent: 12, requests_per_minute: 100000",
			reason: "too_many_requests", most: twelve, slots: twelve, every: time.Hour, again: func(int64, time.Duration) int { return twelve },
		},
		{
			name: "tokens per minute", limits: fmt.Sprintf("tokens_per_minute: %d", twelve*crowdTokens), reloaded: fmt.Sprintf("tokens_per_minute: %d, concurrent: 1000", twelve*crowdTokens),
			reason: "over_budget", most: twelve, every: time.Minute / twelve,
			again: func(used int64, passed time.Duration) int {
				budget := int64(twelve * crowdTokens)
				return int(budget-used+budget*passed.Microseconds()/time.Minute.Microseconds()) / crowdTokens
			},
		},
	} {
		t.Run(row.name, row.run)
	}
}

func (row limitRow) run(t *testing.T) {
	c := newCrowd(t, row)
	began := time.Now()
	more := func() int { return int(time.Since(began) / row.every) }
	hold := make(chan struct{})
	first := c.come("a", 200, true, streamParts, hold)
	first.in()
	if n := c.arrived(); n < row.most || n > row.most+more() {
		t.Errorf("%d of 200 arrived, want %d", n, row.most)
	}
	if slots, tokens := c.gate.Gauge("vallum_slots"), c.gate.Gauge("vallum_reserved_tokens"); slots != fmt.Sprint(c.arrived()) || row.reason == "over_budget" && tokens != fmt.Sprint(c.arrived()*crowdTokens) {
		t.Errorf("%d run: %s slots, %s tokens of %d each", c.arrived(), slots, tokens, crowdTokens)
	}

	// a reload in the middle of it refills nothing
	yaml := c.gate.Yaml()
	c.gate.Reload(strings.Replace(yaml, row.limits, row.reloaded, 1))
	probes := c.come("b", 20, true, streamParts, hold)
	probes.in()
	if n := c.arrived(); n < row.most || n > row.most+more() {
		t.Errorf("after a reload %d arrived, want %d", n, row.most)
	}

	// the answers, and two hundred more, and another reload among them
	close(hold)
	second := c.come("c", 200, false, wholeParts, nil)
	c.gate.Reload(yaml)
	for _, w := range []*wave{first, probes, second} {
		w.check()
	}
	c.gate.NothingHeld()
	if row.slots == 0 {
		if n := c.arrived(); row.reason == "too_many_requests" && n > row.most+more() {
			t.Errorf("%d arrived in all, want %d", n, row.most)
		}
	} else if c.highWater() > row.slots {
		t.Errorf("%d were at the upstream at the same time, want at most %d", c.highWater(), row.slots)
	}

	// everything that was taken came back, and nothing else did
	before, used := c.arrived(), c.used(200+20+200)
	hold = make(chan struct{})
	last := c.come("d", 60, true, []string{"whole"}, hold)
	last.in()
	if n, want := c.arrived()-before, row.again(used, 0); n < want || n > row.again(used, time.Since(began)) {
		t.Errorf("%d arrived in the end, want %d: %d tokens were used", n, want, used)
	}
	close(hold)
	last.check()
	if row.slots > 0 && c.highWater() != row.slots {
		t.Errorf("at most %d were at the upstream at the same time, want %d", c.highWater(), row.slots)
	}
	c.leavesNothing()
}

// What befalls a request, in the order of arrival.
var (
	streamParts = []string{"silent", "engine dead", "panics", "hangs", "dies", "whole", "overloaded", "panics twice", "silent", "whole"}
	wholeParts  = []string{"whole", "silent", "panics", "engine dead", "dies", "panics twice", "overloaded"}
)

// parts are what the upstream does, and what the caller sees of it: status and reason, or nothing at all.
var parts = map[string]struct {
	does vllmtest.Behaviour
	sees string
}{
	"whole":        {vllmtest.Behaviour{}, "200"},
	"engine dead":  {vllmtest.Behaviour{Kind: vllmtest.EngineDead}, "502 upstream_failed"},
	"overloaded":   {vllmtest.Behaviour{Kind: vllmtest.Overloaded}, "503 upstream_busy"},
	"dies":         {vllmtest.Behaviour{Kind: vllmtest.DieMidEvent, After: 1}, "502 upstream_failed"},
	"hangs":        {vllmtest.Behaviour{Kind: vllmtest.Hang, After: 1}, "left"},
	"silent":       {vllmtest.Behaviour{Kind: vllmtest.NeverAnswer}, "left"},
	"panics":       {vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 400, Body: `{"error":{"message":"a defect","code":400}}`}, "500 internal_error"},
	"panics twice": {vllmtest.Behaviour{Kind: vllmtest.Answer, Status: 400, Body: `{"error":{"message":"a worse defect","code":400}}`}, "cut"},
}

// crowd are the callers of one key, and the recorder in front of them.
type crowd struct {
	t    *testing.T
	gate *Gate
	row  limitRow
	idle goleak.Option

	mu      sync.Mutex
	present map[string]func() // who is at the upstream, and how they leave
	played  map[string]string // who ever was, and what befell them
	leaving map[string]func()
	tripped map[string]bool // requests that panicked

	arrivals, peak int
	parts          []string      // of those who come now
	next           int           // of parts
	holding        chan struct{} // closed when answers may begin; nil: at once
}

func newCrowd(t *testing.T, row limitRow) *crowd {
	c := &crowd{t: t, row: row, present: map[string]func(){}, played: map[string]string{}, leaving: map[string]func(){}, tripped: map[string]bool{}}
	c.gate = Start(t, Options{
		Fake: vllmtest.Options{Act: c.act}, Panics: c.panics,
		Config: "roles:\n  few: {operations: [chat.create], models: [\"*\"], limits: {" + row.limits + "}}\n",
		Keys:   []store.NewKey{{Name: "app", Roles: []string{"few"}}},
	})
	c.gate.NothingHeld()
	c.idle = goleak.IgnoreCurrent()
	return c
}

// panics is the defect: where the log tells what the upstream said, and where it tells that a model is not granted.
func (c *crowd) panics(r slog.Record) bool {
	attrs := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value.String()
		return true
	})
	if attrs["message"] == "a worse defect" {
		return true
	}
	if attrs["message"] != "a defect" && (r.Message != "refused" || attrs["reason"] != "not_permitted") {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.tripped[attrs["id"]]
	c.tripped[attrs["id"]] = true
	return first // the second time it is the answer to the panic that is told
}

// act is the upstream: it counts who is there, and gives each their part.
func (c *crowd) act(ctx context.Context, r vllmtest.Recorded) (vllmtest.Behaviour, func()) {
	_, after, _ := bytes.Cut(r.Body, []byte(`"content":"`))
	who := string(after[:4])
	c.mu.Lock()
	part := c.parts[c.next%len(c.parts)]
	c.next++
	c.arrivals++
	c.played[who] = part
	c.present[who] = c.leaving[who]
	c.peak = max(c.peak, len(c.present))
	holding := c.holding
	c.mu.Unlock()
	if holding != nil {
		select {
		case <-holding:
		case <-ctx.Done():
		}
	}
	if part == "silent" {
		c.leave(who)
	}
	return parts[part].does, func() { c.over(who) }
}

// over is the end of a request at the upstream, before its caller can know.
func (c *crowd) over(who string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.present, who)
}

// leave hangs up. Who does is no longer there: the gateway learns it only afterwards.
func (c *crowd) leave(who string) {
	c.over(who)
	c.mu.Lock()
	hangUp := c.leaving[who]
	c.mu.Unlock()
	hangUp()
}

func (c *crowd) arrived() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.arrivals
}

func (c *crowd) highWater() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peak
}

// used are the tokens that were counted, or charged where nobody counted, once the ends of so many requests are on record.
func (c *crowd) used(requests int) (n int64) {
	c.t.Helper()
	c.gate.Eventually(fmt.Sprintf("the record of each of %d requests", requests), func() bool {
		ends := 0
		n = 0
		for _, r := range c.gate.Records() {
			switch r.Event {
			case audit.Ended:
				n += r.PromptTokens + r.CompletionTokens
				ends++
			case audit.Refused:
				ends++
			}
		}
		return ends == requests
	})
	return n
}

// leavesNothing waits until no goroutine is left that was not there before the crowd came.
func (c *crowd) leavesNothing() {
	c.t.Helper()
	c.gate.NothingHeld()
	c.gate.Client.CloseIdleConnections()
	http.DefaultClient.CloseIdleConnections()
	c.gate.Fake.BreakConnections() // the pool's
	c.gate.Eventually("the end of every goroutine", func() bool { return goleak.Find(c.idle) == nil })
}

// wave are callers who come at once.
type wave struct {
	c       *crowd
	who     map[string]bool // who came, and whether for a model that the role has not
	callers sync.WaitGroup
	mu      sync.Mutex
	saw     map[string]string
}

// come starts callers at once, every tenth of whom asks for another model when they ask for whole answers.
func (c *crowd) come(name string, n int, stream bool, parts []string, holding chan struct{}) *wave {
	c.mu.Lock()
	c.parts, c.next, c.holding = parts, 0, holding
	c.mu.Unlock()
	w, barrier := &wave{c: c, who: map[string]bool{}, saw: map[string]string{}}, make(chan struct{})
	for i := range n {
		who, model := fmt.Sprintf("%s%03d", name, i), "tiny"
		if !stream && i%10 == 9 {
			model = "huge"
		}
		w.who[who] = model != "tiny"
		w.callers.Go(func() {
			<-barrier
			saw := c.ask(who, crowdBody(model, who, stream))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.saw[who] = saw
		})
	}
	close(barrier)
	return w
}

// ask is one caller: it gives the status and the reason, "left" when it hung up, and "cut" when the gateway did.
func (c *crowd) ask(who, body string) string {
	ctx, hangUp := context.WithCancel(c.t.Context())
	defer hangUp()
	c.mu.Lock()
	c.leaving[who] = hangUp
	c.mu.Unlock()
	req, err := http.NewRequestWithContext(ctx, "POST", c.gate.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Authorization", "Bearer "+c.gate.Secret("app"))
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.gate.Client.Do(req)
	switch {
	case ctx.Err() != nil:
		return "left"
	case err != nil:
		return "cut"
	}
	defer func() { _ = resp.Body.Close() }()
	c.mu.Lock()
	part := c.played[who]
	c.mu.Unlock()
	if part == "hangs" && resp.StatusCode == 200 {
		_, err := io.ReadFull(resp.Body, make([]byte, 6))
		c.leave(who)
		return map[bool]string{true: "left", false: "no event came"}[err == nil]
	}
	answer, err := io.ReadAll(resp.Body)
	reason := resp.Header.Get("X-Vallum-Reason")
	switch {
	case err != nil:
		return "cut"
	case resp.StatusCode == 429 && resp.Header.Get("Retry-After") == "":
		return "429 without Retry-After"
	case resp.StatusCode != 200:
		return fmt.Sprintf("%d %s", resp.StatusCode, reason)
	case strings.Contains(string(answer), `"error":`): // what a stream that broke off ends with
		return "502 upstream_failed"
	case !strings.Contains(string(answer), "[DONE]") && !strings.Contains(string(answer), `"usage":`):
		return "200, and not whole"
	}
	return "200"
}

// in waits until every caller was refused or is held at the upstream.
func (w *wave) in() {
	w.c.t.Helper()
	w.c.gate.Eventually("the crowd", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.c.mu.Lock()
		defer w.c.mu.Unlock()
		n := len(w.saw)
		for who := range w.who {
			if w.c.played[who] != "" {
				n++
			}
		}
		return n == len(w.who)
	})
}

// check waits for every caller and compares what they saw with what befell them.
func (w *wave) check() {
	w.c.t.Helper()
	w.callers.Wait()
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	refused, count := "429 "+w.c.row.reason, map[string]int{}
	for who, ungranted := range w.who {
		saw, part := w.saw[who], w.c.played[who]
		count[part+": "+saw]++
		switch {
		case part != "" && ungranted:
			w.c.t.Errorf("%s arrived for a model that nobody may use", who)
		case part == "" && saw != refused && (!ungranted || saw != "500 internal_error"), part != "" && saw != parts[part].sees:
			w.c.t.Errorf("%s, %q: saw %q", who, part, saw)
		}
	}
	w.c.t.Log(count)
}
