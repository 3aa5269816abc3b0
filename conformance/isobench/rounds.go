package main

import (
	"context"
	"fmt"
	"io"
	"slices"
)

// Paths between the two nodes.
const (
	bare    = "bare"
	overlay = "overlay"
)

// row is one figure on both paths.
type row struct {
	Part    string  `json:"part"` // network, tp or dp
	Figure  string  `json:"figure"`
	Unit    string  `json:"unit"`
	Bare    float64 `json:"bare"`    // median of the rounds
	Overlay float64 `json:"overlay"` // likewise
	Ratio   float64 `json:"ratio"`   // of overlay to bare, the median of the rounds' ratios
	Low     float64 `json:"low"`     // the least of them
	High    float64 `json:"high"`    // and the most
	Rounds  int     `json:"rounds"`
}

// figure names what one measurement returns, in its order.
type figure struct{ name, unit string }

// interleave measures both paths in turn, so that what slows the machine for a while slows both, and begins each round
// with the other one than the round before. The ratio is taken round by round.
func interleave(ctx context.Context, part string, rounds int, figures []figure, progress io.Writer, measure func(ctx context.Context, path string) ([]float64, error)) ([]row, error) {
	values := map[string][][]float64{}
	for i := range rounds {
		order := []string{bare, overlay}
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, path := range order {
			got, err := measure(ctx, path)
			if err == nil && len(got) != len(figures) {
				err = fmt.Errorf("%d figures of %d", len(got), len(figures))
			}
			if err != nil {
				return nil, fmt.Errorf("%s, %s, round %d: %w", part, path, i+1, err)
			}
			values[path] = append(values[path], got)
			fmt.Fprintf(progress, "  %-8s %.3g\n", path, got)
		}
	}
	var rows []row
	for i, f := range figures {
		r := row{Part: part, Figure: f.name, Unit: f.unit, Rounds: rounds}
		var ratios, plain, tunnelled []float64
		for n := range rounds {
			b, o := values[bare][n][i], values[overlay][n][i]
			plain, tunnelled = append(plain, b), append(tunnelled, o)
			if b > 0 {
				ratios = append(ratios, o/b)
			}
		}
		if len(ratios) != rounds {
			return nil, fmt.Errorf("%s: %s is 0 on the bare path", part, f.name)
		}
		r.Bare, r.Overlay, r.Ratio = median(plain), median(tunnelled), median(ratios)
		r.Low, r.High = slices.Min(ratios), slices.Max(ratios)
		rows = append(rows, r)
	}
	return rows, nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
