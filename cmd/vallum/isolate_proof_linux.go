package main

import (
	"fmt"

	"github.com/vallum/vallum/internal/daemon/screen"
	"github.com/vallum/vallum/internal/isolate/measure"
	"github.com/vallum/vallum/internal/isolate/wire"
)

// proof is what verify has found: said line by line, or all at once as JSON. The zero proof holds nothing: where nothing
// was asked, nothing is proven.
type proof struct {
	s                    streams
	asJSON               bool
	failed, inconclusive bool

	Node   string   `json:"node,omitempty"` // this one; an outsider has no name
	Checks []proven `json:"checks"`
	Notes  []string `json:"notes,omitempty"`
	// NotProtected is what carries traffic past all that is asked.
	NotProtected []string         `json:"not_protected,omitempty"`
	Wire         *wire.Report     `json:"wire,omitempty"`
	Measured     []measure.Result `json:"measured,omitempty"`
	Status       int              `json:"status"` // of the command's exit
}

// proven is one question and its answer.
type proven struct {
	Holds bool   `json:"holds"`
	What  string `json:"what"`
}

func (p *proof) ok(format string, args ...any) { p.check(true, "ok    ", format, args...) }

func (p *proof) fail(format string, args ...any) {
	p.failed = true
	p.check(false, "FAIL  ", format, args...)
}

func (p *proof) check(holds bool, mark, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	p.Checks = append(p.Checks, proven{holds, what})
	p.say("%s%s", mark, screen.Wrap(what, "      ", 6, screenColumns))
}

// unsure is a question that could not be asked: neither yes nor no.
func (p *proof) unsure(format string, args ...any) {
	p.inconclusive = true
	what := fmt.Sprintf(format, args...)
	p.Notes = append(p.Notes, what)
	p.say("?     %s", screen.Wrap(what, "      ", 6, screenColumns))
}

// note is what neither holds nor fails.
func (p *proof) note(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	p.Notes = append(p.Notes, what)
	p.say("      %s", screen.Wrap(what, "      ", 6, screenColumns))
}

// say prints what JSON has in a field of its own.
func (p *proof) say(format string, args ...any) {
	if !p.asJSON {
		fmt.Fprintf(p.s.out, format+"\n", args...)
	}
}

// end is the command's answer: one failure outweighs all that could not be tried.
func (p *proof) end() error {
	var err error
	if len(p.Checks) == 0 && !p.inconclusive {
		p.unsure("nothing was asked: the manifest has no other node")
	}
	switch {
	case p.failed:
		p.Status, err = exitNo, errNo
	case p.inconclusive:
		p.Status, err = exitInconclusive, statusError(exitInconclusive)
	case len(p.NotProtected) > 0:
		p.Status, err = exitNotProtected, statusError(exitNotProtected)
	}
	if p.asJSON {
		if err := p.s.whole().printJSON(p); err != nil {
			return err
		}
	}
	return err
}
