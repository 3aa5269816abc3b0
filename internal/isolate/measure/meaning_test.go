package measure

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func rounds(trip time.Duration, bytesPerSecond int64) []Round {
	t := Transfer{bytesPerSecond, time.Second}
	return []Round{{[]time.Duration{trip / 2}, []time.Duration{trip}, t, t}, {[]time.Duration{trip / 2}, []time.Duration{trip}, t, t}}
}

// 160 waits of 0.5 ms are 80 ms a token; 160 × 16 KiB × 1,000 tokens at 256 MiB/s are 9.77 s.
func TestFiguresInWords(t *testing.T) {
	r, err := NewResult("b", "10.99.0.2", rounds(500*time.Microsecond, 256<<20), rounds(50*time.Microsecond, 2560<<20), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := `over the overlay: round trip 250µs, of 16 KiB 500µs (of a hundred the slowest but one 500µs); one connection 268 MB/s out, 268 MB/s in
the bare path:    round trip 25µs, of 16 KiB 50µs (of a hundred the slowest but one 50µs); one connection 2.68 GB/s out, 2.68 GB/s in
overlay to bare:  round trip 10×, 16 KiB 10×, out 0.10×, in 0.10×
tensor parallel across: a model of 80 layers and hidden size 8192 waits 160 times a token: 80ms (bare 8ms) a token; 9.77s (bare 977ms) for a prompt of 1000 tokens. Keep tensor parallel inside a node.
pipeline parallel across: it waits once a token and stage: 500µs (bare 50µs) a token; 122ms (bare 12.2ms) for that prompt. It can go across.
data parallel across: a dense model sends requests and answers only: 250µs (bare 25µs) a message. It goes across best. With experts spread over nodes every layer waits, as in tensor parallel.`
	if got := strings.Join(r.Lines(), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWhatWasNotMeasuredIsSaid(t *testing.T) {
	r, err := NewResult("b", "10.99.0.2", rounds(time.Millisecond, 1<<20), nil, ErrNotOffered)
	text := strings.Join(r.Lines(), "\n")
	if err != nil || r.Bare != nil || !strings.Contains(text, "the bare path was not measured: the peer does not offer it") || strings.Contains(text, "(bare") {
		t.Errorf("%v\n%s", err, text)
	}
	if r, err := NewResult("b", "", nil, nil, errors.New("x")); err == nil || len(r.Means) > 0 {
		t.Errorf("no round: %+v", r)
	}
}
