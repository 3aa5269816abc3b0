package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/vallum/vallum/internal/audit/chain"
)

// short is the answer in the words of testdata/verify.py.
func short(r Report) string {
	switch r.Outcome {
	case chain.Broken:
		return fmt.Sprintf("broken %d", r.BrokenAt)
	case chain.Shorter:
		return fmt.Sprintf("shorter %d %d", r.Holds, r.Claimed)
	case chain.Unsigned:
		return fmt.Sprintf("unsigned %d %d", r.Holds, r.Tail())
	case chain.Signed:
		return fmt.Sprintf("signed %d", r.Holds)
	}
	return string(r.Outcome)
}

// python is the independent verifier's answer; empty when there is no Python, which is only right outside of CI.
func python(t *testing.T, dir, key string, held ...string) string {
	t.Helper()
	exe, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("NOT RUN: the independent verifier needs python3, and CI must have it")
		}
		t.Log("NOT RUN: the independent verifier needs python3")
		return ""
	}
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(exe, append([]string{"testdata/verify.py", dir, keyFile}, held...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("verify.py: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// goodLog makes a log of 40 lines in four segments of ten; lines 1 to 30 are under the checkpoints of sealed
// segments, 34 and 40 under those of two clean stops.
func goodLog(t *testing.T) (dir string, held []byte) {
	t.Helper()
	dir = newDir(t)
	var sink memorySink
	synctest.Test(t, func(t *testing.T) { // so that the housekeeper signs nothing in between
		for _, n := range []int{17, 3} {
			l := mustOpen(t, dir, Options{Sinks: []io.Writer{&sink}})
			synctest.Wait()
			for range n {
				fill(t, l, 1)
				if s := l.Stats().Lines; s%10 == 0 && s < 40 {
					l.w.Lock()
					l.rotate()
					l.w.Unlock()
				}
			}
			mustClose(t, l)
		}
	})
	if n := len(segmentFiles(t, dir)); n != 4 {
		t.Fatalf("%d segments, want 4", n)
	}
	return dir, sink.notes
}

// rows of a segment, edited and written back.
func edit(t *testing.T, dir string, segment int, change func(rows []string) []string) {
	t.Helper()
	name := segmentFiles(t, dir)[segment]
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	rows := change(strings.SplitAfter(strings.TrimSuffix(string(b), "\n"), "\n"))
	if err := os.WriteFile(name, []byte(strings.TrimSuffix(strings.Join(rows, ""), "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rechain computes all hashes anew from row i on, as an attacker without the key would.
func rechain(t *testing.T, rows []string, i int) []string {
	t.Helper()
	for ; i+1 < len(rows); i++ {
		k, ok := chain.ParseLink([]byte(strings.TrimSuffix(rows[i+1], "\n")))
		if !ok {
			t.Fatal("not a line")
		}
		rows[i+1] = strings.Replace(rows[i+1], k.Prev.String(), chain.HashOf([]byte(strings.TrimSuffix(rows[i], "\n"))).String(), 1)
	}
	return rows
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func change(t *testing.T, name, from, to string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(from)) {
		t.Fatalf("%s has no %q", name, from)
	}
	if err := os.WriteFile(name, bytes.Replace(b, []byte(from), []byte(to), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTamperingShows(t *testing.T) {
	tests := []struct {
		what, want string
		tamper     func(t *testing.T, dir string)
	}{
		{"nothing", "signed 40", func(*testing.T, string) {}},
		{"one byte of a line", "broken 13", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { r[2] = strings.Replace(r[2], "llama", "llamb", 1); return r })
		}},
		{"the time of a line", "broken 12", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { r[1] = strings.Replace(r[1], "2000", "2001", 1); return r })
		}},
		{"what a line says of the one before", "broken 12", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string {
				r[2] = strings.Replace(r[2], `"prev":"`, `"prev":"0`, 1)
				return flipHash(r, 2)
			})
		}},
		{"the first line of a segment, which follows a signed one", "broken 11", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { return flipHash(r, 0) })
		}},
		{"the hash in line 1", "broken 1", func(t *testing.T, dir string) {
			edit(t, dir, 0, func(r []string) []string { return flipHash(r, 0) })
		}},
		{"the number of a line", "broken 14", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { r[3] = strings.Replace(r[3], `"seq":14`, `"seq":19`, 1); return r })
		}},
		{"a line taken out", "broken 15", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { return append(r[:4], r[5:]...) })
		}},
		{"two lines swapped", "broken 16", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { r[5], r[6] = r[6], r[5]; return r })
		}},
		{"a line put in twice", "broken 17", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { return append(r[:7], append([]string{r[6]}, r[7:]...)...) })
		}},
		{"a line put in that fits", "broken 18", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string {
				forged := strings.Replace(r[7], "llama", "other", 1)
				forged = strings.Replace(forged, "req-", "xxx-", 1)
				return append(r[:7], append([]string{forged}, r[7:]...)...)
			})
		}},
		{"a line changed and the chain computed anew", "broken 11", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string {
				r[4] = strings.Replace(r[4], "req-", "qer-", 1)
				return rechain(t, r, 4)
			})
		}},
		{"the last line changed", "broken 35", func(t *testing.T, dir string) {
			edit(t, dir, 3, func(r []string) []string { r[9] = strings.Replace(r[9], "200", "403", 1); return r })
		}},
		{"the tail cut", "shorter 38 40", func(t *testing.T, dir string) {
			edit(t, dir, 3, func(r []string) []string { return r[:8] })
		}},
		{"the tail cut inside a line", "shorter 39 40", func(t *testing.T, dir string) {
			name := segmentFiles(t, dir)[3]
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(name, info.Size()-5); err != nil {
				t.Fatal(err)
			}
		}},
		{"an inner segment ends inside a line", "broken 20", func(t *testing.T, dir string) {
			name := segmentFiles(t, dir)[1]
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(name, info.Size()-1); err != nil {
				t.Fatal(err)
			}
		}},
		{"the last segment taken away", "shorter 30 40", func(t *testing.T, dir string) {
			if err := os.Remove(segmentFiles(t, dir)[3]); err != nil {
				t.Fatal(err)
			}
		}},
		{"an inner segment taken away", "broken 11", func(t *testing.T, dir string) {
			if err := os.Remove(segmentFiles(t, dir)[1]); err != nil {
				t.Fatal(err)
			}
		}},
		{"the first segment taken away, without retention", "broken 1", func(t *testing.T, dir string) {
			if err := os.Remove(segmentFiles(t, dir)[0]); err != nil {
				t.Fatal(err)
			}
		}},
		{"all segments taken away", "shorter 0 40", func(t *testing.T, dir string) {
			for _, name := range segmentFiles(t, dir) {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"a segment renamed to come later", "broken 11", func(t *testing.T, dir string) {
			name := segmentFiles(t, dir)[1]
			if err := os.Rename(name, strings.Replace(name, "000000000011", "000000000099", 1)); err != nil {
				t.Fatal(err)
			}
		}},
		{"an empty line", "broken 13", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { r[1] += "\n"; return r })
		}},
		{"a line without its brace", "broken 13", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { r[2] = strings.Replace(r[2], "}\n", "\n", 1); return r })
		}},
		{"a line that is too long", "broken 13", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string {
				r[2] = strings.Replace(r[2], "}\n", strings.Repeat("}", chain.MaxLineBytes)+"}\n", 1)
				return r
			})
		}},
		{"a carriage return", "broken 13", func(t *testing.T, dir string) {
			edit(t, dir, 1, func(r []string) []string { r[2] = strings.Replace(r[2], "\n", "\r\n", 1); return r })
		}},
		{"the size in a checkpoint", "broken 0", func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, chain.SealedName), "\n20\n", "\n21\n")
		}},
		{"a signature", "broken 0", func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, chain.OpenName), "— vallum-audit ", "— vallum-audit A")
		}},
		{"the later checkpoints taken away", "unsigned 40 10", func(t *testing.T, dir string) { remove(t, dir, chain.OpenName) }},
		{"all checkpoints taken away", "unsigned 40 40", func(t *testing.T, dir string) {
			remove(t, dir, chain.OpenName)
			remove(t, dir, chain.SealedName)
		}},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			dir, _ := goodLog(t)
			key := publicKey(t, dir)
			test.tamper(t, dir)
			r, err := Verify(dir, key, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := short(r); got != test.want {
				t.Errorf("Verify: %s, want %s\n%v\n%+v", got, test.want, r, r)
			}
			if got := python(t, dir, key); got != "" && got != test.want {
				t.Errorf("verify.py: %s, want %s", got, test.want)
			}
			if bad := !strings.HasPrefix(test.want, "signed") && test.want != "unsigned 40 10"; r.OK() == bad {
				t.Errorf("OK() is %v for %v", r.OK(), r)
			}
			if r.Outcome == chain.Broken && (r.File == "" || r.Line == 0 || r.Meaning == "") {
				t.Errorf("broken, but where and why is not said: %+v", r)
			}
		})
	}
}

// flipHash changes one digit of the hash that row i states.
func flipHash(rows []string, i int) []string {
	const at = `"prev":"`
	n := strings.Index(rows[i], at) + len(at)
	digit := "1"
	if rows[i][n] == '1' {
		digit = "2"
	}
	k := rows[i][n+1:]
	if strings.Index(k, `"`) == 64 { // one was put in by the caller
		k = k[1:]
	}
	rows[i] = rows[i][:n] + digit + k
	return rows
}

// What somebody else holds shows even what the directory itself no longer can.
func TestAHeldCheckpointShowsACutTail(t *testing.T) {
	dir, held := goodLog(t)
	key := publicKey(t, dir)
	heldFile := filepath.Join(t.TempDir(), "held")
	if err := os.WriteFile(heldFile, held, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(segmentFiles(t, dir)[3]); err != nil {
		t.Fatal(err)
	}
	remove(t, dir, chain.OpenName)
	if r := mustVerify(t, dir, nil); short(r) != "signed 30" {
		t.Errorf("without: %v", r)
	}
	r := mustVerify(t, dir, held)
	if short(r) != "shorter 30 40" {
		t.Errorf("with: %v", r)
	}
	if got := python(t, dir, key, heldFile); got != "" && got != short(r) {
		t.Errorf("verify.py: %s, want %s", got, short(r))
	}
	notes, _ := chain.SplitNotes(held)
	if r := mustVerify(t, dir, notes[len(notes)-1].Msg); short(r) != "shorter 30 40" {
		t.Errorf("one note, as a sink gets it: %v", r)
	}
	for _, junk := range []string{"junk", "a\n\nb\n\n", "vallum-audit\n40\nAAAA\n\n— vallum-audit AAAA\n"} {
		if _, err := Verify(dir, key, []byte(junk)); err == nil {
			t.Errorf("held %q: no error", junk)
		}
	}
}

// Another key's log does not verify, and a key that is none is an error, not an answer.
func TestVerifyWithTheWrongKey(t *testing.T) {
	dir, _ := goodLog(t)
	other, _ := goodLog(t)
	if r, err := Verify(dir, publicKey(t, other), nil); err != nil || short(r) != "broken 0" {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := Verify(dir, "vallum-audit+00000000+AAAA", nil); err == nil {
		t.Error("a key that is none was taken")
	}
}

func TestVerifyOfNothing(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, dir, Options{})
	mustClose(t, l)
	r := mustVerify(t, dir, nil)
	if short(r) != "empty" || r.OK() {
		t.Errorf("%v", r)
	}
	if got := python(t, dir, publicKey(t, dir)); got != "" && got != "empty" {
		t.Errorf("verify.py: %s", got)
	}
	if _, err := Verify(filepath.Join(dir, "nowhere"), publicKey(t, dir), nil); err == nil {
		t.Error("a directory that is not there was verified")
	}
}

// Verify beside a running log finds nothing wrong with it.
func TestVerifyWhileWriting(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, dir, Options{MaxSegmentBytes: 2000})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := l.Append(Record{Event: Admitted}); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for range 30 {
		if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed && r.Outcome != chain.Unsigned && r.Outcome != chain.Empty {
			t.Fatalf("%v", r)
		}
	}
	close(stop)
	<-done
	mustClose(t, l)
}

// A log whose signed part has changed is not continued: the new lines would look like the tampering.
func TestOpenRefusesALogThatIsNotWhatWasSigned(t *testing.T) {
	for what, tamper := range map[string]func(t *testing.T, dir string){
		"tail cut": func(t *testing.T, dir string) { edit(t, dir, 3, func(r []string) []string { return r[:8] }) },
		"last changed": func(t *testing.T, dir string) {
			edit(t, dir, 3, func(r []string) []string { r[9] = strings.Replace(r[9], "200", "403", 1); return r })
		},
		"all gone": func(t *testing.T, dir string) {
			for _, name := range segmentFiles(t, dir) {
				remove(t, dir, filepath.Base(name))
			}
		},
		"checkpoint changed": func(t *testing.T, dir string) { change(t, filepath.Join(dir, chain.OpenName), "\n40\n", "\n39\n") },
	} {
		t.Run(what, func(t *testing.T) {
			dir, _ := goodLog(t)
			tamper(t, dir)
			if _, err := Open(dir, Options{}); !errors.Is(err, ErrTampered) {
				t.Errorf("Open: %v, want ErrTampered", err)
			}
		})
	}
}
