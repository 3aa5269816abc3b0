package gateway

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
)

// line is upstreams in a row: each is picked in its turn, and does what it is told.
type line struct {
	f      *fakes
	ups    []*one
	tried  [][]string // what the picker was told at each call
	refuse verdict.Reason
	stuck  bool // it gives the first one again
}

type one struct {
	line    *line
	name    string
	outcome verdict.Outcome
	during  func()
	up      bool     // it says that the body is up, whatever comes then
	bodies  []string // that were given to it
}

func (l *line) Pick(_ policy.Grant, tried []string) (Upstream, verdict.Verdict) {
	l.tried = append(l.tried, slices.Clone(tried))
	for _, up := range l.ups {
		if l.stuck && len(l.tried) < 5 || !slices.Contains(tried, up.name) {
			return up, verdict.Allow()
		}
	}
	return nil, verdict.Refuse(l.refuse, errors.New("none is left"))
}

func (u *one) Name() string { return u.name }

func (u *one) Send(ctx context.Context, w http.ResponseWriter, c Call) verdict.Outcome {
	u.bodies = append(u.bodies, string(c.Body.Bytes))
	if u.during != nil {
		u.during()
	}
	if u.up {
		c.Sent()
	}
	if u.outcome.Unsent {
		return u.outcome
	}
	u.line.f.outcome = u.outcome
	return u.line.f.Send(ctx, w, c)
}

// A request goes to another upstream when not one byte of it left for the first, and in no other case.
func TestASecondUpstreamGetsOnlyWhatNeverLeft(t *testing.T) {
	unavailable := verdict.Refuse(verdict.UpstreamUnavailable, errors.New("connection refused"))
	unsent := verdict.Outcome{Refusal: unavailable, Unsent: true, Ended: verdict.UpstreamError, Cause: errors.New("connection refused")}
	well := verdict.Outcome{Refusal: verdict.Allow(), Written: true, Status: 200, UpStatus: 200, Ended: verdict.Complete}
	lost := verdict.Outcome{Refusal: verdict.Refuse(verdict.UpstreamFailed, errors.New("closed without an answer")), Ended: verdict.UpstreamError}
	busy := verdict.Outcome{Refusal: verdict.Refuse(verdict.UpstreamBusy, nil), UpStatus: 503, Ended: verdict.UpstreamError}
	begun := well
	begun.Ended, begun.Unsent = verdict.UpstreamEndedEarly, false
	for name, row := range map[string]struct {
		outcomes []verdict.Outcome
		set      func(*line)
		status   int
		reason   string
		given    []int  // requests that each upstream was given
		recorded string // the upstream of the last record
	}{
		"the first answers":             {[]verdict.Outcome{well, well}, nil, 200, "", []int{1, 0}, "a"},
		"the first cannot be reached":   {[]verdict.Outcome{unsent, well, well}, nil, 200, "", []int{1, 1, 0}, "b"},
		"two cannot be reached":         {[]verdict.Outcome{unsent, unsent, well}, nil, 200, "", []int{1, 1, 1}, "c"},
		"none can be reached":           {[]verdict.Outcome{unsent, unsent}, nil, 503, "upstream_unavailable", []int{1, 1}, "b"},
		"the first may have got it":     {[]verdict.Outcome{lost, well}, nil, 502, "upstream_failed", []int{1, 0}, "a"},
		"the second may have got it":    {[]verdict.Outcome{unsent, lost, well}, nil, 502, "upstream_failed", []int{1, 1, 0}, "b"},
		"the first is busy":             {[]verdict.Outcome{busy, well}, nil, 503, "upstream_busy", []int{1, 0}, "a"},
		"the first began to answer":     {[]verdict.Outcome{begun, well}, nil, 200, "", []int{1, 0}, "a"},
		"what is left may not have it":  {[]verdict.Outcome{unsent}, func(l *line) { l.refuse = verdict.CacheNotIsolated }, 503, "upstream_unavailable", []int{1}, "a"},
		"the picker gives it again":     {[]verdict.Outcome{unsent, well}, func(l *line) { l.stuck = true }, 503, "upstream_unavailable", []int{1, 0}, "a"},
		"the key is revoked meanwhile":  {[]verdict.Outcome{unsent, well}, func(l *line) { l.ups[0].during = func() { l.f.revoke(verdict.ErrRevoked) } }, 503, "upstream_unavailable", []int{1, 0}, "a"},
		"it had the body":               {[]verdict.Outcome{unsent, well}, func(l *line) { l.ups[0].up = true }, 503, "upstream_unavailable", []int{1, 0}, "a"},
		"it says both unsent and begun": {[]verdict.Outcome{{Refusal: verdict.Allow(), Unsent: true, Written: true, Ended: verdict.UpstreamError}, well}, nil, 200, "", []int{1, 0}, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			g, f := build(t)
			l := &line{f: f, refuse: verdict.UpstreamUnavailable}
			for i, o := range row.outcomes {
				l.ups = append(l.ups, &one{line: l, name: string(rune('a' + i)), outcome: o})
			}
			if row.set != nil {
				row.set(l)
			}
			g.Upstreams = l
			w := chat.do(g)
			if got := w.Header().Get("X-Vallum-Reason"); w.Code != row.status || got != row.reason {
				t.Errorf("answered %d %q, want %d %q: %s", w.Code, got, row.status, row.reason, w.Body)
			}
			for i, up := range l.ups {
				if len(up.bodies) != row.given[i] {
					t.Errorf("%s was given %d requests, want %d", up.name, len(up.bodies), row.given[i])
				}
				for _, body := range up.bodies {
					if !strings.Contains(body, `"content":"hi"`) || body != l.ups[0].bodies[0] {
						t.Errorf("%s was given %q", up.name, body)
					}
				}
			}
			for i, tried := range l.tried {
				if len(tried) != i && !l.stuck {
					t.Errorf("pick %d was told %q", i, tried)
				}
			}
			if len(f.records) != 2 || f.records[0].Event != audit.Admitted || f.records[0].Upstream != "a" || f.records[1].Upstream != row.recorded {
				t.Errorf("records %+v", f.records)
			}
			if len(f.samples) != 1 || f.samples[0].Upstream != row.recorded {
				t.Errorf("counted %+v", f.samples)
			}
			nothingHeld(t, g, f)
		})
	}
}
