package audit

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// quota is a disk of a certain size. Its files are real.
type quota struct {
	mu       sync.Mutex
	left     int64
	syncFail error
	stuck    atomic.Bool // segments cannot be cut
}

func (q *quota) take(n int64) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, q.left)
	q.left -= n
	return n
}

func (q *quota) set(left int64, syncFail error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.left, q.syncFail = left, syncFail
}

func (q *quota) disk() *disk {
	d := osDisk()
	d.open = func(path string) (file, error) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		return &quotaFile{File: f, q: q, size: info.Size()}, err
	}
	reserved := int64(0)
	d.reserve = func(_ string, size int64) error {
		if got := q.take(size); got < size {
			q.take(-got)
			return syscall.ENOSPC
		}
		reserved = size
		return nil
	}
	d.release = func(string) error { q.take(-reserved); return nil }
	d.free = func(string) (uint64, bool) {
		q.mu.Lock()
		defer q.mu.Unlock()
		return uint64(q.left), true
	}
	return &d
}

type quotaFile struct {
	*os.File
	q    *quota
	size int64
}

// WriteAt writes what fits, as a real disk does, and then says that it is full.
func (f *quotaFile) WriteAt(p []byte, off int64) (int, error) {
	more := max(0, off+int64(len(p))-f.size)
	got := f.q.take(more)
	f.size += got
	n, err := f.File.WriteAt(p[:int64(len(p))-(more-got)], off)
	if err == nil && got < more {
		err = syscall.ENOSPC
	}
	return n, err
}

func (f *quotaFile) Truncate(size int64) error {
	if f.q.stuck.Load() && strings.HasSuffix(f.Name(), ".jsonl") {
		return syscall.EIO
	}
	f.q.take(-(f.size - size))
	f.size = size
	return f.File.Truncate(size)
}

func (f *quotaFile) Sync() error {
	f.q.mu.Lock()
	defer f.q.mu.Unlock()
	return f.q.syncFail
}

// untilFull admits requests until none is admitted any more, and returns their ids.
func untilFull(t *testing.T, l *Log) []string {
	t.Helper()
	var ids []string
	for i := 0; ; i++ {
		id := fmt.Sprintf("full-%d", i)
		_, err := l.Append(Record{Event: Admitted, ID: id, Model: strings.Repeat("m", 200)})
		if errors.Is(err, ErrNotAdmitting) {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("the cause is not said: %v", err)
			}
			return ids
		}
		if err != nil || i > 100_000 {
			t.Fatalf("request %d: %v", i, err)
		}
		ids = append(ids, id)
	}
}

// No record, no request; and what was admitted gets its end.
func TestAFullDiskAdmitsNothingAndRecordsEveryEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const reserve = 100_000
		q := &quota{left: reserve + 50_000}
		var problems atomic.Int64
		dir := newDir(t)
		l := mustOpen(t, dir, Options{disk: q.disk(), ReserveBytes: reserve, Problem: func(error) { problems.Add(1) }})
		ids := untilFull(t, l)
		if len(ids) < 50 {
			t.Fatalf("only %d requests were admitted", len(ids))
		}
		if s := l.Stats(); s.NotAdmitted == nil || problems.Load() == 0 {
			t.Errorf("nobody was told: %+v", s)
		}
		for _, id := range ids {
			mustAppend(t, l, Record{Event: Ended, ID: id})
		}
		if _, err := l.Append(Record{Event: Admitted}); !errors.Is(err, ErrNotAdmitting) {
			t.Errorf("admitted while the disk is full: %v", err)
		}
		if seq, err := l.Append(Record{Event: Refused, Reason: "not_permitted", Remote: "192.0.2.7:99"}); seq != 0 || err != nil {
			t.Errorf("a refusal should be counted: %d, %v", seq, err)
		}
		pass(61 * time.Second) // in which the count cannot be written
		if _, err := l.Append(Record{Event: Admitted}); !errors.Is(err, ErrNotAdmitting) {
			t.Errorf("admitted without the reserve: %v", err)
		}
		q.set(10*reserve, nil)
		pass(2 * time.Second)
		mustAppend(t, l, Record{Event: Admitted, ID: "after"})
		mustClose(t, l)

		var events []Event
		ends := map[string]bool{}
		for _, r := range readAll(t, dir) {
			events = append(events, r.Event)
			if r.Event == Ended {
				ends[r.ID] = true
			}
			if r.Event == Recovered && !strings.Contains(r.Detail, "no space left") {
				t.Errorf("recovered without its cause: %+v", r)
			}
		}
		if len(ends) != len(ids) {
			t.Errorf("%d requests were admitted and %d ended", len(ids), len(ends))
		}
		if n := len(events); events[n-3] != Recovered || events[n-2] != Admitted || events[n-1] != Counted {
			t.Errorf("the log ends with %v", events[n-3:])
		}
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed {
			t.Errorf("%v", r)
		}
	})
}

// When even the reserve is used up, ends are kept in memory, in order and bounded, and come first afterwards.
func TestEndsWithoutRoomAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &quota{left: 20_000}
		dir := newDir(t)
		l := mustOpen(t, dir, Options{disk: q.disk(), ReserveBytes: 1000, Problem: func(error) {}})
		untilFull(t, l)
		kept, lost := 0, 0
		for i := range maxPending + 100 {
			_, err := l.Append(Record{Event: Ended, ID: fmt.Sprintf("end-%d", i)})
			switch {
			case errors.Is(err, ErrKept):
				kept++
			case errors.Is(err, ErrLost):
				lost++
			case err != nil:
				t.Fatal(err)
			}
			if i > 50 && kept == 0 {
				t.Fatal("the disk is not full")
			}
		}
		s := l.Stats()
		if kept != maxPending || s.Kept != kept || lost == 0 || s.Lost != uint64(lost) {
			t.Fatalf("kept %d, lost %d: %+v", kept, lost, s)
		}
		q.set(100<<20, nil)
		// There is room, but what was kept comes first, and admission is the housekeeper's to give back.
		if _, err := l.Append(Record{Event: Admitted}); !errors.Is(err, ErrNotAdmitting) {
			t.Errorf("admitted before what was kept: %v", err)
		}
		if _, err := l.Append(Record{Event: Ended, ID: "overtakes"}); !errors.Is(err, ErrLost) {
			t.Errorf("written before what was kept: %v", err)
		}
		lost++
		pass(2 * time.Second)
		if s := l.Stats(); s.NotAdmitted != nil || s.Kept != 0 || s.Lost != 0 {
			t.Errorf("%+v", s)
		}
		mustClose(t, l)
		next, told := 0, uint64(0)
		for _, r := range readAll(t, dir) {
			if r.Event == Ended {
				if r.ID != fmt.Sprintf("end-%d", next) {
					t.Fatalf("%s comes where end-%d should", r.ID, next)
				}
				next++
			}
			if r.Event == Recovered {
				told = r.Count
			}
		}
		if next != maxPending+101-lost || told != uint64(lost) {
			t.Errorf("%d ends written, %d said to be lost, want %d", next, told, lost)
		}
	})
}

func TestCloseSaysWhatIsNotOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &quota{left: 5000}
		l := mustOpen(t, newDir(t), Options{disk: q.disk(), ReserveBytes: 10, Problem: func(error) {}})
		untilFull(t, l)
		for range 40 {
			if _, err := l.Append(Record{Event: Ended}); err != nil && !errors.Is(err, ErrKept) {
				t.Fatal(err)
			}
		}
		kept := l.Stats().Kept
		if err := l.Close(); kept == 0 || err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d audit lines could not be written", kept)) {
			t.Errorf("%d kept; Close: %v", kept, err)
		}
	})
}

// After a failed sync the kernel may have thrown lines away: nothing is admitted until one succeeds.
func TestAFailedSyncStopsAdmission(t *testing.T) {
	for _, mode := range []Sync{SyncInterval, SyncAlways} {
		synctest.Test(t, func(t *testing.T) {
			q := &quota{left: 1 << 30}
			dir := newDir(t)
			l := mustOpen(t, dir, Options{Sync: mode, disk: q.disk(), SyncInterval: 50 * time.Millisecond, Problem: func(error) {}})
			fill(t, l, 1)
			q.set(1<<30, syscall.EIO)
			if mode == SyncInterval {
				pass(100 * time.Millisecond)
			}
			if _, err := l.Append(Record{Event: Admitted}); !errors.Is(err, ErrNotAdmitting) || !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: %v", mode, err)
			}
			pass(5 * time.Second)
			if _, err := l.Append(Record{Event: Admitted}); !errors.Is(err, ErrNotAdmitting) {
				t.Errorf("%s, later: %v", mode, err)
			}
			q.set(1<<30, nil)
			pass(2 * time.Second)
			fill(t, l, 1)
			mustClose(t, l)
			recovered := 0
			for _, r := range readAll(t, dir) {
				if r.Event == Recovered {
					recovered++
				}
			}
			if recovered != 1 {
				t.Errorf("%s: %d recovered lines, want 1 when the disk syncs again", mode, recovered)
			}
			if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed {
				t.Errorf("%s: %v", mode, r)
			}
		})
	}
}

// A write that stops half way and cannot be undone must not leave its bytes between two lines.
func TestHalfAWriteThatCannotBeCutAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &quota{left: 5000}
		dir := newDir(t)
		l := mustOpen(t, dir, Options{disk: q.disk(), ReserveBytes: 10, Problem: func(error) {}})
		q.stuck.Store(true)
		untilFull(t, l)
		q.set(1<<20, nil)
		if _, err := l.Append(Record{Event: Ended, ID: "x"}); !errors.Is(err, ErrKept) {
			t.Errorf("written behind half a line: %v", err)
		}
		q.stuck.Store(false)
		pass(2 * time.Second)
		fill(t, l, 1)
		mustClose(t, l)
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.Torn {
			t.Errorf("%v", r)
		}
		if found, err := Find(dir, "x"); err != nil || len(found) != 1 {
			t.Errorf("the kept line: %v, %v", found, err)
		}
	})
}

// Nor may its segment be sealed with them, when that lasts until the segment is old.
func TestHalfAWriteIsNotSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &quota{left: 5000}
		dir := newDir(t)
		l := mustOpen(t, dir, Options{disk: q.disk(), ReserveBytes: 10, MaxSegmentAge: time.Hour, Problem: func(error) {}})
		q.stuck.Store(true)
		untilFull(t, l)
		q.set(1<<20, nil)
		pass(2 * time.Hour)
		q.stuck.Store(false)
		pass(2 * time.Second)
		fill(t, l, 1)
		mustClose(t, l)
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.Torn {
			t.Errorf("%v", r)
		}
	})
}

// A segment that cannot be sealed goes on; the chain has no hole.
func TestAnOpenThatFailsDoesNotBreakTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := osDisk()
		var broken atomic.Bool
		open := d.open
		d.open = func(path string) (file, error) {
			if broken.Load() {
				return nil, syscall.EMFILE
			}
			return open(path)
		}
		dir := newDir(t)
		var mu sync.Mutex
		var problems []error
		l := mustOpen(t, dir, Options{disk: &d, MaxSegmentBytes: 1000, Problem: func(err error) { mu.Lock(); defer mu.Unlock(); problems = append(problems, err) }})
		synctest.Wait()
		broken.Store(true)
		fill(t, l, 20)
		mu.Lock()
		if n := len(segmentFiles(t, dir)); n != 1 || len(problems) != 1 || !errors.Is(problems[0], syscall.EMFILE) {
			t.Errorf("%d segments, problems %v", n, problems)
		}
		mu.Unlock()
		broken.Store(false)
		pass(2 * time.Second)
		mustClose(t, l)
		if n := len(segmentFiles(t, dir)); n != 2 {
			t.Errorf("%d segments, want 2", n)
		}
		if r := mustVerify(t, dir, nil); short(r) != "signed 40" {
			t.Errorf("%v", r)
		}
	})
}

// One key-holder who is refused in a loop must not use up the last of the disk.
func TestRefusalsAreCountedWhenTheDiskIsNearlyFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &quota{left: 250_000}
		dir := newDir(t)
		l := mustOpen(t, dir, Options{disk: q.disk(), ReserveBytes: 100_000})
		pass(2 * time.Second)
		for range 10_000 {
			if seq, err := l.Append(Record{Event: Refused, Principal: "app", Reason: "not_permitted", Remote: "2001:db8::1"}); seq != 0 || err != nil {
				t.Fatal(seq, err)
			}
		}
		mustAppend(t, l, Record{Event: Admitted})
		mustClose(t, l)
		all := readAll(t, dir)
		if len(all) != 2 || all[1].Event != Counted || all[1].Count != 10_000 || all[1].Remote != "2001:db8::/64" || all[1].Reason != "not_permitted" {
			t.Errorf("%+v", all)
		}
	})
}
