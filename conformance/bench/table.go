package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
)

// result is a whole run.
type result struct {
	Machine  string   `json:"machine"`
	CPUs     int      `json:"cpus"`
	Go       string   `json:"go"`
	Nginx    string   `json:"nginx"`
	Commit   string   `json:"commit"`
	Short    bool     `json:"short"`
	Seconds  float64  `json:"seconds"`
	Others   float64  `json:"others_percent"` // of the machine's CPU time, used by what is not ours
	Rows     []row    `json:"rows"`
	Comments []string `json:"comments"`
}

func (r result) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// The table's columns: 80 characters in all.
const line = "%-21s%9s%9s%9s%9s%13s%5s%5s"

// write prints the table. Ratios and additions are those of the others; nginx's own column is what was
// measured, in its unit, so that the ratios have a scale.
func (r result) write(w io.Writer) {
	fmt.Fprintf(w, "\n%s · %d CPUs · %s · %s · vallum %s\n", r.Machine, r.CPUs, r.Go, r.Nginx, r.Commit)
	fmt.Fprintf(w, line+"\n", "", nginx, envoy, stdlib, vallum, "(rounds)", "must", "aim")
	title := ""
	for _, row := range r.Rows {
		if row.Title != title {
			title = row.Title
			fmt.Fprintln(w, title)
		}
		text := fmt.Sprintf(line, "  "+row.Name, row.cell(nginx), row.cell(envoy), row.cell(stdlib), row.cell(vallum), row.span(), bound(row.Must), bound(row.Aim))
		fmt.Fprintln(w, strings.TrimRight(text, " "))
	}
	fmt.Fprintln(w)
	for _, c := range r.Comments {
		fmt.Fprintln(w, c)
	}
}

// cell is what the table says of a target.
func (r row) cell(name string) string {
	v, ok := r.Compared[name]
	switch {
	case !ok:
		return "-"
	case r.Kind == "ratio" && name == nginx:
		return short(r.Measured[name]) + " " + r.Unit
	case r.Kind == "ratio":
		return fmt.Sprintf("%.2f×", v)
	case r.Kind == "added":
		return fmt.Sprintf("%+.0f %s", v, r.Unit)
	}
	return short(v) + " " + r.Unit
}

// missing says why Vallum has no figure, on one line.
func (r row) missing() string {
	why, _, _ := strings.Cut(r.Missing, "\n")
	return fmt.Sprintf("%s: no figure for vallum: %s", r.Scenario, why)
}

// span is the least and the most of Vallum's rounds.
func (r row) span() string {
	if _, ok := r.Compared[vallum]; !ok {
		return ""
	}
	if r.Kind == "ratio" {
		return fmt.Sprintf("%.2f–%.2f", r.Low, r.High)
	}
	return short(r.Low) + "–" + short(r.High)
}

func bound(v float64) string {
	if v == 0 {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(fmt.Sprintf("%.2f", v), "0"), ".0")
}

// short is three digits, or as many as stand before the point.
func short(v float64) string {
	digits := 0
	for limit := 100.0; math.Abs(v) < limit && digits < 2; limit /= 10 {
		digits++
	}
	return fmt.Sprintf("%.*f", digits, v)
}
