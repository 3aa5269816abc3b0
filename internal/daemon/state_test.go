package daemon_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/gatetest"
)

func refusesToStart(t *testing.T, o gatetest.Options, says string) {
	t.Helper()
	if _, err := gatetest.Try(t, o); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("it starts with %v, want an error that says %q", err, says)
	}
}

// Who can read the state directory has the salts and the signing key; who can write it makes keys.
func TestAStateDirectoryOfOthersIsRefused(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("NOT RUN: permissions are not in the mode on Windows")
	}
	for _, mode := range []os.FileMode{0o755, 0o750, 0o701, 0o770} {
		dir := filepath.Join(t.TempDir(), "state")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		refusesToStart(t, gatetest.Options{State: dir, NoKeys: true}, "chmod")
	}
	dir := filepath.Join(t.TempDir(), "state")
	g := gatetest.Start(t, gatetest.Options{State: dir, NoKeys: true})
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	// what it made itself is its owner's alone
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 && filepath.Ext(path) != ".vkey" && !strings.Contains(path, "audit"+string(filepath.Separator)) {
			t.Errorf("%s has the mode %s", path, info.Mode())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "vallum.db"), 0o644); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, gatetest.Options{State: dir, NoKeys: true}, "chmod")
}

func TestTwoDaemonsOnOneStateDirectoryAreRefused(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{})
	refusesToStart(t, gatetest.Options{State: g.State, NoKeys: true}, "audit")
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("the first one: %d %s", a.Status, a.Body)
	}
}

func TestAStateOfANewerVersionIsRefused(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{})
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(g.State, "vallum.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "UPDATE schema_version SET version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, gatetest.Options{State: g.State, NoKeys: true}, "newer")
}

func TestAnAuditDirectoryThatCannotBeWrittenStopsTheStart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "audit"), nil, 0o600); err != nil { // a file in its place: root could write a 0500 directory
		t.Fatal(err)
	}
	refusesToStart(t, gatetest.Options{State: dir, NoKeys: true}, "audit")
}
