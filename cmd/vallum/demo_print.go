package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// demoPrinter writes the demo for people: 100 columns wide, or narrow in 80, with the usual reasons named once above the
// table. quiet leaves everything to --json.
type demoPrinter struct {
	w      io.Writer
	color  bool
	narrow bool
	quiet  bool
	group  vllm.Group
}

// usualReasons are those that the narrow table leaves out of its cells.
var usualReasons = map[int]string{200: "allowed", 401: verdict.NoCredential.String(), 403: verdict.NotPermitted.String()}

// narrow reports whether the answer goes to a terminal in which the wide table would break.
func (s streams) narrow() bool {
	columns := s.columns()
	return 0 < columns && columns < 100
}

// columns is the width of the terminal that the answer goes to; 0 when it goes elsewhere.
func (s streams) columns() int {
	file, ok := s.out.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return columns
}

// colors reports whether the answer may be coloured: https://no-color.org, and never into a file.
func (s streams) colors() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(s.out)
}

// The colours, as SGR numbers: ECMA-48 §8.3.117.
const (
	red   = "31"
	green = "32"
	faint = "2"
	bold  = "1"
)

func (p *demoPrinter) paint(color, text string) string {
	if !p.color || color == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (p *demoPrinter) printf(format string, args ...any) {
	if !p.quiet {
		fmt.Fprintf(p.w, format, args...)
	}
}

func (p *demoPrinter) head(d *demo) {
	p.printf("a fake vLLM %s at %s: every route, --api-key set\n", newestRelease(), d.direct)
	p.printf("the gateway        at %s: built-in roles, nothing configured\n\n", d.gate)
	if p.narrow {
		p.printf("200 %s, 401 %s, 403 %s, or what the row says\n", usualReasons[200], usualReasons[401], usualReasons[403])
		p.printf("%s\n", p.paint(bold, fmt.Sprintf("%-34s %-11s %-10s %-10s %s", "ROUTE", "DIRECTLY,", "VALLUM,", "KEY WITH", "KEY WITH")))
		p.printf("%s\n", p.paint(bold, fmt.Sprintf("%-34s %-11s %-10s %-10s %s", "", "NO KEY", "NO KEY", "inference", "operator")))
		return
	}
	p.printf("%s\n", p.paint(bold, fmt.Sprintf("%-34s %-11s %-17s %-17s %s", "ROUTE", "DIRECTLY,", "THROUGH VALLUM,", "ORDINARY KEY", "ADMIN KEY")))
	p.printf("%s\n", p.paint(bold, fmt.Sprintf("%-34s %-11s %-17s %-17s %s", "", "NO KEY", "NO KEY", "role inference", "role operator")))
}

// demoTitles say what the guide's groups are.
var demoTitles = map[vllm.Group]string{
	vllm.Development:       "development: weights, RPC into the workers, sleep",
	vllm.Profiler:          "profiler",
	vllm.Control:           "operational control",
	vllm.LoRA:              "LoRA administration",
	vllm.TokenizerInfo:     "tokenizer information: the chat template",
	vllm.Plugin:            "plugins and scale-out",
	vllm.InferenceUnprefix: "inference without a prefix: vLLM's own key does not cover it",
	vllm.Documentation:     "documentation",
	vllm.Metrics:           "metrics",
	vllm.Probing:           "utility",
	vllm.Inference:         "inference",
}

// row prints one route, below the title of its group.
func (p *demoPrinter) row(r demoRow) {
	if r.Group != p.group {
		p.group = r.Group
		p.printf("%s\n", p.paint(faint, demoTitles[r.Group]))
	}
	method := r.Method
	if method == "WEBSOCKET" {
		method = "WS"
	}
	width := 17
	if p.narrow {
		width = 10
	}
	p.printf("%-34s %s %s %s %s\n", cut(method+" "+r.Path, 34),
		p.directly(r.Direct, 11), p.through(r.NoKey, width), p.through(r.Ordinary, width), strings.TrimRight(p.through(r.Admin, 0), " "))
	if r.Wrong != "" {
		p.printf("  %s\n", p.paint(red, "WRONG: "+r.Wrong))
	}
}

func (p *demoPrinter) directly(a demoAnswer, width int) string {
	text, color := fmt.Sprintf("%-*s", width, fmt.Sprintf("%d %s", a.Status, a.Did)), ""
	if a.Status < 400 {
		color = red
	}
	return p.paint(color, text)
}

func (p *demoPrinter) through(a demoAnswer, width int) string {
	word, color := a.Reason, ""
	if a.Status == 200 {
		word, color = "allowed", green
	}
	if p.narrow && word == usualReasons[a.Status] {
		return p.paint(color, fmt.Sprintf("%-*d", width, a.Status))
	}
	return p.paint(color, fmt.Sprintf("%-*s", width, fmt.Sprintf("%d %s", a.Status, word)))
}

// cut shortens a text to a width, and shows that it did.
func cut(text string, width int) string {
	if len(text) <= width {
		return text
	}
	return text[:width-1] + "…"
}

func (p *demoPrinter) sum(r demoResult) {
	p.printf("\n%d routes. To a stranger vLLM alone, its key set, served %s; behind Vallum %s.\n",
		len(r.Rows), p.paint(red, fmt.Sprint(r.Open)), p.paint(green, fmt.Sprint(r.OpenGate)))
	if r.Wrong > 0 {
		p.printf("%s\n", p.paint(red, fmt.Sprintf("%d routes were not treated as they should: see WRONG above. Please report it.", r.Wrong)))
	}
	p.printf("\na streamed chat through the gate, as it arrives:\n  ")
}

func (p *demoPrinter) piece(text string) { p.printf("%s", text) }

func (p *demoPrinter) chatEnd(c demoChat) {
	p.printf("\n  %d events, the first after %.1f ms, the last after %.1f ms\n", c.Events, c.FirstMS, c.LastMS)
}

func (p *demoPrinter) records(r demoRecords) {
	p.printf("\nthe records, some of %s:\n", eventCounts(r.Count))
	t := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, one := range r.shown {
		if !p.quiet {
			cells := recordCells(one)
			fmt.Fprintln(t, "  "+strings.Join(cells[:len(cells)-1], "\t")) // without the id
		}
	}
	_ = t.Flush()
	p.printf("  refusals of callers without a key are counted, a line for each minute\n")
}

func (p *demoPrinter) chain(r demoRecords) {
	p.printf("  ended; the log %s\n", r.Chain)
}

// eventCounts is "23 admitted, 23 ended, 150 refused".
func eventCounts(count map[string]int) string {
	var parts []string
	for _, e := range []audit.Event{audit.Admitted, audit.Ended, audit.Refused} {
		parts = append(parts, fmt.Sprintf("%d %s", count[string(e)], e))
	}
	return strings.Join(parts, ", ")
}

// toTry prints what to copy into another terminal.
func (p *demoPrinter) toTry(d *demo) {
	me := selfCommand()
	const header = "-H 'Content-Type: application/json'" // and lines that a terminal can hold: only the key's is longer
	p.printf("\nallowed:\n  curl -N %s/v1/chat/completions \\\n    %s \\\n    -H 'Authorization: Bearer %s' \\\n", d.gate, header, d.ordinary)
	p.printf("    -d '{\"model\":\"%s\",\"stream\":true,\n         \"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}'\n", d.model)
	p.printf("refused:\n  curl -i %s/collective_rpc \\\n    %s \\\n    -H 'Authorization: Bearer %s' \\\n    -d '{\"method\":\"shutdown\"}'\n", d.gate, header, d.ordinary)
	p.printf("and why:\n  %s explain POST /collective_rpc --key-name ordinary --state %s\n", me, d.state)
	p.printf("all records, and whether they hold:\n  %s log show --state %s\n  %s log verify --state %s\n", me, d.state, me, d.state)
	p.printf("a gateway of your own in front of the same fake:\n  %s serve --upstream %s \\\n    --upstream-key-file %s/vllm-key --state vallum-state\n", me, d.direct, d.state)
	p.printf("\nCtrl-C ends the demo and removes its directory.\n")
}

// selfCommand is how this program was started, to be typed again: `go run` builds into a directory that it removes.
func selfCommand() string {
	if exe, err := os.Executable(); err == nil && strings.Contains(exe, "go-build") {
		return "go run ./cmd/vallum"
	}
	return os.Args[0]
}
