package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/conformance/nodes"
	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/internal/notrun"
)

func TestPathsAreTakenInTurnAndComparedRoundByRound(t *testing.T) {
	var order []string
	round := map[string]float64{}
	rows, err := interleave(t.Context(), "network", 3, []figure{{"speed", "x"}}, io.Discard, func(_ context.Context, path string) ([]float64, error) {
		order = append(order, path)
		round[path]++
		if path == bare {
			return []float64{10 * round[path]}, nil // a machine that becomes faster
		}
		return []float64{5 * round[path]}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{bare, overlay, overlay, bare, bare, overlay}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if r := rows[0]; r.Bare != 20 || r.Overlay != 10 || r.Ratio != 0.5 || r.Low != 0.5 || r.High != 0.5 || r.Rounds != 3 {
		t.Errorf("%+v", r)
	}
}

func TestAMeasurementThatFailsIsNoFigure(t *testing.T) {
	for name, row := range map[string]struct {
		values []float64
		err    error
		want   string
	}{
		"it fails":             {nil, errors.New("no tunnel"), "no tunnel"},
		"a figure is missing":  {nil, nil, "0 figures of 1"},
		"nothing was measured": {[]float64{0}, nil, "is 0 on the bare path"},
	} {
		_, err := interleave(t.Context(), "network", 2, []figure{{"speed", "x"}}, io.Discard, func(context.Context, string) ([]float64, error) { return row.values, row.err })
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestACompletionOfAnotherLengthIsRefused(t *testing.T) {
	const token = `data: {"choices":[{"text":"x"}],"usage":null}` + "\n\n"
	usage := func(n int) string {
		return fmt.Sprintf(`data: {"choices":[],"usage":{"completion_tokens":%d}}`+"\n\n", n)
	}
	const done = "data: [DONE]\n\n"
	for name, row := range map[string]struct{ stream, want string }{
		"whole":           {token + token + usage(2) + done, ""},
		"short":           {token + usage(1) + done, "vLLM counts 1 tokens, and 2 were asked for"},
		"no token at all": {usage(2) + done, "and 2 were asked for"},
		"cut":             {token + token + usage(2), "without [DONE]"},
		"an error":        {"data: oops\n\n", "reading the stream"},
	} {
		last, err := lastToken(strings.NewReader(row.stream), 2)
		if row.want == "" && (err != nil || last.IsZero()) || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v %v", name, last, err)
		}
	}
}

func TestMistakesOfTheCaller(t *testing.T) {
	for _, args := range [][]string{{"-only", "pp"}, {"-mtu", "1280"}, {"-mtu", "jumbo"}, {"-rounds", "0"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
	if o, err := parse(nil); err != nil || len(o.only) != 3 || len(o.mtus) != 2 {
		t.Errorf("without arguments: %+v %v", o, err)
	}
}

// One round of the network, end to end: the tunnel costs, and its processes are found.
func TestTheNetworkIsMeasured(t *testing.T) {
	if os.Geteuid() != 0 {
		notrun.For(t, "%v", nodes.ErrNotRoot)
	}
	binary, err := realvallum.Build(t.Context(), "../..", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run([]string{"-vallum", binary, "-only", network, "-mtu", "1500", "-rounds", "1"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cores that both nodes share", "| throughput, 1 connection, MTU 1500", "| CPU for a GB", "| round trip, 16 KiB"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, out.String())
		}
	}
}
