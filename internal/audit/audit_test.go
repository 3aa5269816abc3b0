package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if f, ok := children[os.Getenv("VALLUM_AUDIT_CHILD")]; ok {
		f(os.Getenv("VALLUM_AUDIT_DIR"))
		return
	}
	goleak.VerifyTestMain(m)
}

// newDir is a place for a log that nobody has made yet.
func newDir(t testing.TB) string { return filepath.Join(t.TempDir(), "audit") }

func mustOpen(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 1 << 16
	}
	if o.Problem == nil {
		o.Problem = func(err error) { t.Errorf("problem: %v", err) }
	}
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustAppend(t testing.TB, l *Log, r Record) uint64 {
	t.Helper()
	seq, err := l.Append(r)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// fill appends n requests, two lines each.
func fill(t testing.TB, l *Log, n int) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("req-%d", i)
		mustAppend(t, l, Record{Event: Admitted, ID: id, Operation: "chat.create", Model: "llama"})
		mustAppend(t, l, Record{Event: Ended, ID: id, Status: 200, Ended: EndedComplete, PromptTokens: 7, Usage: UsageCounted})
	}
}

func publicKey(t testing.TB, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, chain.PublicName))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func mustVerify(t testing.TB, dir string, held []byte) Report {
	t.Helper()
	r, err := Verify(dir, publicKey(t, dir), held)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	list, err := chain.Segments(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range list {
		names = append(names, filepath.Join(dir, s.Name))
	}
	return names
}

func readAll(t testing.TB, dir string) []Record {
	t.Helper()
	var all []Record
	for r, err := range Read(dir, time.Time{}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func TestLinesChainAcrossSegmentsAndRestarts(t *testing.T) {
	dir := newDir(t)
	for range 3 {
		l := mustOpen(t, dir, Options{MaxSegmentBytes: 1000})
		fill(t, l, 10)
		mustClose(t, l)
	}
	if n := len(segmentFiles(t, dir)); n < 5 {
		t.Errorf("%d segments; they should have been sealed at 1000 bytes", n)
	}
	if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed || r.Holds != 60 || r.Signed != 60 || r.First != 1 || !r.OK() {
		t.Errorf("%v: %+v", r, r)
	}
	for i, r := range readAll(t, dir) {
		if r.Seq != uint64(i+1) {
			t.Fatalf("line %d has seq %d", i+1, r.Seq)
		}
	}
}

func TestConcurrentAppendsGetTheNumberOfTheirOwnLine(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, dir, Options{MaxSegmentBytes: 100_000})
	var wg sync.WaitGroup
	got := make([]sync.Map, 1)
	for g := range 50 {
		wg.Go(func() {
			for i := range 40 {
				id := fmt.Sprintf("%d-%d", g, i)
				seq, err := l.Append(Record{Event: Admitted, ID: id})
				if err != nil {
					t.Error(err)
				}
				got[0].Store(seq, id)
			}
		})
	}
	wg.Wait()
	mustClose(t, l)
	all := readAll(t, dir)
	if len(all) != 2000 {
		t.Fatalf("%d lines, want 2000", len(all))
	}
	for _, r := range all {
		if id, _ := got[0].Load(r.Seq); id != r.ID {
			t.Fatalf("line %d is %q, its writer was told %v", r.Seq, r.ID, id)
		}
	}
	if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed {
		t.Error(r)
	}
}

// The line is in the file, whole, when Append returns: another reader sees it at once.
func TestAppendReturnsAfterTheWrite(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, dir, Options{})
	defer mustClose(t, l)
	for i := range 20 {
		mustAppend(t, l, Record{Event: Admitted, ID: fmt.Sprint("now-", i)})
		if found, err := Find(dir, fmt.Sprint("now-", i)); err != nil || len(found) != 1 {
			t.Fatalf("after Append: %v, %v", found, err)
		}
	}
}

func TestAppendRefusesAnUnknownEventAndAfterClose(t *testing.T) {
	l := mustOpen(t, newDir(t), Options{})
	if _, err := l.Append(Record{}); err == nil {
		t.Error("the zero Record was written")
	}
	if _, err := l.Append(Record{Event: "admited"}); err == nil {
		t.Error("an unknown event was written")
	}
	mustClose(t, l)
	if _, err := l.Append(Record{Event: Admitted}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := l.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// filled sets every field of a Record to something that is not zero.
func filled(t *testing.T) Record {
	var r Record
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		switch f.Interface().(type) {
		case string:
			f.SetString(v.Type().Field(i).Name + ` "q" \ é`)
		case int, int64:
			f.SetInt(int64(i + 1))
		case uint64:
			f.SetUint(uint64(i + 1))
		case float64:
			f.SetFloat(float64(i) + 0.125)
		case []string:
			f.Set(reflect.ValueOf([]string{"/a", "/b\nc"}))
		case time.Time:
			f.Set(reflect.ValueOf(time.Date(2026, 11, 23, 1, 2, 3, 120, time.UTC)))
		case Event:
			f.SetString(string(Ended))
		default:
			t.Fatalf("field %s has a type this test does not know", v.Type().Field(i).Name)
		}
	}
	return r
}

// The encoder is written by hand for speed; it must say what encoding/json says, in the same order.
func TestEncodingEqualsTheType(t *testing.T) {
	r := filled(t)
	r.Seq, r.Prev = 0, ""
	body, err := appendBody(nil, &r)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := "{" + string(body); got != strings.Replace(string(want), "03.00000012Z", "03.000000120Z", 1) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	back, err := decode(chain.AppendLine(nil, 9, chain.Hash{}, body))
	if err != nil {
		t.Fatal(err)
	}
	r.Seq, r.Prev = 9, chain.Hash{}.String()
	if !reflect.DeepEqual(back, r) {
		t.Errorf("got  %+v\nwant %+v", back, r)
	}
}

// docs/audit.md is the promise to whoever writes a reader: every field and event is on it.
func TestEveryFieldAndEventIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	typ := reflect.TypeFor[Record]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("field %s is not in docs/audit.md", name)
		}
	}
	for _, e := range []Event{Admitted, Ended, Refused, Counted, Recovered, Pruned, Started, Stopped, Reloaded, KeyChanged} {
		if !strings.Contains(string(page), "`"+string(e)+"`") {
			t.Errorf("event %s is not in docs/audit.md", e)
		}
	}
}

// A caller chooses the model, its request id and names of fields. None of it may end a line, forge a field, or bring
// a text of any length into the log.
func TestWhatACallerChoosesStaysInItsBounds(t *testing.T) {
	const canary = "canary-of-a-prompt"
	long := strings.Repeat("é", 500) + canary
	many := make([]string, 1000)
	for i := range many {
		many[i] = "/\n" + long
	}
	dir := newDir(t)
	l := mustOpen(t, dir, Options{})
	mustAppend(t, l, Record{
		Event: Admitted, ID: "x", ClientRequestID: "\"}\n{\"seq\":1" + long, Model: "m\x00\xff" + long, Remote: long,
		Operation: long, Reason: long, Dropped: many, Edits: many, Detail: long, KeyID: long, Principal: long,
	})
	mustAppend(t, l, Record{Event: Ended, ID: "x"})
	mustClose(t, l)
	b, err := os.ReadFile(segmentFiles(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(rows) != 2 || len(rows[0]) > chain.MaxLineBytes || !json.Valid([]byte(rows[0])) {
		t.Errorf("%d lines, the first of %d bytes", len(rows), len(rows[0]))
	}
	if strings.Contains(string(b), canary) {
		t.Error("the end of an overlong text is in the log")
	}
	r := readAll(t, dir)[0]
	if len(r.ClientRequestID) > 128 || len(r.Dropped) != 33 || r.Dropped[32] != "… and 968 more" || !strings.HasSuffix(r.Remote, "…") {
		t.Errorf("%+v", r)
	}
	if r := mustVerify(t, dir, nil); r.Outcome != chain.Signed {
		t.Error(r)
	}
}

// The longest record there can be fits a line, or Verify would call it broken.
func TestTheLongestRecordFits(t *testing.T) {
	r := filled(t)
	v := reflect.ValueOf(&r).Elem()
	worst := strings.Repeat("\x01", 10_000) // six bytes each in JSON
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			if f.Type() == reflect.TypeFor[string]() {
				f.SetString(worst)
			}
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string(slicesOf(worst, 100))))
		}
	}
	body, err := appendBody(nil, &r)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(chain.AppendLine(nil, 1<<59, chain.Hash{}, body)); n > chain.MaxLineBytes {
		t.Errorf("%d bytes, more than chain.MaxLineBytes", n)
	}
}

func slicesOf(s string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = s
	}
	return list
}

// No key material, neither the log's own nor that of its neighbours, is in anything but the key file.
func TestTheSigningKeyIsOnlyInItsFile(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, dir, Options{MaxSegmentBytes: 500})
	fill(t, l, 5)
	mustClose(t, l)
	skey, err := os.ReadFile(filepath.Join(dir, keyName))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(strings.TrimSpace(string(skey)), "+", 5) // base64 may have a "+" too
	secret := parts[len(parts)-1]
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o, want 600", e.Name(), info.Mode().Perm())
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if e.Name() != keyName && strings.Contains(string(b), secret) {
			t.Errorf("%s holds the signing key", e.Name())
		}
	}
	if err := os.WriteFile(filepath.Join(dir, keyName), []byte("PRIVATE+KEY+x+00000000+"+secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a damaged key: %v", err)
	}
}

// memorySink holds what somebody else would hold.
type memorySink struct {
	mu    sync.Mutex
	notes []byte
	n     int
}

func (s *memorySink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(append(s.notes, b...), '\n')
	s.n++
	return len(b), nil
}

// pass lets time go by inside a synctest bubble.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestACheckpointForEverySecondWithTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sink memorySink
		dir := newDir(t)
		l := mustOpen(t, dir, Options{Sinks: []io.Writer{&sink}})
		for range 3 {
			fill(t, l, 1)
			pass(1400 * time.Millisecond) // never at the instant of a tick, which may sign half of the lines
		}
		pass(time.Minute) // nothing happens, nothing is signed
		if s := l.Stats(); s.Lines != 6 || s.Signed != 6 || s.NotAdmitted != nil {
			t.Errorf("%+v", s)
		}
		notes, _, err := chain.ReadNotes(os.DirFS(dir), chain.OpenName)
		if err != nil || len(notes) != 3 {
			t.Errorf("%d checkpoints, %v; want 3", len(notes), err)
		}
		fill(t, l, 1)
		mustClose(t, l) // and one at a clean stop
		if sink.n != 4 {
			t.Errorf("the sink got %d checkpoints, want 4", sink.n)
		}
		if r := mustVerify(t, dir, sink.notes); r.Outcome != chain.Signed || r.Signed != 8 {
			t.Error(r)
		}
	})
}

// What a crash left unsigned is under a checkpoint before anybody adds to it, and not a second later.
func TestWhatWasLeftUnsignedIsSignedAtTheOpening(t *testing.T) {
	dir, _ := goodLog(t)
	files := segmentFiles(t, dir)
	f, err := os.OpenFile(files[len(files)-1], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(`{"seq":`)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, dir, Options{})
	if s := l.Stats(); s.Lines == 0 || s.Signed != s.Lines {
		t.Errorf("%d of %d lines are signed", s.Signed, s.Lines)
	}
	mustClose(t, l)
}

// The housekeeper looks at the log and signs later; a rotation in between has signed more.
func TestAStaleCheckpointIsPassedOver(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, dir, Options{})
	fill(t, l, 1)
	l.w.Lock()
	l.rotate()
	l.w.Unlock()
	if err := l.notary.sign(1, chain.Hash{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if r := mustVerify(t, dir, nil); short(r) != "signed 2" {
		t.Errorf("%v", r)
	}
}

func TestASinkThatHangsStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		var hangs hangingSink = make(chan struct{})
		l := mustOpen(t, dir, Options{Sinks: []io.Writer{hangs}})
		for range 2 * sinkQueue {
			fill(t, l, 1)
			pass(time.Second)
		}
		if s := l.Stats(); s.Signed < s.Lines-2 {
			t.Errorf("signing stopped: %+v", s)
		}
		if err := l.Close(); err == nil || !strings.Contains(err.Error(), "sink") {
			t.Errorf("Close: %v", err)
		}
		close(hangs)
		<-l.sunk
	})
}

type hangingSink chan struct{}

func (s hangingSink) Write(b []byte) (int, error) { <-s; return len(b), nil }
