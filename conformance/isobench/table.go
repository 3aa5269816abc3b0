package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// result is a whole run.
type result struct {
	CPUs    int     `json:"cpus"`
	Kernel  string  `json:"kernel"`
	Go      string  `json:"go"`
	Seconds float64 `json:"seconds"`
	Busy    float64 `json:"busy_percent"` // of the machine's CPU time, meanwhile, by anything
	Awake   bool    `json:"awake"`        // the cores were kept from halting while vLLM was measured
	Rows    []row   `json:"rows"`
}

func (r result) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// write prints the table as docs/isolate.md has it.
func (r result) write(w io.Writer) error {
	fmt.Fprintf(w, "%d cores that both nodes share, Linux %s, %s, wireguard-go; %.0f s, in which the machine was %.0f %% busy.\n\n", r.CPUs, r.Kernel, r.Go, r.Seconds, r.Busy)
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "|\t| bare\t| overlay\t| overlay / bare\t| rounds\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|")
	for _, row := range r.Rows {
		name := row.Figure
		if row.Part != network {
			name = row.Part + ", " + name
		}
		fmt.Fprintf(t, "| %s\t| %.3g %s\t| %.3g %s\t| **%.2f** (%.2f–%.2f)\t| %d\t|\n", name, row.Bare, row.Unit, row.Overlay, row.Unit, row.Ratio, row.Low, row.High, row.Rounds)
	}
	return t.Flush()
}
