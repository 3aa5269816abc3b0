package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/verdict"
)

func newLog(s streams) *cobra.Command {
	c := &cobra.Command{
		Use:   "log",
		Short: "Verifies and reads the records",
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newLogVerify(s), newLogShow(s))
	return c
}

func newLogVerify(s streams) *cobra.Command {
	var key, checkpoint, dir string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Says how far the records hold, or the first that does not",
		Long: "DIR is the audit folder of a state directory, or a copy of it; by default that of --state. The public key is\n" +
			"DIR/log.pub unless --key names another: keep one elsewhere, for who can write DIR can write that file too.\n" +
			"--checkpoint names a signed checkpoint that somebody else kept: a log that was cut shorter than it is found out.",
		Example: "  vallum log verify /var/lib/vallum/audit --key /safe/log.pub",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			records, err := recordsDir(dir, args)
			if err != nil {
				return err
			}
			if _, err := os.Stat(records); err != nil {
				return fmt.Errorf("there are no records: %w\nhint: vallum log verify STATE/audit, or --state STATE", err)
			}
			pub, err := publicKey(records, key)
			if err != nil {
				return err
			}
			var held []byte
			if checkpoint != "" {
				if held, err = os.ReadFile(checkpoint); err != nil {
					return fmt.Errorf("reading the checkpoint: %w", err)
				}
				held = lastNote(held)
			}
			report, err := audit.Verify(records, pub, held)
			if err != nil && held != nil {
				return fmt.Errorf("%w (the checkpoint is %s)", err, checkpoint)
			}
			if err != nil {
				return err
			}
			return s.tellReport(report, asJSON)
		},
	}
	stateFlag(c, &dir)
	c.Flags().StringVar(&key, "key", "", "file with the log's public key (default: DIR/log.pub)")
	c.Flags().StringVar(&checkpoint, "checkpoint", "", "file with a checkpoint that was kept elsewhere")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

// tellReport prints what verifying found: exit code 0 when the log is as it was written, as far as anyone can tell.
func (s streams) tellReport(r audit.Report, asJSON bool) error {
	var err error
	if asJSON {
		err = s.printJSON(struct {
			OK       bool      `json:"ok"`
			Outcome  string    `json:"outcome"`
			First    uint64    `json:"first"`
			Holds    uint64    `json:"holds"`
			Signed   uint64    `json:"signed"`
			SignedAt time.Time `json:"signed_at,omitzero"`
			Claimed  uint64    `json:"claimed,omitempty"`
			BrokenAt uint64    `json:"broken_at,omitempty"`
			File     string    `json:"file,omitempty"`
			Line     int       `json:"line,omitempty"`
			Torn     bool      `json:"torn,omitempty"`
			Meaning  string    `json:"meaning,omitempty"`
		}{r.OK(), string(r.Outcome), r.First, r.Holds, r.Signed, r.SignedAt, r.Claimed, r.BrokenAt, r.File, r.Line, r.Torn, r.Meaning})
	} else {
		_, err = fmt.Fprintln(s.out, r)
	}
	if err == nil && !r.OK() {
		return errNo
	}
	return err
}

// recordsDir is the folder of the records: the one that is named, or that of the state directory.
func recordsDir(state string, args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	dir, err := existing(state)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "audit")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("no gateway has written records to %s\nhint: --state DIR names the state directory of the gateway", dir)
	}
	return dir, nil
}

// lastNote finds the last checkpoint in a file that may hold other lines too, such as a daemon's captured output: four
// lines, an empty one, and a line that begins with a long dash (golang.org/x/mod/sumdb/note). What has none is given
// back as it is, for Verify to say what is wrong with it.
func lastNote(b []byte) []byte {
	lines := strings.SplitAfter(string(b), "\n")
	for i := len(lines) - 1; i >= 5; i-- {
		if strings.HasPrefix(lines[i], "— ") && lines[i-1] == "\n" {
			return []byte(strings.Join(lines[i-5:i+1], ""))
		}
	}
	return b
}

func publicKey(dir, file string) (string, error) {
	if file == "" {
		file = filepath.Join(dir, "log.pub")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		hint := "--key FILE names the log's public key"
		if _, missing := os.Stat(filepath.Join(dir, "audit")); missing == nil {
			hint = "the records are in " + filepath.Join(dir, "audit")
		}
		return "", fmt.Errorf("reading the public key: %w\nhint: %s", err, hint)
	}
	return strings.TrimSpace(string(b)), nil
}

func newLogShow(s streams) *cobra.Command {
	var dir, since, key, reason string
	var asJSON bool
	c := &cobra.Command{
		Use:     "show",
		Short:   "Prints records, the oldest first",
		Example: "  vallum log show --since 1h --reason not_permitted",
		RunE: func(*cobra.Command, []string) error {
			var from time.Time
			if since != "" {
				d, err := config.ParseDuration(since)
				if err != nil {
					return usagef("--since: %w", err)
				}
				from = time.Now().Add(-d)
			}
			if _, known := verdict.ReasonOf(reason); reason != "" && !known {
				return usagef("there is no reason %q\nhint: docs/reasons.md has them all; --json shows every record", reason)
			}
			records, err := recordsDir(dir, nil)
			if err != nil {
				return err
			}
			keep := func(r audit.Record) bool {
				return (key == "" || r.KeyID == key || r.Principal == key) && (reason == "" || r.Reason == reason)
			}
			if err := s.showRecords(records, from, keep, asJSON); err != nil {
				return err
			}
			return nil
		},
	}
	stateFlag(c, &dir)
	c.Flags().StringVar(&since, "since", "", "how far back: 1h, 7d (default: everything)")
	c.Flags().StringVar(&key, "key-name", "", "only of the key with this name or id")
	c.Flags().StringVar(&reason, "reason", "", "only refusals with this reason")
	c.Flags().BoolVar(&asJSON, "json", false, "the records as they are, a JSON object a line")
	return c
}

func (s streams) showRecords(dir string, from time.Time, keep func(audit.Record) bool, asJSON bool) error {
	out := &fitted{w: s.out, columns: s.columns()}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	enc := json.NewEncoder(s.out)
	n := 0
	var wrong []error
	for r, err := range audit.Read(dir, from, keep) {
		if err != nil { // of one line, mostly: the others are shown all the same
			wrong = append(wrong, err)
			continue
		}
		if n == 0 && !asJSON {
			fmt.Fprintln(w, "TIME (UTC)\tANSWER\tKEY\tOPERATION\tMODEL\tTOKENS\tTOOK\tID")
		}
		n++
		if asJSON {
			if err := enc.Encode(r); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(w, strings.Join(recordCells(r), "\t"))
		if n%200 == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	if n == 0 && len(wrong) == 0 {
		fmt.Fprintln(s.err, "no records fit")
	}
	wrong = append(wrong, w.Flush())
	if out.cut {
		s.hint("lines are cut to the terminal; into | less -S they are whole, with their ids")
	}
	return errors.Join(wrong...)
}

// fitted cuts lines to the width of a terminal, where a table would break into pieces. 0 columns cut nothing.
type fitted struct {
	w       io.Writer
	columns int
	line    []byte
	cut     bool // a line was
}

func (f *fitted) Write(p []byte) (int, error) {
	for i, b := range p {
		if f.line = append(f.line, b); b != '\n' {
			continue
		}
		line := strings.TrimRight(string(f.line), " \n")
		if runes := []rune(line); f.columns > 0 && len(runes) > f.columns {
			line, f.cut = string(runes[:f.columns-1])+"…", true
		}
		f.line = f.line[:0]
		if _, err := io.WriteString(f.w, line+"\n"); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// recordCells is one record in a line: the id stands last, so that what matters is not cut. What is no request has
// its words where a request has its operation.
func recordCells(r audit.Record) []string {
	answer, what, tokens, took := string(r.Event), r.Operation, "", ""
	switch {
	case r.Event == audit.Counted:
		answer, what = fmt.Sprintf("%d × %s", r.Count, r.Reason), "from "+r.Remote
	case r.Reason != "":
		answer = fmt.Sprintf("%d %s", r.Status, r.Reason)
	case r.Event == audit.Ended:
		answer = fmt.Sprintf("%d %s", r.Status, r.Ended)
	case what == "":
		what = r.Detail
	}
	if r.PromptTokens+r.CompletionTokens > 0 {
		tokens = fmt.Sprintf("%d+%d", r.PromptTokens, r.CompletionTokens)
	}
	if r.Event == audit.Ended {
		took = tookWords(r.DurationMillis)
	}
	return []string{r.Time.UTC().Format("01-02 15:04:05"), answer, r.Principal, what, r.Model, tokens, took, r.ID}
}

// tookWords is a duration in the unit that leaves few digits.
func tookWords(ms float64) string {
	if ms >= 10_000 {
		return fmt.Sprintf("%.1fs", ms/1000)
	}
	return fmt.Sprintf("%.0fms", ms)
}
