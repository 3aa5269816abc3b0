package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/conns"
	"github.com/vallum/vallum/internal/daemon/keyfile"
	"github.com/vallum/vallum/internal/daemon/resolve"
	"github.com/vallum/vallum/internal/daemon/screen"
	"github.com/vallum/vallum/internal/forward"
	"github.com/vallum/vallum/internal/gateway"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/upstream"
	"github.com/vallum/vallum/internal/vllm"
)

// EffectiveFile is the file of the state directory in which a running gateway leaves the configuration that it uses,
// with every default and the models and releases that it found, for `vallum explain`. It holds no secret.
const EffectiveFile = "effective.yaml"

// snapshot is one configuration at work. Requests keep the one that they began with.
type snapshot struct {
	conf     *config.Config
	gateway  *gateway.Gateway
	picker   *picker
	fileKeys []authn.Key
	states   []upstream.State // of which the policy's models were made
}

// stale reports whether the upstreams serve something else, or are of other releases, than what the policy and the
// effective configuration were made of.
func (s *snapshot) stale() bool {
	now := s.picker.set.States()
	return !slices.EqualFunc(now, s.states, func(a, b upstream.State) bool { return slices.Equal(a.Models, b.Models) && a.Release == b.Release })
}

// apply makes the configuration the one that counts: whole, or not at all.
func (d *Daemon) apply(ctx context.Context, conf *config.Config) error {
	d.reloads.Lock()
	defer d.reloads.Unlock()
	places, err := conns.Fit(conns.Limits{All: int(conf.Clients.Max), Address: int(conf.Clients.PerAddress)}, conns.Files())
	if err != nil {
		return fmt.Errorf("connections.max: %w", err)
	}
	servers, started, err := d.prepare(ctx, conf)
	if err != nil {
		return err
	}
	next, err := d.buildAnswered(ctx, conf, servers, started)
	if err != nil {
		for _, s := range started {
			s.close()
		}
		return err
	}
	d.keyLoads.Lock()
	defer d.keyLoads.Unlock()
	stored, err := d.store.ListKeys(ctx) // what may fail comes before what is changed
	if err == nil {
		err = d.certs.load(conf)
	}
	if err != nil {
		for _, s := range started {
			s.close()
		}
		return fmt.Errorf("putting the configuration in force: %w", err)
	}
	if d.current.Load() != nil {
		d.record(audit.Reloaded, "") // ahead of every request that it decides on
	}
	old := d.servers
	d.servers = servers
	d.places.Limit(places)
	d.install(next)
	d.enforce(stored)
	for name, s := range old {
		if servers[name] != s {
			s.close()
		}
	}
	return nil
}

// buildAnswered makes a snapshot once the servers that were started have answered, or had their time.
func (d *Daemon) buildAnswered(ctx context.Context, conf *config.Config, servers map[string]*vllmServer, started []*vllmServer) (*snapshot, error) {
	next, err := d.build(conf, servers)
	before := d.current.Load()
	if err != nil || before == nil || len(started) == 0 {
		return next, err
	}
	awaitAnswers(ctx, started, mostWait(before, next))
	return d.build(conf, servers)
}

// awaitAnswers gives new servers a moment to answer, so long at most, before requests meet them: a changed timeout is no
// reason for a 503. One that does not answer keeps nothing waiting beyond it.
func awaitAnswers(ctx context.Context, started []*vllmServer, most time.Duration) {
	late := time.NewTimer(most)
	defer late.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for slices.ContainsFunc(started, func(s *vllmServer) bool { return !s.known.State().Heard() }) {
		select {
		case <-ctx.Done():
			return
		case <-late.C:
			return
		case <-tick.C:
		}
	}
}

// mostWait is for how long a reload waits for new servers: less where the configuration takes away a role, or a key of its
// file, for what runs by that has to end within a second.
func mostWait(before, next *snapshot) time.Duration {
	const long, short = 3 * time.Second, 500 * time.Millisecond
	for role := range before.conf.Roles {
		if !next.gateway.Policy.HasRole(role) {
			return short
		}
	}
	for _, k := range before.fileKeys {
		if !slices.ContainsFunc(next.fileKeys, func(n authn.Key) bool { return n.ID == k.ID && slices.Equal(n.Roles, k.Roles) }) {
			return short
		}
	}
	return long
}

func (d *Daemon) install(next *snapshot) {
	d.current.Store(next)
	b, err := next.effective().Print()
	if err == nil {
		err = writePrivate(filepath.Join(d.state, EffectiveFile), b)
	}
	if err != nil {
		d.log.Error("leaving the effective configuration", "error", err)
	}
}

// prepare keeps the servers whose configuration is the same and starts the others; started are the new ones.
func (d *Daemon) prepare(ctx context.Context, conf *config.Config) (servers map[string]*vllmServer, started []*vllmServer, err error) {
	servers = map[string]*vllmServer{}
	before := map[string]config.Upstream{}
	if s := d.current.Load(); s != nil {
		for _, u := range s.conf.Upstreams {
			before[u.Name] = u
		}
	}
	for _, u := range conf.Upstreams {
		key, err := resolve.Key(u)
		if err == nil {
			if s := d.servers[u.Name]; s != nil && reflect.DeepEqual(before[u.Name], u) && s.key == key && s.trust == trustOf(u) && d.sameTimeouts(conf) {
				servers[u.Name] = s
				continue
			}
			servers[u.Name], err = d.start(ctx, u, key, conf.Timeouts)
			started = append(started, servers[u.Name])
		}
		if err != nil {
			for _, s := range started {
				if s != nil {
					s.close()
				}
			}
			return nil, nil, err
		}
	}
	return servers, started, nil
}

func (d *Daemon) sameTimeouts(conf *config.Config) bool {
	return d.current.Load().conf.Timeouts == conf.Timeouts
}

// start makes a server and watches it.
func (d *Daemon) start(ctx context.Context, u config.Upstream, key string, t config.Timeouts) (*vllmServer, error) {
	target, err := url.Parse(u.URL)
	if path, ok := strings.CutPrefix(u.URL, "unix:"); ok {
		target, err = &url.URL{Scheme: "unix", Path: path}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("upstream %q: %w", u.Name, err)
	}
	files := trustOf(u) // before they are read: what changes meanwhile is seen the next time
	trust, err := resolve.TLS(u)
	if err != nil {
		return nil, err
	}
	way, err := forward.New(forward.Target{Name: u.Name, URL: target, Key: key, TLS: trust, Timeouts: forward.Timeouts{
		Connect: time.Duration(t.Connect), FirstByte: time.Duration(t.FirstByte), BetweenEvents: time.Duration(t.BetweenEvents), Write: time.Duration(t.Write),
	}})
	if err != nil {
		return nil, fmt.Errorf("upstream %q: %w", u.Name, err)
	}
	release, _ := vllm.ParseRelease(u.Release) // the configuration has checked it; "" is not known
	known := upstream.New(upstream.Spec{Name: u.Name, Models: u.Models, HasKey: key != "", Release: release}, way, func() {
		select {
		case d.rebuild <- struct{}{}:
		default:
		}
	})
	ctx, stop := context.WithCancel(ctx)
	s := &vllmServer{known: known, way: way, shared: u.SharedCache, key: key, trust: files, stop: stop, stopped: make(chan struct{})}
	go func() {
		defer close(s.stopped)
		known.Run(ctx)
	}()
	return s, nil
}

// build makes a snapshot of the configuration and of what the servers serve now.
func (d *Daemon) build(conf *config.Config, servers map[string]*vllmServer) (*snapshot, error) {
	var known []*upstream.Server
	for _, u := range conf.Upstreams {
		known = append(known, servers[u.Name].known)
	}
	s := &snapshot{conf: conf, picker: &picker{set: upstream.NewSet(known), servers: servers}}
	s.states = s.picker.set.States()
	_, rules := conf.Rules(modelsOf(s.states))
	rules.Unknown = slices.ContainsFunc(s.states, func(st upstream.State) bool { return len(st.Models) == 0 })
	p, problems := policy.Build(rules)
	if len(problems) > 0 {
		return nil, fmt.Errorf("building the policy: %s: %s; right would be: %s", problems[0].Where, problems[0].What, problems[0].Right)
	}
	if conf.KeysFile != "" {
		b, err := os.ReadFile(conf.KeysFile)
		if err != nil {
			return nil, fmt.Errorf("reading keys_file: %w", err)
		}
		keys, wrong := keyfile.Parse(conf.KeysFile, b)
		if len(wrong) > 0 {
			return nil, keyFileError(wrong)
		}
		s.fileKeys = keys
	}
	s.gateway = &gateway.Gateway{
		Policy: p, Keys: d.keys, Limits: limiter{d.limits}, Memory: d.memory, Records: d.records, Upstreams: s.picker, Salts: d.salts,
		Running: registry{d.keys}, Meter: meters{d.meter}, Log: d.log, Now: time.Now, Settings: d.settings(conf),
	}
	return s, nil
}

// keyFileError says all that is wrong with a key file.
func keyFileError(wrong []keyfile.Problem) error {
	var errs []error
	for _, p := range wrong {
		errs = append(errs, fmt.Errorf("keys_file: %s", p))
	}
	return errors.Join(errs...)
}

func (d *Daemon) settings(conf *config.Config) gateway.Settings {
	body := inspect.Default()
	body.MaxJSONBytes, body.MaxFormBytes = int64(conf.Bodies.MaxJSON), int64(conf.Bodies.MaxForm)
	s := gateway.Settings{
		Body: body, BodyTimeout: time.Duration(conf.Timeouts.Body), SpoolDir: d.state, ShowCached: conf.Cached,
		PassErrors: conf.Errors == "pass", Origins: conf.CORS.Origins, MaxReply: int64(conf.Bodies.MaxReply),
		MaxSound: time.Duration(conf.Bodies.MaxAudio),
	}
	return s
}

func modelsOf(states []upstream.State) []policy.Model {
	models := []policy.Model{} // not nil: nothing found is not "not asked"
	for _, st := range states {
		for _, m := range st.Models {
			i := slices.IndexFunc(models, func(p policy.Model) bool { return p.Name == m.Name })
			if i < 0 {
				models = append(models, policy.Model{Name: m.Name, Upstreams: []string{st.Name}, MaxModelLen: m.MaxModelLen, LongestLen: m.MaxModelLen, Created: m.Created})
				continue
			}
			models[i].Upstreams = append(models[i].Upstreams, st.Name)
			models[i].MaxModelLen = shorter(models[i].MaxModelLen, m.MaxModelLen)
			models[i].LongestLen = max(models[i].LongestLen, m.MaxModelLen)
		}
	}
	return models
}

// shorter is the context length that fits all servers of a model.
func shorter(a, b int64) int64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// effective is the configuration with the models and the releases that were found written into it.
func (s *snapshot) effective() *config.Config {
	c := *s.conf
	c.Upstreams = slices.Clone(c.Upstreams)
	for i := range c.Upstreams {
		c.Upstreams[i].Models = nil
		for _, m := range s.states[i].Models {
			c.Upstreams[i].Models = append(c.Upstreams[i].Models, m.Name)
		}
		if r := s.states[i].Release; r.Known() {
			c.Upstreams[i].Release = r.String()
		}
	}
	return &c
}

// Reload reads the configuration again and makes it the one that counts; when anything is wrong with it, nothing changes.
// Once begun it is finished, and what it starts goes on, whether whoever asked for it is there or not.
func (d *Daemon) Reload(context.Context) error {
	d.reading.Lock()
	defer d.reading.Unlock()
	conf, err := d.options.Load()
	if err == nil {
		err = d.sameListeners(conf)
	}
	if err == nil {
		err = d.apply(d.work, conf)
	}
	if err != nil {
		var problems *config.Problems
		if errors.As(err, &problems) {
			fmt.Fprint(d.options.Screen, problems.Text())
		}
		d.log.Error("the configuration was not reloaded; the one before stays", "error", err)
		return err
	}
	d.log.Info("the configuration was reloaded")
	d.warnUnserved()
	return nil
}

// warnUnserved says in the log what the first screen says of models that nobody serves.
func (d *Daemon) warnUnserved() {
	now := d.current.Load()
	for _, w := range screen.Unserved(now.conf, now.picker.set.States()) {
		d.log.Warn("configuration", "warning", w)
	}
}

// sameListeners refuses a change that needs a restart, instead of taking half of it.
func (d *Daemon) sameListeners(conf *config.Config) error {
	before := d.current.Load().conf
	var changed []string
	for _, one := range []struct {
		name string
		same bool
	}{
		{"listen", reflect.DeepEqual(before.Listen, conf.Listen)},
		{"probes", before.Probes == conf.Probes},
		{"admin", before.Admin == conf.Admin},
		{"state", before.State == conf.State},
		{"audit", before.Audit == conf.Audit},
		{"bodies.max_buffered", before.Bodies.MaxBuffered == conf.Bodies.MaxBuffered},
	} {
		if !one.same {
			changed = append(changed, one.name)
		}
	}
	if len(changed) > 0 {
		return fmt.Errorf("%s changed, which takes a restart; nothing of the file is in force", strings.Join(changed, ", "))
	}
	return nil
}

// watchAll starts what waits for changes, until the context ends.
func (d *Daemon) watchAll(ctx context.Context, hup chan os.Signal) {
	d.running.Go(func() { d.watch(ctx, hup) })
	d.running.Go(func() { d.watchKeys(ctx) })
}

// watch is the daemon's clock but for keys: upstreams that changed, files that changed, SIGHUP.
func (d *Daemon) watch(ctx context.Context, hup chan os.Signal) {
	defer signal.Stop(hup)
	files := d.watchFiles(ctx)
	defer files.close()
	used := time.NewTicker(10 * time.Second)
	defer used.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	defer d.touch(context.WithoutCancel(ctx))
	var pending <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			_ = d.Reload(ctx) // told already
		case <-files.events():
			if pending == nil { // or a directory that is always busy would put it off for ever
				pending = time.After(100 * time.Millisecond) // editors write in several steps
			}
		case err := <-files.failures():
			d.log.Warn("watching files", "error", err)
		case <-pending:
			pending = nil
			d.reloadChanged(ctx, files)
		case <-look.C:
			if d.options.File != "" {
				d.reloadChanged(ctx, files)
			}
		case <-d.rebuild:
			d.refresh()
		case <-used.C:
			d.touch(ctx)
		}
	}
}

// refresh makes a new snapshot when the upstreams serve something else than before.
func (d *Daemon) refresh() {
	d.reloads.Lock()
	defer d.reloads.Unlock()
	now := d.current.Load()
	d.tellUpstreams(now.picker.set.States())
	if !now.stale() {
		return
	}
	next, err := d.build(now.conf, d.servers)
	if err != nil {
		d.log.Error("the upstreams serve something else than before, and the configuration does not fit it", "error", err)
		return
	}
	d.install(next)
	for _, st := range next.states {
		if st.Warning != "" {
			d.log.Warn("upstream", "name", st.Name, "warning", st.Warning)
		}
	}
	d.warnUnserved()
}

// tellUpstreams logs which servers came and which went since the first screen, or since the last time: who starts the
// gateway before vLLM waits for it. The caller holds reloads.
func (d *Daemon) tellUpstreams(states []upstream.State) {
	if d.alive == nil { // the screen will say it
		return
	}
	for _, st := range states {
		switch {
		case st.Alive && !d.alive[st.Name]:
			d.log.Info("upstream is alive", "name", st.Name, "version", st.Version, "models", len(st.Models))
		case !st.Alive && d.alive[st.Name]:
			d.log.Warn("upstream is not alive", "name", st.Name, "problem", st.Problem)
		}
		d.alive[st.Name] = st.Alive
	}
}

func (d *Daemon) touch(ctx context.Context) {
	if used := d.keys.Used(); len(used) > 0 {
		if err := d.store.TouchLastUsed(ctx, used); err != nil {
			d.log.Warn("noting when keys were used", "error", err)
		}
	}
}
