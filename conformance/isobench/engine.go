package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/conformance/nodes"
)

const (
	serving = 4 * time.Minute // for vLLM to come up
	crowd   = 8               // streams side by side
	tries   = 3               // of each measurement, of which the fastest counts: the least disturbed
)

// length is how many tokens a completion has: a second's worth or so.
var length = map[string]int{tp: 64, dp: 600}

var engineFigures = []figure{{"step, 1 stream", "ms"}, {"step, 8 streams", "ms"}}

// vllm compares decode steps of one deployment over two nodes, whose connections are sent through the tunnel and past it
// in turn: the same processes, the same connections, the same addresses.
func (b *bench) vllm(ctx context.Context, topology string) ([]row, error) {
	l, err := b.lab(ctx, nodes.MTU)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if err := up(ctx, l); err != nil {
		return nil, err
	}
	var tasks []*nodes.Task
	for _, name := range []string{"a", "b"} {
		t, err := l.Node(name).Serve(ctx, "vllm", nodes.VLLM{Topology: topology})
		if err != nil {
			return nil, err
		}
		defer t.Stop()
		tasks = append(tasks, t)
	}
	began := time.Now()
	if err := l.Node("a").WaitServing(ctx, serving, tasks...); err != nil {
		return nil, err
	}
	fmt.Fprintf(b.progress, "  ready after %s\n", time.Since(began).Round(time.Second))
	return interleave(ctx, topology, b.rounds, engineFigures, b.progress, func(ctx context.Context, path string) ([]float64, error) {
		if err := take(ctx, l, path); err != nil {
			return nil, err
		}
		if b.awake {
			stop, err := awake()
			if err != nil {
				return nil, err
			}
			defer stop()
		}
		return measureEngine(ctx, l, topology, path)
	})
}

// take sends what goes between the nodes' overlay addresses through the tunnel, or past it. Vallum's rules refuse the latter:
// they are taken away for that while, and put back by up, as is the route.
func take(ctx context.Context, l *nodes.Lab, path string) error {
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}} {
		n, other := l.Node(pair[0]), l.Node(pair[1])
		if path == overlay {
			if _, err := n.Vallum(ctx, "up"); err != nil {
				return err
			}
			continue
		}
		if r, err := n.Run(ctx, "nft", "delete", "table", "inet", "vallum_isolate"); err != nil && !strings.Contains(r.Err, "No such file") {
			return err
		}
		if err := n.RouteBy(other.Over); err != nil {
			return err
		}
	}
	return nil
}

// measureEngine returns milliseconds a decode step, and refuses a round that took the other path.
func measureEngine(ctx context.Context, l *nodes.Lab, topology, path string) ([]float64, error) {
	far, tokens := map[string]string{}, length[topology]
	if topology == dp {
		far["X-data-parallel-rank"] = "1" // the engine of the other node (vllm 0.32.0: vllm/entrypoints/openai/completion/serving.py)
	}
	if _, err := decode(ctx, l.Node("a"), 1, 8, far); err != nil { // for what the change of the path has left to settle
		return nil, err
	}
	before, err := tunnelled(l)
	if err != nil {
		return nil, err
	}
	var one, all []float64
	for range tries {
		alone, err := decode(ctx, l.Node("a"), 1, tokens, far)
		if err != nil {
			return nil, err
		}
		together, err := decode(ctx, l.Node("a"), crowd, tokens, nil)
		if err != nil {
			return nil, err
		}
		one, all = append(one, alone), append(all, together)
	}
	after, err := tunnelled(l)
	if err != nil {
		return nil, err
	}
	if inside := after - before; path == overlay && inside < uint64(tokens) || path == bare && inside >= uint64(tokens) {
		return nil, fmt.Errorf("%d packets went through the tunnel: this is not the %s path", inside, path)
	}
	return []float64{slices.Min(one), slices.Min(all)}, nil
}

// tunnelled is how many packets a has sent into the overlay.
func tunnelled(l *nodes.Lab) (packets uint64, err error) {
	err = l.Node("a").Do(func() error {
		d, err := netlink.LinkByName(nodes.Device)
		if err != nil {
			return err
		}
		if s := d.Attrs().Statistics; s != nil {
			packets = s.TxPackets
		}
		return nil
	})
	return packets, err
}

// decode completes so many prompts side by side and returns the mean of their milliseconds a token, which is a step of the
// engine's. The first step reads the prompt.
func decode(ctx context.Context, n *nodes.Node, streams, tokens int, header map[string]string) (float64, error) {
	took := make([]time.Duration, streams)
	failed := make([]error, streams)
	var wg sync.WaitGroup
	for i := range streams {
		wg.Go(func() { took[i], failed[i] = complete(ctx, n, fmt.Sprintf("stream %d of many", i), tokens, header) })
	}
	wg.Wait()
	var total time.Duration
	for _, t := range took {
		total += t
	}
	return total.Seconds() * 1000 / float64(streams*tokens), errors.Join(failed...)
}

// complete is the time from a request to the last token of its answer.
func complete(ctx context.Context, n *nodes.Node, prompt string, tokens int, header map[string]string) (time.Duration, error) {
	body, err := json.Marshal(map[string]any{
		"model": nodes.Served, "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": true, "temperature": 0, "stream": true,
		"stream_options": map[string]any{"include_usage": true},
	})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/v1/completions", nodes.APIPort), bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	began := time.Now()
	resp, err := n.Client(time.Minute).Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return 0, fmt.Errorf("vLLM answers %s: %s", resp.Status, b)
	}
	last, err := lastToken(resp.Body, tokens)
	return last.Sub(began), err
}

// lastToken reads a stream of completions: when the last choice came. It refuses one of another number of tokens, for then
// there is nothing to divide by.
func lastToken(stream io.Reader, tokens int) (last time.Time, err error) {
	counted := 0
	for in := bufio.NewScanner(stream); in.Scan(); {
		data, ok := strings.CutPrefix(in.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			if counted != tokens || last.IsZero() {
				return last, fmt.Errorf("vLLM counts %d tokens, and %d were asked for", counted, tokens)
			}
			return last, nil
		}
		var event struct {
			Choices []json.RawMessage
			Usage   *struct {
				CompletionTokens int `json:"completion_tokens"`
			}
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return last, fmt.Errorf("reading the stream: %w: %q", err, data)
		}
		if event.Usage != nil {
			counted = event.Usage.CompletionTokens
		}
		if len(event.Choices) > 0 {
			last = time.Now()
		}
	}
	return last, errors.New("the stream ended without [DONE]")
}
