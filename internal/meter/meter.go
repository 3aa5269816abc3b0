// Package meter counts requests, tokens and times, and shows them to Prometheus.
// It refuses to make a label of anything that a request brought: labels come from the catalogue, the configuration and
// the models that the operator's own servers name.
package meter

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// Sample is what is counted of one request.
type Sample struct {
	Operation, Model, Role, Reason, Upstream string // Model and Role of a valid grant, "" otherwise; Reason "" when it was answered
	Outcome                                  verdict.Outcome
	Prompt, Cached, Completion               int64
	Duration                                 time.Duration // in the gateway, from the first byte of the head to the end
	Began                                    bool          // Began was called for it
}

// Meter holds the metrics in a registry of its own. It may be used by any number of goroutines.
type Meter struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	tokens    *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	first     *prometheus.HistogramVec
	between   *prometheus.HistogramVec
	upstream  *prometheus.HistogramVec
	own       *prometheus.HistogramVec
	inFlight  *prometheus.GaugeVec
	malformed prometheus.Counter

	mu    sync.RWMutex
	lines map[line]*series // what the labels of a request lead to, so that they are looked up once
}

// line is the labels of one request.
type line struct{ operation, model, role, reason, ended, upstream string }

// series are the metrics of one line.
type series struct {
	requests                   prometheus.Counter
	prompt, cached, completion prometheus.Counter
	up, down                   prometheus.Counter
	first, between, upstream   func() prometheus.Observer // made with the first observation: a refusal has none
	own                        prometheus.Observer
}

// maxLines bounds the kept lines; beyond them the labels are looked up each time.
const maxLines = 10_000

// Buckets for language models: a first token takes milliseconds to minutes, the next ones milliseconds, whole answers
// up to many minutes.
var (
	firstBuckets   = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320}
	betweenBuckets = []float64{.002, .005, .01, .015, .02, .03, .04, .05, .075, .1, .15, .2, .3, .5, 1, 2.5, 5}
	wholeBuckets   = []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280}
	ownBuckets     = []float64{.00005, .0001, .0002, .0003, .0005, .001, .002, .005, .01, .05, .1, 1, 10}
)

// New makes a meter that has counted nothing.
func New() *Meter {
	m := &Meter{registry: prometheus.NewRegistry(), lines: map[line]*series{}}
	m.requests = m.counter("vallum_requests_total", "Requests, by how they were decided and ended. reason is \"none\" for those that were answered.", "operation", "model", "role", "reason", "ended", "upstream")
	m.tokens = m.counter("vallum_tokens_total", "Tokens of requests, as the upstream counted them, or as the record estimates them where it did not. kind is prompt (cached ones included), cached or completion.", "kind", "operation", "model", "role")
	m.bytes = m.counter("vallum_body_bytes_total", "Bytes of bodies: up to the upstream, down to the caller.", "direction", "operation")
	m.first = m.histogram("vallum_time_to_first_token_seconds", "From sending a streamed request to its first event.", firstBuckets, "operation", "model", "upstream")
	m.between = m.histogram("vallum_inter_token_seconds", "The mean time between two events of a stream; one observation for each stream.", betweenBuckets, "operation", "model", "upstream")
	m.upstream = m.histogram("vallum_upstream_seconds", "From sending a request to the upstream's last byte.", wholeBuckets, "operation", "model", "upstream")
	m.own = m.histogram("vallum_overhead_seconds", "What a request took beyond the upstream's time: the gateway's own work, and the time in which bodies arrived.", ownBuckets, "operation")
	m.inFlight = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "vallum_requests_in_flight", Help: "Requests that were admitted and have not ended."}, []string{"operation"})
	m.malformed = prometheus.NewCounter(prometheus.CounterOpts{Name: "vallum_malformed_requests_total", Help: "Bytes of clients that became no request: they were answered with a bare 400, 431 or the like, or not at all, and their connection ended."})
	m.registry.MustRegister(m.malformed, m.inFlight, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Meter) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *Meter) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(h)
	return h
}

// Gauge shows a number that is asked for at each look, such as the length of the audit queue. The name and help are
// literals of the program: a name twice, or one that Prometheus does not take, is a defect and panics.
func (m *Meter) Gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Counter shows a number that only grows and is asked for at each look, under labels that are literals of the program too.
func (m *Meter) Counter(name, help string, labels map[string]string, value func() int64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return float64(value()) }))
}

// Upstreams shows which servers are up, as up says at each look.
func (m *Meter) Upstreams(up func() map[string]bool) { m.registry.MustRegister(upstreams{up}) }

// Malformed counts bytes that became no request: they never came to the data path, and are in no record.
func (m *Meter) Malformed() { m.malformed.Inc() }

// Handler serves the metrics.
func (m *Meter) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// Began counts a request that was admitted; Observe with Began ends it.
func (m *Meter) Began(operation string) { m.inFlight.WithLabelValues(known(operation)).Inc() }

// Observe counts a request that ended, in whatever way.
func (m *Meter) Observe(s Sample) {
	if s.Began {
		m.inFlight.WithLabelValues(known(s.Operation)).Dec()
	}
	at := m.series(line{known(s.Operation), or(s.Model), or(s.Role), reason(s.Reason), s.Outcome.Ended.String(), or(s.Upstream)})
	at.requests.Inc()
	add(at.prompt, s.Prompt)
	add(at.cached, s.Cached)
	add(at.completion, s.Completion)
	add(at.up, s.Outcome.BytesUp)
	add(at.down, s.Outcome.BytesDown)
	if s.Outcome.Events > 0 {
		at.first().Observe(s.Outcome.FirstByte.Seconds())
	}
	if s.Outcome.InterEvent > 0 {
		at.between().Observe(s.Outcome.InterEvent.Seconds())
	}
	if s.Outcome.Upstream > 0 {
		at.upstream().Observe(s.Outcome.Upstream.Seconds())
	}
	at.own.Observe(max(0, s.Duration-s.Outcome.Upstream).Seconds())
}

func (m *Meter) series(l line) *series {
	m.mu.RLock()
	at := m.lines[l]
	m.mu.RUnlock()
	if at != nil {
		return at
	}
	times := func(h *prometheus.HistogramVec) func() prometheus.Observer {
		return sync.OnceValue(func() prometheus.Observer { return h.WithLabelValues(l.operation, l.model, l.upstream) })
	}
	at = &series{
		requests:   m.requests.WithLabelValues(l.operation, l.model, l.role, l.reason, l.ended, l.upstream),
		prompt:     m.tokens.WithLabelValues("prompt", l.operation, l.model, l.role),
		cached:     m.tokens.WithLabelValues("cached", l.operation, l.model, l.role),
		completion: m.tokens.WithLabelValues("completion", l.operation, l.model, l.role),
		up:         m.bytes.WithLabelValues("up", l.operation),
		down:       m.bytes.WithLabelValues("down", l.operation),
		first:      times(m.first),
		between:    times(m.between),
		upstream:   times(m.upstream),
		own:        m.own.WithLabelValues(l.operation),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.lines) < maxLines {
		m.lines[l] = at
	}
	return at
}

// known is the operation's id if the catalogue has it, and "none" for requests that matched no operation.
func known(operation string) string {
	if _, ok := vllm.ByID(operation); !ok {
		return "none"
	}
	return operation
}

// reason is the reason's code if it is one.
func reason(code string) string {
	if code == "" {
		return "none"
	}
	if _, ok := verdict.ReasonOf(code); !ok {
		return verdict.Unanswered.String()
	}
	return code
}

func or(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// add adds a count. Less than nothing would panic, and is nothing.
func add(c prometheus.Counter, n int64) {
	if n > 0 {
		c.Add(float64(n))
	}
}

// upstreams collects which servers are up.
type upstreams struct{ up func() map[string]bool }

var upDesc = prometheus.NewDesc("vallum_upstream_up", "1 when the upstream answers its /health.", []string{"upstream"}, nil)

func (u upstreams) Describe(ch chan<- *prometheus.Desc) { ch <- upDesc }

func (u upstreams) Collect(ch chan<- prometheus.Metric) {
	for name, up := range u.up() {
		value := 0.0
		if up {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, value, name)
	}
}
