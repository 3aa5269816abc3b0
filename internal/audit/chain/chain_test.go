package chain

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// testKey is the same in every process, so that fuzzing workers share their inputs.
func testKey(t testing.TB) (signer note.Signer, vkey string) {
	t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	vkey, err := note.NewEd25519VerifierKey("test", ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	keyHash := strings.Split(vkey, "+")[1]
	signer, err = note.NewSigner("PRIVATE+KEY+test+" + keyHash + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, seed...)))
	if err != nil {
		t.Fatal(err)
	}
	return signer, vkey
}

// build is a log of two segments with three lines each and a checkpoint at 3 and 6, made by hand.
func build(t testing.TB) (fsys fstest.MapFS, key string) {
	t.Helper()
	signer, vkey := testKey(t)
	fsys = fstest.MapFS{FormatName: {Data: []byte("1\n")}}
	var head Hash
	var segment, notes []byte
	for seq := uint64(1); seq <= 6; seq++ {
		line := AppendLine(nil, seq, head, []byte(`"time":"2026-11-23T06:27:00.000000000Z","event":"started"}`))
		head = HashOf(line)
		segment = append(append(segment, line...), '\n')
		if seq%3 == 0 {
			fsys[NameSegment(seq-2, time.Unix(1e9, 0))] = &fstest.MapFile{Data: segment}
			segment = nil
			c := Checkpoint{Origin: "test", Size: seq, Time: time.Unix(1e9, 0), Head: head}
			msg, err := note.Sign(&note.Note{Text: c.Text()}, signer)
			if err != nil {
				t.Fatal(err)
			}
			notes = append(append(notes, msg...), '\n')
		}
	}
	fsys[SealedName] = &fstest.MapFile{Data: notes}
	return fsys, vkey
}

const (
	firstSegment  = "000000000001-20010909T014640Z.jsonl"
	secondSegment = "000000000004-20010909T014640Z.jsonl"
)

func TestAHandmadeLogVerifies(t *testing.T) {
	fsys, key := build(t)
	r, err := Verify(fsys, key, nil)
	if err != nil || r.Outcome != Signed || r.Holds != 6 || !r.OK() {
		t.Errorf("%v, %v", r, err)
	}
	if want := "holds to line 6, signed at 2001-09-09T01:46:40Z"; r.String() != want {
		t.Errorf("%q, want %q", r, want)
	}
	if (Report{}).OK() || !strings.HasPrefix(Report{}.String(), "not verified") {
		t.Error("the zero Report says that all is well")
	}
}

// The sentence says where to look and what it means.
func TestTheAnswerForAPerson(t *testing.T) {
	for want, tamper := range map[string]func(fstest.MapFS){
		"broken at line 4: " + secondSegment + ":1: line 4 was changed: it does not follow line 3, which is signed": func(m fstest.MapFS) {
			b := m[secondSegment].Data
			b[20]++ // a digit of the hash
		},
		"broken at line 2: " + firstSegment + ":3: line 2 or what line 3 says about it was changed after it was written": func(m fstest.MapFS) {
			s := string(m[firstSegment].Data)
			i := strings.Index(s, "\n") + 1
			m[firstSegment].Data = []byte(s[:i] + strings.Replace(s[i:], "started", "stopped", 1))
		},
		"shorter than a checkpoint: 3 lines, but 6 were signed: the last 3 lines that were signed at 2001-09-09T01:46:40Z are not here: the tail was cut": func(m fstest.MapFS) {
			delete(m, secondSegment)
		},
		"broken at line 1: " + secondSegment + ":1: lines 1 to 3 are missing, and no line says that retention deleted them": func(m fstest.MapFS) {
			delete(m, firstSegment)
		},
		"holds to line 6; tail of 6 lines not yet signed": func(m fstest.MapFS) { delete(m, SealedName) },
	} {
		fsys, key := build(t)
		tamper(fsys)
		r, err := Verify(fsys, key, nil)
		if err != nil || r.String() != want {
			t.Errorf("got  %v, %v\nwant %s", r, err, want)
		}
	}
}

// The first line that retention left must follow the checkpoint at the end of what was deleted.
func TestTheEdgeOfWhatWasDeleted(t *testing.T) {
	for prev, want := range map[bool]string{true: "holds to line 4; tail of 1 lines", false: "broken at line 4"} {
		fsys, key := build(t)
		var last Hash
		for line, err := range Lines(fsys, firstSegment) {
			if err != nil {
				t.Fatal(err)
			}
			last = HashOf(line.Bytes)
		}
		if !prev {
			last[0]++
		}
		line := AppendLine(nil, 4, last, []byte(`"time":"2026-11-23T06:27:00.000000000Z","event":"pruned","pruned_through":3}`))
		delete(fsys, firstSegment)
		fsys[secondSegment] = &fstest.MapFile{Data: append(line, '\n')}
		notes, _ := SplitNotes(fsys[SealedName].Data)
		fsys[SealedName].Data = append(notes[0].Msg, '\n')
		r, err := Verify(fsys, key, nil)
		if err != nil || !strings.HasPrefix(r.String(), want) {
			t.Errorf("%v, %v; want %s", r, err, want)
		}
	}
}

func TestParseLink(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	rest := `","time":"2026-11-23T06:27:00.000000000Z","event":"ended"}`
	good := `{"seq":7,"prev":"` + zeros + rest
	if k, ok := ParseLink([]byte(good)); !ok || k.Seq != 7 || k.Prev != (Hash{}) {
		t.Errorf("%+v, %v", k, ok)
	}
	for _, bad := range []string{
		"", "{", "}", `{"seq":`, `{"seq":}`, good[:len(good)-1], " " + good, good + " ",
		strings.Replace(good, "7", "", 1),
		strings.Replace(good, "7", "0", 1),
		strings.Replace(good, "7", "07", 1),
		strings.Replace(good, "7", "-7", 1),
		strings.Replace(good, "7", "7.0", 1),
		strings.Replace(good, "7", strings.Repeat("9", 19), 1),
		strings.Replace(good, zeros, zeros[1:], 1),
		strings.Replace(good, zeros, zeros+"0", 1),
		strings.Replace(good, zeros, zeros[1:]+"A", 1),
		strings.Replace(good, zeros, zeros[1:]+"g", 1),
		strings.Replace(good, `,"time"`, `,"event"`, 1),
		`{"prev":"` + zeros + `","seq":7,"time":""}`,
		`{"seq":7,"prev":"` + zeros + `"}`,
	} {
		if k, ok := ParseLink([]byte(bad)); ok {
			t.Errorf("%q was read as %+v", bad, k)
		}
	}
}

// Only the declaration at its place counts: a caller's text must not pass for one.
func TestPrunedThrough(t *testing.T) {
	line := func(rest string) []byte { return AppendLine(nil, 1, Hash{}, []byte(rest)) }
	const at = `"time":"2026-11-23T06:27:00.000000000Z",`
	for body, want := range map[string]uint64{
		at + `"event":"pruned","pruned_through":42,"detail":"x"}`:                        42,
		at + `"event":"pruned","pruned_through":42}`:                                     42,
		at + `"event":"admitted","model":"\",\"event\":\"pruned\",\"pruned_through\":"}`: 0,
		at + `"event":"admitted","event":"pruned","pruned_through":42}`:                  0,
		at + `"event":"pruned","pruned_through":}`:                                       0,
		`"time":"","event":"pruned","pruned_through":42}`:                                0,
		`"time":"}`: 0,
	} {
		k, ok := ParseLink(line(body))
		if n, _ := k.prunedThrough(); !ok || n != want {
			t.Errorf("%s: %d, %v; want %d", body, n, ok, want)
		}
	}
}

func TestSegmentsAreOrderedByNumber(t *testing.T) {
	fsys := fstest.MapFS{}
	for _, name := range []string{
		"1000000000000-20010909T014640Z.jsonl", "000000000002-20010909T014640Z.jsonl", "999999999999-20010909T014640Z.jsonl", "000000000003-20019909T014640Z.jsonl",
		"1-20010909T014640Z.jsonl", "000000000002-20010909T014640Z.jsonl.2.cut", "x", "000000000009-.jsonl",
	} {
		fsys[name] = &fstest.MapFile{}
	}
	fsys["000000000004-20010909T014640Z.jsonl/x"] = &fstest.MapFile{}
	list, err := Segments(fsys)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprint(s.First, " ", s.Opened.Unix()))
	}
	if want := "2 1000000000,3 -62135596800,999999999999 1000000000,1000000000000 1000000000"; strings.Join(got, ",") != want {
		t.Errorf("got %v\nwant %v", strings.Join(got, ","), want)
	}
}

// A checkpoint says exactly four lines, in one form.
func TestOpenCheckpointRefusesOtherNotes(t *testing.T) {
	signer, vkey := testKey(t)
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	good := Checkpoint{Origin: "test", Size: 5, Time: time.Unix(1e9, 5).UTC()}
	for text, ok := range map[string]bool{
		good.Text():            true,
		good.Text() + "more\n": false,
		strings.Replace(good.Text(), "test", "tset", 1):    false,
		strings.Replace(good.Text(), "\n5\n", "\n0\n", 1):  false,
		strings.Replace(good.Text(), "\n5\n", "\n-5\n", 1): false,
		strings.Replace(good.Text(), "AAAA", "", 1):        false,
		strings.Replace(good.Text(), "T", " ", 1):          false,
		"test\n": false,
	} {
		msg, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := OpenCheckpoint(msg, v)
		if (err == nil) != ok || ok && c != good {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}

func TestLinesOfAFileThatCannotBeRead(t *testing.T) {
	for _, err := range Lines(fstest.MapFS{}, "none") {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	}
}

// Whatever the bytes are, Verify answers, and says "holds" only of what it was given whole.
func FuzzVerify(f *testing.F) {
	fsys, key := build(f)
	good := [3]string{string(fsys[firstSegment].Data), string(fsys[secondSegment].Data), string(fsys[SealedName].Data)}
	f.Add([]byte(good[0]), []byte(good[1]), []byte(good[2]), []byte(""))
	f.Add([]byte(good[0]), []byte(good[1][:100]), []byte(good[2]), []byte(good[2]))
	f.Add([]byte(good[0]), []byte("{\"seq\":4,"), []byte("\n\n\n\n"), []byte("1"))
	f.Add([]byte(""), []byte(good[1]), []byte(good[2][:300]), []byte("\n\n"))
	f.Add([]byte(good[1]), []byte(good[0]), []byte(strings.Replace(good[2], "6", "7", 1)), []byte("2"))
	f.Fuzz(func(t *testing.T, first, second, notes, held []byte) {
		fsys := fstest.MapFS{
			firstSegment:  {Data: first},
			secondSegment: {Data: second},
			SealedName:    {Data: notes},
		}
		r, err := Verify(fsys, key, held)
		if err != nil {
			return
		}
		if r.Outcome == "" || r.String() == "" {
			t.Errorf("no answer: %+v", r)
		}
		// What is signed is what was written: nobody finds another log for these signatures.
		all := string(first) + string(second)
		if r.Signed >= 3 && !strings.HasPrefix(all, good[0]) || r.Signed >= 6 && !strings.HasPrefix(all, good[0]+good[1]) {
			t.Errorf("signed to %d, but these are not the lines: %+v", r.Signed, r)
		}
	})
}

// A line is JSON, for everybody who only wants to read.
func TestALineIsJSON(t *testing.T) {
	fsys, _ := build(t)
	for line, err := range Lines(fsys, firstSegment) {
		if err != nil || !json.Valid(line.Bytes) {
			t.Errorf("%s, %v", line.Bytes, err)
		}
	}
}

// beingRead is a directory into which a daemon writes while it is read.
type beingRead struct {
	fstest.MapFS
	meanwhile func() // called between the first half of a directory and the second
}

func (f beingRead) ReadDir(name string) ([]fs.DirEntry, error) {
	before, err := f.MapFS.ReadDir(name)
	if err != nil {
		return nil, err
	}
	f.meanwhile()
	after, err := f.MapFS.ReadDir(name)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	list := before
	for _, e := range before {
		seen[e.Name()] = true
	}
	for _, e := range after { // of two that are new, the older one is in the half that was read before
		if !seen[e.Name()] && strings.Contains(e.Name(), "0007-") {
			continue
		}
		if !seen[e.Name()] {
			list = append(list, e)
		}
	}
	return list, nil
}

// Broken is a word that wakes people up: it must not be said of a log that grows.
func TestADirectoryThatGrowsWhileItIsReadHasNoHole(t *testing.T) {
	files, _ := build(t)
	opened := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	grown := false
	list, err := Segments(beingRead{files, func() {
		if grown {
			files[NameSegment(13, opened)] = &fstest.MapFile{}
			return
		}
		grown = true
		files[NameSegment(7, opened)], files[NameSegment(10, opened)] = &fstest.MapFile{}, &fstest.MapFile{}
	}})
	var first []uint64
	for _, s := range list {
		first = append(first, s.First)
	}
	if err != nil || fmt.Sprint(first) != "[1 4 7 10]" {
		t.Errorf("segments that begin with %v, %v", first, err)
	}
}
