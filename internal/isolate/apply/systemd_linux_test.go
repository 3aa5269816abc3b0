package apply_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/internal/notrun"
)

const systemdProgram = "/lib/systemd/systemd"

// sealed boots systemd where it can write nothing of the machine's and knows no units but the test's: a system that boots
// cleans /tmp, writes /var and sets kernel parameters. It looks before it boots, and ends with 99 when it could.
const sealed = `set -eu
mount --make-rprivate /
mount -t tmpfs lab /run
mkdir -p /run/units /run/none /run/state /run/etc /run/dev/net
for n in null zero full random urandom tty net/tun; do touch /run/dev/$n; mount --bind /dev/$n /run/dev/$n; done
cp "$PROGRAM" /run/vallum
mount --bind "$STATE" /run/state
cp -a /etc/. /run/etc
for t in sysinit basic shutdown network-online multi-user lab; do printf '[Unit]\nDefaultDependencies=no\n' >/run/units/$t.target; done
mount --bind /run/etc /etc
mount --rbind /run/dev /dev
mount -t cgroup2 lab /sys/fs/cgroup
mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys
mount -t tmpfs lab /tmp
mount -t tmpfs lab /var
mkdir /var/run
mount -o remount,bind,ro /sys
mount -o remount,bind,ro /
for d in / /usr /root /home /boot /sys /proc/sys/kernel; do if touch $d/.lab 2>/dev/null; then rm -f $d/.lab; exit 99; fi; done
for d in /tmp /var /run /dev /etc; do [ "$(stat -f -c %T $d)" = tmpfs ] || exit 99; done
export container=lab SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none
exec ` + systemdProgram + ` --system --unit=lab.target --log-target=console --show-status=no
`

// systemd is one that runs in the host's network, and in nothing else of the machine's.
type systemd struct {
	h   *host
	pid int
	log *bytes.Buffer
}

// boot starts systemd. Its control groups are below one of its own.
func (h *host) boot(t *testing.T) *systemd {
	t.Helper()
	if _, err := os.Stat(systemdProgram); err != nil {
		notrun.For(t, "systemd is not installed: its side of the unit and of the rollback is not checked")
	}
	groups, name := t.TempDir(), "vallum-test-"+strconv.Itoa(os.Getpid())+"-"+h.device
	inGroups := func(script string) string {
		return `set -eu; mount --make-rprivate /; mount -t cgroup2 lab "$GROUPS_DIR"; cd "$GROUPS_DIR"; ` + script
	}
	env := append(os.Environ(), "GROUPS_DIR="+groups, "NAME="+name, "PROGRAM="+program, "STATE="+h.dir, "SEALED="+sealed)
	c := exec.Command("unshare", "--mount", "sh", "-c", inGroups(`mkdir "$NAME"; echo $$ >"$NAME/cgroup.procs"; cd /
exec unshare --fork --kill-child --pid --mount-proc --mount --uts --ipc --cgroup sh -c "$SEALED"`))
	c.Env = env
	s := &systemd{h: h, log: &bytes.Buffer{}}
	c.Stdout, c.Stderr = s.log, s.log
	h.do(func() { must(t, c.Start()) })
	ended := make(chan struct{})
	go func() { defer close(ended); _ = c.Wait() }()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-ended
		remove := exec.Command("unshare", "--mount", "sh", "-c", inGroups(`for i in 1 2 3 4 5 6 7 8 9 10; do find "$NAME" -depth -type d -exec rmdir {} + 2>/dev/null && exit 0; sleep .3; done; exit 1`))
		remove.Env = env
		if out, err := remove.CombinedOutput(); err != nil {
			t.Errorf("control groups are left: %v %s", err, out)
		}
	})
	eventually(t, "systemd runs", 20*time.Second, func() bool {
		select {
		case <-ended:
			t.Fatalf("systemd did not boot: %v\n%s", c.ProcessState, s.log)
		default:
		}
		children := allChildren(t, c.Process.Pid)
		if len(children) != 1 {
			return false
		}
		pid, err := strconv.Atoi(children[0])
		must(t, err)
		s.pid = pid
		_, err = s.sh("systemctl is-active lab.target")
		return err == nil
	})
	return s
}

// sh runs a script where systemd runs.
func (s *systemd) sh(script string) (string, error) {
	c := exec.Command("nsenter", "-t", strconv.Itoa(s.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--", "sh", "-c", script)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := c.CombinedOutput()
	return string(out), err
}

func (s *systemd) must(t *testing.T, script string) string {
	t.Helper()
	out, err := s.sh(script)
	if err != nil {
		journal, _ := s.sh("cat /run/state/tunnel.log; systemctl --no-pager --full status 'vallum*' 'driver*'")
		t.Fatalf("%s: %v\n%s\n%s\n%s", script, err, out, journal, s.log)
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
			for _, r := range routes {
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
	if out, err := s.sh("systemctl start vllm.service"); err == nil || a.exists("started") {
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
	s.must(t, "systemd-run --quiet --unit=driver "+up+" --confirm 4s")
	eventually(t, "up has applied", open, func() bool { return !x.reaches(a.under, 5000, 100*time.Millisecond) && a.exists("tunnel.lock") })
	if units := s.must(t, "systemctl list-units --no-pager --no-legend --plain --state=running"); !strings.Contains(units, "vallum-isolate-rollback-") {
		t.Errorf("no unit of the rollback:\n%s", units)
	}
	s.must(t, "systemctl kill --signal=KILL --kill-whom=all driver.service")
	eventually(t, "it is rolled back", 20*time.Second, func() bool { return x.reaches(a.under, 5000, 200*time.Millisecond) && a.state(t) == before })
	// And a rollback that cannot be armed changes nothing.
	s.must(t, "mkdir -p /run/bin && printf '#!/bin/sh\\necho no; exit 1\\n' >/run/bin/systemd-run && chmod +x /run/bin/systemd-run")
	out, err := s.sh("PATH=/run/bin:$PATH " + up)
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
