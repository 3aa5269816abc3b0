//go:build conformance

package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
)

const emulatorPart = "Debian's qemu-aarch64"

// TestARM64 runs tests of the tree as linux/arm64, each instruction emulated. It shows what the processor computes, and how
// numbers and structures lie in memory. It shows nothing of time, nor of what two cores see of each other's writes: the
// emulator keeps the stricter order of this machine.
func TestARM64(t *testing.T) {
	proveAll(t, emulatorPart, emulatorVersion, arm64Proofs)
}

// emulatorVersion is what the part is called: Debian's archive says which qemu it is.
var emulatorVersion = parts.Emulator.Version

var arm64Proofs = []proof{
	{"linux/arm64: what reads requests, decides and answers passes its tests", tested(
		"inspect/...", "urlpath", "policy", "reply", "spare", "limit", "identity", "verdict", "authn", "config")},
	{"linux/arm64: the audit log's chain and the store pass their tests", tested("audit/chain", "store")},
	{"linux/arm64: the plan, the manifest, the rules' text and the watcher of the wire pass their tests", tested(
		"isolate", "isolate/fleet", "isolate/env", "isolate/audit", "isolate/ipnet", "isolate/wire")},
}

// beyondEmulation are tests that start a second process, or need a kind of socket: the emulator is of one process, and
// does not know all of the kernel.
var beyondEmulation = []string{
	"TestARealSecondProcess", "TestNothingThatCrossedTheWireIsPassedOver", "TestWhatCrossesTheOverlaysDeviceIsInside", "TestAPacketThatWasNotSeenWholeIsLost",
}

// tested runs the tests of some of the tree's packages.
func tested(names ...string) func(*report.Proof, *stand) {
	return func(p *report.Proof, _ *stand) {
		dir, err := parts.Dir(parts.Emulator)
		if err != nil {
			p.NotRun("%v", err)
		}
		emulator := filepath.Join(dir, "root", "usr", "bin", "qemu-aarch64-static")
		// The tests' own result is nothing that may be remembered from elsewhere.
		args := []string{"test", "-count=1", "-tags", "grpcnotrace", "-exec", emulator, "-skip", "^(" + strings.Join(beyondEmulation, "|") + ")$"}
		for _, name := range names {
			args = append(args, "./internal/"+name)
		}
		c := exec.CommandContext(p.Context(), "go", args...)
		c.Dir = ".."
		c.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0", "CI=")
		out, err := c.CombinedOutput()
		if err != nil {
			p.Errorf("go test: %v: %s", err, out)
		}
		if n := strings.Count(string(out), "ok  \t"); n < len(names) {
			p.Errorf("%d packages passed, of at least %d: %s", n, len(names), out)
		}
	}
}
