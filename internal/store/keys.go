package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/identity"
)

// Kind is where a key came from.
type Kind string

// The kinds.
const (
	Made     Kind = "vallum"   // vlm_<id>_<secret>, made here
	Imported Kind = "imported" // a value from elsewhere, found by its hash
)

// Key is what is kept of an API key. Zero times mean never.
type Key struct {
	ID         string            `json:"id"` // public: may be logged
	Name       string            `json:"name"`
	Tenant     string            `json:"tenant"` // whose data it is; the name unless one was given
	Roles      []string          `json:"roles"`
	Kind       Kind              `json:"kind"`
	Hash       [sha256.Size]byte `json:"-"` // SHA-256 of the whole key
	Created    time.Time         `json:"created"`
	Expires    time.Time         `json:"expires,omitzero"`
	Revoked    time.Time         `json:"revoked,omitzero"`
	LastUsed   time.Time         `json:"last_used,omitzero"`
	ReplacedBy string            `json:"replaced_by,omitempty"` // the key that took its place; until it expires both are good
	Note       string            `json:"note,omitempty"`
}

// Live reports whether the key opens anything at that time.
func (k Key) Live(now time.Time) bool {
	return k.Revoked.IsZero() && (k.Expires.IsZero() || now.Before(k.Expires))
}

// Principal is who sends requests with this key.
func (k Key) Principal() identity.Principal { return identity.New(k.Name, k.ID, k.Tenant, k.Roles) }

// NewKey says what a key is to be.
type NewKey struct {
	Name    string    // as identity.IsName takes it; no live key may have it
	Tenant  string    // the same; "" means the name
	Roles   []string  // at least one, each the same
	Expires time.Time // zero means never; otherwise in the future
	Note    string    // at most 256 bytes, for people
}

var (
	// ErrNoSuchKey: neither an id nor a name of a live key.
	ErrNoSuchKey = errors.New("no live key has this name or id")
	// ErrExists: a live key has the name, or the value was imported before.
	ErrExists = errors.New("the key exists")
)

// Check refuses names that would be ambiguous in a log line, a list or a command, and what could never be used. CreateKey
// and ImportKey ask it too.
func (n NewKey) Check(now time.Time) error {
	const want = "want " + identity.NameWords
	if !identity.IsName(n.Name) {
		return fmt.Errorf("name %q: %s", n.Name, want)
	}
	if n.Tenant != "" && !identity.IsName(n.Tenant) {
		return fmt.Errorf("tenant %q: %s", n.Tenant, want)
	}
	if len(n.Roles) == 0 {
		return errors.New("no role is given, so the key could do nothing: give one, such as inference")
	}
	for _, role := range n.Roles {
		if !identity.IsName(role) {
			return fmt.Errorf("role %q: %s", role, want)
		}
	}
	if !n.Expires.IsZero() && !n.Expires.After(now) {
		return fmt.Errorf("it would expire at %s, which has passed", n.Expires.UTC().Format(time.RFC3339))
	}
	if len(n.Note) > 256 {
		return fmt.Errorf("the note has %d bytes, at most 256 are kept", len(n.Note))
	}
	return nil
}

// CreateKey makes a key and returns it: this once, for nothing but its hash is kept.
func (s *Store) CreateKey(ctx context.Context, n NewKey, now time.Time) (secret string, key Key, err error) {
	if err := n.Check(now); err != nil {
		return "", Key{}, fmt.Errorf("creating a key: %w", err)
	}
	key, secret, err = drawKey(n, now)
	if err != nil {
		return "", Key{}, err
	}
	err = s.change(ctx, func(tx *sql.Tx) error {
		if err := nameFree(ctx, tx, n.Name, now); err != nil {
			return err
		}
		return insert(ctx, tx, key)
	})
	if err != nil {
		return "", Key{}, fmt.Errorf("creating key %q: %w", n.Name, err)
	}
	return secret, key, nil
}

// ImportKey takes a key that clients already have, of 20 characters at least. Only its hash is kept, and no error
// repeats it. A value that was imported before is refused, also when it was revoked since: what leaked once stays out.
func (s *Store) ImportKey(ctx context.Context, value string, n NewKey, now time.Time) (Key, error) {
	if err := n.Check(now); err != nil {
		return Key{}, fmt.Errorf("importing a key: %w", err)
	}
	if err := checkImported(value); err != nil {
		return Key{}, fmt.Errorf("importing key %q: %w", n.Name, err)
	}
	id, err := newID()
	if err != nil {
		return Key{}, err
	}
	key := n.key(id, Imported, now)
	key.Hash = hashOf(value)
	err = s.change(ctx, func(tx *sql.Tx) error {
		old, err := query(ctx, tx, "WHERE hash = ?", key.Hash[:])
		if err != nil {
			return err
		}
		if len(old) > 0 && !old[0].Revoked.IsZero() {
			return fmt.Errorf("this value is key %s (%q), revoked %s: %w; give the client a new one", old[0].ID, old[0].Name, old[0].Revoked.UTC().Format(time.RFC3339), ErrExists)
		}
		if len(old) > 0 {
			return fmt.Errorf("this value is key %s (%q) already: %w", old[0].ID, old[0].Name, ErrExists)
		}
		if err := nameFree(ctx, tx, n.Name, now); err != nil {
			return err
		}
		return insert(ctx, tx, key)
	})
	if err != nil {
		return Key{}, fmt.Errorf("importing key %q: %w", n.Name, err)
	}
	return key, nil
}

// ListKeys lists all keys that there ever were, the oldest first.
func (s *Store) ListKeys(ctx context.Context) ([]Key, error) {
	keys, err := query(ctx, s.db, "")
	if err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	return keys, nil
}

// RevokeKey ends the key with that id, or the live keys with that name (a key and the one that it replaced, while both
// are good), and returns them. ErrNoSuchKey when none is live.
func (s *Store) RevokeKey(ctx context.Context, idOrName string, now time.Time) ([]Key, error) {
	var ended []Key
	err := s.change(ctx, func(tx *sql.Tx) error {
		keys, err := live(ctx, tx, idOrName, now)
		if err != nil {
			return err
		}
		for _, key := range keys {
			if _, err := tx.ExecContext(ctx, "UPDATE keys SET revoked = ? WHERE id = ?", now.UnixMilli(), key.ID); err != nil {
				return err
			}
			key.Revoked = now
			ended = append(ended, key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("revoking key %q: %w", idOrName, err)
	}
	return ended, nil
}

// RotateKey makes a key in the place of the one with that id or name: same name, tenant, roles and note, and the same time to live,
// counted from now. The old one is good for the overlap and no longer; without one it is revoked at once. An imported key is replaced by one
// of Vallum's own.
func (s *Store) RotateKey(ctx context.Context, idOrName string, overlap time.Duration, now time.Time) (secret string, key Key, err error) {
	if overlap < 0 {
		return "", Key{}, fmt.Errorf("rotating key %q: the overlap %s is negative", idOrName, overlap)
	}
	err = s.change(ctx, func(tx *sql.Tx) error {
		old, err := current(ctx, tx, idOrName, now)
		if err != nil {
			return err
		}
		n := NewKey{Name: old.Name, Tenant: old.Tenant, Roles: old.Roles, Note: old.Note}
		if !old.Expires.IsZero() {
			n.Expires = now.Add(old.Expires.Sub(old.Created))
		}
		if key, secret, err = drawKey(n, now); err != nil {
			return err
		}
		if err := insert(ctx, tx, key); err != nil {
			return err
		}
		return supersede(ctx, tx, old, key.ID, overlap, now)
	})
	if err != nil {
		return "", Key{}, fmt.Errorf("rotating key %q: %w", idOrName, err)
	}
	return secret, key, nil
}

// supersede ends the old key now or after the overlap, but never later than it would have ended anyway.
func supersede(ctx context.Context, tx *sql.Tx, old Key, by string, overlap time.Duration, now time.Time) error {
	if overlap == 0 {
		_, err := tx.ExecContext(ctx, "UPDATE keys SET replaced = ?, revoked = ? WHERE id = ?", by, now.UnixMilli(), old.ID)
		return err
	}
	until := now.Add(overlap)
	if !old.Expires.IsZero() && old.Expires.Before(until) {
		until = old.Expires
	}
	_, err := tx.ExecContext(ctx, "UPDATE keys SET replaced = ?, expires = ? WHERE id = ?", by, until.UnixMilli(), old.ID)
	return err
}

// current is the one live key that nothing has replaced yet.
func current(ctx context.Context, tx *sql.Tx, idOrName string, now time.Time) (Key, error) {
	keys, err := live(ctx, tx, idOrName, now)
	if err != nil {
		return Key{}, err
	}
	keys = slices.DeleteFunc(keys, func(k Key) bool { return k.ReplacedBy != "" })
	if len(keys) == 0 {
		return Key{}, fmt.Errorf("%w: it was replaced already", ErrNoSuchKey)
	}
	return keys[0], nil
}

// TouchLastUsed notes when keys were last used, all at once. An earlier time than the one noted changes nothing. It may wait for
// another process's write, and nobody waits for it: Changed goes on meanwhile, and reports it afterwards.
func (s *Store) TouchLastUsed(ctx context.Context, used map[string]time.Time) error {
	if len(used) == 0 {
		return nil
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("noting when keys were used: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing after Commit
	for id, at := range used {
		if _, err := tx.ExecContext(ctx, "UPDATE keys SET last_used = max(coalesce(last_used, 0), ?) WHERE id = ?", at.UnixMilli(), id); err != nil {
			return fmt.Errorf("noting when keys were used: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("noting when keys were used: %w", err)
	}
	return nil
}

// EverHeldKey reports whether there ever was a key, also a revoked one: only then the gateway makes no first key.
func (s *Store) EverHeldKey(ctx context.Context) (bool, error) {
	var some bool
	if err := s.db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM keys)").Scan(&some); err != nil {
		return false, fmt.Errorf("looking for a key: %w", err)
	}
	return some, nil
}

// drawKey makes a key that is not in the store yet.
func drawKey(n NewKey, now time.Time) (Key, string, error) {
	id, err := newID()
	if err != nil {
		return Key{}, "", err
	}
	random, err := newSecret()
	if err != nil {
		return Key{}, "", err
	}
	secret := keyPrefix + id + "_" + random
	key := n.key(id, Made, now)
	key.Hash = hashOf(secret)
	return key, secret, nil
}

// key is the key with that id, without its hash.
func (n NewKey) key(id string, kind Kind, now time.Time) Key {
	k := Key{ID: id, Name: n.Name, Tenant: n.Tenant, Kind: kind, Created: whenever(now.UnixMilli()), Note: n.Note}
	if k.Tenant == "" {
		k.Tenant = n.Name
	}
	for _, role := range n.Roles {
		if !slices.Contains(k.Roles, role) {
			k.Roles = append(k.Roles, role)
		}
	}
	if !n.Expires.IsZero() {
		k.Expires = whenever(n.Expires.UnixMilli())
	}
	return k
}

// nameFree refuses a name that a live key has.
func nameFree(ctx context.Context, tx *sql.Tx, name string, now time.Time) error {
	keys, err := query(ctx, tx, "WHERE name = ? OR id = ?", name, name)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.ID == name {
			return fmt.Errorf("that is the id of a key: %w; choose another name", ErrExists)
		}
		if k.Live(now) {
			return fmt.Errorf("key %s has that name: %w; rotate or revoke it, or choose another name", k.ID, ErrExists)
		}
	}
	return nil
}

// live finds the live keys with that id or name.
func live(ctx context.Context, tx *sql.Tx, idOrName string, now time.Time) ([]Key, error) {
	keys, err := query(ctx, tx, "WHERE id = ? OR name = ?", idOrName, idOrName)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, ErrNoSuchKey
	}
	keys = slices.DeleteFunc(keys, func(k Key) bool { return !k.Live(now) })
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: it is revoked or expired already", ErrNoSuchKey)
	}
	return keys, nil
}

// change runs f in a transaction that has the write lock from its beginning.
func (s *Store) change(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing after Commit
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

const columns = "id, name, tenant, roles, hash, kind, created, expires, revoked, last_used, replaced, note"

func insert(ctx context.Context, tx *sql.Tx, k Key) error {
	tenant := k.Tenant
	if tenant == k.Name {
		tenant = ""
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO keys ("+columns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, ?)",
		k.ID, k.Name, tenant, strings.Join(k.Roles, ","), k.Hash[:], string(k.Kind), k.Created.UnixMilli(), millis(k.Expires), k.Note)
	return err
}

// rows is a database or a transaction.
type rows interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func query(ctx context.Context, from rows, where string, args ...any) ([]Key, error) {
	found, err := from.QueryContext(ctx, "SELECT "+columns+" FROM keys "+where+" ORDER BY created, rowid", args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = found.Close() }() // Err says what is wrong
	var keys []Key
	for found.Next() {
		k, err := scan(found)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, found.Err()
}

func scan(row *sql.Rows) (Key, error) {
	var k Key
	var hash []byte
	var roles, kind string
	var created int64
	var expires, revoked, used sql.NullInt64
	var replaced sql.NullString
	if err := row.Scan(&k.ID, &k.Name, &k.Tenant, &roles, &hash, &kind, &created, &expires, &revoked, &used, &replaced, &k.Note); err != nil {
		return Key{}, err
	}
	if len(hash) != len(k.Hash) {
		return Key{}, fmt.Errorf("key %q: its hash has %d bytes, want %d", k.ID, len(hash), len(k.Hash))
	}
	copy(k.Hash[:], hash)
	if k.Tenant == "" {
		k.Tenant = k.Name
	}
	k.Roles, k.Kind, k.ReplacedBy = strings.Split(roles, ","), Kind(kind), replaced.String
	k.Created, k.Expires, k.Revoked, k.LastUsed = whenever(created), optional(expires), optional(revoked), optional(used)
	return k, nil
}

func whenever(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// optional is a time from the database; zero when NULL.
func optional(ms sql.NullInt64) time.Time {
	if !ms.Valid {
		return time.Time{}
	}
	return whenever(ms.Int64)
}

// millis is a time for the database; NULL when zero.
func millis(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMilli(), Valid: !t.IsZero()}
}
