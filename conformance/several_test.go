//go:build conformance

package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/realvllm"
	"github.com/vallum/vallum/conformance/report"
)

// proofsH are about two servers behind one gateway: each serves a model of its
// own name, and both serve "both".
func proofsH() []proof {
	return []proof{
		routesAreCatalogued,
		{"a request goes to a server of its model only, with that server's key", eachToItsOwn},
		{"a model of two servers is asked of both in turn", bothInTurn},
		{"an operation without a model reaches the server that X-Vallum-Upstream names, and no other", namedUpstream},
		secretsAreNeverSeen, recordsAreWhole,
		{"one of two servers is killed: its clients get an end, the other's go on, new requests go to the other, from the first on", oneOfTwoIsKilled}, // ends a server
	}
}

// about is a short chat with a model.
func about(model string) call { return post("/v1/chat/completions", chat("model", model)) }

// arrivedAt counts what reached each of the stand's servers, by its own log.
func (s *stand) arrivedAt(p *report.Proof, path string) map[string]int {
	p.Helper()
	out := map[string]int{}
	for _, v := range s.servers() {
		b, err := os.ReadFile(v.Log)
		if err != nil {
			p.Fatal(err)
		}
		out[v.Served] = bytes.Count(b, []byte(" "+path+" HTTP/1"))
	}
	return out
}

// since is what arrived at each server after before was counted.
func (s *stand) since(p *report.Proof, path string, before map[string]int) map[string]int {
	p.Helper()
	now := s.arrivedAt(p, path)
	for name := range now {
		now[name] -= before[name]
	}
	return now
}

// holderOf is one of the servers itself, with its key.
func holderOf(v *realvllm.Server) target {
	return target{base: v.URL, client: v.Client(), key: v.Key}
}

// upstreamOf is which server the record says that a request went to.
func (g *gate) upstreamOf(p *report.Proof, id string) string {
	p.Helper()
	if _, err := g.ended(id); err != nil {
		p.Error(err)
	}
	records, err := realvallum.Records(g.State)
	if err != nil {
		p.Fatal(err)
	}
	up := ""
	for _, r := range records { // admitted for the one that was picked, ended at the one that answered
		if r["id"] == id && r["upstream"] != nil {
			up = fmt.Sprint(r["upstream"])
		}
	}
	return up
}

// eachToItsOwn: each server refuses the other's key and answers 404 to the
// other's model, so an answer shows where the request went, and with what.
func eachToItsOwn(p *report.Proof, s *stand) {
	path := "/v1/chat/completions"
	wrong := holderOf(s.vllm)
	wrong.key = s.beside.Key
	if got := wrong.do(p, about("left")); got.status != http.StatusUnauthorized {
		p.Fatalf("a server takes the other's key, so nothing is shown: %s", got)
	}
	if got := holderOf(s.vllm).do(p, about("right")); got.status != http.StatusNotFound {
		p.Fatalf("a server answers for the other's model, so nothing is shown: %s", got)
	}
	s.needGate(p)
	for model, want := range map[string]map[string]int{"left": {"left": 3, "right": 0}, "right": {"left": 0, "right": 3}} {
		before := s.arrivedAt(p, path)
		for range 3 {
			got := s.as("anna").do(p, about(model))
			if err := ok(`"choices"`)(got); err != nil {
				p.Errorf("%s through Vallum: %v", model, err)
			}
			if up := s.gate.upstreamOf(p, got.header.Get("X-Request-Id")); up != model {
				p.Errorf("%s: the record says that it went to %q", model, up)
			}
		}
		if got := s.since(p, path, before); !maps.Equal(got, want) {
			p.Errorf("%s: %v arrived, want %v", model, got, want)
		}
	}
	before := s.arrivedAt(p, path)
	if err := refused("not_permitted")(s.as("anna").do(p, about("neither"))); err != nil {
		p.Errorf("a model that nobody serves: %v", err)
	}
	if got := s.since(p, path, before); got["left"]+got["right"] != 0 {
		p.Errorf("a model that nobody serves: %v arrived", got)
	}
	if err := ok(`"left"`, `"right"`, `"both"`)(s.as("anna").do(p, get("/v1/models"))); err != nil {
		p.Errorf("the list has the models of both: %v", err)
	}
}

func bothInTurn(p *report.Proof, s *stand) {
	for _, v := range s.servers() {
		if err := ok(`"choices"`)(holderOf(v).do(p, about("both"))); err != nil {
			p.Fatalf("%s alone: %v", v.Served, err)
		}
	}
	s.needGate(p)
	path := "/v1/chat/completions"
	before := s.arrivedAt(p, path)
	for range 8 {
		if err := ok(`"choices"`)(s.as("anna").do(p, about("both"))); err != nil {
			p.Errorf("through Vallum: %v", err)
		}
	}
	if got := s.since(p, path, before); got["left"] != 4 || got["right"] != 4 {
		p.Errorf("of eight requests %v arrived, want four at each", got)
	}
}

// namedUpstream pauses one of two engines. Which of them has to be said, and
// saying it reaches that one only.
func namedUpstream(p *report.Proof, s *stand) {
	if got := s.direct().do(p, post("/pause", "")); got.status != http.StatusOK {
		p.Fatalf("vLLM alone was not paused by a stranger: %s", got)
	}
	if err := ok("resumed")(s.direct().do(p, post("/resume", ""))); err != nil {
		p.Fatal(err)
	}
	s.needGate(p)
	naming := func(c call, upstream string) call {
		c.header = map[string]string{"X-Vallum-Upstream": upstream}
		return c
	}
	before := s.arrivedAt(p, "/pause")
	for name, want := range map[string]struct {
		c      call
		reason string
	}{
		"no upstream named":      {post("/pause", ""), "upstream_not_named"},
		"one that is not there":  {naming(post("/pause", ""), "middle"), "not_permitted"},
		"two of them":            {naming(post("/pause", ""), "left, right"), "not_permitted"},
		"a model's other server": {naming(about("left"), "right"), "not_permitted"},
	} {
		who := "olga"
		if want.c.path != "/pause" {
			who = "anna"
		}
		if err := refused(want.reason)(s.as(who).do(p, want.c)); err != nil {
			p.Errorf("%s: %v", name, err)
		}
	}
	if got := s.since(p, "/pause", before); got["left"]+got["right"] != 0 {
		p.Errorf("%v arrived of what was refused", got)
	}
	if err := ok("paused")(s.as("olga").do(p, naming(post("/pause", ""), "right"))); err != nil {
		p.Errorf("the operator pauses one: %v", err)
	}
	if got := s.since(p, "/pause", before); got["left"] != 0 || got["right"] != 1 {
		p.Errorf("%v arrived, want one at right", got)
	}
	for v, paused := range map[*realvllm.Server]string{s.vllm: "false", s.beside: "true"} {
		if err := ok(paused)(holderOf(v).do(p, get("/is_paused"))); err != nil {
			p.Errorf("%s says that it is paused, or not: %v", v.Served, err)
		}
	}
	if err := ok("resumed")(s.as("olga").do(p, naming(post("/resume", ""), "right"))); err != nil {
		p.Errorf("the operator resumes it: %v", err)
	}
	for _, name := range []string{"left", "right"} {
		if err := ok(`model_name="` + name + `"`)(s.as("mona").do(p, naming(get("/metrics"), name))); err != nil {
			p.Errorf("the metrics of %s: %v", name, err)
		}
	}
	got := s.as("anna").do(p, naming(about("both"), "left"))
	if up := s.gate.upstreamOf(p, got.header.Get("X-Request-Id")); got.status != http.StatusOK || up != "left" {
		p.Errorf("a model of both, asked of left: it went to %q: %s", up, got)
	}
}

// oneOfTwoIsKilled kills one of two servers of a model while both answer
// requests for it.
func oneOfTwoIsKilled(p *report.Proof, s *stand) {
	s.needGate(p)
	// Whole answers of 300 tokens take their time on a machine with other work.
	g, err := fleet.startGate(s, "killed", strings.Replace(faultTimeouts, "first_byte: 6s", "first_byte: 18s", 1))
	if err != nil {
		p.NotRun("%v", err)
	}
	defer g.Stop()
	quiet := quietGates(p, s)
	clients := clientsInFlight("both", 300) // some go on to their end
	running := followAll(p, g.as("anna"), slices.Concat(clients, clients)...)
	if !running.running() {
		p.Fatal("a request ended before the kill: nothing is shown")
	}
	if err := s.vllm.Signal(syscall.SIGKILL); err != nil {
		p.Fatal(err)
	}
	quiet.meetTheDeath(p, s)
	// While the others run. The first may still find a connection that is just
	// breaking: it gets an error, is never sent twice, and is on record.
	failed := 0
	for range 10 {
		got := g.as("anna").do(p, about("both"))
		if up := g.upstreamOf(p, got.header.Get("X-Request-Id")); got.status == http.StatusOK && up != "right" {
			p.Errorf("a new request was answered by %q", up)
		}
		if got.status != http.StatusOK {
			failed++
			p.Logf("a new request right after the kill: %s", got)
		}
	}
	if failed > 1 {
		p.Errorf("%d of 10 new requests failed although the other server is well", failed)
	}
	cut, whole := 0, 0
	for _, e := range running.all() {
		judge(p, e)
		up := g.upstreamOf(p, e.id)
		how, err := g.ended(e.id)
		switch {
		case err != nil:
			p.Error(err)
		case up == "left" && how != "complete":
			cut++
		case up == "right" && how == "complete" && e.status == http.StatusOK:
			whole++
		default:
			p.Errorf("%s at %q: %d, the record says %q", e.client.name, up, e.status, how)
		}
	}
	if cut == 0 || whole == 0 {
		p.Errorf("%d requests were cut off and %d went on: the kill was not in the middle of both", cut, whole)
	}
	p.Logf("%d requests were cut off, %d went on to their end", cut, whole)
	got := g.as("anna").do(p, about("left"))
	if got.status != http.StatusServiceUnavailable || got.header.Get("X-Vallum-Reason") != "upstream_unavailable" || got.header.Get("Retry-After") == "" {
		p.Errorf("the model that only the killed server has: want 503 upstream_unavailable with Retry-After, got %s", got)
	}
	ready := string(g.probe(p, "/readyz"))
	if !strings.Contains(ready, "left") {
		p.Errorf("/readyz does not name the server that is gone: %s", ready)
	}
}

// quiet are gateways of which nobody asks anything while a server dies: they
// learn of it by the first request. Two, for either may look at /health in that
// moment.
type quiet []*gate

func quietGates(p *report.Proof, s *stand) (gates quiet) {
	p.Helper()
	for i := range 2 {
		g, err := fleet.startGate(s, fmt.Sprintf("quiet-%d", i), faultTimeouts)
		if err != nil {
			p.NotRun("%v", err)
		}
		p.Cleanup(func() { g.Stop() })
		for range 2 { // a connection to each
			if err := ok(`"choices"`)(g.as("anna").do(p, about("both"))); err != nil {
				p.Fatal(err)
			}
		}
		gates = append(gates, g)
	}
	return gates
}

// meetTheDeath waits until nobody listens where the server was, and asks: every
// request is answered, also the one that was to go to it.
func (q quiet) meetTheDeath(p *report.Proof, s *stand) {
	p.Helper()
	for late := time.Now().Add(10 * time.Second); ; {
		_, err := s.vllm.Client().Get(s.vllm.URL + "/health")
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if time.Now().After(late) {
			p.Fatalf("10 s after its end the server's port answers: %v", err)
		}
		<-time.After(time.Millisecond)
	}
	before, asked, passed := s.arrivedAt(p, "/v1/chat/completions"), 0, 0
	for _, g := range q {
		for range 2 {
			got := g.as("anna").do(p, about("both"))
			asked++
			up := g.upstreamOf(p, got.header.Get("X-Request-Id"))
			if got.status != http.StatusOK || up != "right" {
				p.Errorf("a request after the death, at %q: %s", up, got)
			}
			if g.admittedFor(p, got.header.Get("X-Request-Id")) == "left" {
				passed++
			}
		}
	}
	if passed == 0 {
		p.Error("no request was admitted for the server that is gone: nothing is shown")
	}
	// Others that run meanwhile are logged when they end.
	if got := s.since(p, "/v1/chat/completions", before); got["left"] != 0 || got["right"] < asked {
		p.Errorf("of %d requests %v arrived", asked, got)
	}
	p.Logf("%d of %d requests were admitted for the server that had died, and answered by the other", passed, asked)
}

// admittedFor is the server that was picked for a request when it was admitted.
func (g *gate) admittedFor(p *report.Proof, id string) string {
	p.Helper()
	records, err := realvallum.Records(g.State)
	if err != nil {
		p.Fatal(err)
	}
	for _, r := range records {
		if r["id"] == id && r["event"] == "admitted" {
			return fmt.Sprint(r["upstream"])
		}
	}
	return ""
}
