package notrun

import (
	"runtime"
	"strings"
	"testing"
)

// told notes how a test was ended, and ends it as testing does.
type told struct {
	testing.TB
	failed, skipped string
}

func (*told) Helper() {}

func (t *told) Fatal(args ...any) {
	t.failed = args[0].(string)
	runtime.Goexit()
}

func (t *told) Skip(args ...any) {
	t.skipped = args[0].(string)
	runtime.Goexit()
}

func TestWhatCannotRunFailsInCIAndIsSkippedAloudElsewhere(t *testing.T) {
	for _, ci := range []string{"", "true", "1"} {
		t.Setenv("CI", ci)
		seen, done := &told{}, make(chan struct{})
		go func() {
			defer close(done)
			For(seen, "there is no %s", "nft")
		}()
		<-done
		if why := "NOT RUN: there is no nft"; ci == "" && seen.skipped != why || ci != "" && (seen.failed != why || strings.Contains(seen.skipped, why)) {
			t.Errorf("CI=%q: %+v", ci, seen)
		}
	}
}
