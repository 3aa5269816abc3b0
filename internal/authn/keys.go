package authn

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/verdict"
)

// Key is what is known of an API key. The key itself is not: only its hash is kept.
type Key struct {
	ID       string            // public, unique, may be logged
	Name     string            // chosen by the operator
	Tenant   string            // whose data it is; "" means the name
	Roles    []string          // names of roles
	Hash     [sha256.Size]byte // SHA-256 of the whole key as it is sent
	Expires  time.Time         // zero means never
	Revoked  bool
	Imported bool // not of our shape: found by its hash
}

func (k *Key) expired(now time.Time) bool { return !k.Expires.IsZero() && !now.Before(k.Expires) }

// Keys is a set of keys, which does not change. Make it with NewKeys.
type Keys struct {
	list       []Key
	principals []identity.Principal // by place in list
	byID       map[string]int
	byHash     map[hashPrefix]int
}

// NewKeys makes the set. A key without id, name or hash can be nobody's and is left out. When two keys have one id, or
// one hash, the first counts; but a revoked one always does: what was revoked in one place is not live in another.
func NewKeys(list []Key) *Keys {
	k := &Keys{byID: make(map[string]int, len(list)), byHash: make(map[hashPrefix]int)}
	ordered := make([]Key, 0, len(list))
	for _, revoked := range []bool{true, false} {
		for _, key := range list {
			if key.Revoked == revoked {
				ordered = append(ordered, key)
			}
		}
	}
	for _, key := range ordered {
		if key.ID == "" || key.Name == "" || key.Hash == nobodysHash {
			continue
		}
		prefix := prefixOf(&key.Hash)
		_, sameID := k.byID[key.ID]
		_, sameHash := k.byHash[prefix]
		if sameID || sameHash {
			continue
		}
		key.Roles = slices.Clone(key.Roles)
		k.byID[key.ID], k.byHash[prefix] = len(k.list), len(k.list)
		k.list = append(k.list, key)
		k.principals = append(k.principals, identity.New(key.Name, key.ID, key.Tenant, key.Roles))
	}
	return k
}

// Len is how many keys the set has, live or not.
func (k *Keys) Len() int { return len(k.list) }

// find is the place of the one key that the credential can be, or -1. Whether it is that key, judge says.
func (k *Keys) find(presented string, sum *[sha256.Size]byte) int {
	if id := idOf(presented); id != "" {
		if place, known := k.byID[id]; known {
			return place
		}
	}
	if place, known := k.byHash[prefixOf(sum)]; known && k.list[place].Imported {
		return place
	}
	return -1
}

// judge says whether the credential is the key in that place and the key is live.
func (k *Keys) judge(place int, same bool, presented string, now time.Time) verdict.Verdict {
	refuse := func(cause error) verdict.Verdict { return verdict.Refuse(verdict.NoCredential, cause) }
	if place < 0 {
		if id := idOf(presented); id != "" {
			return refuse(fmt.Errorf("key %q: there is no such key", id))
		}
		return refuse(errors.New("unknown key, and not of the shape vlm_<id>_<secret>"))
	}
	key := &k.list[place]
	switch {
	case !same:
		return refuse(fmt.Errorf("key %q: wrong secret", key.ID))
	case key.Revoked:
		return refuse(fmt.Errorf("key %q: revoked", key.ID))
	case key.expired(now):
		return refuse(fmt.Errorf("key %q: expired %s", key.ID, key.Expires.UTC().Format(time.RFC3339)))
	}
	return verdict.Allow()
}

// lost says why a request that runs under the key and these roles has to end; nil when it may go on.
func (k *Keys) lost(id string, roles []string, now time.Time) error {
	place, known := k.byID[id]
	switch {
	case !known || k.list[place].Revoked:
		return fmt.Errorf("key %q: %w", id, ErrRevoked)
	case k.list[place].expired(now):
		return fmt.Errorf("key %q expired: %w", id, ErrRevoked)
	}
	for _, role := range roles {
		if !slices.Contains(k.list[place].Roles, role) {
			return fmt.Errorf("key %q lost role %q: %w", id, role, ErrRevoked)
		}
	}
	return nil
}
