// Package authn finds out who sends a request, by the API key in its headers.
// It refuses every credential that is not exactly a live key, with one answer that does not say why, and it knows
// nothing of what a caller may do.
package authn

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
)

// ErrRevoked is why a running request ends when its key, or a role of it, is taken away. What Register's cancel is
// given wraps it.
var ErrRevoked = errors.New("key revoked")

// Options are the settings of an Authenticator. The zero value is safe.
type Options struct {
	// FailuresPerMinute is how many wrong keys an address (IPv4 /32, IPv6 /64) may send in a minute, and at once,
	// before it is told TooManyFailures. Zero or less means 30.
	FailuresPerMinute int
	// MaxAddresses bounds the memory for addresses that failed. Zero or less means 16384, about 2 MB.
	MaxAddresses int
}

// Authenticator knows the live keys. Without SetKeys it refuses everybody. Safe for concurrent use; make one with New.
type Authenticator struct {
	current  atomic.Pointer[generation]
	setting  sync.Mutex // SetKeys, one at a time
	failures failures
	watches  watches
	sum      func([]byte) [sha256.Size]byte // counted in tests
	equal    func(a, b []byte) int          // counted in tests
}

// generation is a set of keys and when each was last used. The times outlive the set.
type generation struct {
	keys *Keys
	used []*atomic.Int64 // unix seconds, by the key's place in keys; 0 when not used since drained
}

// New makes an Authenticator that refuses everybody until SetKeys.
func New(o Options) *Authenticator {
	a := &Authenticator{sum: sha256.Sum256, equal: subtle.ConstantTimeCompare}
	a.current.Store(&generation{keys: NewKeys(nil)})
	a.failures.init(o.FailuresPerMinute, o.MaxAddresses)
	a.watches.init()
	return a
}

// nobodysHash is compared with when no key has the presented id. No input is known that hashes to zero.
var nobodysHash [sha256.Size]byte

// Authenticate says who sends a request with these headers from this address. Every path costs one SHA-256 of at most
// maxCredential bytes and one comparison in constant time. Unknown, expired, revoked and malformed keys are refused
// alike, with NoCredential; the cause says which, and names at most the key's id, which is public.
//
// A right key is never refused for what others did at its address: many callers may stand behind one address, and
// 256-bit keys cannot be guessed at any rate. So the key is looked at first, and TooManyFailures is only ever said
// to a wrong one.
func (a *Authenticator) Authenticate(h http.Header, remote netip.Addr, now time.Time) (identity.Principal, verdict.Verdict) {
	presented, sent, v := credential(h)
	sum := a.sum([]byte(presented))
	g := a.current.Load()
	place := g.keys.find(presented, &sum)
	want := &nobodysHash
	if place >= 0 {
		want = &g.keys.list[place].Hash
	}
	same := a.equal(want[:], sum[:]) == 1
	if !v.Refused() {
		v = g.keys.judge(place, same, presented, now)
	}
	if !v.Refused() {
		g.used[place].Store(now.Unix())
		return g.keys.principals[place], v
	}
	if !sent { // nothing was guessed
		return identity.Nobody, v
	}
	if wait := a.failures.count(remote, now); wait > 0 {
		return identity.Nobody, verdict.Refuse(verdict.TooManyFailures, v.Cause()).After(wait)
	}
	return identity.Nobody, v
}

// SetKeys replaces all keys at once and ends the running requests of keys, or roles of keys, that are gone. It
// returns when their cancel functions have been called. Nil is no keys.
func (a *Authenticator) SetKeys(keys *Keys) {
	if keys == nil {
		keys = NewKeys(nil)
	}
	a.setting.Lock()
	defer a.setting.Unlock()
	before := a.current.Load()
	next := &generation{keys: keys, used: make([]*atomic.Int64, len(keys.list))}
	for i := range keys.list {
		if old, known := before.keys.byID[keys.list[i].ID]; known {
			next.used[i] = before.used[old]
		} else {
			next.used[i] = new(atomic.Int64)
		}
	}
	a.current.Store(next)
	a.EndExpired(time.Now())
}

// EndExpired ends the running requests of keys that have expired by now. To be called every second or so: nothing
// else looks at a key again once its request runs.
func (a *Authenticator) EndExpired(now time.Time) {
	keys := a.current.Load().keys
	a.watches.endIf(func(id string, roles []string) error { return keys.lost(id, roles, now) })
}

// Register keeps a running request under its key and the roles it was granted by: cancel is called, once and soon,
// when the key or one of the roles is taken away, and at once when that happened, or the key expired, since it was checked. The release
// function must be called when the request ends; after it has returned, cancel may still be running in another goroutine.
func (a *Authenticator) Register(keyID string, roles []string, cancel func(error)) (release func()) {
	w := &watch{roles: roles, cancel: cancel}
	// First listed, then checked: a SetKeys in between finds it in the list.
	release = a.watches.add(keyID, w)
	if err := a.current.Load().keys.lost(keyID, roles, time.Now()); err != nil {
		release()
		w.end(err)
	}
	return release
}

// Used drains when each key was last used since the last call, to the second, by key id.
func (a *Authenticator) Used() map[string]time.Time {
	g := a.current.Load()
	used := make(map[string]time.Time)
	for i := range g.used {
		if at := g.used[i].Swap(0); at != 0 {
			used[g.keys.list[i].ID] = time.Unix(at, 0)
		}
	}
	return used
}
