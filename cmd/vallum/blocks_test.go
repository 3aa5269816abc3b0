package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/vllmtest"
)

// Blocks that are fenced by ```sh are for copying. Their lines are run too, in order, a page in one directory: `vallum …`
// as it stands, in front of a fake vLLM that takes the place of the one at 127.0.0.1:8000, on free ports and with a state
// directory of the test's; `curl …` as the request that it makes. A line "# …" below a command is what it prints, with
// "…" for anything. What else stands in them is in notRun, with the reason.

// notRun are the first words of lines that the test does not run.
var notRun = map[string]string{
	"export": "the fake has a key already", "printf": "the same", "vllm": "the fake is there already",
	"make": "CI builds", "useradd": "changes the machine", "install": "changes the machine", "key=$(openssl": "changes the machine",
	"(umask": "changes the machine", "journalctl": "reads the machine",
	"run()": "the function is taken for vallum",
}

// page is a page whose blocks are run, and what its commands meet.
type page struct {
	t       *testing.T
	dir     string
	fake    *vllmtest.Server
	gate    string // URL of the gateway that the page started
	state   string
	key     string // the ordinary key of the demo
	refused string // id of a refusal
	ctx     context.Context
	end     func() // of the gateway
	running sync.WaitGroup
}

func TestPagesShellBlocksWork(t *testing.T) {
	pages, err := filepath.Glob("../../examples/*/README.md")
	if err != nil || len(pages) < 2 {
		t.Fatalf("%q %v", pages, err)
	}
	for _, name := range append(pages, "../../README.md") {
		if strings.Contains(name, "two-nodes") {
			continue // it needs three machines: internal/isolate/apply has them
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(filepath.Dir(name)), func(t *testing.T) { newPage(t, filepath.Dir(name)).run(string(b)) })
	}
}

// newPage starts the fake and prepares a directory with the example's files.
func newPage(t *testing.T, from string) *page {
	ctx, stop := context.WithCancel(context.Background())
	p := &page{t: t, dir: t.TempDir(), fake: vllmtest.Start(t, vllmtest.Options{Key: "of-vllm", Models: []string{"tiny", "llama-3-8b"}, DevMode: true}), ctx: ctx}
	t.Cleanup(func() {
		stop()
		if p.end != nil {
			p.end()
		}
		p.running.Wait()
	})
	p.state = filepath.Join(p.dir, "state")
	for name, text := range map[string]string{"vllm-key": "of-vllm\n", "old-sk-key": "sk-0123456789abcdef0123456789abcdef\n"} {
		p.write(name, text)
	}
	if b, err := os.ReadFile(filepath.Join(from, "vallum.yaml")); err == nil {
		p.write("vallum.yaml", strings.NewReplacer(
			"http://127.0.0.1:8000", p.fake.URL(), "unix:/run/vllm/vllm.sock", p.fake.URL(), "/etc/vallum", p.dir, "/run/vallum", p.dir, "/var/lib/vallum", p.state,
		).Replace(string(b)))
		if err := makeCertificate(filepath.Join(p.dir, "tls"), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", p.dir) // what LoadCredential= gives the unit
	t.Chdir(p.dir)
	return p
}

func (p *page) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// shellLine is a command of a block, and what the comments below it say that it prints.
type shellLine struct {
	command string
	prints  []string
}

// shellLines takes the ```sh blocks of a page apart: a line may go on after a backslash.
func shellLines(text string) (lines []shellLine) {
	in := false
	more := false
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			in, more = !in && strings.TrimSpace(line) == "```sh", false
		case !in || strings.TrimSpace(line) == "":
		case strings.HasPrefix(line, "# ") && len(lines) > 0:
			lines[len(lines)-1].prints = append(lines[len(lines)-1].prints, strings.TrimPrefix(line, "# "))
		default:
			whole, _, _ := strings.Cut(line, "   #")
			whole, goesOn := strings.CutSuffix(strings.TrimRight(whole, " "), `\`)
			if more {
				lines[len(lines)-1].command += whole
			} else {
				lines = append(lines, shellLine{command: whole})
			}
			more = goesOn
		}
	}
	return lines
}

func (p *page) run(text string) {
	lines := shellLines(text)
	if len(lines) < 3 {
		p.t.Fatalf("%d lines are found: did the form of the blocks change?", len(lines))
	}
	for _, l := range lines {
		l.command = strings.NewReplacer("http://127.0.0.1:8000", p.fake.URL(), "STATE/", p.state+"/", "$(cat editor-key)", p.file("editor-key")).Replace(l.command)
		first, _, _ := strings.Cut(strings.TrimSpace(l.command), " ")
		out := ""
		switch {
		case first == "vallum" || first == "run":
			out = p.vallum(words(l.command)[1:])
		case strings.HasPrefix(l.command, "systemctl enable --now") && strings.HasSuffix(l.command, " vallum"):
			p.serve([]string{"serve", "--config", "vallum.yaml"}) // what the unit starts
		case strings.HasPrefix(l.command, "go run ./cmd/vallum demo"):
			p.demo()
		case first == "systemctl":
		case first == "curl":
			out = p.curl(l.command)
		case notRun[first] == "":
			p.t.Errorf("the test does not know how to run: %s", l.command)
		}
		for _, want := range l.prints {
			if !slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool { return asShown(want, line) }) {
				p.t.Errorf("%s\nprinted\n%s\nand the page says %s", l.command, out, want)
			}
		}
	}
}

func (p *page) file(name string) string {
	b, _ := os.ReadFile(filepath.Join(p.dir, name)) // absent before the command that makes it
	return strings.TrimSpace(string(b))
}

// vallum runs a command as it stands, with the test's state directory, and its redirections.
func (p *page) vallum(args []string) string {
	p.t.Helper()
	var in, toFile string
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "&" })
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case ">":
			toFile = args[i+1]
		case "<":
			in = p.file(args[i+1])
		case "req_…":
			args[i] = p.refused
			continue
		default:
			continue
		}
		args = slices.Delete(args, i, i+2)
		i--
	}
	if args[0] == "serve" {
		p.serve(args)
		return ""
	}
	if !slices.ContainsFunc(args, func(a string) bool { return a == "--config" || strings.HasPrefix(a, p.state) }) {
		args = append(args, "--state", p.state)
	}
	var out, errs bytes.Buffer
	code := run(p.t.Context(), args, strings.NewReader(in), &out, &errs)
	for late := time.Now().Add(30 * time.Second); args[0] == "log" && code != exitYes && time.Now().Before(late); <-time.After(50 * time.Millisecond) {
		out.Reset() // a log that no second has gone over is not signed yet
		code = run(p.t.Context(), args, strings.NewReader(in), &out, &errs)
	}
	if code != exitYes && (args[0] != "explain" || code != exitNo || out.Len() == 0) {
		p.t.Errorf("vallum %q ends with %d\n%s%s", args, code, &out, &errs)
	}
	if toFile != "" {
		p.write(toFile, out.String())
	}
	return out.String() + errs.String()
}

// serve starts a gateway, in the place of the one before.
func (p *page) serve(args []string) {
	p.t.Helper()
	if p.end != nil {
		p.end()
	}
	args = append(args, "--listen", "127.0.0.1:0", "--probes", "127.0.0.1:0")
	if !slices.Contains(args, "--config") {
		args = append(args, "--state", p.state)
	}
	out, errs := &syncText{}, &syncText{}
	ctx, stop := context.WithCancel(p.ctx)
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, args, strings.NewReader(""), out, errs) }()
	p.end = func() { stop(); <-ended }
	p.gate = p.await(out, listeningOn, func() string {
		select {
		case code := <-ended:
			ended <- code
			return fmt.Sprintf("vallum %q ended with %d: %s", args, code, errs)
		default:
			return ""
		}
	})[1]
	if strings.HasPrefix(p.gate, "https:") {
		return
	}
	p.ask("POST", p.gate+"/pause", http.Header{"Authorization": {"Bearer " + p.file("state/first-key")}}, "")
}

var curlQuoted = regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`)

// curl makes the request of a command line, and prints the answer as `curl -i` does.
func (p *page) curl(command string) string {
	p.t.Helper()
	if strings.Contains(command, ":PORT/") {
		command = strings.NewReplacer("http://127.0.0.1:PORT", p.demo(), "KEY", p.key).Replace(command)
	}
	method, url, body, header := "GET", "", "", http.Header{}
	list := curlQuoted.FindAllString(command, -1)[1:]
	for i := 0; i < len(list); i++ {
		switch word := list[i]; {
		case word == "-N" || word == "-i":
		case word == "-H":
			i++
			name, value, _ := strings.Cut(strings.Trim(list[i], `'"`), ": ")
			header.Set(name, value)
		case word == "-d":
			i++
			method, body = "POST", strings.Trim(list[i], "'")
		case strings.HasPrefix(word, "-"):
			p.t.Fatalf("the test does not know curl's %s", word)
		default:
			url = word
		}
	}
	return p.ask(method, strings.Replace(url, "http://127.0.0.1:8080", p.gate, 1), header, body)
}

// ask makes a request, again if need be: a key that was just made counts within a second, of a machine that is not busy.
func (p *page) ask(method, url string, header http.Header, body string) string {
	p.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(30 * time.Second); ; <-tick.C {
		status, text := p.askOnce(method, url, header, body)
		if status != http.StatusUnauthorized || time.Now().After(late) {
			if status != http.StatusOK && !strings.Contains(text, "X-Vallum-Reason: not_permitted") {
				p.t.Errorf("%s %s: %s", method, url, text)
			}
			return text
		}
	}
}

func (p *page) askOnce(method, url string, header http.Header, body string) (status int, text string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header = header
	resp, err := demoClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if resp.Header.Get("X-Vallum-Reason") == "not_permitted" {
		p.refused = resp.Header.Get("X-Request-Id")
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s %s\n", resp.Proto, resp.Status)
	for name := range resp.Header {
		fmt.Fprintf(&out, "%s: %s\n", name, resp.Header.Get(name))
	}
	return resp.StatusCode, out.String() + string(b)
}

// demo starts `vallum demo` once and gives the gateway's URL; its key is in p.key.
func (p *page) demo() string {
	p.t.Helper()
	if p.key != "" {
		return p.gate
	}
	var out syncText
	p.running.Go(func() { run(p.ctx, []string{"demo"}, strings.NewReader(""), &out, io.Discard) })
	m := p.await(&out, regexp.MustCompile(`(?s)curl -N (http://\S+)/v1/chat/completions.*?Bearer (vlm_\w+)'`), func() string { return "" })
	p.gate, p.key = m[1], m[2]
	return p.gate
}

// await waits for what a command is to print, unless it has failed.
func (p *page) await(out *syncText, want *regexp.Regexp, failed func() string) []string {
	p.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); ; {
		if m := want.FindStringSubmatch(out.String()); m != nil {
			return m
		}
		if why := failed(); why != "" {
			p.t.Fatal(why)
		}
		select {
		case <-tick.C:
		case <-late:
			p.t.Fatalf("it never printed %s:\n%s", want, out)
		}
	}
}

// syncText gathers what another goroutine writes.
type syncText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncText) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncText) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// The YAML of the page is a part of a right file.
func TestReadmeYAMLIsRight(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(b), -1)
	if len(blocks) == 0 {
		t.Fatal("README.md has no yaml: did its form change?")
	}
	for _, block := range blocks {
		text := "version: 1\nupstreams: [{name: a, url: \"http://127.0.0.1:1\", models: [llama-3-8b]}]\n" + block[1]
		if _, err := config.Parse("README.md", []byte(text)); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
}

// An example in a command's help is a command, with flags that it has.
func TestExamplesOfHelpAreTaken(t *testing.T) {
	seen := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), "    ")
			list := words(line)
			if i := slices.IndexFunc(list, func(w string) bool { return w == "<" || w == ">" || w == "|" }); i >= 0 {
				list = list[:i]
			}
			if len(list) == 0 || list[0] != "vallum" {
				continue
			}
			seen++
			about, rest, err := newRoot(streams{}).Find(list[1:])
			if err == nil {
				err = about.ParseFlags(rest)
			}
			if err == nil {
				err = about.ValidateArgs(about.Flags().Args())
			}
			if err != nil || about.CommandPath() != c.CommandPath() {
				t.Errorf("%s: its example %q: %v (of %s)", c.CommandPath(), line, err, about.CommandPath())
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(streams{}))
	if seen < 15 {
		t.Errorf("%d examples are found: did the form of the help change?", seen)
	}
}
