//go:build unix

package daemon_test

import (
	"os"
	"syscall"
	"testing"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/gatetest"
)

// SIGHUP reloads, whatever the file system says of changes. Not in parallel: every gateway of the process hears it.
func TestSIGHUPReloads(t *testing.T) {
	g := gatetest.Start(t, gatetest.Options{})
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	g.Eventually("the reload", func() bool {
		for _, r := range g.Records() {
			if r.Event == audit.Reloaded {
				return true
			}
		}
		return false
	})
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}
