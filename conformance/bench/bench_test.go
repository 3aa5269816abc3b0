package main

import (
	"context"
	"encoding/json"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// startFake serves the fake upstream inside the test.
func startFake(t *testing.T) *target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f := newFake()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return &target{name: direct, address: l.Addr().String(), key: "sk-none"}
}

func TestBodiesAreJSONOfTheSizeTheySay(t *testing.T) {
	f := newFake()
	_, reply, _ := strings.Cut(string(f.unary), "\r\n\r\n")
	for _, body := range []struct {
		name, text string
		size       int
	}{
		{"question", question(1 << 10), 1 << 10},
		{"conversation", conversation(100 << 10), 100 << 10},
		{"answer", reply, unaryBytes},
		{"stream", streamed(3, time.Millisecond, 300), 0},
		{"models", models, 0},
	} {
		if !json.Valid([]byte(body.text)) || !utf8.ValidString(body.text) {
			t.Errorf("%s is no JSON: %.200s", body.name, body.text)
		}
		if body.size != 0 && len(body.text) != body.size {
			t.Errorf("%s has %d bytes, not %d", body.name, len(body.text), body.size)
		}
	}
}

func TestBatchFailsOnAnAnswerThatIsNotAsItShouldBe(t *testing.T) {
	up := startFake(t)
	b := batch{request: post(up, chatPath, "k", question(1<<10)), status: 200, connections: 2, count: 10}
	took, err := b.run(context.Background(), up.address)
	if err != nil || len(took) != 10 {
		t.Fatalf("%d answers, %v", len(took), err)
	}
	b.request = post(up, "/nothing", "k", "{}")
	if _, err := b.run(context.Background(), up.address); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a 404 among the measured answers: %v", err)
	}
}

func TestStreamGivesEveryEventAndUsageOnlyWhenAsked(t *testing.T) {
	up := startFake(t)
	for body, want := range map[string]int{
		streamed(5, 0, 300): 1 + 5 + 1, // role, words, [DONE]
		strings.Replace(streamed(5, 0, 300), `"stream":true`, `"stream":true,"stream_options":{"include_usage":true}`, 1): 1 + 5 + 1 + 1,
	} {
		c, err := dial(up.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		if _, err := c.nc.Write(post(up, chatPath, "k", body)); err != nil {
			t.Fatal(err)
		}
		if a, err := c.readHead(); err != nil || a.status != 200 || a.length != -1 {
			t.Fatalf("head %+v, %v", a, err)
		}
		got := 0
		if err := c.events(func(n int) bool { got += n; return true }); err != nil || got != want {
			t.Errorf("%d events, want %d, %v", got, want, err)
		}
		// The connection goes on behind the stream.
		if a, err := c.exchange(post(up, chatPath, "k", question(1<<10))); err != nil || a.status != 200 {
			t.Errorf("after the stream: %+v, %v", a, err)
		}
	}
}

func TestChunkedRequestsAreReadWhole(t *testing.T) {
	up := startFake(t)
	c, err := dial(up.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for range 2 {
		a, err := c.exchange(request(up, chatPath, "k", "Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n"))
		if err != nil || a.status != 200 {
			t.Fatalf("%+v, %v", a, err)
		}
	}
}

func TestComparisonIsRoundByRound(t *testing.T) {
	// The machine is twice as slow in the second round: the ratio stays.
	values := map[string][][]float64{nginx: {{10}, {20}, {10}}, vallum: {{15}, {30}, {16}}, direct: {{1}, {2}, {1}}}
	r := figure{Name: "f"}.row(scenario{}, []string{nginx, vallum}, values, 0)
	if r.Compared[vallum] != 1.5 || r.Low != 1.5 || r.High != 1.6 {
		t.Errorf("ratio %v (%v–%v), want 1.5 (1.5–1.6)", r.Compared[vallum], r.Low, r.High)
	}
	r = figure{Name: "f", compare: asAdded}.row(scenario{}, []string{nginx, vallum}, values, 0)
	if r.Compared[vallum] != 15 {
		t.Errorf("added %v, want 15", r.Compared[vallum])
	}
}

func TestTableFitsATerminal(t *testing.T) {
	res := result{Machine: "m", CPUs: 4, Rows: []row{
		{Title: "t", Name: "CPU per request", Unit: "µs", Kind: "ratio", Measured: map[string]float64{nginx: 1234.5}, Compared: map[string]float64{nginx: 1, envoy: 3.5, stdlib: 12.345, vallum: 10.5}, Low: 10.01, High: 11.02, Must: 1.7, Aim: 1.25},
		{Title: "t", Name: "added p99", Unit: "µs", Kind: "added", Compared: map[string]float64{nginx: 12345, vallum: 1.5}, Must: 500, Aim: 300},
	}}
	var b strings.Builder
	res.write(&b)
	for text := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(text, "\n")); n > 80 {
			t.Errorf("%d columns: %q", n, text)
		}
	}
	for _, want := range []string{"1234 µs    3.50×   12.35×   10.50×  10.01–11.02  1.7 1.25", "+12345 µs        -        -    +2 µs", "500  300"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}

func TestCPUTimeIsThatOfTheChild(t *testing.T) {
	p, err := spawn("sh", exec.Command("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; read line"), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	last := time.Duration(0)
	for end := time.Now().Add(10 * time.Second); last < 5*time.Millisecond && time.Now().Before(end); {
		now, err := p.cpu()
		if err != nil || now < last {
			t.Fatalf("%v after %v, %v", now, last, err)
		}
		last = now
	}
	if rss, err := p.memory(); err != nil || rss < 100<<10 {
		t.Errorf("memory %d, %v", rss, err)
	}
	p.stop()
	used := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	if last < 5*time.Millisecond || used+20*time.Millisecond < last {
		t.Errorf("the clock said %v, the kernel at the end %v", last, used)
	}
}
