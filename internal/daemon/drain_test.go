package daemon_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/vllmtest"
)

// What runs may end within the deadline; nothing new begins, and /readyz says why.
func TestAStreamMayEndWhileDraining(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "timeouts: {drain: 20s}"})
	s := stepped(t, g, "chat", g.Secret("app"))
	g.Stopping()
	g.Eventually("the drain", func() bool { return strings.Contains(g.Probe("/readyz"), "draining") })
	g.Eventually("the listener's end", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(g.URL, "http://"))
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	for range 5 + 2 {
		if !g.Fake.Step() {
			t.Fatal("the stream did not go on")
		}
	}
	if rest := s.rest(); !strings.HasSuffix(rest, "data: [DONE]\n\n") || strings.Contains(rest, `"error"`) {
		t.Errorf("the stream ends with %q", rest)
	}
	began := time.Now()
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("nothing ran any more, and the end took %s", took)
	}
	all := g.Records()
	if last := all[len(all)-1]; last.Event != audit.Stopped {
		t.Errorf("the last record is %+v", last)
	}
	if r := g.Record(s.id); r.Ended != audit.EndedComplete {
		t.Errorf("recorded as %+v", r)
	}
}

// Past the deadline what still runs ends as its dialect ends an error, and the record says that the drain did it.
func TestStreamsEndWithTheDrain(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "timeouts: {drain: 200ms}"})
	streams := map[string]*running{}
	for dialect := range dialects {
		streams[dialect] = run(t, g, dialect, g.Secret("app"))
	}
	g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.NeverAnswer})
	unary := make(chan gatetest.Answer, 1)
	arrived := g.Fake.Arrived()
	go func() {
		defer close(unary)
		unary <- g.Do(g.Chat("app"))
	}()
	g.Eventually("the request", func() bool { return g.Fake.Arrived() == arrived+1 })
	g.Stopping()
	for dialect, s := range streams {
		s.endsFor(dialect, "shutting_down", "drained", g)
	}
	a := <-unary
	if a.Status != 503 || a.Reason() != "shutting_down" || a.Header.Get("Retry-After") == "" {
		t.Errorf("a unary request: %d %v %s", a.Status, a.Header, a.Body)
	}
	if r := g.Record(a.ID()); r.Ended != "drained" || r.Reason != "shutting_down" {
		t.Errorf("recorded as %+v", r)
	}
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	key, err := os.ReadFile(filepath.Join(g.State, "audit", "log.pub"))
	if err != nil {
		t.Fatal(err)
	}
	report, err := audit.Verify(filepath.Join(g.State, "audit"), strings.TrimSpace(string(key)), nil)
	if err != nil || !report.OK() || report.Tail() != 0 {
		t.Errorf("the log does not hold: %+v %v", report, err)
	}
}
