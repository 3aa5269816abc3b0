package audit

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// clock is a wall clock that jumps when it is told to, and goes on with the bubble's time.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time       { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) jump(d time.Duration) { c.offset.Add(int64(d)) }

func TestRefusalsOfNobodyAreAddedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		l := mustOpen(t, dir, Options{})
		for i := range 200 {
			l.Count("no_credential", netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			l.Count("no_credential", netip.MustParseAddr("::ffff:192.0.2.9"))
			l.Count("unknown_operation", netip.MustParseAddr(fmt.Sprintf("2001:db8::%x%%eth0", i+1)))
		}
		l.Count("no_credential", netip.Addr{}) // a UNIX socket
		pass(30 * time.Second)
		if s := l.Stats(); s.Lines != 0 {
			t.Errorf("%d lines before the minute is over", s.Lines)
		}
		pass(31 * time.Second)
		l.Count("no_credential", netip.MustParseAddr("192.0.2.1"))
		mustClose(t, l)
		var got []string
		for _, r := range readAll(t, dir) {
			got = append(got, fmt.Sprintf("%s %s %s %d %s", r.Event, r.Reason, r.Remote, r.Count, r.Minute))
		}
		want := []string{
			"counted no_credential  1 2000-01-01T00:00:00Z",
			"counted no_credential 192.0.2.0/24 400 2000-01-01T00:00:00Z",
			"counted unknown_operation 2001:db8::/64 200 2000-01-01T00:00:00Z",
			"counted no_credential 192.0.2.0/24 1 2000-01-01T00:01:00Z",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// A flood from everywhere costs a bounded number of lines a minute, and no refusal goes uncounted.
func TestAFloodOfStrangersIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		l := mustOpen(t, dir, Options{})
		const flood = 20_000
		for i := range flood {
			l.Count("no_credential", netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}))
		}
		mustClose(t, l)
		all := readAll(t, dir)
		var sum uint64
		for _, r := range all {
			sum += r.Count
		}
		if len(all) != maxTallies+1 || sum != flood {
			t.Errorf("%d lines for %d refusals, want %d for %d", len(all), sum, maxTallies+1, flood)
		}
	})
}

func TestSegmentsAreSealedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		l := mustOpen(t, dir, Options{MaxSegmentAge: time.Hour})
		for range 5 {
			fill(t, l, 1)
			pass(time.Hour)
		}
		pass(10 * time.Hour) // an empty segment is not sealed, however old
		mustClose(t, l)
		if n := len(segmentFiles(t, dir)); n < 5 || n > 6 {
			t.Errorf("%d segments, want one an hour", n)
		}
		if r := mustVerify(t, dir, nil); short(r) != "signed 10" {
			t.Errorf("%v", r)
		}
	})
}

func TestRetentionDeletesSealedSegmentsAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sink memorySink
		dir := newDir(t)
		l := mustOpen(t, dir, Options{MaxSegmentAge: time.Hour, Retain: 7 * time.Hour, Sinks: []io.Writer{&sink}})
		for range 30 {
			fill(t, l, 2)
			pass(time.Hour)
		}
		key := l.VerifierKey()
		mustClose(t, l)
		all := readAll(t, dir)
		if n := len(segmentFiles(t, dir)); n < 8 || n > 11 {
			t.Errorf("%d segments are left of 30, want about 9", n)
		}
		if age := time.Since(all[0].Time); age < 7*time.Hour || age > 11*time.Hour {
			t.Errorf("the oldest line is %s old", age)
		}
		sealed, _, err := chain.ReadNotes(os.DirFS(dir), chain.SealedName)
		if err != nil || len(sealed) < 29 {
			t.Errorf("%d checkpoints of sealed segments are left, want all: %v", len(sealed), err)
		}
		r := mustVerify(t, dir, sink.notes)
		if r.Outcome != chain.Signed || r.First != all[0].Seq || r.First < 50 {
			t.Errorf("%v: %+v", r, r)
		}
		if got := python(t, dir, key); got != "" && got != short(r) {
			t.Errorf("verify.py: %s, want %s", got, short(r))
		}

		// One segment more than retention said: not retention.
		if err := os.Remove(segmentFiles(t, dir)[0]); err != nil {
			t.Fatal(err)
		}
		if r := mustVerify(t, dir, nil); short(r) != "broken 1" {
			t.Errorf("an undeclared deletion: %v", r)
		}
		if got := python(t, dir, key); got != "" && got != "broken 1" {
			t.Errorf("verify.py on an undeclared deletion: %s", got)
		}
	})
}

// A segment that cannot be deleted keeps those behind it: a hole would be taken for tampering.
func TestRetentionLeavesNoHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		d := osDisk()
		oldest := ""
		d.remove = func(path string) error {
			if oldest == "" {
				oldest = path
			}
			if path == oldest {
				return syscall.EPERM // chattr +i
			}
			return os.Remove(path)
		}
		var problems []error
		l := mustOpen(t, dir, Options{disk: &d, MaxSegmentAge: time.Hour, Retain: 7 * time.Hour, Problem: func(err error) { problems = append(problems, err) }})
		for range 30 {
			fill(t, l, 2)
			pass(time.Hour)
		}
		mustClose(t, l)
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.First != 1 || len(problems) == 0 || !errors.Is(problems[0], syscall.EPERM) {
			t.Errorf("%v, %v", r, problems)
		}
	})
}

// The first line that is left is checked against the checkpoint at the end of what was deleted.
func TestThePrunedEdgeIsSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		l := mustOpen(t, dir, Options{MaxSegmentAge: time.Hour, Retain: 3 * time.Hour})
		for range 10 {
			fill(t, l, 1)
			pass(time.Hour)
		}
		key := l.VerifierKey()
		mustClose(t, l)
		before := mustVerify(t, dir, nil)
		edit(t, dir, 0, func(r []string) []string { return flipHash(r, 0) })
		want := fmt.Sprintf("broken %d", before.First)
		if r := mustVerify(t, dir, nil); short(r) != want {
			t.Errorf("%v, want %s", r, want)
		}
		if got := python(t, dir, key); got != "" && got != want {
			t.Errorf("verify.py: %s, want %s", got, want)
		}
	})
}

func TestAClockThatJumps(t *testing.T) {
	const years = 365 * 24 * time.Hour
	synctest.Test(t, func(t *testing.T) {
		var c clock
		dir := newDir(t)
		o := Options{Now: c.now, MaxSegmentAge: time.Hour, Retain: 20 * time.Hour}
		l := mustOpen(t, dir, o)
		hour := func() {
			for range 6 {
				fill(t, l, 1)
				pass(10 * time.Minute)
			}
		}
		hour()
		hour()
		n := len(segmentFiles(t, dir))
		c.jump(-40 * years)
		hour()
		hour()
		hour()
		if got := len(segmentFiles(t, dir)); got < n+2 {
			t.Errorf("back by 40 years: %d segments, want %d: age no longer seals", got, n+2)
		}
		c.jump(+40 * years)
		hour()
		c.jump(+10 * years)
		pass(time.Minute)
		l.Count("no_credential", netip.Addr{})
		fill(t, l, 1)
		c.jump(-10 * years) // put right within the segment
		hour()
		hour()
		if s := l.Stats(); s.Signed < s.Lines-2 || s.NotAdmitted != nil {
			t.Errorf("%+v", s)
		}
		mustClose(t, l)
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.First != 1 {
			t.Errorf("%v, first line %d: nothing was old enough to go", r, r.First)
		}
		for range 25 { // and retention goes on when all is well again
			l = mustOpen(t, dir, o)
			hour()
			mustClose(t, l)
		}
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.First == 1 {
			t.Errorf("%v, first line %d", r, r.First)
		}
	})
}

func TestWhatHasExpired(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC) }
	for _, test := range []struct {
		what   string
		opened []int // day on which each segment was opened; -1 is a name without a time
		now    int
		want   int
	}{
		{"nothing is old", []int{0, 1, 2, 3}, 4, 0},
		{"the oldest", []int{0, 1, 3, 9, 10}, 10, 1},
		{"all but the last two", []int{0, 1, 2, 30, 31}, 31, 2},
		{"a clock that has just leapt ahead", []int{0, 1, 2, 3, 4000}, 4000, 0},
		{"and stayed there for a segment", []int{0, 1, 2, 3, 4000, 4001}, 4001, 3},
		{"a clock that was ahead once", []int{0, 1, 2, 4000, 9, 10, 11}, 11, 2},
		{"and ahead for one segment that is old by now", []int{0, 1, 4000, 2, 9, 10, 11}, 11, 3},
		{"a clock that was back once", []int{20, 21, 0, 22, 23}, 24, 0},
		{"a clock that is back now", []int{20, 21, 22, 23}, 1, 0},
		{"two segments", []int{0, 1}, 100, 0},
		{"a name without a time", []int{-1, -1, 50, 60}, 60, 0},
	} {
		var list []chain.Segment
		for i, d := range test.opened {
			s := chain.Segment{Name: fmt.Sprint(i), First: uint64(i + 1)}
			if d >= 0 {
				s.Opened = day(d)
			}
			list = append(list, s)
		}
		if got := expired(list, day(test.now), 7*24*time.Hour); got != test.want {
			t.Errorf("%s: %d segments expired, want %d", test.what, got, test.want)
		}
	}
	if expired(make([]chain.Segment, 9), day(9), 0) != 0 {
		t.Error("without Retain something expired")
	}
}

func TestReadAndFind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		l := mustOpen(t, dir, Options{MaxSegmentAge: time.Hour})
		mustAppend(t, l, Record{Event: Admitted, ID: "long", Model: `a "model"`})
		var since time.Time
		for i := range 6 {
			mustAppend(t, l, Record{Event: Refused, ID: fmt.Sprint("r", i), Reason: "not_permitted"})
			pass(time.Hour)
			if i == 2 {
				since = time.Now()
			}
		}
		mustAppend(t, l, Record{Event: Ended, ID: "long"})
		mustAppend(t, l, Record{Event: Started, Detail: `mentions "r0"`})
		f, err := os.OpenFile(segmentFiles(t, dir)[len(segmentFiles(t, dir))-1], os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"seq":9,`); err != nil { // being written
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}

		long, err := Find(dir, "long")
		if err != nil || len(long) != 2 || long[0].Event != Admitted || long[1].Event != Ended || long[0].Model != `a "model"` {
			t.Errorf("Find long: %+v, %v", long, err)
		}
		if one, err := Find(dir, "r0"); err != nil || len(one) != 1 || one[0].Reason != "not_permitted" {
			t.Errorf("Find r0: %+v, %v", one, err)
		}
		for _, id := range []string{"nobody", "", `r0"`} {
			if _, err := Find(dir, id); !errors.Is(err, ErrNotFound) {
				t.Errorf("Find %q: %v", id, err)
			}
		}
		var ids []string
		for r, err := range Read(dir, since, func(r Record) bool { return r.Event == Refused }) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, r.ID)
		}
		if strings.Join(ids, " ") != "r3 r4 r5" {
			t.Errorf("since: %v", ids)
		}
		for _, err := range Read(dir, time.Time{}, nil) {
			if err != nil {
				t.Error(err)
			}
			break // stopping early is fine
		}
		if _, err := Find(filepath.Join(dir, "none"), "x"); err == nil {
			t.Error("a directory that is not there was read")
		}
		mustClose(t, l)
	})
}

func TestReadGoesOnAfterALineThatIsNoRecord(t *testing.T) {
	dir, _ := goodLog(t)
	edit(t, dir, 1, func(r []string) []string { r[3] = "not a record\n"; return r })
	good, bad := 0, 0
	for _, err := range Read(dir, time.Time{}, nil) {
		if err != nil {
			bad++
			if !strings.Contains(err.Error(), ".jsonl:4: not a record") {
				t.Error(err)
			}
			continue
		}
		good++
	}
	if good != 39 || bad != 1 {
		t.Errorf("%d records and %d errors", good, bad)
	}
}
