package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/gateway"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/store"
)

// promise is how soon a change of the keys has to be in force. A client that takes nothing of its end has half a second
// more (gateway), and the whole is less than one.
const promise = 250 * time.Millisecond

// clocks is a daemon of which nothing runs but what waits for changes, in a bubble: time passes only while all of it waits.
type clocks struct {
	*Daemon
	t     *testing.T
	other *store.Store // as `vallum keys` opens it
	hup   chan os.Signal
}

func newClocks(t *testing.T) *clocks {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	open := func() *store.Store {
		st, err := store.Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	c := &clocks{t: t, hup: make(chan os.Signal)}
	c.Daemon = &Daemon{store: open(), keys: authn.New(authn.Options{}), log: slog.New(slog.DiscardHandler), state: dir, options: Options{Screen: io.Discard}}
	c.other = open()
	var err error
	if c.records, err = audit.Open(filepath.Join(dir, "audit"), audit.Options{}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	c.watchAll(ctx, c.hup)
	t.Cleanup(func() {
		stop()
		c.running.Wait()
		if err := errors.Join(c.other.Close(), c.records.Close(), c.store.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// opens reports whether the secret opens anything.
func (c *clocks) opens(secret string) bool {
	_, v := c.keys.Authenticate(http.Header{"Authorization": {"Bearer " + secret}}, netip.Addr{}, time.Now())
	return !v.Refused()
}

// create makes a key and waits until it opens something.
func (c *clocks) create(k store.NewKey) (string, store.Key) {
	c.t.Helper()
	secret, key, err := c.other.CreateKey(c.t.Context(), k, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	began := time.Now()
	for !c.opens(secret) {
		if time.Since(began) > promise {
			c.t.Fatalf("a new key opens nothing after %v", time.Since(began))
		}
		<-time.After(time.Millisecond)
	}
	return secret, key
}

// runs registers a request of the key; what it gives is told when the request is ended.
func (c *clocks) runs(key store.Key) <-chan time.Time {
	ended := make(chan time.Time, 1)
	c.t.Cleanup(c.keys.Register(key.ID, key.Roles, func(error) { ended <- time.Now() }))
	return ended
}

// ends checks that the request ends as promised after that time, and not before.
func (c *clocks) ends(what string, ended <-chan time.Time, since time.Time) {
	c.t.Helper()
	late := since.Add(time.Minute)
	select {
	case at := <-ended:
		if took := at.Sub(since); took < 0 || took > promise {
			c.t.Errorf("%s: the request ended after %v, want %v at most", what, took, promise)
		}
	case <-time.After(time.Until(late)):
		c.t.Errorf("%s: the request goes on", what)
	}
}

// What `vallum keys` changes counts within a quarter of a second, for requests that run too: exactly, for nothing but time
// passes while all wait. So it does while a reload hangs, and while a server is waited for.
func TestAChangeOfTheKeysIsInForceAsPromised(t *testing.T) {
	for name, busy := range map[string]func(*clocks){
		"nothing else happens": func(*clocks) {},
		"a reload hangs": func(c *clocks) {
			hangs := make(chan struct{})
			c.t.Cleanup(func() { close(hangs) })
			c.options.Load = func() (*config.Config, error) {
				<-hangs
				return nil, errors.New("a file system that hung")
			}
			c.hup <- syscall.SIGHUP
			synctest.Wait()
		},
		"a reload waits for a server": func(c *clocks) {
			c.reading.Lock()
			c.reloads.Lock()
			c.t.Cleanup(func() { c.reading.Unlock(); c.reloads.Unlock() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClocks(t)
				busy(c)
				for _, offset := range []time.Duration{0, time.Millisecond, keysEvery / 2, keysEvery - time.Millisecond} {
					<-time.After(offset)
					c.changes()
				}
			})
		})
	}
}

// changes makes every kind of change there is.
func (c *clocks) changes() {
	secret, key := c.create(store.NewKey{Name: "revoked", Roles: []string{"inference"}})
	stream, since := c.runs(key), time.Now()
	if _, err := c.other.RevokeKey(c.t.Context(), "revoked", since); err != nil {
		c.t.Fatal(err)
	}
	c.ends("revoke", stream, since)
	if c.opens(secret) {
		c.t.Error("the revoked key opens something")
	}

	_, key = c.create(store.NewKey{Name: "rotated", Roles: []string{"inference"}})
	stream, since = c.runs(key), time.Now()
	secret, next, err := c.other.RotateKey(c.t.Context(), "rotated", 0, since)
	if err != nil {
		c.t.Fatal(err)
	}
	c.ends("rotate at once", stream, since)
	if !c.opens(secret) {
		c.t.Error("the new key opens nothing when the old one's request has ended")
	}

	stream, since = c.runs(next), time.Now().Add(3*time.Second)
	if _, _, err := c.other.RotateKey(c.t.Context(), "rotated", 3*time.Second, time.Now()); err != nil {
		c.t.Fatal(err)
	}
	c.ends("rotate with an overlap", stream, since)

	since = time.Now().Add(2 * time.Second)
	secret, key = c.create(store.NewKey{Name: "expires", Roles: []string{"inference"}, Expires: since})
	c.ends("expire", c.runs(key), since)
	if c.opens(secret) {
		c.t.Error("the expired key opens something")
	}
	for _, name := range []string{"rotated", "expires"} {
		if _, err := c.other.RevokeKey(c.t.Context(), name, time.Now()); err != nil && name == "rotated" {
			c.t.Fatal(err)
		}
	}
}

// A reload that takes a role or a key away waits for no server longer than the promise allows, with the moment for which
// a change of the file is left alone.
func TestAReloadThatTakesAwayDoesNotWaitLong(t *testing.T) {
	of := func(roles string, keys ...authn.Key) *snapshot {
		conf := &config.Config{Roles: map[string]config.Role{}}
		for _, name := range strings.Fields(roles) {
			conf.Roles[name] = config.Role{Operations: []config.Operation{{ID: "chat.create"}}, Models: []string{"*"}}
		}
		_, rules := conf.Rules([]policy.Model{})
		p, problems := policy.Build(rules)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return &snapshot{conf: conf, gateway: &gateway.Gateway{Policy: p}, fileKeys: keys}
	}
	a, b := authn.Key{ID: "a", Roles: []string{"x", "y"}}, authn.Key{ID: "b", Roles: []string{"x"}}
	less := authn.Key{ID: "a", Roles: []string{"x"}}
	for what, row := range map[string]struct {
		before, next *snapshot
		takesAway    bool
	}{
		"nothing":            {of("x y", a, b), of("x y", b, a), false},
		"a role more":        {of("x"), of("x y"), false},
		"a key more":         {of("x", b), of("x", b, a), false},
		"a role less":        {of("x y"), of("y"), true},
		"a key less":         {of("x", a, b), of("x", a), true},
		"a role of a key":    {of("x y", a), of("x y", less), true},
		"no key file at all": {of("x", b), of("x"), true},
	} {
		if got := mostWait(row.before, row.next); (got <= 700*time.Millisecond) != row.takesAway {
			t.Errorf("%s: a reload waits %v", what, got)
		}
	}
}

func TestTheKeysAreLookedAtAsOftenAsPromised(t *testing.T) {
	if keysEvery > promise {
		t.Errorf("the keys are looked at every %v, want %v at most", keysEvery, promise)
	}
}
