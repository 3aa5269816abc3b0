package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/daemon/screen"
	"github.com/vallum/vallum/internal/store"
)

// keysEvery is how often the store is looked at. From the look that sees a change to the end of what runs by it nothing is
// waited for but a client that takes nothing of its end (gateway), so that both are within the promised second.
const keysEvery = 200 * time.Millisecond

// watchKeys is the clock of the keys: those that changed, those that expire. It is apart from watch, for a reload waits for
// servers and files, and nobody may wait for those with a revocation.
func (d *Daemon) watchKeys(ctx context.Context) {
	poll := time.NewTicker(keysEvery)
	defer poll.Stop()
	keys := d.noted
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
			d.keys.EndExpired(time.Now())
			keys = d.pollKeys(ctx, keys)
		}
	}
}

// pollKeys sees what `vallum keys` changed. What fails is tried again the next time: the store tells of a
// change once.
func (d *Daemon) pollKeys(ctx context.Context, before []store.Key) []store.Key {
	changed, err := d.store.Changed(ctx)
	d.behind = d.behind || changed
	if err == nil && !d.behind {
		return before
	}
	var after []store.Key
	if err == nil {
		after, err = d.loadKeys(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			d.log.Error("reading the keys; the ones before stay", "error", err)
		}
		return before
	}
	d.behind = false
	d.noteKeys(before, after)
	d.removeFirstKeyFile(after)
	return after
}

// loadKeys makes the store's keys, and those of the configuration's key file, the ones that count, and gives the store's.
// Running requests of keys that are gone end. One at a time: of two that read, the one that read first, before a
// revocation, must not be the last to say what counts.
func (d *Daemon) loadKeys(ctx context.Context) ([]store.Key, error) {
	d.keyLoads.Lock()
	defer d.keyLoads.Unlock()
	stored, err := d.store.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the keys: %w", err)
	}
	if d.noted == nil {
		d.noted = stored
	}
	d.enforce(stored)
	return stored, nil
}

// enforce makes these keys, and those of the key file, the ones that count. The caller holds keyLoads since it read them.
func (d *Daemon) enforce(stored []store.Key) {
	list := make([]authn.Key, 0, len(stored))
	for _, k := range stored {
		list = append(list, authn.Key{
			ID: k.ID, Name: k.Name, Tenant: k.Tenant, Roles: k.Roles, Hash: k.Hash,
			Expires: k.Expires, Revoked: !k.Revoked.IsZero(), Imported: k.Kind == store.Imported,
		})
	}
	if s := d.current.Load(); s != nil {
		list = append(list, s.fileKeys...)
		list = s.withoutLostRoles(list)
	}
	d.keys.SetKeys(authn.NewKeys(list))
}

// withoutLostRoles takes away roles that the configuration does not have (any more), so that requests which run by
// them end as they would when the key lost the role.
func (s *snapshot) withoutLostRoles(list []authn.Key) []authn.Key {
	for i, k := range list {
		var kept []string
		for _, role := range k.Roles {
			if s.gateway.Policy.HasRole(role) {
				kept = append(kept, role)
			}
		}
		list[i].Roles = kept
	}
	return list
}

// firstKey makes a key when the store never held one, so that a new installation can be used at once. It returns what
// to show: the key itself on a terminal, otherwise the path of the file that holds it.
func (d *Daemon) firstKey(ctx context.Context) (string, error) {
	held, err := d.store.EverHeldKey(ctx)
	if err != nil || held {
		return "", err
	}
	secret, key, err := d.store.CreateKey(ctx, store.NewKey{Name: "first", Roles: []string{"inference"}, Note: "made at the first start"}, time.Now())
	if err != nil {
		return "", fmt.Errorf("making the first key: %w", err)
	}
	d.recordKey(key, "made at the first start")
	d.noted = append(d.noted, key)
	if _, err := d.loadKeys(ctx); err != nil {
		return "", err
	}
	if d.options.Terminal {
		return secret, nil
	}
	file := filepath.Join(d.state, "first-key")
	if err := writePrivate(file, []byte(secret+"\n")); err != nil {
		return "", err
	}
	return file, nil
}

func (d *Daemon) recordKey(k store.Key, what string) {
	if _, err := d.records.Append(audit.Record{Event: audit.KeyChanged, Principal: k.Name, KeyID: k.ID, Tenant: k.Tenant, Detail: what}); err != nil {
		d.log.Error("audit", "event", "key", "error", err)
	}
}

// noteKeys records what changed in the store: another process, `vallum keys`, made the change.
func (d *Daemon) noteKeys(before, after []store.Key) {
	known := map[string]store.Key{}
	for _, k := range before {
		known[k.ID] = k
	}
	for _, k := range after {
		old, was := known[k.ID]
		switch {
		case !was && k.Kind == store.Imported:
			d.recordKey(k, "imported")
		case !was:
			d.recordKey(k, "created")
		case old.Revoked.IsZero() && !k.Revoked.IsZero():
			d.recordKey(k, "revoked")
		case !old.Expires.Equal(k.Expires):
			d.recordKey(k, "expires "+k.Expires.UTC().Format(time.RFC3339))
		}
	}
}

// removeFirstKeyFile forgets the first key's file once the key is gone: a dead secret helps nobody.
func (d *Daemon) removeFirstKeyFile(keys []store.Key) {
	for _, k := range keys {
		if k.Note == "made at the first start" && k.Live(time.Now()) {
			return
		}
	}
	_ = os.Remove(filepath.Join(d.state, "first-key")) // absent mostly
}

// holders are the live keys, for the first screen.
func (d *Daemon) holders() []screen.Holder {
	keys, err := d.store.ListKeys(context.Background())
	if err != nil {
		return nil
	}
	var live []screen.Holder
	for _, k := range keys {
		if k.Live(time.Now()) {
			live = append(live, screen.Holder{Name: k.Name, Roles: k.Roles})
		}
	}
	for _, k := range d.current.Load().fileKeys {
		live = append(live, screen.Holder{Name: k.Name, Roles: k.Roles})
	}
	return live
}
