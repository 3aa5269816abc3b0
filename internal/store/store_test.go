package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// childDir makes the test binary a second process that works on this state directory.
const childDir = "VALLUM_STORE_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

// child is `vallum keys create` in the second process.
func child(dir string) int {
	s, err := Open(context.Background(), dir)
	if err == nil {
		_, _, err = s.CreateKey(context.Background(), NewKey{Name: "from-the-child", Roles: []string{"inference"}}, noon)
		err = errors.Join(err, s.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func state(t *testing.T) string { return filepath.Join(t.TempDir(), "state of 100% 'vallum'?#") }

func create(t *testing.T, s *Store, name string) (string, Key) {
	t.Helper()
	secret, key, err := s.CreateKey(t.Context(), NewKey{Name: name, Roles: []string{"inference"}}, noon)
	if err != nil {
		t.Fatal(err)
	}
	return secret, key
}

func list(t *testing.T, s *Store) []Key {
	t.Helper()
	keys, err := s.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func changed(t *testing.T, s *Store) bool {
	t.Helper()
	c, err := s.Changed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOpenMakesADirectoryForItsOwnerAlone(t *testing.T) {
	dir := state(t)
	s := open(t, dir)
	create(t, s, "app")
	if runtime.GOOS == "windows" {
		return // modes say nothing there; that it opens is what is tested
	}
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", path, info.Mode().Perm(), want)
		}
		seen++
		return nil
	})
	if err != nil || seen < 3 {
		t.Errorf("%d files, %v: want the database and its journal at least", seen, err)
	}
}

func TestWhatOthersCanReachIsRefusedWithTheChmod(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("NOT RUN: permissions are not in the mode on Windows")
	}
	for _, mode := range []os.FileMode{0o755, 0o750, 0o701, 0o777, 0o720} {
		dir := state(t)
		open(t, dir)
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), dir)
		want := "run chmod 0700 '" + strings.ReplaceAll(dir, "'", `'\''`) + "'"
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("mode %04o", mode)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%04o: %v, want a refusal with %q", mode, err, want)
		}
	}
	dir := filepath.Join(t.TempDir(), "state")
	open(t, dir)
	file := filepath.Join(dir, fileName)
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "run chmod 0600 "+file) {
		t.Errorf("a database that others can read: %v", err)
	}
}

func TestOpenRefusesWhatIsNoStateDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := t.TempDir()
	if err := errors.Join(os.Chmod(garbage, 0o700), os.WriteFile(filepath.Join(garbage, fileName), []byte(strings.Repeat("no database ", 100)), 0o600)); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"": "--state", file: "not a directory", garbage: "not a database"} {
		if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", dir, err, want)
		}
	}
}

func TestANewerSchemaIsRefused(t *testing.T) {
	dir := state(t)
	s := open(t, dir)
	if _, err := s.db.ExecContext(t.Context(), "UPDATE schema_version SET version = 99"); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), dir)
	if err == nil || !strings.Contains(err.Error(), "made by a newer vallum (schema 99, this release knows 1)") {
		t.Errorf("%v, want that a newer vallum made it", err)
	}
}

func TestMigrationsKeepWhatIsThere(t *testing.T) {
	dir := state(t)
	secret, key := create(t, open(t, dir), "app")
	migrations = append(migrations, "ALTER TABLE keys ADD COLUMN later TEXT NOT NULL DEFAULT 'x'")
	defer func() { migrations = migrations[:len(migrations)-1] }()
	s := open(t, dir)
	if keys := list(t, s); len(keys) != 1 || keys[0].ID != key.ID || keys[0].Hash != sha256.Sum256([]byte(secret)) {
		t.Errorf("after the migration: %+v", keys)
	}
	var later string
	if err := s.db.QueryRowContext(t.Context(), "SELECT later FROM keys").Scan(&later); err != nil || later != "x" {
		t.Errorf("the migration did not run: %q, %v", later, err)
	}
}

func TestManyOpenANewDirectoryAtOnce(t *testing.T) {
	dir := state(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s, err := Open(t.Context(), dir)
			if err != nil {
				t.Errorf("opening: %v", err)
				return
			}
			if _, _, err := s.CreateKey(t.Context(), NewKey{Name: fmt.Sprint("key", i), Roles: []string{"inference"}}, noon); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if keys := list(t, open(t, dir)); len(keys) != 8 {
		t.Errorf("%d keys, want 8", len(keys))
	}
}

var shape = regexp.MustCompile(`^vlm_[a-z0-9]{12}_[A-Za-z0-9]{43}$`)

func TestAKeyIsShownOnceAndOnlyItsHashIsKept(t *testing.T) {
	dir := state(t)
	s := open(t, dir)
	secret, key, err := s.CreateKey(t.Context(), NewKey{Name: "app", Tenant: "acme", Roles: []string{"chat-team", "monitor", "monitor"}, Expires: noon.Add(time.Hour), Note: "for the demo"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if !shape.MatchString(secret) || !strings.HasPrefix(secret, "vlm_"+key.ID+"_") {
		t.Errorf("the key has the shape of %q", regexp.MustCompile(`[a-zA-Z0-9]`).ReplaceAllString(secret, "x"))
	}
	keys := list(t, s)
	if len(keys) != 1 {
		t.Fatalf("%d keys, want 1", len(keys))
	}
	got, _ := json.Marshal(keys[0])
	want := `{"id":"` + key.ID + `","name":"app","tenant":"acme","roles":["chat-team","monitor"],"kind":"vallum","created":"2026-11-23T12:00:00Z","expires":"2026-11-23T13:00:00Z","note":"for the demo"}`
	if string(got) != want || keys[0].Hash != sha256.Sum256([]byte(secret)) || key.Hash != keys[0].Hash {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !keys[0].Live(noon) || keys[0].Live(noon.Add(time.Hour)) {
		t.Error("it is live at the wrong times")
	}
	if p := keys[0].Principal(); p.Name() != "app" || p.Tenant() != "acme" || p.KeyID() != key.ID {
		t.Errorf("principal %+v", p)
	}
	secretOnly := secret[len("vlm_")+idLength+1:]
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil || bytes.Contains(b, []byte(secretOnly)) {
			t.Errorf("%s holds the key (%v)", f.Name(), err)
		}
	}
}

func TestKeysDiffer(t *testing.T) {
	seen := make(map[string]bool)
	counts := make(map[byte]int)
	for range 500 {
		id, err := newID()
		secret, err2 := newSecret()
		if err != nil || err2 != nil || seen[id] || seen[secret] || len(secret) != secretLength {
			t.Fatalf("%v %v: an id or a secret twice, or of the wrong length", err, err2)
		}
		seen[id], seen[secret] = true, true
		for i := range len(secret) {
			counts[secret[i]]++
		}
	}
	if len(counts) != len(alphabet) {
		t.Errorf("%d different characters in secrets, want %d", len(counts), len(alphabet))
	}
}

func TestCreateRefusesWhatWouldBeAmbiguous(t *testing.T) {
	s := open(t, state(t))
	_, key := create(t, s, "app")
	roles := []string{"inference"}
	for want, n := range map[string]NewKey{
		"name \"\"":          {Roles: roles},
		"name \"a b\"":       {Name: "a b", Roles: roles},
		"name \"-a\"":        {Name: "-a", Roles: roles},
		"name \"a\\nb\"":     {Name: "a\nb", Roles: roles},
		"want 1 to 64":       {Name: strings.Repeat("a", 65), Roles: roles},
		"tenant":             {Name: "a", Tenant: "x/y", Roles: roles},
		"no role":            {Name: "a"},
		"role \"a,b\"":       {Name: "a", Roles: []string{"a,b"}},
		"which has passed":   {Name: "a", Roles: roles, Expires: noon},
		"the note":           {Name: "a", Roles: roles, Note: strings.Repeat("x", 257)},
		"has that name":      {Name: "app", Roles: roles},
		"is the id of a key": {Name: key.ID, Roles: roles},
	} {
		if _, _, err := s.CreateKey(t.Context(), n, noon); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", n, err, want)
		}
	}
	if keys := list(t, s); len(keys) != 1 {
		t.Errorf("%d keys, want the first alone", len(keys))
	}
}

func TestANameIsFreeOnceItsKeyIsGone(t *testing.T) {
	s := open(t, state(t))
	create(t, s, "revoked")
	if _, err := s.RevokeKey(t.Context(), "revoked", noon); err != nil {
		t.Fatal(err)
	}
	create(t, s, "revoked")
	n := NewKey{Name: "expired", Roles: []string{"inference"}, Expires: noon.Add(time.Minute)}
	for _, at := range []time.Time{noon, noon.Add(time.Minute)} {
		n.Expires = at.Add(time.Minute)
		if _, _, err := s.CreateKey(t.Context(), n, at); err != nil {
			t.Errorf("at %s: %v", at.Sub(noon), err)
		}
	}
}

func TestImportKeepsTheHashAndRefusesWeakValues(t *testing.T) {
	s := open(t, state(t))
	const value = "sk-CANARY-0123456789abcdef"
	n := NewKey{Name: "legacy", Roles: []string{"inference"}}
	for _, weak := range []string{"", "sk-short", "token-abc123", strings.Repeat("ab", 20), "vlm_CANARY-0123456789abc", value + " ", value + "é", strings.Repeat("CANARY0123", 60)} {
		_, err := s.ImportKey(t.Context(), weak, n, noon)
		if err == nil || len(weak) > 0 && strings.Contains(err.Error(), weak) || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%q: %v, want a refusal that does not repeat it", weak, err)
		}
	}
	key, err := s.ImportKey(t.Context(), value, n, noon)
	if err != nil {
		t.Fatal(err)
	}
	if keys := list(t, s); len(keys) != 1 || keys[0].Hash != sha256.Sum256([]byte(value)) || keys[0].Kind != Imported || keys[0].ID != key.ID {
		t.Errorf("kept: %+v", keys)
	}
	n.Name = "again"
	if _, err := s.ImportKey(t.Context(), value, n, noon); !errors.Is(err, ErrExists) || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("the same value again: %v", err)
	}
	if _, err := s.RevokeKey(t.Context(), key.ID, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ImportKey(t.Context(), value, n, noon); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked value again: %v", err)
	}
	n.Name = "legacy"
	if _, err := s.ImportKey(t.Context(), value+"x", n, noon); err != nil {
		t.Errorf("another value under the free name: %v", err)
	}
}

func TestRevoke(t *testing.T) {
	s := open(t, state(t))
	_, byName := create(t, s, "one")
	_, byID := create(t, s, "two")
	create(t, s, "three")
	for _, ref := range []string{"one", byID.ID} {
		ended, err := s.RevokeKey(t.Context(), ref, noon.Add(time.Second))
		if err != nil || len(ended) != 1 || !slices.Contains([]string{byName.ID, byID.ID}, ended[0].ID) {
			t.Errorf("%q: %+v, %v", ref, ended, err)
		}
	}
	for _, k := range list(t, s) {
		if want := k.Name == "three"; k.Live(noon.Add(time.Second)) != want {
			t.Errorf("%q live: %v", k.Name, !want)
		}
	}
	for _, ref := range []string{"one", byID.ID, "nobody", "", "%"} {
		if _, err := s.RevokeKey(t.Context(), ref, noon.Add(time.Minute)); !errors.Is(err, ErrNoSuchKey) {
			t.Errorf("%q: %v, want ErrNoSuchKey", ref, err)
		}
	}
	if at := list(t, s)[0].Revoked; !at.Equal(noon.Add(time.Second)) {
		t.Errorf("revoked %s: a second revocation changed it", at)
	}
}

func TestRotate(t *testing.T) {
	s := open(t, state(t))
	first, old, err := s.CreateKey(t.Context(), NewKey{Name: "app", Tenant: "acme", Roles: []string{"a", "b"}, Expires: noon.Add(90 * time.Hour), Note: "n"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	later := noon.Add(10 * time.Hour)
	second, next, err := s.RotateKey(t.Context(), "app", time.Hour, later)
	if err != nil {
		t.Fatal(err)
	}
	if second == first || next.ID == old.ID || next.Name != "app" || next.Tenant != "acme" || !slices.Equal(next.Roles, old.Roles) || next.Note != "n" {
		t.Errorf("it became %+v", next)
	}
	if !next.Expires.Equal(later.Add(90 * time.Hour)) {
		t.Errorf("the new key expires %s, want as long after now as the old one did after its creation", next.Expires)
	}
	was := list(t, s)[0]
	if was.ReplacedBy != next.ID || !was.Live(later.Add(time.Hour-1)) || was.Live(later.Add(time.Hour)) {
		t.Errorf("the old key: %+v, want it good for the overlap only", was)
	}
	if _, _, err := s.RotateKey(t.Context(), old.ID, 0, later); !errors.Is(err, ErrNoSuchKey) {
		t.Errorf("rotating what was replaced: %v", err)
	}
	third, _, err := s.RotateKey(t.Context(), "app", 0, later) // the name means the newest
	if err != nil || third == second {
		t.Fatal(err)
	}
	keys := list(t, s)
	if i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == next.ID }); keys[i].Live(later) {
		t.Error("without an overlap the old key is still good")
	}
	if ended, err := s.RevokeKey(t.Context(), "app", later); err != nil || len(ended) != 2 {
		t.Errorf("revoking the name ended %d keys (%v), want the newest and the one in its overlap", len(ended), err)
	}
	if _, _, err := s.RotateKey(t.Context(), "app", -1, later); err == nil {
		t.Error("a negative overlap is taken")
	}
}

func TestRotateNeverProlongsTheOldKey(t *testing.T) {
	s := open(t, state(t))
	if _, _, err := s.CreateKey(t.Context(), NewKey{Name: "app", Roles: []string{"a"}, Expires: noon.Add(time.Minute)}, noon); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.RotateKey(t.Context(), "app", time.Hour, noon); err != nil {
		t.Fatal(err)
	}
	for _, k := range list(t, s) {
		if k.ReplacedBy != "" && k.Live(noon.Add(time.Minute)) {
			t.Errorf("the overlap made the old key live until %s", k.Expires)
		}
	}
}

func TestLastUsedIsNoted(t *testing.T) {
	dir := state(t)
	s, other := open(t, dir), open(t, dir)
	_, key := create(t, s, "app")
	changed(t, s)
	changed(t, other)
	for _, at := range []time.Time{noon, noon.Add(time.Minute), noon.Add(time.Second)} {
		if err := s.TouchLastUsed(t.Context(), map[string]time.Time{key.ID: at, "nobody": at}); err != nil {
			t.Fatal(err)
		}
	}
	if at := list(t, s)[0].LastUsed; !at.Equal(noon.Add(time.Minute)) {
		t.Errorf("last used %s, want the latest", at)
	}
	if !changed(t, other) {
		t.Error("another process does not see it")
	}
}

// Whoever holds the write lock, as a copy of the store or a stopped process does, keeps no revocation from being seen.
func TestAChangeIsSeenWhileAWriteWaits(t *testing.T) {
	dir := state(t)
	s, other := open(t, dir), open(t, dir)
	_, key := create(t, s, "app")
	changed(t, s)
	tx, err := other.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	touched := make(chan error, 1)
	go func() { touched <- s.TouchLastUsed(t.Context(), map[string]time.Time{key.ID: noon}) }()
	for late := time.Now().Add(10 * time.Second); s.db.Stats().InUse < 2 && time.Now().Before(late); {
		<-time.After(time.Millisecond)
	}
	if changed(t, s) {
		t.Error("nothing was written, and it looks so")
	}
	select {
	case err := <-touched:
		t.Errorf("looking for a change waited for the write: %v", err)
	default:
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-touched; err != nil {
		t.Error(err)
	}
}

func TestChangedSeesEveryWriteOnce(t *testing.T) {
	dir := state(t)
	daemon, command := open(t, dir), open(t, dir)
	if changed(t, daemon) {
		t.Error("changed without a write")
	}
	for name, write := range map[string]func() error{
		"another process": func() error {
			_, _, err := command.CreateKey(t.Context(), NewKey{Name: "app", Roles: []string{"a"}}, noon)
			return err
		},
		"this process": func() error {
			_, _, err := daemon.CreateKey(t.Context(), NewKey{Name: "app2", Roles: []string{"a"}}, noon)
			return err
		},
	} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if !changed(t, daemon) || changed(t, daemon) {
			t.Errorf("%s: want one change", name)
		}
	}
}

func TestARealSecondProcess(t *testing.T) {
	dir := state(t)
	s := open(t, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if keys := list(t, s); !changed(t, s) || len(keys) != 1 || keys[0].Name != "from-the-child" {
		t.Errorf("the other process's key is not seen: %+v", keys)
	}
}

func TestEverHeldKey(t *testing.T) {
	s := open(t, state(t))
	for _, want := range []bool{false, true, true} {
		if got, err := s.EverHeldKey(t.Context()); err != nil || got != want {
			t.Errorf("ever held a key: %v (%v), want %v", got, err, want)
		}
		if !want {
			create(t, s, "app")
		} else if _, err := s.RevokeKey(t.Context(), "app", noon); err != nil && !errors.Is(err, ErrNoSuchKey) {
			t.Error(err)
		}
	}
}

func TestSecretIsMadeOnce(t *testing.T) {
	dir := state(t)
	open(t, dir)
	values := make([][]byte, 6)
	var wg sync.WaitGroup
	for i := range values {
		wg.Go(func() {
			s, err := Open(t.Context(), dir)
			if err != nil {
				t.Error(err)
				return
			}
			if values[i], err = s.Secret(t.Context(), "cache_salt"); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, v := range values {
		if len(v) != 32 || !bytes.Equal(v, values[0]) {
			t.Fatalf("secrets of %d bytes differ between those who asked", len(v))
		}
	}
	s := open(t, dir)
	if other, err := s.Secret(t.Context(), "audit"); err != nil || bytes.Equal(other, values[0]) {
		t.Errorf("another name has the same secret (%v)", err)
	}
	if err := s.SetMeta(t.Context(), "cache_salt", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Secret(t.Context(), "cache_salt"); err == nil {
		t.Error("an emptied secret is used")
	}
}

func TestMeta(t *testing.T) {
	s := open(t, state(t))
	if _, ok, err := s.Meta(t.Context(), "x"); ok || err != nil {
		t.Errorf("absent: %v, %v", ok, err)
	}
	for _, want := range []string{"a", "b", ""} {
		if err := s.SetMeta(t.Context(), "x", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := s.Meta(t.Context(), "x"); !ok || err != nil || string(got) != want {
			t.Errorf("got %q, %v, %v, want %q", got, ok, err, want)
		}
	}
}

func TestAClosedStoreSaysSo(t *testing.T) {
	s, err := Open(t.Context(), state(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = s.Changed(t.Context())
	if err == nil || s.TouchLastUsed(t.Context(), map[string]time.Time{"a": noon}) == nil {
		t.Error("a closed store answers")
	}
	if _, _, err := s.CreateKey(t.Context(), NewKey{Name: "a", Roles: []string{"a"}}, noon); err == nil {
		t.Error("a closed store takes a key")
	}
}

// SQLite's own checks hold whatever the code does.
func TestTheSchemaIsStrict(t *testing.T) {
	s := open(t, state(t))
	for _, wrong := range []string{
		"INSERT INTO keys (id, name, tenant, roles, hash, kind, created, note) VALUES ('a', 'a', '', 'a', x'00', 'vallum', 1, '')",
		"INSERT INTO keys (id, name, tenant, roles, hash, kind, created, note) VALUES ('a', 'a', '', 'a', randomblob(32), 'other', 1, '')",
		"INSERT INTO keys (id, name, tenant, roles, hash, kind, created, note) VALUES ('a', 'a', '', 'a', randomblob(32), 'vallum', 'soon', '')",
	} {
		if _, err := s.db.ExecContext(t.Context(), wrong); err == nil {
			t.Errorf("taken: %s", wrong)
		}
	}
	var mode string
	if err := s.db.QueryRowContext(t.Context(), "PRAGMA journal_mode").Scan(&mode); err != nil || mode != "wal" {
		t.Errorf("journal mode %q, %v, want wal", mode, err)
	}
	var sync int
	if err := s.db.QueryRowContext(t.Context(), "PRAGMA synchronous").Scan(&sync); err != nil || sync != 2 {
		t.Errorf("synchronous %d, %v, want 2 (FULL)", sync, err)
	}
}
