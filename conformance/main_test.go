//go:build conformance

package conformance

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
)

// table holds what was shown. fleet holds what it was shown against.
var (
	table = report.New(os.Stdout)
	fleet *standFleet
	built = flag.String("vallum", "", "a vallum binary to prove, instead of building the tree's")
	keep  = flag.Bool("keep", false, "keep the folder with logs, state and records")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

// runAll runs the suites with the servers under one context, so that whatever
// happens, an interrupt included, no server is left behind.
func runAll(m *testing.M) int {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	dir, err := os.MkdirTemp("", "vallum-conformance-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fleet = newFleet(ctx, dir, chosenSuites())
	code := m.Run()
	fleet.stopAll()

	if flag.Lookup("test.run").Value.String() == "" {
		table.Missing(expected())
	}
	fmt.Println()
	if err := table.Write(os.Stdout); err != nil {
		fmt.Println(err)
		code = 1
	}
	if !table.Good() {
		code = 1
	}
	if code == 0 && !*keep {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Println(err)
		}
		return 0
	}
	fmt.Printf("logs, state and records: %s\n", dir)
	return code
}

// chosenSuites is the suites that -run selects, so that only their servers are
// started ahead of time.
func chosenSuites() []suite {
	pattern, _, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	match, err := regexp.Compile(pattern)
	if err != nil {
		return nil
	}
	var out []suite
	for _, s := range suites() {
		if match.MatchString("Test" + s.name()) {
			out = append(out, s)
		}
	}
	return out
}

// expected is a row for every proof of every suite.
func expected() []report.Row {
	var rows []report.Row
	for _, p := range readerProofs {
		rows = append(rows, report.Row{Property: p.name, Part: readerPart, Version: vllmVersion})
	}
	for _, c := range classClients() {
		rows = append(rows, report.Row{Property: classProperty, Part: c.name, Version: c.version})
	}
	for _, p := range proofsKube(&cluster{}) {
		rows = append(rows, report.Row{Property: p.name, Part: kubePart, Version: parts.KubeVersion})
	}
	for _, p := range arm64Proofs {
		rows = append(rows, report.Row{Property: p.name, Part: emulatorPart, Version: emulatorVersion})
	}
	for _, p := range (&kernelMachine{}).proofs() {
		rows = append(rows, report.Row{Property: p.name, Part: kernelPart, Version: kernelVersion()})
	}
	for _, p := range torchProofs {
		rows = append(rows, report.Row{Property: p.name, Part: torchPart, Version: torchVersion})
	}
	for _, p := range proofsDP(&duel{}) {
		rows = append(rows, report.Row{Property: p.name, Part: partOf(topologyDP), Version: vllmVersion})
	}
	for _, p := range proofsTP(&duel{}) {
		rows = append(rows, report.Row{Property: p.name, Part: partOf(topologyTP), Version: vllmVersion})
	}
	for _, s := range suites() {
		for _, p := range s.proofs {
			rows = append(rows, report.Row{Property: p.name, Part: s.part(), Version: s.config.Release()})
		}
	}
	return rows
}
