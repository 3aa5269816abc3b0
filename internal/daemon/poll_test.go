package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/store"
)

// impatient is a context that ends when it has been asked so many times.
type impatient struct {
	context.Context
	left *atomic.Int64
}

func (i impatient) Done() <-chan struct{} {
	done := make(chan struct{})
	if i.left.Add(-1) < 0 {
		close(done)
	}
	return done
}

func (i impatient) Err() error {
	if i.left.Load() < 0 {
		return context.Canceled
	}
	return nil
}

// keysDaemon is as much of a daemon as reads keys and records them, and the store as another process has it open.
func keysDaemon(t *testing.T) (d *Daemon, other *store.Store) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	st, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	records, err := audit.Open(filepath.Join(dir, "audit"), audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d = &Daemon{store: st, keys: authn.New(authn.Options{}), records: records, log: slog.New(slog.DiscardHandler), state: dir}
	other, err = store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _, _ = other.Close(), records.Close(), st.Close()
	})
	return d, other
}

// A change of the keys counts, and is recorded, also when the first look at it fails, however far that got: a revocation
// must not be forgotten for want of a file descriptor.
func TestAChangeOfTheKeysIsSeenThoughReadingThemFails(t *testing.T) {
	d, other := keysDaemon(t)
	var keys []store.Key
	failed := 0
	for n := range int64(40) {
		name := fmt.Sprintf("k%d", n)
		secret, _, err := other.CreateKey(t.Context(), store.NewKey{Name: name, Roles: []string{"inference"}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		short := impatient{t.Context(), new(atomic.Int64)}
		short.left.Store(n)
		if keys = d.pollKeys(short, keys); len(keys) <= int(n) {
			failed++
		}
		keys = d.pollKeys(t.Context(), keys)
		if _, v := d.keys.Authenticate(http.Header{"Authorization": {"Bearer " + secret}}, netip.Addr{}, time.Now()); v.Refused() || len(keys) != int(n)+1 {
			t.Errorf("the key of which reading failed after %d steps: %v, %d keys", n, v.Err(), len(keys))
		}
	}
	if failed < 3 {
		t.Errorf("only %d readings failed", failed)
	}
	if lines := d.records.Stats().Lines; lines != 40 {
		t.Errorf("%d lines tell of 40 keys", lines)
	}
}

// meddled is a context in which something happens when it has been asked so many times.
type meddled struct {
	context.Context
	left *atomic.Int64
	does func()
}

func (m meddled) Done() <-chan struct{} {
	if m.left.Add(-1) == 0 {
		m.does()
	}
	return m.Context.Done()
}

// A key that is made while the keys are read is told of once it counts, at whatever step of the reading it came.
func TestNoKeyIsToldOfBeforeItCounts(t *testing.T) {
	d, other := keysDaemon(t)
	var mu sync.Mutex // package sql asks contexts in goroutines of its own
	secrets := map[string]string{}
	create := func(name string) {
		secret, key, err := other.CreateKey(t.Context(), store.NewKey{Name: name, Roles: []string{"inference"}}, time.Now())
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		secrets[key.ID] = secret
	}
	var told []store.Key
	for n := range int64(40) {
		create(fmt.Sprintf("before%d", n))
		made := make(chan struct{})
		busy := meddled{t.Context(), new(atomic.Int64), func() { create(fmt.Sprintf("meanwhile%d", n)); close(made) }}
		busy.left.Store(n)
		told = d.pollKeys(busy, told)
		if left := busy.left.Swap(1 << 40); n > 0 && left <= 0 {
			<-made
		}
		for _, k := range told {
			if _, v := d.keys.Authenticate(http.Header{"Authorization": {"Bearer " + secrets[k.ID]}}, netip.Addr{}, time.Now()); v.Refused() {
				t.Errorf("the log tells of %s, made at step %d, and it does not count: %v", k.Name, n, v.Err())
			}
		}
	}
	if told = d.pollKeys(t.Context(), told); len(told) != len(secrets) || len(secrets) < 45 {
		t.Errorf("%d keys of %d are told of", len(told), len(secrets))
	}
}
