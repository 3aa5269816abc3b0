// Package report keeps what each proof showed, against which real part, and
// prints it as one table at the end. It refuses to count a proof that did not
// run: that is printed as NOT RUN, and fails.
package report

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"text/tabwriter"
)

// Result is how a proof ended. The zero Result is NotRun.
type Result uint8

// The results.
const (
	NotRun Result = iota
	Failed
	Shown
)

func (r Result) String() string {
	switch r {
	case Shown:
		return "shown"
	case Failed:
		return "FAILED"
	}
	return "NOT RUN"
}

// Row is one line of the table.
type Row struct {
	Property string // what was to be shown
	Part     string // the real part it was shown against: "vLLM A"
	Version  string // that part's version
	Result   Result
	Why      string // for NOT RUN: what was missing
}

// Table collects rows. It may be used by tests that run side by side.
type Table struct {
	mu   sync.Mutex
	rows []Row
	out  io.Writer
}

// New makes a table whose NOT RUN lines go to out as they happen.
func New(out io.Writer) *Table { return &Table{out: out} }

// Proof is a test that ends as one row of the table.
type Proof struct {
	*testing.T
	row   Row
	table *Table
}

// Prove runs f as the subtest called property and adds its row.
func (t *Table) Prove(parent *testing.T, part, version, property string, f func(*Proof)) bool {
	return parent.Run(property, func(tt *testing.T) {
		p := &Proof{T: tt, table: t, row: Row{Property: property, Part: part, Version: version, Result: Failed}}
		defer p.end()
		f(p)
	})
}

func (p *Proof) end() {
	if p.Skipped() {
		p.row.Result, p.row.Why = NotRun, "skipped"
	}
	if p.row.Why == "" && !p.Failed() {
		p.row.Result = Shown
	}
	p.table.Add(p.row)
}

// NotRun ends the proof, which fails: what could not be tried was not shown.
func (p *Proof) NotRun(format string, args ...any) {
	p.Helper()
	p.row.Result, p.row.Why = NotRun, fmt.Sprintf(format, args...)
	p.Fatalf("NOT RUN: %s: %s", p.row.Property, p.row.Why)
}

// Add adds a row, and says NOT RUN at once.
func (t *Table) Add(r Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = append(t.rows, r)
	if r.Result == NotRun {
		fmt.Fprintf(t.out, "NOT RUN: %s: %s\n", r.Property, r.Why)
	}
}

// Missing adds a NOT RUN row for each expected property that has no row, so
// that a proof that was deleted, renamed or never reached cannot go unseen.
func (t *Table) Missing(expected []Row) {
	for _, e := range expected {
		if !t.has(e) {
			e.Result, e.Why = NotRun, "nothing reported it"
			t.Add(e)
		}
	}
}

func (t *Table) has(e Row) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.rows, func(r Row) bool { return r.Property == e.Property && r.Part == e.Part })
}

// Good tells whether the table has rows and all of them were shown.
func (t *Table) Good() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.rows) > 0 && !slices.ContainsFunc(t.rows, func(r Row) bool { return r.Result != Shown })
}

// Write prints the table: property, real part, version, result.
func (t *Table) Write(w io.Writer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PROPERTY\tREAL PART\tVERSION\tRESULT")
	count := map[Result]int{}
	for _, r := range t.rows {
		result := r.Result.String()
		if r.Why != "" {
			result += ": " + firstLine(r.Why)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.Property, r.Part, r.Version, result)
		count[r.Result]++
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d shown, %d failed, %d not run\n", count[Shown], count[Failed], count[NotRun])
	return err
}

func firstLine(s string) string {
	for i, c := range s {
		if c == '\n' {
			return s[:i]
		}
	}
	return s
}
