package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vallum/vallum/internal/vllmtest"
)

var update = flag.Bool("update", false, "rewrite the expected output of scripts and generated documents")

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "vllm" { // not by testscript: the scripts' own vllm would be this one
		posedAsVLLM()
		return
	}
	testscript.Main(m, map[string]func(){"vallum": main})
}

// The scripts are the commands as a user meets them: exact words, ports that are free, a fake vLLM. Besides vallum
// itself, which runs as a process of its own, they have
//
//	vllm [-key K] [-models a,b] [-name ENV]   starts a fake vLLM, its URL in $VLLM or $ENV; -down gives the URL of none,
//	                                          and -at starts it there later
//	serve ARGS...                             vallum serve in the background, on free ports: $GATE, $PROBES, their
//	                                          addresses in $GATE_ADDRESS and $PROBES_ADDRESS; its screen
//	                                          in the file screen, all that the Nth writes in serveN.err; `serve -stop` ends
//	                                          the newest, `serve -hangup` takes its terminal away and says what it did
//	http METHOD URL [-H 'Name: value'] [-d BODY] [-i NAME,...] [-until STATUS]
//	                                          prints the status, the chosen headers and the body; -until asks again, for
//	                                          at most a minute, until the answer has the status
//	exits CODE ARGS...                        vallum, with the exit code that it must end with
//	stable FILE                               prints stdout, stderr, both or a file, with what differs from run to run
//	                                          replaced
//	field ENV FILE [NAME]                     reads a file's one line, or the value of "NAME: value" in it, into a variable
//	segment ENV                               the file of the audit log that is being written
//	fill FILE                                 replaces ${NAME} in a file
//	replace OLD NEW FILE                      replaces a text in a file
//	waitfor FILE TEXT                         waits, for at most a minute, until a file holds a text
//	certificate NAME [expired]                makes NAME.crt and NAME.key
func TestScripts(t *testing.T) {
	// A process that ignores SIGHUP, as under nohup, has children that do. One that waits for it has not.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangup) })
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"vllm": scriptVLLM, "serve": scriptServe, "http": scriptHTTP, "exits": scriptExits, "stable": scriptStable, "field": scriptField,
			"segment": scriptSegment, "fill": scriptFill, "replace": scriptReplace, "waitfor": scriptWaitFor, "certificate": scriptCertificate,
		},
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, "NO_COLOR=1")
			e.Values["serves"] = &[]*scriptGateway{}
			return nil
		},
	})
}

func scriptVLLM(ts *testscript.TestScript, _ bool, args []string) {
	f := flag.NewFlagSet("vllm", flag.ContinueOnError)
	key := f.String("key", "", "")
	models := f.String("models", "tiny", "")
	name := f.String("name", "VLLM", "")
	down := f.Bool("down", false, "")
	version := f.String("version", "", "")
	at := f.String("at", "http://127.0.0.1:0", "")
	ts.Check(f.Parse(args))
	address := strings.TrimPrefix(*at, "http://")
	if *down {
		address = vllmtest.Apart()
	}
	l, err := net.Listen("tcp", address)
	ts.Check(err)
	ts.Setenv(*name, "http://"+l.Addr().String())
	if *down {
		ts.Check(l.Close())
		return
	}
	fake := vllmtest.New(vllmtest.Options{Key: *key, Models: strings.Split(*models, ","), Version: *version, DevMode: true, ScaleOut: true})
	done := make(chan error, 1)
	go func() { done <- fake.Serve(l) }()
	ts.Defer(func() {
		fake.Close()
		<-done
	})
}

// scriptGateway is a `vallum serve`, a process of its own as for its users. (Beside commands that are started at the same
// time a lock would stay held here: a child has its parent's files until it becomes another program.)
type scriptGateway struct {
	process  *os.Process
	code     chan int
	out, err string // files: what is written to them is there before what is written after it
}

// stop ends it as Ctrl-C does, and gives its exit code.
func (g *scriptGateway) stop() int {
	_ = g.process.Signal(os.Interrupt) // it may be gone
	code := <-g.code
	g.code <- code
	return code
}

func scriptServe(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 1 && args[0] == "-stop" {
		fmt.Fprintf(ts.Stdout(), "exit code %d\n", newestGateway(ts).stop())
		return
	}
	if len(args) == 1 && args[0] == "-hangup" {
		hangUp(ts)
		return
	}
	for _, flag := range []string{"--listen", "--probes"} {
		if !slices.Contains(args, flag) {
			args = append(args, flag, "127.0.0.1:0")
		}
	}
	if !slices.Contains(args, "--state") {
		args = append(args, "--state", ts.MkAbs("state"))
	}
	serves := ts.Value("serves").(*[]*scriptGateway)
	g := &scriptGateway{code: make(chan int, 1), out: ts.MkAbs(fmt.Sprintf("serve%d.out", len(*serves))), err: ts.MkAbs(fmt.Sprintf("serve%d.err", len(*serves)))}
	*serves = append(*serves, g)
	ts.Check(g.start(ts.MkAbs("."), args))
	ts.Defer(func() {
		if code := g.stop(); code != 0 {
			ts.Logf("vallum serve ended with %d:\n%s", code, ts.ReadFile(g.err))
		}
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		if url := listeningOn.FindStringSubmatch(ts.ReadFile(g.out)); url != nil {
			ts.Setenv("GATE", url[1])
			ts.Setenv("GATE_ADDRESS", strings.TrimPrefix(url[1], "http://"))
			screen := ts.ReadFile(g.err)
			if probes := probesOn.FindStringSubmatch(screen); probes != nil {
				ts.Setenv("PROBES", probes[1])
				ts.Setenv("PROBES_ADDRESS", strings.TrimPrefix(probes[1], "http://"))
			}
			ts.Check(os.WriteFile(ts.MkAbs("screen"), []byte(screen), 0o600))
			return
		}
		select {
		case <-tick.C:
		case code := <-g.code:
			g.code <- code
			ts.Fatalf("vallum serve ended with %d:\n%s", code, ts.ReadFile(g.err))
		case <-timeout:
			ts.Fatalf("vallum serve does not listen:\n%s", ts.ReadFile(g.err))
		}
	}
}

// start starts the process.
func (g *scriptGateway) start(dir string, args []string) error {
	out, err := os.Create(g.out)
	if err != nil {
		return err
	}
	errs, err := os.Create(g.err)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	cmd := exec.Command("vallum", append([]string{"serve"}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, errs
	if err := cmd.Start(); err != nil {
		return errors.Join(err, out.Close(), errs.Close())
	}
	g.process = cmd.Process
	go func() {
		_ = cmd.Wait() // the exit code says it
		_, _ = out.Close(), errs.Close()
		g.code <- cmd.ProcessState.ExitCode()
	}()
	return nil
}

var (
	listeningOn = regexp.MustCompile(`(?m)^listening on (\S+)$`)
	probesOn    = regexp.MustCompile(`(?m)^ +probes +(http\S+)`)
)

func newestGateway(ts *testscript.TestScript) *scriptGateway {
	serves := ts.Value("serves").(*[]*scriptGateway)
	if len(*serves) == 0 {
		ts.Fatalf("nothing is served")
	}
	return (*serves)[len(*serves)-1]
}

// hangUp does to the newest gateway what its terminal does when it goes away, and prints what becomes of it.
func hangUp(ts *testscript.TestScript) {
	g := newestGateway(ts)
	reloads := func() int { return strings.Count(ts.ReadFile(g.err), "was reloaded") }
	before := reloads()
	ts.Check(g.process.Signal(syscall.SIGHUP))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		select {
		case code := <-g.code:
			g.code <- code
			fmt.Fprintf(ts.Stdout(), "exit code %d\n", code)
			return
		case <-tick.C:
			if reloads() > before {
				fmt.Fprintln(ts.Stdout(), "reloaded")
				return
			}
		case <-timeout:
			ts.Fatalf("nothing came of it:\n%s", ts.ReadFile(g.err))
		}
	}
}

// scriptRequest is what `http` was asked for.
type scriptRequest struct {
	method, url, body string
	header            http.Header
	show              []string
	until             int
}

func scriptHTTP(ts *testscript.TestScript, _ bool, args []string) {
	r := parseRequest(ts, args)
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		status, text := r.send(ts)
		if r.until == 0 || status == r.until {
			_, err := io.WriteString(ts.Stdout(), text)
			ts.Check(err)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the answer never had status %d; the last was\n%s", r.until, text)
		}
		<-tick.C
	}
}

func parseRequest(ts *testscript.TestScript, args []string) scriptRequest {
	if len(args) < 2 {
		ts.Fatalf("usage: http METHOD URL [-H 'Name: value'] [-d BODY] [-i NAME,...] [-until STATUS]")
	}
	r := scriptRequest{method: args[0], url: args[1], header: http.Header{}, show: []string{"X-Vallum-Reason"}}
	for rest := args[2:]; len(rest) > 0; rest = rest[2:] {
		if len(rest) < 2 {
			ts.Fatalf("%s needs a value", rest[0])
		}
		switch rest[0] {
		case "-H":
			name, value, _ := strings.Cut(rest[1], ":")
			r.header.Add(name, strings.TrimSpace(value))
		case "-d":
			r.body = rest[1]
			r.header.Set("Content-Type", "application/json")
		case "-i":
			r.show = append(r.show, strings.Split(rest[1], ",")...)
		case "-until":
			n, err := strconv.Atoi(rest[1])
			ts.Check(err)
			r.until = n
		default:
			ts.Fatalf("unknown flag %s", rest[0])
		}
	}
	return r
}

// send sends it once and gives the status, and the answer as it is printed.
func (r scriptRequest) send(ts *testscript.TestScript) (int, string) {
	req, err := http.NewRequest(r.method, r.url, strings.NewReader(r.body))
	ts.Check(err)
	req.Header = r.header
	res, err := demoClient.Do(req)
	ts.Check(err)
	body, err := io.ReadAll(res.Body)
	ts.Check(err)
	ts.Check(res.Body.Close())
	var b strings.Builder
	fmt.Fprintln(&b, res.Status)
	for _, name := range r.show {
		if v := res.Header.Get(name); v != "" {
			fmt.Fprintf(&b, "%s: %s\n", strings.ToLower(name), v)
		}
	}
	fmt.Fprintf(&b, "\n%s", body)
	if !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	return res.StatusCode, b.String()
}

// changing is what differs from run to run, and what stands for it. Runs of spaces become two, for columns are as
// wide as what stands in them.
var changing = []struct {
	from *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`vlm_[a-z0-9]{12}_[A-Za-z0-9]{20,}`), "vlm_ID_SECRET"},
	{regexp.MustCompile(`\breq_[a-z0-9]{20,}`), "REQUEST"},
	{regexp.MustCompile(`127\.0\.0\.1:[1-9]\d{3,4}`), "127.0.0.1:PORT"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?)?`), "DATE"},
	{regexp.MustCompile(`(?m)^(\s*)\d\d-\d\d \d\d:\d\d:\d\d`), "${1}DATE"},
	{regexp.MustCompile(`\d+(\.\d+)? ?ms\b`), "MS"},
	{regexp.MustCompile(`(?m)(^|\(|"id":\s?")([a-z0-9]{12})(\)| {2}|"|$)`), "${1}ID${3}"},
	{regexp.MustCompile(`to line \d+`), "to line N"},
	{regexp.MustCompile(`"created":\d+`), `"created":TIME`},
	{regexp.MustCompile(`(\S) {2,}`), "$1  "},
	{regexp.MustCompile(`(?m) +$`), ""},
	{regexp.MustCompile(`(?m)^(ID  .*  )(never|DATE)$`), "${1}USED"}, // of keys: a running gateway notes it every ten seconds
}

func scriptStable(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: stable FILE")
	}
	var text string
	if args[0] == "both" {
		text = ts.ReadFile("stdout") + ts.ReadFile("stderr")
	} else {
		text = ts.ReadFile(args[0])
	}
	_, err := io.WriteString(ts.Stdout(), stable(text, ts.Getenv("WORK")))
	ts.Check(err)
}

func stable(text, work string) string {
	text = strings.ReplaceAll(text, work+string(filepath.Separator), "WORK/")
	for _, c := range changing {
		text = c.from.ReplaceAllString(text, c.to)
	}
	return text
}

func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec("vallum", args[1:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got, err = exit.ExitCode(), nil
	}
	ts.Check(err)
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if strings.Contains(ts.ReadFile("stderr"), "\ngoroutine ") { // a panic ends with 2, as a mistake of the caller does
		ts.Fatalf("it panicked")
	}
}

func scriptField(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[1])
	if len(args) == 2 {
		ts.Setenv(args[0], strings.TrimSpace(text))
		return
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, args[2]+": "); ok {
			ts.Setenv(args[0], strings.TrimSpace(value))
			return
		}
	}
	ts.Fatalf("%s has no line %q", args[1], args[2]+": …")
}

func scriptSegment(ts *testscript.TestScript, _ bool, args []string) {
	files, err := filepath.Glob(ts.MkAbs("state/audit/*.jsonl"))
	ts.Check(err)
	if len(files) == 0 {
		ts.Fatalf("there is no segment")
	}
	ts.Setenv(args[0], files[len(files)-1])
}

func scriptFill(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

func scriptReplace(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[2])
	if !strings.Contains(text, args[0]) {
		ts.Fatalf("%s does not hold %q", args[2], args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(strings.ReplaceAll(text, args[0], args[1])), 0o600))
}

func scriptWaitFor(ts *testscript.TestScript, _ bool, args []string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for !strings.Contains(ts.ReadFile(args[0]), args[1]) {
		select {
		case <-tick.C:
		case <-timeout:
			ts.Fatalf("%s never held %q:\n%s", args[0], args[1], ts.ReadFile(args[0]))
		}
	}
}
