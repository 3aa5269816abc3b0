// Package meter counts requests, tokens and times for Prometheus.
// It refuses labels that come from a request: they are the catalogue's and the configuration's words only, so that no
// caller can make the number of series grow.
package meter

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vallum/vallum/internal/verdict"
)

// Sample is what is counted of one request. Every string is a word of the catalogue or the configuration, or "".
type Sample struct {
	Operation, Model, Role, Reason, Upstream string
	Outcome                                  verdict.Outcome
	Prompt, Cached, Completion               int64
	Duration                                 time.Duration
	Began                                    bool // Began was called for it
}

// Meter counts. Make it with New; it outlives reloads.
type Meter struct {
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec
	tokens     *prometheus.CounterVec
	inFlight   *prometheus.GaugeVec
	duration   *prometheus.HistogramVec
	firstByte  *prometheus.HistogramVec
	interEvent *prometheus.HistogramVec
	upstream   *prometheus.HistogramVec
}

// Buckets in seconds. A refusal takes microseconds, a prefill up to minutes.
var (
	longBuckets  = []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	eventBuckets = []float64{.001, .0025, .005, .01, .02, .03, .05, .075, .1, .2, .5, 1, 5}
)

// New makes a meter with a registry of its own.
func New() *Meter {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vallum_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "vallum_" + name, Help: help, Buckets: buckets}, labels)
	}
	m := &Meter{
		registry:   prometheus.NewRegistry(),
		requests:   counter("requests_total", "Requests, by how they were answered and how they ended.", "operation", "model", "role", "reason", "ended"),
		tokens:     counter("tokens_total", "Tokens: prompt, cached (a part of prompt), completion.", "kind", "operation", "model", "role"),
		inFlight:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "vallum_requests_in_flight", Help: "Admitted requests that have not ended."}, []string{"operation"}),
		duration:   histogram("request_duration_seconds", "From a request's arrival to its end.", longBuckets, "operation", "model"),
		firstByte:  histogram("time_to_first_token_seconds", "From sending upstream to the first event of a stream.", longBuckets, "operation", "model"),
		interEvent: histogram("inter_token_latency_seconds", "Mean time between the content events of a stream.", eventBuckets, "operation", "model"),
		upstream:   histogram("upstream_duration_seconds", "From sending upstream to its last byte.", longBuckets, "upstream"),
	}
	m.registry.MustRegister(m.requests, m.tokens, m.inFlight, m.duration, m.firstByte, m.interEvent, m.upstream)
	return m
}

// Gauge adds a value that is read at each scrape, such as the length of a queue.
func (m *Meter) Gauge(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "vallum_" + name, Help: help}, read))
}

// Began counts an admitted request as running.
func (m *Meter) Began(operation string) { m.inFlight.WithLabelValues(operation).Inc() }

// Observe counts a request that has ended.
func (m *Meter) Observe(s Sample) {
	m.requests.WithLabelValues(s.Operation, s.Model, s.Role, s.Reason, s.Outcome.Ended.String()).Inc()
	if !s.Began {
		return
	}
	m.inFlight.WithLabelValues(s.Operation).Dec()
	m.duration.WithLabelValues(s.Operation, s.Model).Observe(s.Duration.Seconds())
	for kind, n := range map[string]int64{"prompt": s.Prompt, "cached": s.Cached, "completion": s.Completion} {
		if n > 0 {
			m.tokens.WithLabelValues(kind, s.Operation, s.Model, s.Role).Add(float64(n))
		}
	}
	if s.Upstream == "" {
		return
	}
	m.upstream.WithLabelValues(s.Upstream).Observe(s.Outcome.Upstream.Seconds())
	if s.Outcome.Events > 0 {
		m.firstByte.WithLabelValues(s.Operation, s.Model).Observe(s.Outcome.FirstByte.Seconds())
	}
	if s.Outcome.InterEvent > 0 {
		m.interEvent.WithLabelValues(s.Operation, s.Model).Observe(s.Outcome.InterEvent.Seconds())
	}
}

// Handler serves the metrics.
func (m *Meter) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
