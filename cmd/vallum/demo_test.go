package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vallum/vallum/internal/vllm"
)

// goodRow is a row of an operation as the gateway should treat it: refused three times.
func goodRow(op *vllm.Operation) demoRow {
	return demoRow{
		Operation: op.ID, Group: op.Group, Method: op.Method, Path: op.Path, Direct: demoAnswer{Status: 200, Did: "ran", Reached: true},
		NoKey: demoAnswer{Status: 401, Reason: "no_credential"}, Ordinary: demoAnswer{Status: 403, Reason: "not_permitted"}, Admin: demoAnswer{Status: 403, Reason: "not_permitted"},
	}
}

func TestDemoSaysWhatPassedThatShouldNot(t *testing.T) {
	rpc, _ := vllm.ByID("rpc.collective")
	chat, _ := vllm.ByID("chat.create")
	pause, _ := vllm.ByID("engine.pause")
	for _, row := range []struct {
		name string
		op   *vllm.Operation
		edit func(*demoRow)
		want string
	}{
		{"nothing passed", rpc, func(*demoRow) {}, ""},
		{"answered without a key", rpc, func(r *demoRow) { r.NoKey.Status = 200 }, "POST /collective_rpc passed without a key"},
		{"arrived although it was refused", rpc, func(r *demoRow) { r.Ordinary.Reached = true }, "POST /collective_rpc passed with the ordinary key"},
		{"the admin key has no development", rpc, func(r *demoRow) { r.Admin.Status = 200 }, "POST /collective_rpc passed with the admin key"},
		{"the ordinary key cannot pause", pause, func(r *demoRow) { r.Ordinary.Status, r.Admin.Status = 200, 200 }, "POST /pause passed with the ordinary key"},
		{"the admin key can pause", pause, func(r *demoRow) { r.Admin.Status, r.Admin.Reached = 200, true }, ""},
		{"the ordinary key can chat", chat, func(r *demoRow) { r.Ordinary.Status, r.Ordinary.Reached = 200, true }, ""},
		{"a chat that was refused", chat, func(*demoRow) {}, "POST /v1/chat/completions did not pass with the ordinary key: 403 not_permitted"},
	} {
		r := goodRow(row.op)
		row.edit(&r)
		if got := judge(row.op, r); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

func TestDemoTableFitsTheTerminal(t *testing.T) {
	for _, columns := range []int{80, 100} {
		tableFits(t, columns)
	}
}

func tableFits(t *testing.T, columns int) {
	var out bytes.Buffer
	p := demoPrinter{w: &out, narrow: columns < 100}
	p.head(&demo{direct: "http://127.0.0.1:65535", gate: "http://127.0.0.1:65535"})
	rows := 0
	for _, group := range demoGroups {
		for _, op := range vllm.InGroup(group) {
			if op.Server != "" || op.Mount {
				continue
			}
			r := goodRow(op)
			if r.Direct.Did = didWord(op, 200); len(r.Direct.Did) > 7 {
				t.Errorf("%s: %q has more than 7 letters", op.ID, r.Direct.Did)
			}
			p.row(r)
			rows++
		}
	}
	for line := range strings.SplitSeq(out.String(), "\n") {
		if n := utf8.RuneCountInString(line); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if p.row(unusual()); p.narrow && !strings.Contains(out.String(), "429 too_many_requests") {
		t.Errorf("a reason that is not named above the table is lost:\n%s", out.String())
	}
	if rows < 80 || len(demoGroups) != len(vllm.Groups()) {
		t.Errorf("the table has %d rows of %d groups, and the catalogue has %d groups", rows, len(demoGroups), len(vllm.Groups()))
	}
}

// unusual is a row with a reason that the narrow table does not name above.
func unusual() demoRow {
	rpc, _ := vllm.ByID("rpc.collective")
	r := goodRow(rpc)
	r.NoKey = demoAnswer{Status: 429, Reason: "too_many_requests"}
	return r
}

func TestDemoColoursOnlyWhenAsked(t *testing.T) {
	for _, colored := range []bool{false, true} {
		var out bytes.Buffer
		p := demoPrinter{w: &out, color: colored}
		rpc, _ := vllm.ByID("rpc.collective")
		p.row(goodRow(rpc))
		if got := strings.Contains(out.String(), "\x1b["); got != colored {
			t.Errorf("colours asked %t, seen %t", colored, got)
		}
	}
	if (streams{out: &bytes.Buffer{}}).colors() {
		t.Error("colours into something that is no terminal")
	}
}
