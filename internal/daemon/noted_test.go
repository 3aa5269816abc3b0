package daemon

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/store"
)

// What changes after the keys were first put in force and before anybody watches them is on record like any other change.
func TestAKeyThatChangesDuringTheStartIsRecorded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	st, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	logs := filepath.Join(dir, "audit")
	records, err := audit.Open(logs, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{store: st, keys: authn.New(authn.Options{}), records: records, log: slog.New(slog.DiscardHandler), state: dir}
	create := func(name string) {
		if _, _, err := other.CreateKey(t.Context(), store.NewKey{Name: name, Roles: []string{"inference"}}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	create("before")
	if _, err := d.loadKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	create("meanwhile")
	d.pollKeys(t.Context(), d.noted) // as watch begins
	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = other.Close(), st.Close()
	var told []string
	for r, err := range audit.Read(logs, time.Time{}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Event == audit.KeyChanged {
			told = append(told, r.Principal)
		}
	}
	if !slices.Equal(told, []string{"meanwhile"}) {
		t.Errorf("the log tells of %q", told)
	}
}
