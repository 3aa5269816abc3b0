package apply_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/sealed"
)

// systemd is one that runs in the host's network, and in nothing else of the machine's.
type systemd struct{ *sealed.System }

// boot starts systemd. Its control groups are below one of its own.
func (h *host) boot(t *testing.T) systemd {
	t.Helper()
	return systemd{sealed.Boot(t, sealed.Options{Name: h.device, State: h.dir, Program: program, In: h.do})}
}

func (s systemd) must(t *testing.T, script string) string {
	t.Helper()
	out, err := s.Sh(script)
	if err != nil {
		journal, _ := s.Sh("cat /run/state/tunnel.log; systemctl --no-pager --full status 'vallum*' 'driver*'")
		t.Fatalf("%s: %v\n%s\n%s\n%s", script, err, out, journal, s.Log())
	}
	return out
}

const (
	up     = "/run/vallum isolate up --state /run/state --config /run/state/vallum.yaml --accept-cut"
	status = "/run/vallum isolate status --state /run/state"
)

// reboot takes away what the kernel forgets.
func (h *host) reboot(t *testing.T) {
	t.Helper()
	h.killTunnel(t, true)
	h.forget(t)
}

// forget is what the kernel does when it goes down: rules and routes are gone.
func (h *host) forget(t *testing.T) {
	t.Helper()
	h.do(func() {
		c, err := nftables.New()
		must(t, err)
		c.FlushRuleset()
		must(t, c.Flush())
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: 178}, netlink.RT_FILTER_PROTOCOL)
			must(t, err)
			prohibits, err := netlink.RouteListFiltered(family, &netlink.Route{Type: unix.RTN_PROHIBIT}, netlink.RT_FILTER_TYPE)
			must(t, err)
			for _, r := range append(routes, prohibits...) {
				// A route by the device of a killed tunnel goes with it, by itself and about now.
				if err := netlink.RouteDel(&r); !errors.Is(err, syscall.ESRCH) {
					must(t, err)
				}
			}
		}
	})
}

// The unit that isolate prints makes the overlay again after a boot, without anybody to confirm; stopping it, as a machine
// that goes down does, neither opens anything nor makes the next boot forget.
func TestTheUnitMakesTheOverlayAfterABoot(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	a.echo(t, 5000)
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	a.reboot(t)
	s := a.boot(t)
	s.must(t, "/run/vallum isolate unit --state /run/state --config /run/state/vallum.yaml >/run/units/vallum-isolate.service && systemd-analyze verify /run/units/vallum-isolate.service && systemctl daemon-reload")
	for range 2 { // a second boot is a start after a stop
		s.must(t, "systemctl start vallum-isolate.service")
		if !b.reaches(a.over, 5000, open) {
			t.Fatal("the unit is started and the overlay does not work")
		}
		s.must(t, status)
		s.must(t, "systemctl stop vallum-isolate.service")
		if _, err := os.Stat(a.file("confirmed.json")); err != nil {
			t.Error("stopping the unit forgot what was confirmed: the next boot would wait for somebody")
		}
		s.must(t, status)
		// By its number there, which is another process's out here.
		s.must(t, "kill -KILL $(cat /run/state/tunnel.lock)")
		eventually(t, "the device is gone with its process", open, func() bool { return !a.has(a.device) })
		a.forget(t)
	}
	// The tunnel's process is a unit of its own: it does not end with the one that started it.
	s.must(t, "systemctl start vallum-isolate.service")
	if units := s.must(t, "systemctl list-units --no-pager --no-legend --plain --state=running"); !strings.Contains(units, "The tunnel of vallum isolate") {
		t.Errorf("no unit of the tunnel:\n%s", units)
	}
	s.must(t, "/run/vallum isolate down --state /run/state")
	if b.reaches(a.over, 5000, closed) {
		t.Error("down left something")
	}
}

// vLLM's unit, with the drop-in that isolate prints, starts after the overlay stands, and not at all when it does not.
func TestVLLMsUnitWaitsForTheOverlay(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	a.up(t)
	dropIn, _ := a.must(t, "env", "--topology", "dp", "--format", "systemd")
	must(t, os.WriteFile(a.file("drop-in"), []byte(dropIn), 0o600))
	must(t, os.WriteFile(a.file("vllm.service"), []byte(`[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/run/vallum isolate status --state /run/state >/run/state/started && echo "$VLLM_HOST_IP" >>/run/state/started'
`), 0o600))
	a.reboot(t)
	s := a.boot(t)
	s.must(t, `/run/vallum isolate unit --state /run/state --config /run/state/vallum.yaml >/run/units/vallum-isolate.service
mkdir /run/units/vllm.service.d && cp /run/state/drop-in /run/units/vllm.service.d/isolate.conf && cp /run/state/vllm.service /run/units/
systemd-analyze verify /run/units/vllm.service && systemctl daemon-reload`)
	for _, row := range []struct{ unit, property, other string }{
		{"vllm.service", "Requires", "vallum-isolate.service"},
		{"vllm.service", "After", "vallum-isolate.service"},
		{"vallum-isolate.service", "Before", "vllm.service"},
		{"vallum-isolate.service", "After", "network-online.target"},
	} {
		if shown := s.must(t, "systemctl show --property="+row.property+" "+row.unit); !strings.Contains(shown, row.other) {
			t.Errorf("%s: %q lacks %s", row.unit, shown, row.other)
		}
	}
	// Nobody starts the overlay but vLLM's unit.
	s.must(t, "systemctl start vllm.service")
	if b, err := os.ReadFile(a.file("started")); err != nil || !strings.Contains(string(b), ": holds\n") || !strings.HasSuffix(string(b), "\n"+a.over.String()+"\n") {
		t.Errorf("vLLM was started with %v\n%s", err, b)
	}
	s.must(t, "systemctl stop vallum-isolate.service; kill -KILL $(cat /run/state/tunnel.lock); rm /run/state/started; mv /run/state/manifest.signed /run/state/elsewhere")
	a.forget(t)
	if out, err := s.Sh("systemctl start vllm.service"); err == nil || a.exists("started") {
		t.Errorf("without an overlay vLLM is started: %v %s", err, out)
	}
	s.must(t, "mv /run/state/elsewhere /run/state/manifest.signed; systemctl reset-failed vallum-isolate.service; systemctl start vllm.service")
	if !a.exists("started") {
		t.Error("vLLM is not started although the overlay stands again")
	}
	s.must(t, "/run/vallum isolate down --state /run/state")
}

// A session that ends takes its processes with it where logind is told so. Who is left is systemd.
func TestTheRollbackOutlivesTheSessionThatArmedIt(t *testing.T) {
	l := newLab(t, "a", "x")
	a, x := l.hosts["a"], l.hosts["x"]
	a.echo(t, 5000)
	l.sign(nil, "a")
	before := a.state(t)
	s := a.boot(t)
	// The session is a unit of which every process is killed at once.
	s.must(t, "systemd-run --quiet --unit=driver "+up+" --confirm 8s")
	eventually(t, "up has applied", open, func() bool { return !x.reaches(a.under, 5000, 100*time.Millisecond) && a.exists("tunnel.lock") })
	if units := s.must(t, "systemctl list-units --no-pager --no-legend --plain --state=running"); !strings.Contains(units, "vallum-isolate-rollback-") {
		t.Errorf("no unit of the rollback:\n%s", units)
	}
	s.must(t, "systemctl kill --signal=KILL --kill-whom=all driver.service")
	eventually(t, "it is rolled back", 4*open, func() bool { return x.reaches(a.under, 5000, 200*time.Millisecond) && a.state(t) == before })
	// And a rollback that cannot be armed changes nothing.
	s.must(t, "mkdir -p /run/bin && printf '#!/bin/sh\\necho no; exit 1\\n' >/run/bin/systemd-run && chmod +x /run/bin/systemd-run")
	out, err := s.Sh("PATH=/run/bin:$PATH " + up)
	if err == nil || !strings.Contains(out, "arming the rollback; nothing was changed") || a.state(t) != before {
		t.Errorf("without systemd-run: %v\n%s", err, out)
	}
}

func (h *host) has(device string) (there bool) {
	h.do(func() {
		_, err := netlink.LinkByName(device)
		there = err == nil
	})
	return there
}

func (h *host) exists(name string) bool {
	_, err := os.Stat(h.file(name))
	return err == nil
}

// A unit takes its files from anywhere, whatever their names hold.
func TestTheUnitNamesItsFilesWhole(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), `a $b %c "d`)
	must(t, os.MkdirAll(dir, 0o700))
	c := exec.Command(program, "isolate", "unit", "--state", "state", "--config", "vallum.yaml", "--manifest", "m")
	c.Dir = dir
	out, err := c.CombinedOutput()
	must(t, err)
	quoted := func(name string) string {
		return fmt.Sprintf(`"%s"`, strings.NewReplacer(`$`, `$$`, `%`, `%%`, `"`, `\"`).Replace(filepath.Join(dir, name)))
	}
	for _, want := range []string{"--state " + quoted("state"), "--config " + quoted("vallum.yaml"), "--manifest " + quoted("m")} {
		if !strings.Contains(string(out), want) {
			t.Errorf("lacks %s:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "ExecStop") {
		t.Error("going down would forget what was confirmed")
	}
	c = exec.Command(program, "isolate", "unit", "--manifest", "-")
	if out, err := c.CombinedOutput(); err == nil || c.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "no standard input") {
		t.Errorf("%v %s", err, out)
	}
}
