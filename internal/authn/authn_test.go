package authn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
)

var (
	noon   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	office = netip.MustParseAddr("192.0.2.7")
)

// Keys of the tests. The secrets double as canaries: no cause and no message may contain one.
const (
	appID      = "app0app0app0"
	appKey     = "vlm_app0app0app0_CANARYaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	expiredKey = "vlm_expired0key0_CANARYbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	revokedKey = "vlm_revoked0key0_CANARYccccccccccccccccccccccccccccccccccccc"
	unknownKey = "vlm_unknown0key0_CANARYddddddddddddddddddddddddddddddddddddd"
	wrongKey   = "vlm_app0app0app0_CANARYeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
	oldKey     = "sk-CANARY-imported-from-somewhere"
)

func keysOfTest() []Key {
	return []Key{
		{ID: appID, Name: "app", Roles: []string{"inference", "monitor"}, Hash: sha256.Sum256([]byte(appKey))},
		{ID: "expired0key0", Name: "old", Roles: []string{"inference"}, Hash: sha256.Sum256([]byte(expiredKey)), Expires: noon},
		{ID: "revoked0key0", Name: "gone", Roles: []string{"inference"}, Hash: sha256.Sum256([]byte(revokedKey)), Revoked: true},
		{ID: "imported0key", Name: "legacy", Tenant: "acme", Roles: []string{"inference"}, Hash: sha256.Sum256([]byte(oldKey)), Imported: true},
	}
}

// counted is an Authenticator with the keys of the tests that counts what each request costs.
type counted struct {
	*Authenticator
	sums, compares int
}

func newCounted(o Options) *counted {
	c := &counted{Authenticator: New(o)}
	c.sum = func(b []byte) [32]byte {
		if len(b) > maxCredential {
			panic("hashes more than a credential can be")
		}
		c.sums++
		return sha256.Sum256(b)
	}
	c.equal = func(a, b []byte) int { c.compares++; return subtle.ConstantTimeCompare(a, b) }
	c.SetKeys(NewKeys(keysOfTest()))
	return c
}

// headers makes http.Header of pairs; a name may come twice.
func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

// once authenticates and asserts that it cost one hash and one comparison, and that nobody reads a secret.
func (c *counted) once(t *testing.T, h http.Header) (identity.Principal, verdict.Verdict) {
	t.Helper()
	c.sums, c.compares = 0, 0
	who, v := c.Authenticate(h, office, noon)
	if c.sums != 1 || c.compares != 1 {
		t.Errorf("%v: %d hashes and %d comparisons, want exactly one of each", h, c.sums, c.compares)
	}
	if v.Refused() != who.IsNobody() {
		t.Errorf("%v: principal %q with verdict %v", h, who.Name(), v.Err())
	}
	if said := fmt.Sprint(v.Err(), v.Message(), v.Param()); strings.Contains(said, "CANARY") {
		t.Errorf("a secret is told: %q", said)
	}
	return who, v
}

func TestARightKeyIsTakenFromEachHeader(t *testing.T) {
	for _, key := range []string{appKey, oldKey} {
		for _, h := range []http.Header{
			headers("Authorization", "Bearer "+key),
			headers("Authorization", "bEaReR "+key),
			headers("x-api-key", key),
			headers("api-key", key),
			headers("Authorization", "Bearer "+key, "x-api-key", key, "api-key", key),
			headers("Authorization", "Bearer "+key, "api-key", ""),
			headers("Authorization", "", "x-api-key", key),
			headers("Authorization", "Bearer ", "x-api-key", key),
			headers("Authorization", "Bearer", "x-api-key", key),
		} {
			c := newCounted(Options{})
			who, v := c.once(t, h)
			if v.Refused() {
				t.Errorf("%v: %v", h, v.Err())
			}
			if key == appKey && (who.Name() != "app" || who.KeyID() != appID || who.Tenant() != "app" || !who.Has("monitor")) {
				t.Errorf("%v: it is %+v", h, who)
			}
			if key == oldKey && (who.Name() != "legacy" || who.KeyID() != "imported0key" || who.Tenant() != "acme") {
				t.Errorf("%v: it is %+v", h, who)
			}
		}
	}
}

// refusals are credentials that must not pass, each with a word that its cause holds.
var refusals = []struct {
	header http.Header
	cause  string
}{
	{headers("Authorization", "Bearer "+unknownKey), `key "unknown0key0": there is no such key`},
	{headers("Authorization", "Bearer "+wrongKey), `key "app0app0app0": wrong secret`},
	{headers("Authorization", "Bearer "+expiredKey), `key "expired0key0": expired 2026-11-23T12:00:00Z`},
	{headers("Authorization", "Bearer "+revokedKey), `key "revoked0key0": revoked`},
	{headers("Authorization", "Bearer sk-CANARY-nobody-knows-this"), "unknown key"},
	{headers("Authorization", "Bearer "+appKey+"x"), "unknown key"},
	{headers("Authorization", "Bearer "+appKey[:59]), "unknown key"},
	{headers("Authorization", "Bearer "+strings.ToUpper(appKey)), "unknown key"},
	{headers("Authorization", "Bearer "+strings.Replace(appKey, "_CANARY", "-CANARY", 1)), "unknown key"},
	{headers("Authorization", "Bearer  "+appKey), "visible ASCII"},
	{headers("Authorization", "Bearer\t"+appKey), "not Bearer"},
	{headers("Authorization", appKey), "not Bearer"},
	{headers("Authorization", "Basic "+appKey), "not Bearer"},
	{headers("Authorization", "Bearer "+appKey+", Bearer "+appKey), "visible ASCII"},
	{headers("Authorization", "Bearer "+appKey+"\x00"), "visible ASCII"},
	{headers("x-api-key", appKey+" "), "visible ASCII"},
	{headers("x-api-key", "Bearer "+appKey), "visible ASCII"},
	{headers("x-api-key", strings.Repeat("CANARY", 100)), "longer than a key"},
	{headers("x-api-key", appKey, "Authorization", "Basic eDp5"), "not Bearer"},
}

func TestUnknownExpiredRevokedAndMalformedGetTheSameAnswer(t *testing.T) {
	for _, r := range refusals {
		_, v := newCounted(Options{}).once(t, r.header)
		if !v.Refused() || v.Reason() != verdict.NoCredential || v.Message() != verdict.NoCredential.Sentence() || v.Param() != "" || v.RetryAfter() != 0 {
			t.Errorf("%v: %v, %q at %q: the answer differs from that for an unknown key", r.header, v.Err(), v.Message(), v.Param())
		}
		if !strings.Contains(fmt.Sprint(v.Cause()), r.cause) {
			t.Errorf("%v: cause %v, want %q", r.header, v.Cause(), r.cause)
		}
	}
}

func TestTwoKeysAreRefused(t *testing.T) {
	for _, h := range []http.Header{
		headers("Authorization", "Bearer "+appKey, "Authorization", "Bearer "+appKey),
		headers("Authorization", "Bearer "+wrongKey, "Authorization", "Bearer "+appKey),
		headers("x-api-key", appKey, "x-api-key", ""),
		headers("api-key", "", "api-key", appKey),
		headers("Authorization", "Bearer "+appKey, "x-api-key", oldKey),
		headers("Authorization", "Bearer "+appKey, "api-key", appKey+"x"),
		headers("x-api-key", unknownKey, "api-key", appKey),
	} {
		_, v := newCounted(Options{}).once(t, h)
		if !v.Refused() || v.Reason() != verdict.NoCredential || v.Param() == "" {
			t.Errorf("%v: %v at %q, want no_credential with the header's name", h, v.Err(), v.Param())
		}
	}
}

func TestNoKeyIsNoCredentialAndNoFailure(t *testing.T) {
	c := newCounted(Options{FailuresPerMinute: 1})
	for range 10 {
		for _, h := range []http.Header{nil, headers(), headers("Authorization", ""), headers("Authorization", "Bearer"), headers("api-key", "", "x-api-key", "")} {
			if _, v := c.once(t, h); !v.Refused() || v.Reason() != verdict.NoCredential {
				t.Fatalf("%v: %v, want no_credential", h, v.Err())
			}
		}
	}
}

func TestNobodyPassesWithoutKeys(t *testing.T) {
	empty := sha256.Sum256(nil)
	for name, keys := range map[string]*Keys{
		"never set":               nil,
		"none":                    NewKeys(nil),
		"without a name":          NewKeys([]Key{{ID: appID, Hash: sha256.Sum256([]byte(appKey))}}),
		"without an id":           NewKeys([]Key{{Name: "app", Hash: sha256.Sum256([]byte(appKey))}}),
		"without a hash":          NewKeys([]Key{{ID: appID, Name: "app"}}),
		"with the hash of empty":  NewKeys([]Key{{ID: "imported0key", Name: "app", Hash: empty, Imported: true}}),
		"revoked in another list": NewKeys([]Key{keysOfTest()[0], {ID: appID, Name: "app", Hash: sha256.Sum256([]byte(appKey)), Revoked: true}}),
		"ours under another id":   NewKeys([]Key{{ID: "other0other0", Name: "app", Hash: sha256.Sum256([]byte(appKey))}}),
	} {
		a := New(Options{})
		if name != "never set" {
			a.SetKeys(keys)
		}
		for _, h := range []http.Header{headers("x-api-key", appKey), headers(), headers("x-api-key", "")} {
			if who, v := a.Authenticate(h, office, noon); !v.Refused() || !who.IsNobody() {
				t.Errorf("%s: %v is %q", name, h, who.Name())
			}
		}
	}
}

func TestAFloodOfWrongKeysIsToldToWait(t *testing.T) {
	c := newCounted(Options{FailuresPerMinute: 6})
	for range 6 {
		if _, v := c.once(t, headers("x-api-key", wrongKey)); v.Reason() != verdict.NoCredential {
			t.Fatalf("%v, want no_credential", v.Err())
		}
	}
	_, v := c.once(t, headers("x-api-key", wrongKey))
	if v.Reason() != verdict.TooManyFailures || v.RetryAfter() != 10*time.Second {
		t.Fatalf("%v after %s, want too_many_failures for 10s", v.Err(), v.RetryAfter())
	}
	if _, v := c.once(t, headers("x-api-key", appKey)); v.Refused() {
		t.Errorf("a right key from the same address is refused: %v", v.Err())
	}
	if _, v := c.Authenticate(headers("x-api-key", wrongKey), netip.MustParseAddr("192.0.2.8"), noon); v.Reason() != verdict.NoCredential {
		t.Errorf("another address: %v", v.Err())
	}
	if _, v := c.Authenticate(headers("x-api-key", wrongKey), office, noon.Add(10*time.Second)); v.Reason() != verdict.NoCredential {
		t.Errorf("after Retry-After: %v", v.Err())
	}
	if _, v := c.Authenticate(headers("x-api-key", wrongKey), office, noon.Add(-time.Hour)); v.Reason() != verdict.TooManyFailures || v.RetryAfter() > time.Minute {
		t.Errorf("a clock that jumped back: %v after %s", v.Err(), v.RetryAfter())
	}
}

func TestAFloodOfAddressesIsBounded(t *testing.T) {
	c := newCounted(Options{FailuresPerMinute: 5, MaxAddresses: 100})
	for range 5 { // a heavy sender, to be remembered
		c.Authenticate(headers("x-api-key", wrongKey), office, noon)
	}
	for i := range 5000 {
		c.Authenticate(headers("x-api-key", wrongKey), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), noon)
	}
	if n := len(c.failures.byNet); n > 100 {
		t.Errorf("%d addresses are held, want at most 100", n)
	}
	if _, v := c.once(t, headers("x-api-key", wrongKey)); v.Reason() != verdict.TooManyFailures {
		t.Errorf("%v: the flood made the heavy sender forgotten", v.Err())
	}
}

func TestRevokingEndsRunningRequestsAtOnce(t *testing.T) {
	for name, change := range map[string]func([]Key) []Key{
		"revoked":   func(k []Key) []Key { k[0].Revoked = true; return k },
		"gone":      func(k []Key) []Key { return k[1:] },
		"role lost": func(k []Key) []Key { k[0].Roles = []string{"monitor"}; return k },
		"no keys":   func([]Key) []Key { return nil },
	} {
		c := newCounted(Options{})
		ended, other := make(chan error, 2), make(chan error, 2)
		release := c.Register(appID, []string{"inference"}, func(err error) { ended <- err })
		c.Register("imported0key", []string{"inference"}, func(err error) { other <- err })
		c.SetKeys(NewKeys(keysOfTest()))
		if len(ended) != 0 {
			t.Fatalf("%s: the same keys end a request", name)
		}
		c.SetKeys(NewKeys(change(keysOfTest())))
		c.SetKeys(NewKeys(nil))
		if len(ended) != 1 {
			t.Fatalf("%s: cancelled %d times, want once, before SetKeys returns", name, len(ended))
		}
		if err := <-ended; !errors.Is(err, ErrRevoked) || !strings.Contains(err.Error(), appID) {
			t.Errorf("%s: %v, want ErrRevoked naming the key", name, err)
		}
		release()
		release()
	}
}

func TestReleasedRequestsAreForgotten(t *testing.T) {
	c := newCounted(Options{})
	for range 100 {
		c.Register(appID, nil, func(error) { t.Error("a request that had ended was cancelled") })()
	}
	c.SetKeys(nil)
	for i := range c.watches.shards {
		if n := len(c.watches.shards[i].keys); n != 0 {
			t.Errorf("shard %d still lists %d keys", i, n)
		}
	}
}

func TestRegisterAfterTheRevocationEndsAtOnce(t *testing.T) {
	c := newCounted(Options{})
	for id, roles := range map[string][]string{"revoked0key0": nil, "never0heard0": nil, appID: {"operator"}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		release := c.Register(id, roles, cancel)
		if !errors.Is(context.Cause(ctx), ErrRevoked) {
			t.Errorf("%s with %v: %v, want ErrRevoked", id, roles, context.Cause(ctx))
		}
		release()
	}
}

func TestExpiryEndsRunningRequests(t *testing.T) {
	c := newCounted(Options{})
	expires := time.Now().Add(time.Hour)
	of := func(expires time.Time) *Keys {
		key := keysOfTest()[1]
		key.Expires = expires
		return NewKeys([]Key{key})
	}
	c.SetKeys(of(expires))
	ctx, cancel := context.WithCancelCause(t.Context())
	defer c.Register("expired0key0", []string{"inference"}, cancel)()
	c.EndExpired(expires.Add(-time.Nanosecond))
	if ctx.Err() != nil {
		t.Fatal("ended before it expired")
	}
	c.EndExpired(expires)
	if !errors.Is(context.Cause(ctx), ErrRevoked) {
		t.Errorf("%v, want ErrRevoked", context.Cause(ctx))
	}
	// One whose key expired between its check and its registration, or by a change of the keys, ends too.
	late, stop := context.WithCancelCause(t.Context())
	defer c.Register("expired0key0", []string{"inference"}, stop)()
	if late.Err() != nil {
		t.Fatal("ended before it expired")
	}
	c.SetKeys(of(time.Now().Add(-time.Second)))
	if !errors.Is(context.Cause(late), ErrRevoked) {
		t.Errorf("after a change: %v, want ErrRevoked", context.Cause(late))
	}
	after, end := context.WithCancelCause(t.Context())
	defer c.Register("expired0key0", []string{"inference"}, end)()
	if !errors.Is(context.Cause(after), ErrRevoked) {
		t.Errorf("registered after it expired: %v, want ErrRevoked", context.Cause(after))
	}
}

// Whatever the order of registering and revoking, no request of a revoked key goes on.
func TestNoRequestSlipsThroughARevocation(t *testing.T) {
	for range 200 {
		c := newCounted(Options{})
		var registered, ended atomic.Int64
		gate := make(chan struct{})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				<-gate
				c.Register(appID, []string{"inference"}, func(error) { ended.Add(1) })
				registered.Add(1)
			})
		}
		wg.Go(func() { <-gate; c.SetKeys(nil) })
		close(gate)
		wg.Wait()
		if registered.Load() != ended.Load() {
			t.Fatalf("%d of %d requests go on with a revoked key", registered.Load()-ended.Load(), registered.Load())
		}
	}
}

func TestUsedIsDrainedAndOutlivesAReload(t *testing.T) {
	c := newCounted(Options{})
	c.once(t, headers("x-api-key", appKey))
	c.once(t, headers("x-api-key", expiredKey))
	c.SetKeys(NewKeys(append([]Key{{ID: "another0key0", Name: "another", Hash: [32]byte{1}}}, keysOfTest()...)))
	used := c.Used()
	if len(used) != 1 || !used[appID].Equal(noon) {
		t.Errorf("used: %v, want %s at noon only", used, appID)
	}
	if used := c.Used(); len(used) != 0 {
		t.Errorf("not drained: %v", used)
	}
}

func TestKeysDoNotChangeUnderTheirOwner(t *testing.T) {
	list := keysOfTest()
	c := newCounted(Options{})
	c.SetKeys(NewKeys(list))
	list[0].Roles[0] = "operator"
	if who, _ := c.once(t, headers("x-api-key", appKey)); who.Has("operator") {
		t.Error("the caller of NewKeys can still give roles")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer c.Register(appID, []string{"inference"}, cancel)()
	if ctx.Err() != nil {
		t.Error("the caller of NewKeys can still take roles away")
	}
}

func FuzzCredential(f *testing.F) {
	for _, r := range refusals {
		f.Add(r.header.Get("Authorization"), r.header.Get("x-api-key"), r.header.Get("api-key"), uint8(7))
	}
	f.Add("Bearer "+appKey, appKey, "", uint8(7))
	f.Fuzz(func(t *testing.T, authorization, xAPIKey, apiKey string, which uint8) {
		h := http.Header{}
		for i, value := range []string{authorization, xAPIKey, apiKey} {
			if which&(1<<i) != 0 {
				h.Add(credentialHeaders[i], value)
			}
			if which&(8<<i) != 0 {
				h.Add(credentialHeaders[i], value)
			}
		}
		c := newCounted(Options{})
		who, v := c.once(t, h)
		if v.Refused() {
			return
		}
		// Who passes sent a live key, whole, and nothing else.
		for _, name := range credentialHeaders {
			for _, value := range h[name] {
				value = strings.TrimSpace(value)
				if i := strings.IndexByte(value, ' '); name == "Authorization" && i == 6 {
					value = value[7:]
				}
				if value != "" && !strings.EqualFold(value, "bearer") && value != appKey && value != oldKey {
					t.Fatalf("%v is %q", h, who.Name())
				}
			}
		}
	})
}

func FuzzIDOf(f *testing.F) {
	f.Add(appKey)
	f.Fuzz(func(t *testing.T, s string) {
		if id := idOf(s); id != "" && (len(s) != keyLength || !bytes.HasPrefix([]byte(s), []byte("vlm_"+id+"_"))) {
			t.Fatalf("%q has id %q", s, id)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	a := New(Options{})
	a.SetKeys(NewKeys(keysOfTest()))
	h := headers("Authorization", "Bearer "+appKey)
	b.ReportAllocs()
	for b.Loop() {
		if _, v := a.Authenticate(h, office, noon); v.Refused() {
			b.Fatal(v.Err())
		}
	}
}
