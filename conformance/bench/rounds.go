package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// row is one figure as it was measured.
type row struct {
	Scenario string             `json:"scenario"`
	Title    string             `json:"-"`
	Name     string             `json:"figure"`
	Unit     string             `json:"unit"`
	Kind     string             `json:"kind"`              // ratio, added, absolute: what Compared holds
	Measured map[string]float64 `json:"measured"`          // median of the rounds, in Unit
	Compared map[string]float64 `json:"compared"`          // median of the rounds' ratios to nginx, or of what was added
	Low      float64            `json:"low"`               // the least of Vallum's rounds, as compared
	High     float64            `json:"high"`              // and the most
	Must     float64            `json:"must,omitempty"`    // upper bound for Vallum
	Aim      float64            `json:"aim,omitempty"`     // what is wanted
	Rounds   int                `json:"rounds"`            // that were run
	Missing  string             `json:"missing,omitempty"` // why a target has no figure
}

// runner runs scenarios within a time.
type runner struct {
	stand    *stand
	progress io.Writer
	running  map[string]*target // what is not started anew
	profile  func(ctx context.Context, s scenario, t *target, f func() error) error
}

// run measures all scenarios and gives their rows. A scenario that does not work on a target is said so in its rows and
// does not end the others.
func (r *runner) run(ctx context.Context, all []scenario, end time.Time) ([]row, error) {
	defer r.stopRunning()
	weight := 0
	for _, s := range all {
		weight += s.weight * s.rounds
	}
	var rows []row
	for _, s := range all {
		now := time.Now()
		share := end.Sub(now) * time.Duration(s.weight*s.rounds) / time.Duration(max(weight, 1))
		weight -= s.weight * s.rounds
		fmt.Fprintf(r.progress, "%-42s", s.title)
		more, err := r.scenario(ctx, s, now.Add(share))
		if err != nil {
			fmt.Fprintln(r.progress)
			return nil, err
		}
		fmt.Fprintf(r.progress, " %d rounds, %s\n", more[0].Rounds, time.Since(now).Round(100*time.Millisecond))
		rows = append(rows, more...)
	}
	return rows, nil
}

// scenario runs rounds until they are done or the time is up; one is always run.
func (r *runner) scenario(ctx context.Context, s scenario, end time.Time) ([]row, error) {
	names := slices.DeleteFunc(slices.Clone(r.stand.names), func(name string) bool { return name == s.without })
	if s.direct {
		names = append(names, direct)
	}
	if s.fresh {
		r.stopRunning()
	}
	values := map[string][][]float64{} // target, round, figure
	missing := map[string]string{}
	rounds := 0
	for longest := time.Duration(0); rounds < s.rounds; rounds++ {
		began := time.Now()
		if rounds > 0 && began.Add(longest).After(end) {
			break
		}
		// Nobody is always first: the round after starts with the next.
		for i := range names {
			name := names[(i+rounds)%len(names)]
			if missing[name] != "" {
				continue
			}
			got, err := r.once(ctx, s, name, rounds)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				missing[name] = err.Error()
				fmt.Fprintf(r.progress, "\n  %s: %v\n", name, err)
				continue
			}
			values[name] = append(values[name], got)
		}
		longest = max(longest, time.Since(began))
	}
	var rows []row
	for i, f := range s.figures {
		row := f.row(s, names, values, i)
		row.Rounds, row.Missing = rounds, missing[vallum]
		rows = append(rows, row)
	}
	return rows, nil
}

// once is one measurement of one target.
func (r *runner) once(ctx context.Context, s scenario, name string, round int) ([]float64, error) {
	t, err := r.target(ctx, name, s.fresh)
	if err != nil {
		return nil, err
	}
	if s.fresh {
		defer t.stop()
	}
	if s.warm != nil && round == 0 {
		if err := s.warm(ctx, t); err != nil {
			return nil, err
		}
	}
	var got []float64
	measure := func() error {
		got, err = s.measure(ctx, t)
		return err
	}
	if r.profile != nil && name == vallum {
		return got, r.profile(ctx, s, t, measure)
	}
	err = measure()
	return got, err
}

func (r *runner) target(ctx context.Context, name string, fresh bool) (*target, error) {
	if name == direct {
		return r.stand.upstream, nil
	}
	if t := r.running[name]; t != nil && !fresh {
		return t, nil
	}
	t, err := r.stand.start(ctx, name)
	if err == nil && !fresh {
		r.running[name] = t
	}
	return t, err
}

func (r *runner) stopRunning() {
	for name, t := range r.running {
		t.stop()
		delete(r.running, name)
	}
}

// row compares round by round, so that what slows the machine for a while slows both sides of each comparison.
func (f figure) row(s scenario, names []string, values map[string][][]float64, i int) row {
	r := row{
		Scenario: s.name, Title: s.title, Name: f.Name, Unit: f.Unit, Must: f.Must, Aim: f.Aim,
		Kind:     [...]string{"ratio", "added", "absolute"}[f.compare],
		Measured: map[string]float64{}, Compared: map[string]float64{},
	}
	base := map[comparison]string{asRatio: nginx, asAdded: direct}[f.compare]
	for _, name := range names {
		var plain, compared []float64
		for round, v := range values[name] {
			plain = append(plain, v[i])
			switch {
			case f.compare == absolute:
				compared = append(compared, v[i])
			case round >= len(values[base]):
			case f.compare == asRatio && values[base][round][i] > 0:
				compared = append(compared, v[i]/values[base][round][i])
			case f.compare == asAdded:
				compared = append(compared, v[i]-values[base][round][i])
			}
		}
		if len(plain) > 0 {
			r.Measured[name] = median(plain)
		}
		if len(compared) > 0 {
			r.Compared[name] = median(compared)
			if name == vallum {
				r.Low, r.High = slices.Min(compared), slices.Max(compared)
			}
		}
	}
	return r
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
