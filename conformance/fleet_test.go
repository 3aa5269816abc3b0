//go:build conformance

package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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

// gate is a running gateway and the keys of the people.
type gate struct {
	*realvallum.Gateway
	keys map[string]string // by name: anna, bert, olga, mona
}

// stand is one real vLLM with a real gateway in front.
type stand struct {
	suite
	vllm    *realvllm.Server
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
		f.slots[s.config.Name] = &slot{done: make(chan struct{})}
	}
	f.wg.Go(func() {
		for _, s := range chosen {
			select {
			case f.sem <- struct{}{}:
			case <-ctx.Done():
				return
			}
			f.wg.Go(func() { f.start(s) })
		}
	})
	return f
}

// start starts one stand and says so to whoever waits for it.
func (f *standFleet) start(s suite) {
	sl := f.slots[s.config.Name]
	defer close(sl.done)
	release := sync.OnceFunc(func() { <-f.sem })
	server, err := realvllm.Start(f.ctx, f.dir, s.config)
	if err != nil {
		sl.err = err
		release()
		return
	}
	fmt.Printf("vLLM %s is ready after %s\n", s.config.Name, server.Ready.Round(time.Second))
	sl.stand = &stand{suite: s, vllm: server, dir: filepath.Join(f.dir, "gate-"+s.config.Name), release: release}
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
	s.release()
}

// startGate starts a gateway in front of a stand's vLLM, with a key for each
// of the people. more is further YAML of its configuration.
func (f *standFleet) startGate(st *stand, name, more string) (*gate, error) {
	binary, err := f.build()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(st.dir, name)
	state := filepath.Join(dir, "state")
	etc := filepath.Join(dir, "etc")
	for _, d := range []string{state, etc} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	config, err := st.writeConfig(etc, more)
	if err != nil {
		return nil, err
	}
	g := &gate{keys: map[string]string{}}
	for _, k := range people {
		if g.keys[k.Name], err = realvallum.CreateKey(f.ctx, binary, state, k); err != nil {
			return nil, err
		}
	}
	g.Gateway, err = realvallum.Start(f.ctx, realvallum.Options{
		Binary: binary, Config: config, State: state, Log: filepath.Join(dir, "log"),
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// writeConfig writes a vallum.yaml: the stand's vLLM as the one upstream, and
// no role but the built-in ones.
func (st *stand) writeConfig(dir, more string) (string, error) {
	url := st.vllm.URL
	if st.vllm.Path != "" {
		url = "unix:" + st.vllm.Path
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nprobes: 127.0.0.1:0\nupstreams:\n  - name: real\n    url: %s\n", url)
	if st.vllm.Key != "" {
		keyFile := filepath.Join(dir, "vllm.key")
		if err := os.WriteFile(keyFile, []byte(st.vllm.Key+"\n"), 0o600); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "    key_file: %s\n", keyFile)
	}
	fmt.Fprintf(&b, "    models: [%s]\n%s", strings.Join(st.models, ", "), more)
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
