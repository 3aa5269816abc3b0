package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/vallum/vallum/internal/audit/chain"
	"github.com/vallum/vallum/internal/notrun"
)

// limitedChild is appendUnderLimit where processes have such limits.
var limitedChild = appendUnderLimit

// appendUnderLimit is a process whose files may have no more than 40,000 bytes: a real write(2) that
// writes a part and then fails. It ends with 3 when something is wrong.
func appendUnderLimit(dir string) {
	var old syscall.Rlimit
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
	must(syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	must(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 40_000, Max: old.Max}))
	l, err := Open(dir, Options{ReserveBytes: 1000})
	must(err)
	admitted := 0
	for ; err == nil; admitted++ {
		_, err = l.Append(Record{Event: Admitted, ID: fmt.Sprint(admitted)})
	}
	admitted--
	if !errors.Is(err, ErrNotAdmitting) || !errors.Is(err, syscall.EFBIG) {
		must(fmt.Errorf("admitted %d, then %w", admitted, err))
	}
	for i := range admitted {
		if _, err := l.Append(Record{Event: Ended, ID: fmt.Sprint(i)}); err != nil && !errors.Is(err, ErrKept) {
			must(err)
		}
	}
	must(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old))
	l.tick()
	_, err = l.Append(Record{Event: Admitted, ID: fmt.Sprint(admitted)})
	must(err)
	must(l.Close())
	fmt.Println(admitted)
}

func TestARealWriteThatFails(t *testing.T) {
	dir := newDir(t)
	out, err := child(t, "limit", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	var admitted int
	if _, err := fmt.Sscan(string(out), &admitted); err != nil || admitted < 50 {
		t.Fatalf("child said %q", out)
	}
	began, ended := 0, 0
	for _, r := range readAll(t, dir) {
		switch r.Event {
		case Admitted:
			began++
		case Ended:
			ended++
		}
	}
	if began != admitted+1 || ended != admitted {
		t.Errorf("%d admitted lines and %d ended, want %d and %d", began, ended, admitted+1, admitted)
	}
	if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed {
		t.Errorf("%v", r)
	}
}

// The same on a real file system that is full, where one can be mounted.
func TestARealFullDisk(t *testing.T) {
	mount := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		notrun.For(t, "a small file system cannot be mounted here (%v); TestARealWriteThatFails ran instead", err)
	}
	defer func() {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	synctest.Test(t, func(t *testing.T) { // whose clock stands still: a tick that comes while the disk is full may find room for its own line
		dir := filepath.Join(mount, "audit")
		l := mustOpen(t, dir, Options{ReserveBytes: 512 << 10, Problem: func(error) {}})
		synctest.Wait()
		ids := untilFull(t, l)
		for _, id := range ids {
			mustAppend(t, l, Record{Event: Ended, ID: id}) // the reserve is real
		}
		if _, err := l.Append(Record{Event: Admitted}); !errors.Is(err, ErrNotAdmitting) {
			t.Errorf("admitted on a full disk: %v", err)
		}
		if err := syscall.Mount("tmpfs", mount, "tmpfs", syscall.MS_REMOUNT, "size=4m"); err != nil {
			t.Fatal(err)
		}
		l.tick()
		mustAppend(t, l, Record{Event: Admitted, ID: "after"})
		mustClose(t, l)
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.Holds != uint64(2*len(ids)+2) {
			t.Errorf("%d requests; %v", len(ids), r)
		}
	})
}
