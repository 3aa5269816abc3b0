package audit

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// children are what the test binary does when it is started again by a test.
var children = map[string]func(dir string){
	"append": appendUntilKilled,
	"limit":  limitedChild,
}

func child(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "VALLUM_AUDIT_CHILD="+what, "VALLUM_AUDIT_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// appendUntilKilled says on standard output which line each Append was told it has.
func appendUntilKilled(dir string) {
	l, err := Open(dir, Options{MaxSegmentBytes: 20_000, ReserveBytes: 1 << 16})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for g := range 8 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), g, i)
				seq, err := l.Append(Record{Event: Admitted, ID: id})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Printf("%d %s\n", seq, id) // one write each
			}
		}()
	}
	select {}
}

func TestKill9LosesNothingThatWasAcknowledged(t *testing.T) {
	dir := newDir(t)
	told := map[uint64]string{}
	for range 4 {
		cmd := child(t, "append", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for s := bufio.NewScanner(out); s.Scan(); n++ {
			if n == 400 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			var seq uint64
			var id string
			if _, err := fmt.Sscanf(s.Text(), "%d %s", &seq, &id); err == nil {
				told[seq] = id
			}
		}
		if err := cmd.Wait(); err == nil || n <= 400 {
			t.Fatalf("the child ended by itself after %d lines: %v", n, err)
		}
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed && r.Outcome != chain.Unsigned {
			t.Fatalf("after kill -9: %v", r)
		}
	}
	l := mustOpen(t, dir, Options{})
	mustClose(t, l)
	there := map[uint64]string{}
	for _, r := range readAll(t, dir) {
		there[r.Seq] = r.ID
	}
	for seq, id := range told {
		if there[seq] != id {
			t.Fatalf("line %d was acknowledged as %s and is %q", seq, id, there[seq])
		}
	}
	if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.Holds < uint64(len(told)) {
		t.Errorf("%v", r)
	}
}

func TestATornLineIsCutAndSaid(t *testing.T) {
	for what, tail := range map[string]string{
		"half a line":                 `{"seq":41,"prev":"abc`,
		"zeros":                       strings.Repeat("\x00", 4096),
		"garbage lines":               "garbage\nmore\n",
		"a line that follows nothing": `{"seq":41,"prev":"` + strings.Repeat("0", 64) + `","time":"2026-11-23T06:27:00.000000000Z","event":"ended"}` + "\n",
	} {
		t.Run(what, func(t *testing.T) {
			dir, _ := goodLog(t)
			name := segmentFiles(t, dir)[3]
			f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(tail); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			l := mustOpen(t, dir, Options{})
			if seq := mustAppend(t, l, Record{Event: Started}); seq != 42 {
				t.Errorf("the next line is %d, want 42", seq)
			}
			mustClose(t, l)
			all := readAll(t, dir)
			if r := all[40]; r.Event != Recovered || r.Bytes != int64(len(tail)) {
				t.Errorf("line 41 is %+v", r)
			}
			if kept, err := os.ReadFile(name + ".41.cut"); err != nil || string(kept) != tail {
				t.Errorf("what was cut: %q, %v", kept, err)
			}
			if r := mustVerify(t, dir, nil); short(r) != "signed 42" {
				t.Errorf("%v", r)
			}
		})
	}
}

// The process died after it had made a segment and before it wrote a line, or half a line.
func TestAnEmptyLastSegmentIsContinued(t *testing.T) {
	for _, tail := range []string{"", `{"seq":41,`} {
		dir, _ := goodLog(t)
		name := filepath.Join(dir, "000000000041-20261123T062700Z.jsonl")
		if err := os.WriteFile(name, []byte(tail), 0o600); err != nil {
			t.Fatal(err)
		}
		l := mustOpen(t, dir, Options{})
		fill(t, l, 1)
		mustClose(t, l)
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.Holds < 42 {
			t.Errorf("%q: %v", tail, r)
		}
		if n := len(segmentFiles(t, dir)); n != 5 {
			t.Errorf("%q: %d segments, want 5", tail, n)
		}
	}
}

func TestATornCheckpointIsCut(t *testing.T) {
	dir, _ := goodLog(t)
	for _, name := range []string{chain.OpenName, chain.SealedName} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("vallum-audit\n40\nhalf"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if r := mustVerify(t, dir, nil); short(r) != "signed 40" {
		t.Errorf("before: %v", r)
	}
	l := mustOpen(t, dir, Options{})
	for _, name := range []string{chain.OpenName, chain.SealedName} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || strings.Contains(string(b), "half") {
			t.Errorf("%s still has the torn checkpoint: %v", name, err)
		}
	}
	fill(t, l, 1)
	mustClose(t, l)
	if r := mustVerify(t, dir, nil); short(r) != "signed 42" {
		t.Errorf("after: %v", r)
	}
}

func TestTwoWritersOfOneLog(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, dir, Options{})
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
	fill(t, l, 1)
	mustClose(t, l)
	mustClose(t, mustOpen(t, dir, Options{}))
}

func TestADirectoryThatOthersCanGetAt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("NOT RUN: permissions are not in the mode on Windows")
	}
	for _, mode := range []os.FileMode{0o750, 0o701, 0o722, 0o777} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "run: chmod 0700 "+dir) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	dir := newDir(t)
	mustClose(t, mustOpen(t, dir, Options{}))
	key := filepath.Join(dir, keyName)
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "chmod 0600 "+key) {
		t.Errorf("a key that others can read: %v", err)
	}
}

func TestADirectoryThatCannotBeWritten(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{plain, filepath.Join(plain, "audit")} {
		if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), plain) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if os.Getuid() == 0 {
		t.Log("NOT RUN: the superuser can write a directory of mode 0500")
		return
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v", err)
	}
}

func TestALogOfANewerVersion(t *testing.T) {
	dir := newDir(t)
	mustClose(t, mustOpen(t, dir, Options{}))
	key := publicKey(t, dir)
	for content, newer := range map[string]bool{"2\n": true, "100": true, "x": false, "0": false, "": false} {
		if err := os.WriteFile(filepath.Join(dir, chain.FormatName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil || errors.Is(err, ErrNewerFormat) != newer {
			t.Errorf("format %q: Open: %v", content, err)
		}
		if _, err := Verify(dir, key, nil); err == nil || errors.Is(err, ErrNewerFormat) != newer {
			t.Errorf("format %q: Verify: %v", content, err)
		}
		for _, err := range Read(dir, time.Time{}, nil) {
			if err == nil {
				t.Errorf("format %q was read", content)
			}
		}
	}
}

// Keys and origins belong to one log for its whole life.
func TestTheKeyOfALog(t *testing.T) {
	dir := newDir(t)
	keyFile := filepath.Join(t.TempDir(), "elsewhere.key")
	l := mustOpen(t, dir, Options{Origin: "gate-7", KeyFile: keyFile})
	if key := publicKey(t, dir); !strings.HasPrefix(key, "gate-7+") || key != l.VerifierKey() {
		t.Errorf("log.pub is %q, VerifierKey %q", key, l.VerifierKey())
	}
	fill(t, l, 1)
	mustClose(t, l)
	if _, err := os.Stat(filepath.Join(dir, keyName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("log.key was made beside the log: %v", err)
	}
	if _, err := Open(dir, Options{Origin: "gate-8", KeyFile: keyFile}); err == nil || !strings.Contains(err.Error(), `"gate-7"`) {
		t.Errorf("another origin: %v", err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "put the key back") {
		t.Errorf("a log without its key: %v", err)
	}
	other := newDir(t)
	mustClose(t, mustOpen(t, other, Options{Origin: "gate-7"}))
	if _, err := Open(dir, Options{KeyFile: filepath.Join(other, keyName)}); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Errorf("another key: %v", err)
	}
	mustClose(t, mustOpen(t, dir, Options{KeyFile: keyFile})) // the origin is the key's
	for _, origin := range []string{"two words", "a+b"} {
		if _, err := Open(newDir(t), Options{Origin: origin}); err == nil {
			t.Errorf("origin %q was taken", origin)
		}
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for _, o := range []Options{{Sync: "sometimes"}, {Retain: -1}, {MaxSegmentBytes: -1}, {SyncInterval: -1}} {
		if _, err := Open(newDir(t), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
