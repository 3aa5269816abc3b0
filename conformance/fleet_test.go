//go:build conformance

package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/realvllm"
	"github.com/vallum/vallum/conformance/report"
)

// atOnce is how many vLLM servers exist at one time: one that is tested and
// one that starts meanwhile. Each start takes a processor for a minute and
// about 4 GiB.
const atOnce = 2

// gate is a running gateway and the keys of the people. What it says to anybody
// is kept in the folder heard.
type gate struct {
	*realvallum.Gateway
	keys   map[string]string // by name: anna, bert, olga, mona
	direct string            // its own URL: what is said there is not kept
	heard  string
}

// stand is one real vLLM, or several, with a real gateway in front.
type stand struct {
	suite
	vllm    *realvllm.Server
	beside  *realvllm.Server // the suite's second, if it has one
	gate    *gate
	gateErr error // why gate is nil
	dir     string
	faults  int // how many gateways the fault proofs have started
	release func()
}

// The people of the proofs. Anna and Bert are two tenants with the ordinary
// role; Olga operates; Mona watches.
var people = []realvallum.Key{
	{Name: "anna", Role: "inference", Tenant: "red"},
	{Name: "bert", Role: "inference", Tenant: "blue"},
	{Name: "olga", Role: "operator"},
	{Name: "mona", Role: "monitor"},
}

type slot struct {
	done  chan struct{}
	stand *stand
	err   error
}

// standFleet starts the stands in the order of the suites, two at a time.
type standFleet struct {
	ctx    context.Context
	cancel context.CancelFunc
	dir    string
	slots  map[string]*slot
	sem    chan struct{}
	wg     sync.WaitGroup
	build  func() (string, error)
}

func newFleet(ctx context.Context, dir string, chosen []suite) *standFleet {
	ctx, cancel := context.WithCancel(ctx)
	f := &standFleet{ctx: ctx, cancel: cancel, dir: dir, slots: map[string]*slot{}, sem: make(chan struct{}, atOnce)}
	f.build = sync.OnceValues(func() (string, error) {
		if *built != "" {
			return *built, nil
		}
		return realvallum.Build(ctx, "..", dir)
	})
	for _, s := range chosen {
		f.slots[s.name()] = &slot{done: make(chan struct{})}
	}
	f.wg.Go(func() {
		for _, s := range chosen {
			servers := make([]started, len(s.configs()))
			var all sync.WaitGroup
			for i, c := range s.configs() {
				select {
				case f.sem <- struct{}{}:
				case <-ctx.Done():
					return
				}
				all.Add(1)
				f.wg.Go(func() {
					defer all.Done()
					servers[i] = f.start(c)
				})
			}
			f.wg.Go(func() {
				all.Wait()
				f.open(s, servers)
			})
		}
	})
	return f
}

// started is a server, or why there is none.
type started struct {
	server *realvllm.Server
	err    error
}

func (f *standFleet) start(c realvllm.Config) started {
	server, err := realvllm.Start(f.ctx, f.dir, c)
	if err == nil {
		fmt.Printf("vLLM %s is ready after %s\n", c.Name, server.Ready.Round(time.Second))
	}
	return started{server, err}
}

// open starts the gateway in front of a suite's servers and says so to whoever
// waits for it.
func (f *standFleet) open(s suite, servers []started) {
	sl := f.slots[s.name()]
	defer close(sl.done)
	for _, one := range servers {
		sl.err = errors.Join(sl.err, one.err)
	}
	release := sync.OnceFunc(func() {
		for range servers {
			<-f.sem
		}
	})
	if sl.err != nil {
		for _, one := range servers {
			if one.err == nil {
				one.server.Stop()
			}
		}
		release()
		return
	}
	sl.stand = &stand{suite: s, vllm: servers[0].server, dir: filepath.Join(f.dir, "gate-"+s.name()), release: release}
	if len(servers) > 1 {
		sl.stand.beside = servers[1].server
	}
	sl.stand.gate, sl.stand.gateErr = f.startGate(sl.stand, "usual", "")
}

// stand waits for a configuration's server.
func (f *standFleet) stand(name string) (*stand, error) {
	sl := f.slots[name]
	if sl == nil {
		return nil, fmt.Errorf("vLLM %s was not chosen by -run", name)
	}
	select {
	case <-sl.done:
		return sl.stand, sl.err
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
}

func (f *standFleet) stopAll() {
	f.cancel()
	f.wg.Wait()
	for _, sl := range f.slots {
		if sl.stand != nil {
			sl.stand.stop()
		}
	}
}

// stop ends the gateway, then vLLM, and makes room for the next server.
func (s *stand) stop() {
	if s.gate != nil {
		s.gate.Stop()
	}
	s.vllm.Stop()
	if s.beside != nil {
		s.beside.Stop()
	}
	s.release()
}

// servers is the stand's one vLLM, or two.
func (s *stand) servers() []*realvllm.Server {
	if s.beside == nil {
		return []*realvllm.Server{s.vllm}
	}
	return []*realvllm.Server{s.vllm, s.beside}
}

// startGate starts a gateway in front of a stand's vLLM, with a key for each
// of the people, and of those who are in this one only. more is further YAML of
// its configuration.
func (f *standFleet) startGate(st *stand, name, more string, also ...realvallum.Key) (*gate, error) {
	return f.gateFor(filepath.Join(st.dir, name), func(etc string) (string, error) { return st.writeConfig(etc, more) }, also...)
}

// gateFor starts a gateway with the configuration that write makes in a folder
// of its own.
func (f *standFleet) gateFor(dir string, write func(etc string) (string, error), also ...realvallum.Key) (*gate, error) {
	binary, err := f.build()
	if err != nil {
		return nil, err
	}
	state := filepath.Join(dir, "state")
	etc := filepath.Join(dir, "etc")
	for _, d := range []string{state, etc} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	config, err := write(etc)
	if err != nil {
		return nil, err
	}
	g := &gate{keys: map[string]string{}, heard: filepath.Join(dir, "heard")}
	for _, k := range append(slices.Clone(people), also...) {
		if g.keys[k.Name], err = realvallum.CreateKey(f.ctx, binary, state, k); err != nil {
			return nil, err
		}
	}
	g.Gateway, err = realvallum.Start(f.ctx, realvallum.Options{
		Binary: binary, Config: config, State: state, Log: filepath.Join(dir, "log"),
	})
	if err == nil {
		err = g.listen(f.ctx)
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

// writeConfig writes a vallum.yaml: the stand's servers as the upstreams, and
// no role but the built-in ones and those in more.
func (st *stand) writeConfig(dir, more string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nprobes: 127.0.0.1:0\nadmin: unix:%s\nupstreams:\n", filepath.Join(dir, "admin.sock"))
	for _, v := range st.servers() {
		url := v.URL
		if v.Path != "" {
			url = "unix:" + v.Path
		}
		fmt.Fprintf(&b, "  - name: %s\n    url: %s\n    models: [%s]\n", v.Served, url, strings.Join(append([]string{v.Served}, v.Also...), ", "))
		if v.Key == "" {
			continue
		}
		keyFile := filepath.Join(dir, v.Name+".key")
		if err := os.WriteFile(keyFile, []byte(v.Key+"\n"), 0o600); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "    key_file: %s\n", keyFile)
	}
	b.WriteString(more)
	path := filepath.Join(dir, "vallum.yaml")
	return path, os.WriteFile(path, []byte(b.String()), 0o600)
}

// needGate ends a proof as NOT RUN when there is no gateway to try.
func (s *stand) needGate(p *report.Proof) {
	p.Helper()
	if s.gate == nil {
		p.NotRun("directly as expected; through Vallum: %v", s.gateErr)
	}
}
