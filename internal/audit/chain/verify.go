package chain

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Outcome is the answer of Verify in one word. The zero Outcome is no answer and is not OK.
type Outcome string

// The outcomes, from good to bad.
const (
	Signed   Outcome = "signed"   // every line chains and the last is under a checkpoint
	Unsigned Outcome = "unsigned" // every line chains; some at the end are not under a checkpoint yet
	Shorter  Outcome = "shorter"  // every line chains, but a checkpoint signed more lines than there are
	Broken   Outcome = "broken"   // a line, or a checkpoint, is not what was written
	Empty    Outcome = "empty"    // no line and no checkpoint
)

// Report is what Verify found.
type Report struct {
	Outcome  Outcome
	First    uint64    // the first line that is there; those before were deleted by retention, as a later line declares
	Holds    uint64    // every line from First to this one is the one that was written, as far as the chain tells
	Signed   uint64    // and to this one a signature says so
	SignedAt time.Time // when that signature was made
	Claimed  uint64    // shorter: how many lines a checkpoint signed
	BrokenAt uint64    // broken: the first line that nothing vouches for; 0 when it is a checkpoint
	File     string    // broken: where it shows
	Line     int       // broken: the line of that file, from 1
	Torn     bool      // the last segment ends in an unfinished line: it is being written, or the process was killed
	Meaning  string    // one sentence for the operator
}

// OK says whether the log is as it was written, as far as anyone can tell: every line chains, a signature covers
// all but the tail, and no checkpoint knows of more. A log without any signature is not OK.
func (r Report) OK() bool {
	return (r.Outcome == Signed || r.Outcome == Unsigned) && r.Signed > 0
}

// Tail is how many lines at the end no signature covers yet.
func (r Report) Tail() uint64 {
	if r.First == 0 {
		return 0
	}
	return r.Holds - min(r.Holds, max(r.Signed, r.First-1))
}

// String is the answer for a person; its first words are those of docs/audit.md.
func (r Report) String() string {
	var s string
	switch r.Outcome {
	case Signed:
		s = fmt.Sprintf("holds to line %d, signed at %s", r.Holds, r.SignedAt.Format(time.RFC3339))
	case Unsigned:
		s = fmt.Sprintf("holds to line %d; tail of %d lines not yet signed", r.Holds, r.Tail())
	case Shorter:
		s = fmt.Sprintf("shorter than a checkpoint: %d lines, but %d were signed", r.Holds, r.Claimed)
	case Broken:
		s = fmt.Sprintf("broken at line %d: %s:%d", r.BrokenAt, r.File, r.Line)
	case Empty:
		s = "empty: no line and no checkpoint"
	default:
		s = "not verified"
	}
	if r.Meaning != "" {
		s += ": " + r.Meaning
	}
	return s
}

// Verify checks the log in fsys against the verifier key (the content of log.pub, better from a copy held elsewhere) and, if
// given, against checkpoints that somebody else held: signed notes, each followed by an empty line. It may run beside the
// daemon. The error says that the question could not be answered; what the answer is, the Report says.
func Verify(fsys fs.FS, key string, held []byte) (Report, error) {
	v, err := note.NewVerifier(key)
	if err != nil {
		return Report{}, fmt.Errorf("verifier key: %w; it should be the line in %s, name+hash+key", err, PublicName)
	}
	if err := CheckFormat(fsys); err != nil {
		return Report{}, err
	}
	check := checker{fsys: fsys}
	// Checkpoints first, lines after: while the daemon writes, the lines are then never the older ones.
	if err := check.readCheckpoints(v, held); err != nil || check.report.Outcome != "" {
		return check.report, err
	}
	list, err := Segments(fsys)
	if err != nil {
		return Report{}, err
	}
	if err := check.walk(list); err != nil || check.report.Outcome != "" {
		return check.report, err
	}
	return check.conclude(), nil
}

// checker walks a log once. Its report has an outcome as soon as something is wrong.
type checker struct {
	fsys   fs.FS
	points []Checkpoint // by size
	report Report

	next      uint64 // number of the line to come
	head      Hash   // of the line before it
	declared  uint64 // lines that a pruned line says are deleted
	first     place  // of the first line
	rewritten place  // of the line after the last that a checkpoint vouches for
}

type place struct {
	file string
	line int
}

func (c *checker) broken(at uint64, p place, format string, args ...any) {
	c.report.Outcome, c.report.BrokenAt = Broken, at
	c.report.File, c.report.Line = p.file, p.line
	c.report.Meaning = fmt.Sprintf(format, args...)
	if at > 0 {
		c.report.Holds = min(c.report.Holds, at-1)
	}
}

func (c *checker) readCheckpoints(v note.Verifier, held []byte) error {
	for _, name := range []string{SealedName, OpenName} {
		notes, _, err := ReadNotes(c.fsys, name)
		if err != nil {
			return err
		}
		if line, err := c.addNotes(v, notes); err != nil {
			c.broken(0, place{name, line}, "this checkpoint is not signed by this key, or was changed: %v", err)
			return nil
		}
	}
	if len(held) > 0 {
		// A single note, as a sink gets it, lacks the empty line after it.
		notes, _ := SplitNotes(append(slices.Clip(held), "\n\n"...))
		if len(notes) == 0 {
			return errors.New("the held checkpoint is not a signed note")
		}
		if line, err := c.addNotes(v, notes); err != nil {
			return fmt.Errorf("line %d of the held checkpoint: %w", line, err)
		}
	}
	slices.SortStableFunc(c.points, func(a, b Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	return nil
}

// addNotes gives the line of the first note that is not a checkpoint signed by this key.
func (c *checker) addNotes(v note.Verifier, notes []SignedNote) (line int, err error) {
	for _, n := range notes {
		p, err := OpenCheckpoint(n.Msg, v)
		if err != nil {
			return n.Line, err
		}
		c.points = append(c.points, p)
	}
	return 0, nil
}

// walk follows the chain through all segments.
func (c *checker) walk(list []Segment) error {
	for i, s := range list {
		if c.next == 0 {
			c.begin(s)
		}
		for line, err := range Lines(c.fsys, s.Name) {
			if err != nil {
				return fmt.Errorf("reading %s: %w", s.Name, err)
			}
			if line.Torn && i == len(list)-1 {
				c.report.Torn = true
				return nil
			}
			if c.take(line, place{s.Name, line.Number}); c.report.Outcome != "" {
				return nil
			}
		}
	}
	return nil
}

// begin sets the first number by the name of the first segment: those before it may have been deleted by age.
func (c *checker) begin(s Segment) {
	c.next = max(s.First, 1)
	c.report.First = c.next
	c.report.Holds = c.next - 1
	c.first = place{s.Name, 1}
	c.rewritten = c.first
}

// take checks one line. The order of the checks is part of the format: docs/audit.md numbers them.
func (c *checker) take(line RawLine, at place) {
	k, ok := ParseLink(line.Bytes)
	if !ok || line.Torn || line.Long {
		c.broken(c.next, at, "this is not a line that Vallum writes")
		return
	}
	if k.Seq > c.next {
		c.broken(c.next, at, "lines %d to %d are missing: after line %d comes line %d", c.next, k.Seq-1, c.next-1, k.Seq)
		return
	}
	if k.Seq < c.next {
		c.broken(k.Seq, at, "line %d comes a second time, after line %d: a line was put in, or lines were moved", k.Seq, c.next-1)
		return
	}
	if !c.follows(k, at) {
		return
	}
	c.next++
	c.head = HashOf(line.Bytes)
	c.report.Holds = k.Seq
	if n, ok := k.prunedThrough(); ok {
		c.declared = max(c.declared, n)
	}
	if c.report.Signed+1 == k.Seq {
		c.rewritten = at
	}
	c.compare(k.Seq, at)
}

// follows checks that the line states the Hash of the one before it.
func (c *checker) follows(k Link, at place) bool {
	switch {
	case k.Seq == c.report.First && k.Seq > 1:
		c.head = k.Prev // what a checkpoint at the end of the deleted lines must agree with
		c.rewritten = at
		c.compare(k.Seq-1, at)
	case k.Prev == c.head:
	case k.Seq == 1:
		c.broken(1, at, "the first line should follow a Hash of zeros")
	case c.report.Signed == k.Seq-1:
		c.broken(k.Seq, at, "line %d was changed: it does not follow line %d, which is signed", k.Seq, k.Seq-1)
	default:
		c.broken(k.Seq-1, at, "line %d or what line %d says about it was changed after it was written", k.Seq-1, k.Seq)
	}
	return c.report.Outcome == ""
}

// compare checks the chain to line seq against the checkpoints of that size.
func (c *checker) compare(seq uint64, at place) {
	for len(c.points) > 0 && c.points[0].Size < seq {
		c.points = c.points[1:] // of deleted lines
	}
	for len(c.points) > 0 && c.points[0].Size == seq {
		p := c.points[0]
		if p.Head != c.head {
			from := max(c.report.Signed+1, c.report.First)
			c.broken(from, c.rewritten, "lines %d to %d chain, but not to what was signed at %s: some of them were written anew", from, max(seq, from), p.Time.Format(time.RFC3339))
			return
		}
		c.report.Signed, c.report.SignedAt = seq, p.Time
		c.points = c.points[1:]
	}
}

// conclude is reached when every line chains.
func (c *checker) conclude() Report {
	r := &c.report
	if n := len(c.points); n > 0 && c.points[n-1].Size > r.Holds {
		r.Outcome, r.Claimed = Shorter, c.points[n-1].Size
		r.Meaning = fmt.Sprintf("the last %d lines that were signed at %s are not here: the tail was cut", r.Claimed-r.Holds, c.points[n-1].Time.Format(time.RFC3339))
		return *r
	}
	if r.First > 1 && c.declared < r.First-1 {
		c.broken(1, c.first, "lines 1 to %d are missing, and no line says that retention deleted them", r.First-1)
		return *r
	}
	switch {
	case r.Holds == 0:
		r.Outcome = Empty
	case r.Signed == r.Holds:
		r.Outcome = Signed
	default:
		r.Outcome = Unsigned
	}
	return *r
}
