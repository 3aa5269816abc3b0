// Package daemon puts the parts together: it reads secrets and files, listens, reloads whole snapshots and drains.
// It refuses to start with anything that is wrong, and to replace a configuration that works by one that does not.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/admin"
	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/conns"
	"github.com/vallum/vallum/internal/daemon/screen"
	"github.com/vallum/vallum/internal/gateway"
	"github.com/vallum/vallum/internal/limit"
	"github.com/vallum/vallum/internal/meter"
	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/upstream"
)

// Options of Run.
type Options struct {
	Load     func() (*config.Config, error) // reads the configuration; called again for each reload
	File     string                         // the file that Load reads, to be watched; "" when flags are all there is
	State    string                         // state directory; "" is what the configuration says, or StateDir
	Out      io.Writer                      // gets one line, "listening on URL", once clients are served
	Screen   io.Writer                      // gets what is open and what is not, for people
	Terminal bool                           // Screen is a terminal: a first key may be shown on it
	Log      *slog.Logger
	Ready    func(urls []string) // called once clients are served; may be nil
}

// Daemon is a running gateway: what outlives every reload, and the snapshot that requests begin with now.
type Daemon struct {
	options  Options
	log      *slog.Logger
	state    string
	store    *store.Store
	keys     *authn.Authenticator
	records  *audit.Log
	limits   *limit.Limiter
	memory   *gateway.Memory
	places   *conns.Bound // for clients' connections
	meter    *meter.Meter
	salts    *salter
	work     context.Context // of all that outlives the drain, and whoever asked for a reload; since serve
	reading  sync.Mutex      // one file is read and applied at a time: an older one must not win
	reloads  sync.Mutex      // one snapshot is built at a time
	keyLoads sync.Mutex      // held while the keys are read and put in force
	noted    []store.Key     // the first that were put in force: what changes from then on is recorded; only watchKeys has them once it runs
	behind   bool            // the store's keys changed, and that is not in force or not recorded yet; watchKeys' alone
	current  atomic.Pointer[snapshot]
	servers  map[string]*vllmServer // by name; under reloads
	alive    map[string]bool        // what was last told of each; nil before the first screen; under reloads
	certs    certificates
	files    *watchedFiles           // with what they held when they were first read; watch's alone from then on
	cut      context.CancelCauseFunc // ends what still runs at the end of the drain
	rebuild  chan struct{}           // an upstream's state changed
	draining atomic.Bool
	running  sync.WaitGroup
}

// Run serves until ctx ends, then drains. It returns when everything is closed.
func Run(ctx context.Context, o Options) error {
	d := &Daemon{options: o, log: o.Log, limits: limit.New(), keys: authn.New(authn.Options{}), rebuild: make(chan struct{}, 1), servers: map[string]*vllmServer{}}
	conf, err := d.load()
	if err != nil {
		return err
	}
	if err := d.open(ctx, conf); err != nil {
		return err
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	err = d.serve(ctx, work, conf)
	stop()
	d.running.Wait()
	return errors.Join(err, d.close())
}

// open takes the state directory: store, keys, salts and the audit log. Each refuses what others could read.
func (d *Daemon) open(ctx context.Context, conf *config.Config) error {
	d.state = d.options.State
	if d.state == "" {
		d.state = conf.State
	}
	if d.state == "" {
		dir, err := StateDir()
		if err != nil {
			return err
		}
		d.state = dir
	}
	st, err := store.Open(ctx, d.state)
	if err != nil {
		return err
	}
	d.store = st
	secret, err := st.Secret(ctx, "cache_salt")
	if err != nil {
		return errors.Join(fmt.Errorf("reading the secret of the cache salts: %w", err), st.Close())
	}
	d.salts = &salter{secret: secret}
	d.meter = meter.New()
	d.memory = gateway.NewMemory(int64(conf.Bodies.MaxBuffered))
	d.places = &conns.Bound{Refused: d.tellRefused}
	var held []io.Writer
	if conf.Audit.Notes == "stdout" {
		held = append(held, apart{d.options.Out})
	}
	d.records, err = audit.Open(filepath.Join(d.state, "audit"), audit.Options{
		Sync: audit.Sync(conf.Audit.Sync), Retain: time.Duration(conf.Audit.Retain), MaxSegmentBytes: int64(conf.Audit.Segment),
		MaxSegmentAge: time.Duration(conf.Audit.Rotation), Sinks: held, Problem: func(err error) { d.log.Error("audit", "error", err) },
	})
	if err != nil {
		return errors.Join(fmt.Errorf("opening the audit log: %w", err), st.Close())
	}
	d.gauges()
	return nil
}

// gauges are what is held now, read at each scrape.
func (d *Daemon) gauges() {
	d.meter.Upstreams(func() map[string]bool {
		up := map[string]bool{}
		if s := d.current.Load(); s != nil {
			for _, st := range s.picker.set.States() {
				up[st.Name] = st.Alive
			}
		}
		return up
	})
	d.meter.Gauge("vallum_audit_queue", "Records that wait to be written.", func() float64 { st := d.records.Stats(); return float64(st.Waiting) + float64(st.Kept) })
	d.meter.Gauge("vallum_audit_unsigned", "Records under no checkpoint yet.", func() float64 { st := d.records.Stats(); return float64(st.Lines - min(st.Lines, st.Signed)) })
	d.meter.Gauge("vallum_buffered_bytes", "Bytes of max_buffered that are taken.", func() float64 { return float64(d.memory.Taken()) })
	d.meter.Gauge("vallum_slots", "Slots taken by running requests.", func() float64 { slots, _ := d.limits.InUse(); return float64(slots) })
	d.meter.Gauge("vallum_client_connections", "Connections of clients that are open.", func() float64 { return float64(d.places.Stats().Open) })
	d.meter.Gauge("vallum_client_connections_max", "Connections of clients that may be open.", func() float64 { return float64(d.places.Stats().Most) })
	d.meter.Counter("vallum_client_connections_idle_closed_total", "Idle connections that were closed to make room for others.", nil, func() int64 { return d.places.Stats().IdleClosed })
	const refused, help = "vallum_client_connections_refused_total", "Connections that were closed as they came, by the bound that was reached: max, or per_address."
	d.meter.Counter(refused, help, map[string]string{"bound": "max"}, func() int64 { return d.places.Stats().RefusedAll })
	d.meter.Counter(refused, help, map[string]string{"bound": "per_address"}, func() int64 { return d.places.Stats().RefusedAddress })
	d.meter.Gauge("vallum_reserved_tokens", "Tokens reserved by running requests.", func() float64 { _, tokens := d.limits.InUse(); return float64(tokens) })
}

// tellRefused says in the log, once a minute at most, that clients found no place.
func (d *Daemon) tellRefused(n conns.Refusals) {
	d.log.Warn("connections were refused: connections.max or connections.per_address was reached", "max", n.All, "per_address", n.Address, "last_from", n.Last.String())
}

func (d *Daemon) close() error {
	d.reloads.Lock()
	defer d.reloads.Unlock()
	for _, s := range d.servers {
		s.close()
	}
	d.records.WriteCounts() // before the line that says that nothing follows
	d.record(audit.Stopped, "")
	return errors.Join(d.records.Close(), d.store.Close())
}

// record appends a line about the daemon itself.
func (d *Daemon) record(e audit.Event, detail string) {
	if _, err := d.records.Append(audit.Record{Event: e, Detail: detail}); err != nil {
		d.log.Error("audit", "event", string(e), "error", err)
	}
}

// serve listens, serves until ctx ends, and drains. work is the context of everything that must outlive the drain.
func (d *Daemon) serve(ctx, work context.Context, conf *config.Config) error {
	d.work = work
	d.record(audit.Started, "")
	if _, err := d.loadKeys(ctx); err != nil {
		return err
	}
	if err := d.apply(work, conf); err != nil {
		return err
	}
	servers, probes, err := d.listen(work, conf)
	if err != nil {
		return err
	}
	// Not before everything else is right: it is made once, and shown once.
	first, err := d.firstKey(ctx)
	if err != nil {
		return errors.Join(err, closeAll(append(servers, probes...)))
	}
	failed := make(chan error, len(servers)+len(probes))
	for _, s := range append(servers, probes...) {
		d.running.Go(func() {
			if err := s.serve(); err != nil {
				failed <- fmt.Errorf("serving %s: %w", s.url, err)
			}
		})
	}
	hup := make(chan os.Signal, 1)
	if d.options.File != "" { // otherwise there is nothing to read again, and SIGHUP means what it means to every process
		notifyHangup(hup) // here: whoever is told that it serves may send one, and until then it ends the process
	}
	d.watchAll(work, hup)
	d.awaitUpstreams(ctx)
	slackenHeap()
	d.announce(servers, probes, first)
	select {
	case <-ctx.Done():
		d.log.Info("stopping: running requests may end first", "drain", d.current.Load().conf.Timeouts.Drain)
	case err = <-failed:
	}
	return errors.Join(err, d.shutdown(servers, probes, time.Duration(d.current.Load().conf.Timeouts.Drain)))
}

// awaitUpstreams gives the upstreams a moment to answer, so that the first screen says what they serve. Nothing hangs on it.
func (d *Daemon) awaitUpstreams(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !d.allKnown() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// allKnown reports whether every upstream has answered or failed to.
func (d *Daemon) allKnown() bool {
	if slices.ContainsFunc(d.current.Load().picker.set.States(), func(st upstream.State) bool { return !st.Heard() }) {
		return false
	}
	return !d.current.Load().stale()
}

// announce tells people and scripts that clients are served.
func (d *Daemon) announce(servers, probes []*server, first string) {
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.url)
	}
	now := d.current.Load()
	states := now.picker.set.States()
	d.reloads.Lock()
	d.alive = map[string]bool{}
	for _, st := range states {
		d.alive[st.Name] = st.Alive
	}
	d.reloads.Unlock()
	screen.Write(d.options.Screen, screen.Facts{
		Config: now.conf, Policy: now.gateway.Policy, Upstreams: states, Clients: urls, Probes: urlsOf(probes, "probes"), Admin: urlsOf(probes, "admin"),
		State: d.state, StateFlag: stateFlag(d.state), FirstKey: first, Terminal: d.options.Terminal, Keys: d.holders(),
	})
	for _, u := range urls {
		fmt.Fprintf(d.options.Out, "listening on %s\n", u)
	}
	if d.options.Ready != nil {
		d.options.Ready(urls)
	}
}

// urlsOf are the addresses of the listeners of one kind.
func urlsOf(servers []*server, what string) []string {
	var urls []string
	for _, s := range servers {
		if s.what == what {
			urls = append(urls, s.url)
		}
	}
	return urls
}

// State is what the administration and the probes show.
func (d *Daemon) State() admin.State {
	st := admin.State{Draining: d.draining.Load(), Audit: "writing", Ready: !d.draining.Load()}
	if err := d.records.Stats().NotAdmitted; err != nil {
		st.Audit, st.AuditProblem, st.Ready = "cannot be written", err.Error(), false
	}
	alive := false
	for _, u := range d.current.Load().picker.set.States() {
		one := admin.Upstream{Name: u.Name, Alive: u.Alive, Version: u.Version, Problem: u.Problem, Warning: u.Warning}
		for _, m := range u.Models {
			one.Models = append(one.Models, m.Name)
		}
		alive = alive || u.Alive
		st.Upstreams = append(st.Upstreams, one)
	}
	st.Ready = st.Ready && alive
	return st
}

// writePrivate writes a file that only its owner can read, whole or not at all.
func writePrivate(name string, content []byte) error {
	temp := name + ".new"
	if err := os.WriteFile(temp, content, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", name, err), os.Remove(temp))
	}
	return nil
}

// apart writes notes to a stream that others write lines to as well: the empty line after each keeps them apart.
type apart struct{ io.Writer }

func (a apart) Write(note []byte) (int, error) {
	if _, err := a.Writer.Write(slices.Concat([]byte("\n"), note, []byte("\n"))); err != nil {
		return 0, err
	}
	return len(note), nil
}
