// Package sealed boots a real systemd for a test, in namespaces. It refuses to boot one that could write anything of the
// machine's: a system that boots cleans /tmp, writes /var and sets kernel parameters.
package sealed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/notrun"
)

const program = "/lib/systemd/systemd"

// script becomes systemd. It looks before it boots, and ends with 99 when something of the machine's could be written.
// Nothing knows units but /run/units and, for `systemctl enable`, /etc/systemd/system, which it empties. What mounts
// reach the units by propagation is shared among the sealed only.
const script = `set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 lab /run
mkdir -p /run/units /run/none /run/state /run/etc /run/empty /run/dev/net /run/dev/pts /run/dev/shm
for n in null zero full random urandom tty net/tun; do touch /run/dev/$n; mount --bind /dev/$n /run/dev/$n; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 lab /run/dev/pts; ln -s pts/ptmx /run/dev/ptmx
mount --bind "$STATE" /run/state
[ -z "$PROGRAM" ] || cp "$PROGRAM" /run/vallum
cp -a /etc/. /run/etc
rm -rf /run/etc/systemd/system; mkdir -p /run/etc/systemd/system
for t in sysinit basic shutdown sockets network-online multi-user lab; do printf '[Unit]\nDefaultDependencies=no\n' >/run/units/$t.target; done
if [ "$LOG" != console ]; then cp /lib/systemd/system/systemd-journald.service /lib/systemd/system/systemd-journald*.socket /run/units/; fi
mount --bind /run/etc /etc
mount --rbind /run/dev /dev
for d in $OWN; do mkdir "/run/empty/$(basename $d)"; mount --bind "/run/empty/$(basename $d)" $d; done
mount -t cgroup2 lab /sys/fs/cgroup
mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys
mount -t tmpfs lab /tmp
mount -t tmpfs -o mode=0755 lab /var
mkdir /var/run /var/lib
mount -o remount,bind,ro /sys
mount -o remount,bind,ro /
for d in / /usr /root /home /boot /sys /proc/sys/kernel; do if touch $d/.lab 2>/dev/null; then rm -f $d/.lab; exit 99; fi; done
for d in /tmp /var /run /dev /etc $OWN; do [ "$(stat -f -c %T $d)" = tmpfs ] || exit 99; done
mount --make-rshared /
export container=lab SYSTEMD_UNIT_PATH=/run/units:/etc/systemd/system SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none
exec ` + program + ` --system --unit=lab.target --log-target=$LOG --show-status=no
`

// Options are what a sealed system has of the test's.
type Options struct {
	Name    string   // of its control group: letters, digits and -, and of this test only
	State   string   // directory that is /run/state there, and may be written
	Program string   // file that is copied to /run/vallum there; "" for none
	Own     []string // directories of the machine that are empty there, and may be written
	Network bool     // it has a network of its own, with loopback; otherwise that of the thread which starts it
	Journal bool     // it and its units log to a journal of its own; otherwise it alone, to Log
	// In calls start on a thread in the network that it is to have; nil is the caller's.
	In func(start func())
}

// System is a systemd that runs.
type System struct {
	pid int    // of systemd, out here
	log string // file
}

// Boot starts a systemd, and ends it with the test. It needs root; where systemd is not installed the test is not run.
func Boot(t *testing.T, o Options) *System {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		notrun.For(t, "systemd is not installed: what is said of its units is not checked")
	}
	groups, name := t.TempDir(), "vallum-test-"+strconv.Itoa(os.Getpid())+"-"+o.Name
	inGroups := func(script string) string {
		return `set -eu; mount --make-rprivate /; mount -t cgroup2 lab "$GROUPS_DIR"; cd "$GROUPS_DIR"; ` + script
	}
	network, log := "", "console"
	if o.Network {
		network = "--net"
	}
	if o.Journal {
		log = "journal-or-kmsg"
	}
	s := &System{log: filepath.Join(t.TempDir(), "log")}
	written, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = written.Close() }() // it has its own
	env := append(os.Environ(), "GROUPS_DIR="+groups, "NAME="+name, "STATE="+o.State, "PROGRAM="+o.Program, "OWN="+strings.Join(o.Own, " "), "LOG="+log, "SEALED="+script)
	c := exec.Command("unshare", "--mount", "sh", "-c", inGroups(`mkdir "$NAME"; echo $$ >"$NAME/cgroup.procs"; cd /
exec unshare --fork --kill-child --pid --mount-proc --mount --uts --ipc --cgroup `+network+` sh -c "$SEALED"`))
	c.Env, c.Stdout, c.Stderr = env, written, written
	start := func() { err = c.Start() }
	if o.In != nil {
		o.In(start)
	} else {
		start()
	}
	if err != nil {
		t.Fatal(err)
	}
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
	s.wait(t, c, ended)
	if o.Journal {
		if out, err := s.Sh("systemctl start systemd-journald.socket systemd-journald.service"); err != nil {
			t.Fatalf("no journal: %v %s", err, out)
		}
	}
	return s
}

// wait returns once systemd has booted.
func (s *System) wait(t *testing.T, c *exec.Cmd, ended <-chan struct{}) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(60 * time.Second)
	for {
		select {
		case <-ended:
			t.Fatalf("systemd did not boot: %v\n%s", c.ProcessState, s.Log())
		case <-timeout:
			t.Fatalf("systemd does not boot\n%s", s.Log())
		case <-tick.C:
		}
		if s.pid = onlyChild(c.Process.Pid); s.pid == 0 { // first of the script's commands, and systemd at last
			continue
		}
		if _, err := s.Sh("systemctl is-active lab.target"); err == nil {
			return
		}
	}
}

// onlyChild is the one process that pid has started; 0 when there is none, or several.
func onlyChild(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return child
}

// Sh runs a shell script where systemd runs, and gives all that it printed.
func (s *System) Sh(script string) (string, error) {
	c := exec.Command("nsenter", "-t", strconv.Itoa(s.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--", "sh", "-c", script)
	c.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := c.CombinedOutput()
	return string(out), err
}

// Dial connects to an address in the network where systemd runs.
func (s *System) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.pid))
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and with it what it changed
		if err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err == nil {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
		}
	}()
	<-done
	return conn, errors.Join(err, there.Close())
}

// Log is what systemd has printed so far.
func (s *System) Log() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
