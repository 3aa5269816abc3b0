package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a vLLM server that answers GETs.
type fake struct {
	mu      sync.Mutex
	down    error
	slow    string // the path that is answered when nobody waits any more
	health  int
	models  string
	version string
	noKey   int // status of a request without the key
	asked   map[string]int
}

func (f *fake) Get(ctx context.Context, path string, withKey bool) (int, []byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.slow == path {
		<-ctx.Done()
		return 0, nil, fmt.Errorf("asking: %w", net.ErrClosed) // as forward ends what nobody waits for
	}
	if f.asked == nil {
		f.asked = map[string]int{}
	}
	f.asked[fmt.Sprint(path, withKey)]++
	if f.down != nil {
		return 0, nil, f.down
	}
	switch {
	case !withKey:
		return f.noKey, nil, nil
	case path == "/health":
		return f.health, nil, nil
	case path == "/v1/models":
		return 200, []byte(f.models), nil
	}
	if f.version == "" {
		return 0, nil, errors.New("no answer")
	}
	return 200, []byte(f.version), nil
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func healthy() *fake {
	return &fake{health: 200, noKey: 401, version: `{"version":"0.32.0"}`, models: `{"data":[{"id":"tiny","created":7,"max_model_len":1024,"root":"/secret/path"}]}`}
}

func TestAServerComesUpIsLostAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := healthy()
		f.down = errors.New("connection refused")
		changes := 0
		s := New(Spec{Name: "a", HasKey: true}, f, func() { changes++ })
		set := NewSet([]*Server{s})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		synctest.Wait()
		if _, err := set.Pick("", "a", nil, nil); !errors.Is(err, ErrDown) || s.State().Problem != "connection refused" {
			t.Fatalf("%v, %+v", err, s.State())
		}
		f.set(func() { f.down = nil })
		time.Sleep(deadEvery)
		synctest.Wait()
		st := s.State()
		if !st.Alive || st.Version != "0.32.0" || !st.Release.Known() || len(st.Models) != 1 || st.Models[0].MaxModelLen != 1024 || st.Warning != "" {
			t.Fatalf("%+v", st)
		}
		if got, err := set.Pick("tiny", "", nil, nil); err != nil || got != s {
			t.Fatal(got, err)
		}
		if _, err := set.Pick("other", "", nil, nil); !errors.Is(err, ErrNone) {
			t.Fatal(err)
		}
		f.set(func() { f.health = 503 })
		s.Failed(true, "connection refused")
		synctest.Wait()
		if _, err := set.Pick("tiny", "", nil, nil); !errors.Is(err, ErrDown) {
			t.Fatal("a dead server is picked", err)
		}
		f.set(func() { f.health = 200 })
		time.Sleep(deadEvery)
		synctest.Wait()
		if !s.State().Alive || changes == 0 {
			t.Fatal("it does not come back")
		}
		cancel()
		<-done
	})
}

func TestSingleFailuresAreForgiven(t *testing.T) {
	s := New(Spec{Name: "a", Models: []string{"m"}}, healthy(), nil)
	s.set(func(st *State) { st.Alive = true })
	for range 10 {
		s.Failed(false, "500")
		s.Failed(false, "500")
		s.Answered()
	}
	if s.State().LeftOut {
		t.Error("two failures left it out")
	}
}

// A server that fails in a row is left out for longer and longer while there is another, and never taken away.
func TestAServerThatFailsIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := New(Spec{Name: "a", Models: []string{"m"}}, healthy(), nil), New(Spec{Name: "b", Models: []string{"m"}}, healthy(), nil)
		set := NewSet([]*Server{a, b})
		for _, s := range []*Server{a, b} {
			s.set(func(st *State) { st.Alive = true })
		}
		fail := func(s *Server) {
			for range maxFailures {
				s.Failed(false, "500")
			}
		}
		only := func(want *Server) {
			t.Helper()
			for range 4 {
				if got, err := set.Pick("m", "", nil, nil); err != nil || got != want {
					t.Fatalf("%v, %v", got, err)
				}
			}
		}
		for _, penalty := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			fail(a)
			time.Sleep(penalty*time.Second - 1)
			only(b)
			time.Sleep(2 * time.Nanosecond)
			if a.State().LeftOut || !a.State().Alive {
				t.Fatalf("left out after %d s: %+v", penalty, a.State())
			}
		}
		a.Failed(false, "500")
		a.Answered()
		fail(a)
		time.Sleep(minPenalty + 1)
		if a.State().LeftOut {
			t.Error("an answer did not make it forgiven")
		}
		fail(a)
		fail(b)
		got := map[*Server]int{}
		for range 4 {
			s, err := set.Pick("m", "", nil, nil)
			if err != nil {
				t.Fatal("all fail, and the model is gone: ", err)
			}
			got[s]++
		}
		if got[a] != 2 || got[b] != 2 {
			t.Errorf("%v", got)
		}
	})
}

func TestWhatCountsAgainstAServer(t *testing.T) {
	gone := errors.New("connection refused")
	for _, c := range []struct {
		what        string
		o           verdict.Outcome
		left, alive bool
	}{
		{"answers", verdict.Outcome{Ended: verdict.Complete, UpStatus: 200, BytesUp: 1}, false, true},
		{"refusals", verdict.Outcome{Ended: verdict.UpstreamError, UpStatus: 400, BytesUp: 1}, false, true},
		{"busy", verdict.Outcome{Ended: verdict.UpstreamError, UpStatus: 503, BytesUp: 1}, false, true},
		{"clients that leave", verdict.Outcome{Ended: verdict.ClientLeft, BytesUp: 1}, false, true},
		{"revoked keys", verdict.Outcome{Ended: verdict.KeyRevoked, UpStatus: 200}, false, true},
		{"our own defects", verdict.Outcome{}, false, true},
		{"500s", verdict.Outcome{Ended: verdict.UpstreamError, UpStatus: 500, BytesUp: 1}, true, true},
		{"a frozen engine", verdict.Outcome{Ended: verdict.TimedOut, BytesUp: 1}, true, true},
		{"streams that break", verdict.Outcome{Ended: verdict.UpstreamEndedEarly, UpStatus: 200, BytesUp: 1}, true, true},
		{"no HTTP", verdict.Outcome{Ended: verdict.UpstreamError, BytesUp: 1, Cause: gone}, true, true},
		{"a connection that breaks before the first byte", verdict.Outcome{Ended: verdict.UpstreamError, Cause: gone}, true, true},
		{"no files left here", verdict.Outcome{Ended: verdict.UpstreamError, Unsent: true, Cause: errNoFiles}, false, true},
		{"no connection", verdict.Outcome{Ended: verdict.UpstreamError, Unsent: true, Cause: gone}, false, false},
	} {
		s := New(Spec{Name: "a"}, healthy(), nil)
		s.set(func(st *State) { st.Alive = true })
		for range maxFailures {
			s.Done(c.o)
		}
		if st := s.State(); st.LeftOut != c.left || st.Alive != c.alive {
			t.Errorf("%s: left out %v, alive %v", c.what, st.LeftOut, st.Alive)
		}
	}
}

// errNoFiles is what a dial ends with when callers have all the files that the process may have.
var errNoFiles = fmt.Errorf("connecting: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)})

// A look that we could not take says nothing of the server.
func TestALookWithoutFilesIsNone(t *testing.T) {
	f := healthy()
	s := New(Spec{Name: "a"}, f, nil)
	ctx := context.Background()
	f.down = errNoFiles
	if s.check(ctx); s.State().Alive {
		t.Error("it was never seen and lives")
	}
	f.down = nil
	s.check(ctx)
	f.down = errNoFiles
	s.check(ctx)
	if s.check(ctx); !s.State().Alive {
		t.Error("our own want of files killed it")
	}
}

func TestOneSlowLookIsForgiven(t *testing.T) {
	f := healthy()
	s := New(Spec{Name: "a"}, f, nil)
	ctx := context.Background()
	s.check(ctx)
	f.down = fmt.Errorf("reading: %w", context.DeadlineExceeded)
	if s.check(ctx); !s.State().Alive {
		t.Error("one slow answer killed it")
	}
	if s.check(ctx); s.State().Alive {
		t.Error("it never answers and lives")
	}
	f.down = nil
	s.check(ctx)
	f.down = errors.New("connection refused")
	if s.check(ctx); s.State().Alive {
		t.Error("it is not there and lives")
	}
}

// What is given up after askTimeout is slow, whatever its connection ends with: it is no death, of a look or of a question
// which models there are.
func TestWhatIsGivenUpIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := healthy()
		s := New(Spec{Name: "a"}, f, nil)
		s.check(t.Context())
		f.slow = "/v1/models"
		if s.discover(t.Context()) || !s.State().Alive {
			t.Errorf("a slow list of models: %+v", s.State())
		}
		f.slow = "/health"
		if s.check(t.Context()); !s.State().Alive {
			t.Errorf("one slow look killed it: %+v", s.State())
		}
		if s.check(t.Context()); s.State().Alive {
			t.Error("it never answers and lives")
		}
	})
}

// What the server tells counts; what the configuration says where it tells nothing; nothing where it does not answer.
func TestWhichReleaseAServerIs(t *testing.T) {
	const configured = "0.32.0"
	for _, row := range []struct {
		version    string // the body of /version; "" is no answer
		configured string
		release    string
		assumed    bool
		warning    bool
	}{
		{`{"version":"0.31.0"}`, "", "0.31.0", false, false},
		{`{"version":"0.32.0+cpu"}`, configured, "0.32.0", false, false},
		{`{"version":"0.31.0"}`, configured, "0.31.0", false, true},
		{`{"version":"0.33.0"}`, configured, "0.33.0", false, true},
		{`{"version":"dev"}`, "", "unknown", false, false},
		{`{"version":"dev"}`, configured, "0.32.0", true, false},
		{`{"version":""}`, configured, "0.32.0", true, false},
		{`not found`, configured, "0.32.0", true, false},
		{"", configured, "unknown", false, false},
		{"", "", "unknown", false, false},
	} {
		spec := Spec{Name: "a"}
		if row.configured != "" {
			var err error
			if spec.Release, err = vllm.ParseRelease(row.configured); err != nil {
				t.Fatal(err)
			}
		}
		f := healthy()
		f.version = row.version
		s := New(spec, f, nil)
		s.check(context.Background())
		st := s.State()
		if !st.Alive || st.Release.String() != row.release || st.Assumed != row.assumed || strings.Contains(st.Warning, "What it says counts") != row.warning {
			t.Errorf("%q, configured %q: %+v", row.version, row.configured, st)
		}
	}
}

// What stood there when it died may not be what comes back: it is asked before it is picked.
func TestAServerIsAskedForItsReleaseBeforeItIsAliveAgain(t *testing.T) {
	f := healthy()
	var seen []string
	var s *Server
	s = New(Spec{Name: "a"}, f, func() {
		if st := s.State(); st.Alive {
			seen = append(seen, st.Release.String())
		}
	})
	ctx := context.Background()
	s.check(ctx)
	s.Failed(true, "connection refused")
	f.version = `{"version":"0.27.1"}`
	s.check(ctx)
	if strings.Join(seen, " ") != "0.32.0 0.27.1" || !s.State().Alive {
		t.Errorf("alive as %q", seen)
	}
}

// vLLM's list has the time of the question in it: two looks at the same models are no change.
func TestTheSameModelsAreNoChange(t *testing.T) {
	f, changes := healthy(), 0
	s := New(Spec{Name: "a"}, f, func() { changes++ })
	ctx := context.Background()
	s.check(ctx)
	before := changes
	f.models = strings.Replace(f.models, `"created":7`, `"created":8`, 1)
	if s.discover(ctx); changes != before || s.State().Models[0].Created != 7 {
		t.Errorf("%d changes, %+v", changes-before, s.State().Models)
	}
	f.models = strings.Replace(f.models, `"tiny"`, `"other"`, 1)
	if s.discover(ctx); changes == before || s.State().Models[0].Name != "other" {
		t.Error("another model was not noticed")
	}
}

// The three mistakes that an operator makes with vLLM's key, each told as what it is.
func TestWrongKeysAreTold(t *testing.T) {
	ctx := context.Background()
	f := healthy()
	f.noKey = 200
	s := New(Spec{Name: "a", HasKey: true}, f, nil)
	s.check(ctx)
	if w := s.State().Warning; !strings.Contains(w, "--root-path") {
		t.Errorf("an open server: %q", w)
	}
	if p := modelsProblem(401, nil, true); !strings.Contains(p, "refuses the key") {
		t.Error(p)
	}
	if p := modelsProblem(401, nil, false); !strings.Contains(p, "key_file") {
		t.Error(p)
	}
}

func TestConfiguredModelsAreServedAndMissingOnesTold(t *testing.T) {
	s := New(Spec{Name: "a", Models: []string{"tiny", "gone"}}, healthy(), nil)
	s.check(context.Background())
	st := s.State()
	if len(st.Models) != 2 || st.Models[0].MaxModelLen != 1024 || !strings.Contains(st.Warning, `"gone"`) {
		t.Errorf("%+v", st)
	}
}

// vLLM lists an adapter without a length: what it may use is bounded by its parent's.
func TestAnAdapterHasItsParentsLength(t *testing.T) {
	models, err := parseModels([]byte(`{"data":[{"id":"base","max_model_len":1024,"parent":null},{"id":"sql","parent":"base"},{"id":"own","parent":"base","max_model_len":7},{"id":"lost","parent":"gone"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var lengths []int64
	for _, m := range models {
		lengths = append(lengths, m.MaxModelLen)
	}
	if want := []int64{1024, 1024, 7, 0}; !slices.Equal(lengths, want) {
		t.Errorf("%v, want %v", lengths, want)
	}
}

func TestGarbageIsNotAModelList(t *testing.T) {
	for _, body := range []string{"", "[]x", `{"data":[{"id":""}]}`, `{"data":[{"id":"` + strings.Repeat("x", 300) + `"}]}`, `{"data":7}`, `{"data":[{"id":"a\nb"}]}`, `{"data":[` + strings.Repeat(`{"id":"a"},`, maxModels) + `{"id":"a"}]}`} {
		if got, err := parseModels([]byte(body)); err == nil {
			t.Errorf("%.20q: %v", body, got)
		}
	}
}

func TestPickTakesTurnsAmongTheLiving(t *testing.T) {
	var all []*Server
	for _, name := range []string{"a", "b", "c"} {
		s := New(Spec{Name: name, Models: []string{"m"}}, healthy(), nil)
		s.set(func(st *State) { st.Alive = name != "b" })
		all = append(all, s)
	}
	set := NewSet(all)
	got := map[string]int{}
	for range 10 {
		s, err := set.Pick("m", "", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		got[s.Name()]++
	}
	if got["a"] != 5 || got["c"] != 5 || got["b"] != 0 {
		t.Errorf("%v", got)
	}
	for range 4 {
		if s, err := set.Pick("m", "", []string{"a"}, nil); err != nil || s.Name() != "c" {
			t.Errorf("a was tried, and %v is picked: %v", s, err)
		}
	}
	if _, err := set.Pick("m", "", []string{"a", "c"}, nil); !errors.Is(err, ErrDown) {
		t.Error("all that live were tried: ", err)
	}
	if _, err := set.Pick("m", "b", nil, nil); !errors.Is(err, ErrDown) {
		t.Error(err)
	}
	if _, err := set.Pick("m", "z", nil, nil); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

// A request that harms a release goes to another, and only where there is none to one that it harms: that refuses it.
func TestPickPrefersReleasesThatMayHaveTheRequest(t *testing.T) {
	var all []*Server
	for _, version := range []string{"0.29.0", "0.33.0", "", "0.32.0"} {
		s := New(Spec{Name: version, Models: []string{"m"}}, healthy(), nil)
		release, _ := vllm.ParseRelease(version)
		s.set(func(st *State) { st.Alive, st.Release = true, release })
		all = append(all, s)
	}
	set := NewSet(all)
	may := (&vllm.Affected{Until: "0.30.0"}).In
	picked := func() map[string]int {
		got := map[string]int{}
		for range 12 {
			s, err := set.Pick("m", "", nil, func(r vllm.Release) bool { return !may(r) })
			if err != nil {
				t.Fatal(err)
			}
			got[s.Name()]++
		}
		return got
	}
	if got := picked(); len(got) != 2 || got["0.33.0"] != 6 || got["0.32.0"] != 6 {
		t.Errorf("%v", got)
	}
	for range maxFailures {
		all[1].Failed(false, "500")
		all[3].Failed(false, "500")
	}
	if got := picked(); len(got) != 2 || got["0.33.0"] != 6 || got["0.32.0"] != 6 {
		t.Errorf("left out, and others that may not: %v", got)
	}
	all[1].set(func(st *State) { st.Alive = false })
	all[3].set(func(st *State) { st.Alive = false })
	if got := picked(); len(got) != 2 || got["0.29.0"] != 6 || got[""] != 6 {
		t.Errorf("none that may: %v", got)
	}
}
