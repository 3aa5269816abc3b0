package realvallum

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// command writes a shell script that stands for the binary.
func command(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vallum")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAGatewayIsReadyWhenItSaysSo(t *testing.T) {
	binary := command(t, "echo first words\necho listening on http://127.0.0.1:1\nexec sleep 60\n")
	g, err := Start(t.Context(), Options{Binary: binary, State: t.TempDir(), Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	if g.URL != "http://127.0.0.1:1" {
		t.Errorf("URL %q", g.URL)
	}
	g.Stop()
	g.Stop()
	select {
	case <-g.Exited():
	default:
		t.Error("it still runs after Stop")
	}
}

func TestAGatewayThatEndsShowsItsLog(t *testing.T) {
	binary := command(t, "echo the cause >&2\nexit 1\n")
	_, err := Start(t.Context(), Options{Binary: binary, State: t.TempDir(), Log: filepath.Join(t.TempDir(), "log")})
	if err == nil || !strings.Contains(err.Error(), "the cause") {
		t.Errorf("want an error with the end of the log, got %v", err)
	}
}

func TestAKeyIsAllThatIsPrinted(t *testing.T) {
	for script, good := range map[string]bool{"echo vlm_a_b": true, "echo key: vlm_a_b": false, "echo a; echo b": false, "true": false, "echo x; exit 2": false} {
		key, err := CreateKey(t.Context(), command(t, script), t.TempDir(), Key{Name: "n", Role: "r"})
		if good != (err == nil) || (good && key != "vlm_a_b") {
			t.Errorf("%s: key %q, error %v", script, key, err)
		}
	}
}

func TestALineBeingWrittenIsNoRecord(t *testing.T) {
	state := t.TempDir()
	if err := os.MkdirAll(filepath.Join(state, "audit"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Records(state); err == nil {
		t.Error("no file of records at all: want an error")
	}
	if err := os.WriteFile(filepath.Join(state, "audit", "1.jsonl"), []byte("{\"a\":1}\n{\"b\""), 0o600); err != nil {
		t.Fatal(err)
	}
	records, err := Records(state)
	if err != nil || len(records) != 1 {
		t.Errorf("got %v, %v", records, err)
	}
}
