// Package store keeps what must outlive the process in a state directory: the API keys, as hashes, and a few small values.
// It refuses a directory that others can read or write, and a database that a newer release made; it never keeps a key
// itself.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// fileName is the database in the state directory.
const fileName = "vallum.db"

// busyTimeout is how long a write waits for another process's: `vallum keys` works while the gateway runs.
const busyTimeout = 5 * time.Second

// Store is an open state directory. Several processes may have it open at once. Safe for concurrent use.
type Store struct {
	db *sql.DB

	// watch is the connection that sees what was written: data_version changes with every commit that is not its own. Nothing
	// is written there: a write may wait for another process, and a revocation must be seen meanwhile.
	mu      sync.Mutex
	watch   *sql.Conn
	version int64
}

// Open opens the state directory, and makes it (0700) with an empty store when it is absent. It refuses a directory or a
// database that others than its owner can reach, with the chmod that would be right, and a database of a newer schema.
// Who can write the directory can make keys: it is as secret as the keys together.
func Open(ctx context.Context, dir string) (*Store, error) {
	if err := makeDirectory(dir); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, fileName)
	if err := makeFile(file); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(file))
	if err != nil {
		return nil, fmt.Errorf("opening %q: %w", file, err)
	}
	db.SetMaxOpenConns(4)
	s := &Store{db: db}
	if err := s.begin(ctx, dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// begin brings the schema up to date and starts to watch.
func (s *Store) begin(ctx context.Context, dir string) error {
	if err := migrate(ctx, s.db, dir); err != nil {
		return err
	}
	watch, err := s.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("opening the store in %q: %w", dir, err)
	}
	s.watch = watch
	if s.version, err = dataVersion(ctx, watch); err != nil {
		return errors.Join(err, watch.Close())
	}
	return nil
}

// Close closes the store. It must not be used afterwards.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch == nil {
		return nil
	}
	err := errors.Join(s.watch.Close(), s.db.Close())
	s.watch = nil
	return err
}

// Changed reports whether anything was written since the last call, or since Open: by this process or another. It never waits
// for a write. It costs a few microseconds, and is meant to be called several times a second.
func (s *Store) Changed(ctx context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch == nil {
		return false, errClosed
	}
	version, err := dataVersion(ctx, s.watch)
	if err != nil {
		return false, err
	}
	changed := version != s.version
	s.version = version
	return changed, nil
}

var errClosed = errors.New("the store is closed")

func dataVersion(ctx context.Context, c *sql.Conn) (version int64, err error) {
	if err := c.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version); err != nil {
		return 0, fmt.Errorf("looking for changes of the store: %w", err)
	}
	return version, nil
}

// dsn opens the file in WAL mode, so that a reader never waits for a writer, with every transaction taking the write lock at once:
// one that began to read could not wait for another writer any more. FULL: a revocation survives a power loss.
func dsn(file string) string {
	path := filepath.ToSlash(file)
	if abs, err := filepath.Abs(file); err == nil {
		path = filepath.ToSlash(abs)
	}
	if !strings.HasPrefix(path, "/") { // C:/state
		path = "/" + path
	}
	q := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
			"journal_mode(WAL)", "synchronous(FULL)", "trusted_schema(0)",
		},
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// makeDirectory makes the state directory, or checks that it is the owner's alone.
func makeDirectory(dir string) error {
	if dir == "" {
		return errors.New("no state directory is given; name one with --state")
	}
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the state directory: %w", err)
		}
		info, err = os.Stat(dir)
	}
	if err != nil {
		return fmt.Errorf("looking at the state directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the state directory %q is not a directory", dir)
	}
	if mode := info.Mode().Perm(); ownersAlone && mode&0o077 != 0 {
		return fmt.Errorf("the state directory %q has mode %04o, so others can read the keys' hashes or make keys: run chmod 0700 %s, or name a folder that does not exist yet", dir, mode, quoted(dir))
	}
	return nil
}

// makeFile makes the database file before SQLite does, because SQLite would give it the umask's mode. The journal
// gets the mode of the database.
func makeFile(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("opening the key store: %w", err)
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("looking at the key store: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("the key store %q is not a regular file", file)
	}
	if mode := info.Mode().Perm(); ownersAlone && mode&0o077 != 0 {
		return fmt.Errorf("the key store %q has mode %04o, so others can read the keys' hashes or make keys: run chmod 0600 %s", file, mode, quoted(file))
	}
	return nil
}

// quoted is the path as a POSIX shell reads it.
func quoted(path string) string {
	if strings.IndexFunc(path, func(r rune) bool {
		return !strings.ContainsRune("/._-+=:@%,", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// Meta is the small value of that name; absent when ok is false.
func (s *Store) Meta(ctx context.Context, name string) (value []byte, ok bool, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT value FROM meta WHERE name = ?", name).Scan(&value)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("reading %q from the store: %w", name, err)
	}
	return value, true, nil
}

// SetMeta keeps a small value.
func (s *Store) SetMeta(ctx context.Context, name string, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	_, err := s.db.ExecContext(ctx, "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
	if err != nil {
		return fmt.Errorf("writing %q to the store: %w", name, err)
	}
	return nil
}

// Secret is the value of that name, made of 32 random bytes the first time it is asked for: the same for all
// processes, also when two ask first at once.
func (s *Store) Secret(ctx context.Context, name string) ([]byte, error) {
	fresh := make([]byte, 32)
	if _, err := rand.Read(fresh); err != nil {
		return nil, fmt.Errorf("making %q: %w", name, err)
	}
	if value, ok, err := s.Meta(ctx, name); err != nil || ok {
		return whole(name, value, err)
	}
	if _, err := s.db.ExecContext(ctx, "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", name, fresh); err != nil {
		return nil, fmt.Errorf("writing %q to the store: %w", name, err)
	}
	value, _, err := s.Meta(ctx, name)
	return whole(name, value, err)
}

// whole refuses a secret that was cut or emptied: with a short one, what is keyed by it could be computed.
func whole(name string, value []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	if len(value) != 32 {
		return nil, fmt.Errorf("the store's %q has %d bytes, want 32: restore it, or remove the state directory", name, len(value))
	}
	return value, nil
}
