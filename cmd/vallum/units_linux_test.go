package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/notrun"
)

// The units of examples/one-node are what systemd takes, and as closed as their page says. They are read, not started.
func TestTheExamplesUnitsAreTaken(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		notrun.For(t, "the units are not checked: %v", err)
	}
	const example = "../../examples/one-node"
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"vallum.service", "vllm.service"} {
		b, err := os.ReadFile(filepath.Join(example, name))
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dir, name) // the programs are not installed here
		text := strings.NewReplacer("/usr/local/bin/vallum ", "/bin/true ", "/opt/vllm/bin/vllm ", "/bin/true ").Replace(string(b))
		if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	if out, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	page, err := os.ReadFile(filepath.Join(example, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	says := regexp.MustCompile("`systemd-analyze security vallum.service` gives ([0-9.]+) \\(systemd ([0-9]+)\\)").FindSubmatch(page)
	version, err := exec.CommandContext(t.Context(), "systemd-analyze", "--version").Output()
	if err != nil || says == nil {
		t.Fatalf("%q %v", says, err)
	}
	if !strings.HasPrefix(string(version), "systemd "+string(says[2])+" ") {
		t.Logf("the figure is not compared: this is %s", strings.SplitN(string(version), "\n", 2)[0])
		return
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--no-pager", units[0]).CombinedOutput()
	found := regexp.MustCompile(`exposure level for vallum.service: ([0-9.]+) `).FindSubmatch(out)
	if found == nil || string(says[1]) != string(found[1]) {
		t.Errorf("the page says %q of %v\n%s", says, err, out)
	}
}
