package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/conformance/parts"
)

func TestTorchAndExtrasButAudioAreLeftOut(t *testing.T) {
	got := withoutTorch("torch==2.13.0+cpu\ntorchaudio\nnumpy>=2\ndatasets; extra == 'bench'\nuvicorn[standard]\nav; extra == \"audio\"\n")
	if want := "numpy>=2\nuvicorn[standard]\nav\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAnOverrideTakesThePlaceOfItsLine(t *testing.T) {
	got := string(withOverrides([]byte("a==1\nab==2\nc==3\n"), []byte("a==9\nz==1\n")))
	if want := "ab==2\nc==3\na==9\nz==1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestChoosingAPartBringsWhatItNeeds(t *testing.T) {
	chosen, err := choose(recipes(), "models")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(chosen), []string{"uv", "vllm", "models"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := choose(recipes(), "nginx"); err == nil || !strings.Contains(err.Error(), "debian") {
		t.Errorf("an unknown part: want an error that lists the parts, got %v", err)
	}
}

func TestEverythingButTheRecordersClientsIsTheDefault(t *testing.T) {
	chosen, err := choose(recipes(), "")
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(names(chosen), parts.Records.Name) || !slices.Contains(names(chosen), parts.VLLM.Name) {
		t.Errorf("got %v", names(chosen))
	}
}

func TestHalfDoneInstallIsMadeAnew(t *testing.T) {
	root := t.TempDir()
	part := parts.New("p", "1")
	fail := errors.New("the line is down")
	runs := 0
	s := step{part: part, install: func(_ context.Context, w *worker) error {
		runs++
		if _, err := os.Stat(filepath.Join(w.dir, "rubbish")); err == nil {
			t.Error("the folder still has what the broken install left")
		}
		if err := os.WriteFile(filepath.Join(w.dir, "rubbish"), nil, 0o644); err != nil {
			return err
		}
		if runs == 1 {
			return fail
		}
		return nil
	}}
	if err := installAll(t.Context(), root, []step{s}); !errors.Is(err, fail) {
		t.Fatalf("want the install's error, got %v", err)
	}
	if parts.Complete(filepath.Join(root, part.Key())) {
		t.Fatal("a failed install is complete")
	}
	for range 2 { // the second finds it complete
		if err := installAll(t.Context(), root, []step{s}); err != nil {
			t.Fatal(err)
		}
	}
	if runs != 2 {
		t.Errorf("installed %d times, want 2: one failed, one done", runs)
	}
}

func TestNothingThatNeedsAFailedPartIsInstalled(t *testing.T) {
	fail := errors.New("no")
	first := step{part: parts.New("first", "1"), install: func(context.Context, *worker) error { return fail }}
	second := step{part: parts.New("second", "1"), needs: []string{"first"}, install: func(context.Context, *worker) error {
		t.Error("installed although what it needs is not there")
		return nil
	}}
	if err := installAll(t.Context(), t.TempDir(), []step{first, second}); !errors.Is(err, fail) {
		t.Errorf("want %v, got %v", fail, err)
	}
}
