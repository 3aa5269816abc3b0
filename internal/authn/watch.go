package authn

import (
	"hash/maphash"
	"sync"
)

// watchShards spreads the running requests over locks. A power of two.
const watchShards = 32

// watches are the running requests by key id. Nothing runs on its own here: whoever changes the keys calls the cancel functions.
type watches struct {
	seed   maphash.Seed
	shards [watchShards]watchShard
}

type watchShard struct {
	mu   sync.Mutex
	keys map[string]map[*watch]struct{}
}

// watch is one running request.
type watch struct {
	roles  []string
	cancel func(error)
	once   sync.Once
}

func (w *watch) end(why error) { w.once.Do(func() { w.cancel(why) }) }

func (ws *watches) init() {
	ws.seed = maphash.MakeSeed()
	for i := range ws.shards {
		ws.shards[i].keys = make(map[string]map[*watch]struct{})
	}
}

// add lists the request until release is called, which may be more than once.
func (ws *watches) add(id string, w *watch) (release func()) {
	sh := &ws.shards[maphash.String(ws.seed, id)&(watchShards-1)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	of := sh.keys[id]
	if of == nil {
		of = make(map[*watch]struct{})
		sh.keys[id] = of
	}
	of[w] = struct{}{}
	return func() { sh.remove(id, w) }
}

func (sh *watchShard) remove(id string, w *watch) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	of := sh.keys[id]
	delete(of, w)
	if len(of) == 0 {
		delete(sh.keys, id)
	}
}

// endIf ends the requests for which why has an answer. The cancel functions run without a lock held: they may call release.
func (ws *watches) endIf(why func(id string, roles []string) error) {
	type ending struct {
		w   *watch
		why error
	}
	for i := range ws.shards {
		sh := &ws.shards[i]
		var endings []ending
		sh.mu.Lock()
		for id, of := range sh.keys {
			for w := range of {
				if err := why(id, w.roles); err != nil {
					endings = append(endings, ending{w, err})
				}
			}
		}
		sh.mu.Unlock()
		for _, e := range endings {
			e.w.end(e.why)
		}
	}
}
