//go:build conformance

package conformance

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/conformance/nodes"
	"github.com/vallum/vallum/conformance/report"
	"github.com/vallum/vallum/internal/isolate/wire"
)

// Times of a real vLLM over two nodes.
const (
	serving   = 240 * time.Second // to come up
	answering = 60 * time.Second  // to complete a prompt, also after what was done to it
	gaveUp    = 6 * time.Second   // after which a client that is not answered goes
)

// topology is one way to spread vLLM over two nodes: its flags without Vallum, by rank. With it `isolate exec` adds them.
type topology struct {
	name   string
	bare   func(first netip.Addr, rank int) []string
	ranks  []int // to which prompts are sent; -1 is any
	events bool  // KV events are published
}

var (
	topologyDP = topology{"dp", bareDP, []int{0, 1}, true}
	topologyTP = topology{"tp", bareTP, []int{-1}, false}
)

const eventsConfig = `{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557"}`

func bareDP(first netip.Addr, rank int) []string {
	args := []string{
		"--data-parallel-size", "2", "--data-parallel-size-local", "1", "--data-parallel-address", first.String(), "--data-parallel-rpc-port", "29550",
		"--kv-events-config", eventsConfig,
	}
	if rank > 0 {
		args = append(args, "--headless", "--data-parallel-start-rank", "1")
	}
	return args
}

func bareTP(first netip.Addr, rank int) []string {
	args := []string{
		"--nnodes", "2", "--node-rank", fmt.Sprint(rank), "--master-addr", first.String(), "--master-port", "29501",
		"--distributed-executor-backend", "mp", "--tensor-parallel-size", "2",
	}
	if rank > 0 {
		args = append(args, "--headless")
	}
	return args
}

// spread is a real vLLM over the nodes a and b.
type spread struct {
	lab   *nodes.Lab
	tasks []*nodes.Task
}

func (s *spread) a() *nodes.Node { return s.lab.Node("a") }

// post sends JSON to the API from its own node, so that the client's part is on no wire.
func (s *spread) post(path string, body doc, wait time.Duration, header ...string) (answer, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequest("POST", fmt.Sprintf("http://127.0.0.1:%d%s", nodes.APIPort, path), bytes.NewReader(b))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.a().Client(wait).Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, read}, err
}

// prompt is a text that no one has sent before, longer than a block of the cache, and the forms in which its tokens
// cross a wire.
func (s *spread) prompt(p *report.Proof) (text string, needles [][]byte) {
	p.Helper()
	text = fmt.Sprintf("the marked prompt %s: ", randomHex()) + strings.Repeat("sphinx of black quartz judge my vow ", 12)
	needles, err := wire.Needles(s.tokens(p, text), text[:48])
	if err != nil {
		p.Fatal(err)
	}
	return text, needles
}

// tokens are ids of the text that stand side by side, as vLLM itself tells them.
func (s *spread) tokens(p *report.Proof, text string) []uint32 {
	p.Helper()
	a, err := s.post("/tokenize", doc{"model": nodes.Served, "prompt": text}, answering)
	if err != nil || a.status != http.StatusOK {
		p.Fatalf("/tokenize: %v %s", err, a)
	}
	var got struct{ Tokens []uint32 }
	if err := json.Unmarshal(a.body, &got); err != nil || len(got.Tokens) < 160 {
		p.Fatalf("/tokenize: %v, %d tokens", err, len(got.Tokens))
	}
	return got.Tokens[2:40]
}

// complete has the prompt completed by an engine of the rank; -1 is any.
func (s *spread) complete(text string, rank int, wait time.Duration) error {
	var header []string
	if rank >= 0 {
		header = []string{"X-data-parallel-rank", fmt.Sprint(rank)}
	}
	a, err := s.post("/v1/completions", doc{"model": nodes.Served, "prompt": text, "max_tokens": 8, "temperature": 0, "ignore_eos": true}, wait, header...)
	if err != nil {
		return err
	}
	return ok(`"finish_reason":"length"`)(a)
}

func (s *spread) mustComplete(p *report.Proof, text string, ranks ...int) {
	p.Helper()
	for _, rank := range ranks {
		if err := s.complete(text, rank, answering); err != nil {
			p.Fatalf("a completion of rank %d: %v", rank, err)
		}
	}
}

// targets is every port on which the nodes listen, at every address that a stranger could try.
func (s *spread) targets(p *report.Proof, over bool) []netip.AddrPort {
	p.Helper()
	var all []netip.AddrPort
	for _, name := range []string{"a", "b"} {
		n := s.lab.Node(name)
		listeners, err := n.Listeners()
		if err != nil {
			p.Fatal(err)
		}
		for _, l := range listeners {
			all = append(all, netip.AddrPortFrom(n.Under, l.Port()))
			if over {
				all = append(all, netip.AddrPortFrom(n.Over, l.Port()))
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// heard is what an outsider was told over ZeroMQ.
type heard struct {
	greeted, published, messages, marked int
	from                                 map[string]int // marked messages by target
}

// eavesdrop has a machine subscribe to all of the targets while f runs. When something marked is expected it waits for it.
func (s *spread) eavesdrop(p *report.Proof, from string, targets []netip.AddrPort, needles [][]byte, expect bool, f func()) heard {
	p.Helper()
	t := launch(p, s.lab.Node(from), fmt.Sprintf("eavesdrop-%s", randomHex()[:6]), python(p, "eavesdrop.py")...)
	defer t.Stop()
	ask := struct {
		Targets []netip.AddrPort `json:"targets"`
		Needles []string         `json:"needles"`
	}{Targets: targets}
	for _, n := range needles {
		ask.Needles = append(ask.Needles, hex.EncodeToString(n))
	}
	if err := json.NewEncoder(t.In).Encode(ask); err != nil {
		p.Fatal(err)
	}
	if err := t.WaitFor(`"subscribed"`, slowly); err != nil {
		p.NotRun("listening from %s: %v", from, err)
	}
	<-time.After(shut) // the subscription is on its way
	f()
	if expect {
		if err := t.WaitFor(`"marked": true`, soon); err != nil {
			p.Log("nothing marked was heard: ", err)
		}
	} else {
		<-time.After(shut)
	}
	h := heard{from: map[string]int{}}
	for line := range strings.Lines(t.Said()) {
		var e struct {
			Event, Target string
			Targets       []string
			Marked        bool
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			p.Fatalf("%v: %s", err, t.Said())
		}
		switch e.Event {
		case "greeted":
			h.greeted = len(e.Targets)
		case "published":
			h.published++
		case "message":
			h.messages++
			if e.Marked {
				h.marked++
				h.from[e.Target]++
			}
		}
	}
	p.Logf("what %s was told: %+v", from, h)
	return h
}
