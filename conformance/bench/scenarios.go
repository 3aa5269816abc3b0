package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// How a figure is compared.
type comparison uint8

const (
	asRatio  comparison = iota // to nginx, in the same round
	asAdded                    // to the upstream without a proxy, in the same round
	absolute                   // as it is
)

// figure is one line of the table. The bounds hold for Vallum: must, and the aim; 0 is none.
type figure struct {
	Name      string
	Unit      string // of the measured value
	compare   comparison
	Must, Aim float64
}

// scenario is one kind of load. Every round measures each target once, in turn.
type scenario struct {
	name    string
	title   string
	figures []figure
	rounds  int
	weight  int    // share of the time: about the seconds that a round takes
	fresh   bool   // the target is started anew for each measurement: memory does not shrink
	direct  bool   // the upstream alone is measured as well
	without string // a target that is not measured
	warm    func(context.Context, *target) error
	measure func(context.Context, *target) ([]float64, error) // as many as figures
}

// cpuFigures are the three of a closed loop: what a request costs, and how long it takes when nothing is spared.
func cpuFigures(must, aim float64) []figure {
	return []figure{
		{Name: "CPU per request", Unit: "µs", Must: must, Aim: aim},
		{Name: "p50", Unit: "µs"},
		{Name: "p99", Unit: "µs"},
	}
}

func scenarios(o options) []scenario {
	full := func(long, short int) int {
		if o.short {
			return short
		}
		return long
	}
	chat := func(size int, make func(int) string) func(*target) batch {
		body := make(size)
		return func(t *target) batch { return batch{request: post(t, chatPath, t.key, body), status: 200} }
	}
	small, large := chat(1<<10, question), chat(100<<10, conversation)
	stranger := func(t *target) batch {
		return batch{request: post(t, t.refuse, "", question(1<<10)), status: 401}
	}
	return []scenario{
		closedLoop("unary16", "1 KB unary, 16 connections", small, 16, full(16000, 8000), full(7, 3), 1.7, 1.25),
		closedLoop("unary64", "1 KB unary, 64 connections", small, 64, full(16000, 8000), full(7, 3), 1.7, 1.25),
		closedLoop("body100k", "100 KB strict JSON, 16 connections", large, 16, full(4000, 1600), full(7, 3), 3.3, 2.6),
		closedLoop("refusal", "no key: 401, 16 connections", stranger, 16, full(24000, 12000), full(7, 3), 2.0, 1.3),
		paced("paced", "1 KB unary, 500 a second", small, batch{connections: 8, count: full(800, 400), pause: 16 * time.Millisecond}, full(5, 3)),
		paced("first", "stream, 100 a second: to the first event", func(t *target) batch {
			return batch{request: post(t, chatPath, t.key, streamed(2, time.Millisecond, 300)), status: 200, firstEvent: true}
		}, batch{connections: 4, count: full(200, 100), pause: 40 * time.Millisecond}, full(5, 3)),
		openStreams("streams", "500 open streams, 10000 events a second", 500, 50*time.Millisecond, time.Duration(full(2400, 1200))*time.Millisecond, full(4, 2)),
		longPrompts("prompts", "500 open streams that began with 100 KB", 500, 100<<10, full(2, 1)),
		floods("declared", "413: 64 connections declare 64 MiB", 40, 10, full(3, 1),
			flood{connections: 64, each: full(8, 4), declared: 64 << 20, sent: 1 << 20}),
		floods("chunked", "413: 8 connections, chunks without an end", 0, 0, full(3, 1),
			flood{connections: 8, each: full(3, 2), sent: 12 << 20}),
	}
}

func closedLoop(name, title string, of func(*target) batch, connections, count, rounds int, must, aim float64) scenario {
	run := func(ctx context.Context, t *target, count int) (latencies, error) {
		b := of(t)
		b.connections, b.count = connections, count
		return b.run(ctx, t.address)
	}
	return scenario{
		name: name, title: title, figures: cpuFigures(must, aim), rounds: rounds, weight: 4,
		warm: func(ctx context.Context, t *target) error {
			_, err := run(ctx, t, max(count/8, connections))
			return err
		},
		measure: func(ctx context.Context, t *target) ([]float64, error) {
			before, err := t.cpu()
			if err != nil {
				return nil, err
			}
			took, err := run(ctx, t, count)
			if err != nil {
				return nil, err
			}
			after, err := t.cpu()
			return []float64{micros(after-before) / float64(len(took)), micros(took.quantile(0.5)), micros(took.quantile(0.99))}, err
		},
	}
}

// paced measures what a proxy adds when the machine is not busy: requests at fixed times, few at once.
func paced(name, title string, of func(*target) batch, shape batch, rounds int) scenario {
	run := func(ctx context.Context, t *target, count int) (latencies, error) {
		b := of(t)
		b.connections, b.pause, b.count = shape.connections, shape.pause, count
		return b.run(ctx, t.address)
	}
	return scenario{
		name: name, title: title, rounds: rounds, weight: 8, direct: true,
		figures: []figure{
			{Name: "added p50", Unit: "µs", compare: asAdded},
			{Name: "added p99", Unit: "µs", compare: asAdded, Must: 500, Aim: 300},
		},
		warm: func(ctx context.Context, t *target) error { _, err := run(ctx, t, 4*shape.connections); return err },
		measure: func(ctx context.Context, t *target) ([]float64, error) {
			took, err := run(ctx, t, shape.count)
			return []float64{micros(took.quantile(0.5)), micros(took.quantile(0.99))}, err
		},
	}
}

// openStreams holds n streams open, each with an event every pause, and looks for a while.
func openStreams(name, title string, n int, pause, window time.Duration, rounds int) scenario {
	return scenario{
		name: name, title: title, rounds: rounds, weight: 12, fresh: true,
		figures: []figure{
			{Name: "CPU per event", Unit: "µs", Must: 1.35, Aim: 1.2},
			{Name: "memory per stream", Unit: "KB", compare: absolute, Must: 64, Aim: 36},
			{Name: "memory when idle", Unit: "MB", compare: absolute, Must: 25, Aim: 15},
		},
		measure: func(ctx context.Context, t *target) ([]float64, error) {
			idle, err := t.memory()
			if err != nil {
				return nil, err
			}
			s, err := openWarm(ctx, t, n, streamed(100_000, pause, 300))
			if err != nil {
				return nil, err
			}
			defer s.close()
			time.Sleep(window / 6) // past the burst of the opening
			cpu0, err0 := t.cpu()
			events0 := s.events.Load()
			time.Sleep(window)
			cpu1, err1 := t.cpu()
			events := s.events.Load() - events0
			if events == 0 {
				return nil, fmt.Errorf("%s: %d streams without an event in %s", t.name, n, window)
			}
			each, err2 := s.memoryEach(t)
			return []float64{micros(cpu1-cpu0) / float64(events), each, float64(idle) / (1 << 20)}, errors.Join(err0, err1, err2)
		},
	}
}

// longPrompts holds streams open that began with a long prompt: what of it stays for as long as the stream does.
func longPrompts(name, title string, n, prompt, rounds int) scenario {
	return scenario{
		name: name, title: title, rounds: rounds, weight: 3, fresh: true,
		without: envoy, // bare, it has no bound: it passes everything on
		figures: []figure{{Name: "memory per stream", Unit: "KB", compare: absolute}},
		measure: func(ctx context.Context, t *target) ([]float64, error) {
			s, err := openWarm(ctx, t, n, streamed(100_000, 200*time.Millisecond, prompt))
			if err != nil {
				return nil, err
			}
			defer s.close()
			time.Sleep(time.Second)
			each, err := s.memoryEach(t)
			return []float64{each}, err
		},
	}
}

// openWarm opens streams after a few plain requests: what the first one allocates for good is not the streams'.
func openWarm(ctx context.Context, t *target, n int, body string) (*streams, error) {
	warm := batch{request: post(t, chatPath, t.key, question(1<<10)), status: 200, connections: 4, count: 64}
	if _, err := warm.run(ctx, t.address); err != nil {
		return nil, err
	}
	before, err := t.resident("VmRSS")
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, t, n, post(t, chatPath, t.key, body))
	if err == nil {
		s.before = before
	}
	return s, err
}

// memoryEach is how much the process has grown since before the streams, in KB for each; an error if one has ended.
func (s *streams) memoryEach(t *target) (float64, error) {
	now, err := t.resident("VmRSS")
	if failed := s.failed.Load(); failed != nil {
		err = fmt.Errorf("%s: a stream: %w", t.name, *failed)
	}
	return float64(now-s.before) / float64(len(s.conns)) / (1 << 10), err
}

func floods(name, title string, must, aim float64, rounds int, f flood) scenario {
	return scenario{
		name: name, title: title, rounds: rounds, weight: 3, fresh: true,
		without: envoy, // bare, it has no bound: it passes everything on
		figures: []figure{
			{Name: "memory grows by", Unit: "MB", compare: absolute, Must: must, Aim: aim},
			{Name: "refusals read", Unit: "%", compare: absolute},
		},
		measure: func(ctx context.Context, t *target) ([]float64, error) {
			warm := batch{request: post(t, chatPath, t.key, question(1<<10)), status: 200, connections: 4, count: 64}
			if _, err := warm.run(ctx, t.address); err != nil {
				return nil, err
			}
			before, err := t.resident("VmRSS")
			if err != nil {
				return nil, err
			}
			if err := t.forgetPeak(); err != nil {
				return nil, err
			}
			refused, err := f.run(ctx, t)
			if err != nil {
				return nil, err
			}
			peak, err := t.resident("VmHWM")
			return []float64{float64(peak-before) / (1 << 20), 100 * float64(refused) / float64(f.connections*f.each)}, err
		},
	}
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
