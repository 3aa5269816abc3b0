package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// migrations bring the schema from each version to the next: entry i makes version i+1. They are never edited once released, only
// added to. The version is in the table schema_version, which has one row.
var migrations = []string{
	`CREATE TABLE keys (
		id        TEXT PRIMARY KEY,
		name      TEXT NOT NULL,
		tenant    TEXT NOT NULL,                               -- '' means the name
		roles     TEXT NOT NULL,                               -- separated by commas
		hash      BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
		kind      TEXT NOT NULL CHECK (kind IN ('vallum', 'imported')),
		created   INTEGER NOT NULL,                            -- times: milliseconds since 1970
		expires   INTEGER,
		revoked   INTEGER,
		last_used INTEGER,
		replaced  TEXT REFERENCES keys (id),                   -- the key that took this one's place
		note      TEXT NOT NULL
	) STRICT;
	CREATE INDEX keys_name ON keys (name);
	CREATE TABLE meta (
		name  TEXT PRIMARY KEY,
		value BLOB NOT NULL
	) STRICT;`,
}

// migrate brings the database to the newest schema. Several processes may do so at once; one does the work.
func migrate(ctx context.Context, db *sql.DB, dir string) error {
	var err error
	// Switching a new database to WAL takes a lock that busy_timeout does not wait for.
	for deadline := time.Now().Add(busyTimeout); ; {
		err = migrateOnce(ctx, db)
		if err == nil || !locked(err) || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	var newer newerError
	if errors.As(err, &newer) {
		return fmt.Errorf("the state directory %q was made by a newer vallum (schema %d, this release knows %d): use that release or a newer one, or another --state", dir, newer, len(migrations))
	}
	if err != nil {
		return fmt.Errorf("opening the key store in %q: %w", dir, err)
	}
	return nil
}

// newerError is the version of a schema that this release does not know.
type newerError int

func (e newerError) Error() string { return fmt.Sprintf("schema %d is newer", int(e)) }

func locked(err error) bool {
	return strings.Contains(err.Error(), "SQLITE_BUSY") || strings.Contains(err.Error(), "database is locked")
}

func migrateOnce(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing after Commit
	if _, err := tx.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT"); err != nil {
		return err
	}
	version, fresh := 0, false
	err = tx.QueryRowContext(ctx, "SELECT version FROM schema_version").Scan(&version)
	if fresh = errors.Is(err, sql.ErrNoRows); err != nil && !fresh {
		return err
	}
	if version > len(migrations) {
		return newerError(version)
	}
	if version == len(migrations) {
		return nil
	}
	for _, m := range migrations[version:] {
		if _, err := tx.ExecContext(ctx, m); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "DELETE FROM schema_version"); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO schema_version (version) VALUES (?)", len(migrations)); err != nil {
		return err
	}
	return tx.Commit()
}
