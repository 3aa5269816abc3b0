//go:build conformance

package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vallum/vallum/conformance/inside"
	"github.com/vallum/vallum/conformance/machine"
	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
)

const kernelPart = "kernel WireGuard (Debian's Linux and systemd, emulated)"

// kernelWait is for all of its boots and proofs; they take two to four minutes.
const kernelWait = 14 * time.Minute

// TestKernelWireGuard boots a machine whose kernel has WireGuard, which the one that runs this may not have, and asks the
// proofs inside what they have shown. It needs neither root nor a network.
func TestKernelWireGuard(t *testing.T) {
	k := &kernelMachine{}
	proveAll(t, kernelPart, kernelVersion(), k.proofs())
}

// kernelVersion is that of the kernel that Debian's archive had.
func kernelVersion() string {
	dir, err := parts.Dir(parts.Machine)
	if err != nil {
		return "not installed"
	}
	b, err := os.ReadFile(filepath.Join(dir, machine.VersionFile))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// kernelMachine is the machine, which runs when a proof first asks for it.
type kernelMachine struct {
	once     sync.Once
	err      error // why there may be fewer outcomes than proofs
	outcomes map[string]inside.Outcome
}

func (k *kernelMachine) proofs() []proof {
	var all []proof
	for _, name := range inside.Names() {
		all = append(all, proof{name, func(p *report.Proof, _ *stand) { k.tell(p, name) }})
	}
	return all
}

// tell ends the proof as it ended inside.
func (k *kernelMachine) tell(p *report.Proof, name string) {
	p.Helper()
	k.once.Do(func() { k.err = k.run(fleet.ctx, p.Logf) })
	o, ok := k.outcomes[name]
	if !ok {
		p.NotRun("the machine did not come so far: %v", k.err)
	}
	if !o.Shown {
		p.Errorf("inside: %s", o.Why)
	}
}

// run boots the machine, again when it has rebooted itself, and again when it has said that its power may be cut, which is
// done.
func (k *kernelMachine) run(ctx context.Context, logf func(string, ...any)) error {
	k.outcomes = map[string]inside.Outcome{}
	part, err := parts.Dir(parts.Machine)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(fleet.dir, "machine-")
	if err != nil {
		return err
	}
	bring, err := whatItBrings(ctx, dir)
	if err != nil {
		return err
	}
	m, err := machine.New(machine.Options{Part: part, Dir: dir, First: filepath.Join(dir, "first"), Bring: bring})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kernelWait)
	defer cancel()
	began := time.Now()
	for {
		if err := m.Start(ctx); err != nil {
			return err
		}
		last := k.listen(m, func(line string) { logf("%4.0f s  %s", time.Since(began).Seconds(), line) })
		m.PowerOff()
		switch last {
		case inside.Finished:
			return os.Remove(filepath.Join(dir, machine.DiskFile))
		case inside.Rebooting, inside.CutPower:
			continue // with the same disk
		}
		said, err := os.ReadFile(m.Console())
		return fmt.Errorf("it ended before it had said all, or took more than %s: its console: %s: %w", kernelWait, said[max(0, len(said)-2000):], errors.Join(err, ctx.Err()))
	}
}

// listen notes the outcomes until the machine has ended, wants its power cut, or has said all; and says which.
func (k *kernelMachine) listen(m *machine.Machine, log func(string)) (last string) {
	for line := range m.Lines() {
		log(line)
		if o, ok := inside.Parse(line); ok {
			k.outcomes[o.Name] = o
		}
		switch line {
		case inside.Rebooting:
			last = line
		case inside.CutPower, inside.Finished:
			return line
		}
	}
	return last
}

// proofUnit starts the proofs at every boot, on the second serial line.
const proofUnit = `[Unit]
Description=The proofs of Vallum
After=vllm.service vallum-isolate.service peer.service
[Service]
Type=exec
Environment=PATH=/usr/sbin:/usr/bin TMPDIR=/proof/tmp
ExecStart=/proof/inside.test -test.v -test.timeout=11m
StandardOutput=file:/dev/ttyS1
StandardError=inherit
`

// whatItBrings builds the programs that the machine runs.
func whatItBrings(ctx context.Context, dir string) (map[string]machine.File, error) {
	vallum, err := fleet.build()
	if err != nil {
		return nil, err
	}
	proofs := filepath.Join(dir, "inside.test")
	for _, args := range [][]string{
		{"build", "-trimpath", "-o", filepath.Join(dir, "first"), "./machine/first"},
		{"test", "-c", "-trimpath", "-tags", "inside", "-o", proofs, "./inside"},
	} {
		c := exec.CommandContext(ctx, "go", args...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0") // the machine has no more than it needs
		if out, err := c.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	bring := map[string]machine.File{
		"proof/boots":                       {Mode: 0o644, Content: []byte("0\n")},
		"proof/tmp/.keep":                   {Mode: 0o644},
		"etc/hosts":                         {Mode: 0o644, Content: []byte("127.0.0.1 localhost\n")},
		"etc/systemd/system/proofs.service": {Mode: 0o644, Content: []byte(proofUnit)},
		"etc/systemd/system/multi-user.target.d/proofs.conf": {Mode: 0o644, Content: []byte("[Unit]\nWants=proofs.service\n")},
	}
	for name, file := range map[string]string{"proof/vallum": vallum, "proof/inside.test": proofs} {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		bring[name] = machine.File{Mode: 0o755, Content: b}
	}
	return bring, nil
}
