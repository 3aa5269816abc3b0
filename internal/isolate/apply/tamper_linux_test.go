package apply_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// counter is what the rules of that name have counted.
func (h *host) counter(t *testing.T, name string) (sum uint64) {
	t.Helper()
	h.do(func() {
		for _, r := range ourRules(t) {
			if s, _ := userdata.GetString(r.UserData, userdata.TypeComment); s != name {
				continue
			}
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					sum += c.Packets
				}
			}
		}
	})
	return sum
}

func ourRules(t *testing.T) (all []*nftables.Rule) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	chains, err := c.ListChains()
	must(t, err)
	for _, chain := range chains {
		if chain.Table.Name != isolate.TableName {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		must(t, err)
		all = append(all, rules...)
	}
	return all
}

// killTunnel kills wireguard-go's process, and its supervisor too if asked.
func (h *host) killTunnel(t *testing.T, supervisor bool) {
	t.Helper()
	b, err := os.ReadFile(h.file("tunnel.lock"))
	must(t, err)
	pid, err := strconv.Atoi(string(b))
	must(t, err)
	children := allChildren(t, pid)
	if len(children) == 0 {
		t.Fatal("the supervisor has no child")
	}
	child, err := strconv.Atoi(children[0])
	must(t, err)
	victim := child
	if supervisor {
		victim = pid // its death is the child's
	}
	must(t, syscall.Kill(victim, syscall.SIGKILL))
	eventually(t, "the tunnel's process is gone", open, func() bool { return gone(child) })
}

// allChildren are the children of every thread of a process.
func allChildren(t *testing.T, pid int) []string {
	t.Helper()
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	must(t, err)
	var all []string
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + task.Name() + "/children")
		if err == nil {
			all = append(all, strings.Fields(string(b))...)
		}
	}
	return all
}

// gone reports whether a process has ended; one that nobody has waited for yet has ended too.
func gone(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || bytes.Contains(b, []byte(") Z "))
}

func TestWhatNobodyConfirmsIsRolledBack(t *testing.T) {
	l := newLab(t, "a", "x")
	a, x := l.hosts["a"], l.hosts["x"]
	a.echo(t, 5000)
	before := a.state(t)
	l.sign(nil, "a")
	r := a.rise(t, "--confirm", "5s") // long enough for a busy machine to see that it was applied
	if x.reaches(a.under, 5000, closed) {
		t.Error("applied, and the stranger still gets in")
	}
	if code, said := r.end(); code != 1 || !strings.Contains(said, "everything was rolled back") {
		t.Errorf("exit %d: %s", code, said)
	}
	if is := a.state(t); is != before {
		t.Errorf("after the rollback:\n%s\nbefore:\n%s", is, before)
	}
	if !x.reaches(a.under, 5000, open) {
		t.Error("after the rollback something is still refused")
	}
	if _, said, code := a.run("confirm"); code != 1 || !strings.Contains(said, "nothing waits") {
		t.Errorf("a late confirmation: %d %s", code, said)
	}
}

// Whenever up is killed, the agent outside it brings the machine back, and the next up works.
func TestUpMayBeKilledAtAnyMoment(t *testing.T) {
	l := newLab(t, "a")
	a := l.hosts["a"]
	before := a.state(t)
	l.sign(nil, "a")
	for _, moment := range []time.Duration{0, 5 * time.Millisecond, 40 * time.Millisecond, 150 * time.Millisecond, time.Second} {
		c := a.command("up", "--hosts", a.file("hosts"), "--accept-cut", "--confirm", "1s")
		a.do(func() { must(t, c.Start()) })
		eventually(t, "up has begun", open, func() bool { _, err := os.Stat(a.file("pending.json")); return err == nil })
		<-time.After(moment)
		must(t, c.Process.Kill())
		_ = c.Wait()
		// Killed before the agent was armed, nothing was changed, and the file alone is left.
		end := time.Now().Add(3 * time.Second)
		eventually(t, "the machine is as before", open, func() bool {
			_, err := os.Stat(a.file("pending.json"))
			return (os.IsNotExist(err) || time.Now().After(end)) && a.state(t) == before
		})
	}
	a.up(t)
	a.must(t, "status")
}

// What ends a session ends its processes politely first; who undoes the plan is not one that listens.
func TestTheRollbackIsNotEndedBySignals(t *testing.T) {
	l := newLab(t, "a")
	a := l.hosts["a"]
	before := a.state(t)
	l.sign(nil, "a")
	r := a.rise(t, "--confirm", "20s") // in which a busy machine finds the process
	must(t, r.cmd.Process.Kill())
	_, _ = r.end()
	agents := 0
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range all {
		args, _ := os.ReadFile(file)
		if !bytes.Contains(args, []byte("rollback\x00--state\x00"+a.dir+"\x00")) {
			continue
		}
		agents++
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		must(t, err)
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGINT, syscall.SIGTERM} { // the first of some is caught
			must(t, syscall.Kill(pid, sig))
			<-time.After(50 * time.Millisecond)
		}
		if gone(pid) {
			t.Error("the process that rolls back is ended by a signal")
		}
	}
	if agents != 1 {
		t.Fatalf("%d processes wait to roll back", agents)
	}
	eventually(t, "it is rolled back", 6*open, func() bool { return a.state(t) == before && !a.exists("pending.json") })
}

// Who can write the state folder can write the network of the machine: one that others may enter is not used.
func TestAStateFolderOfOthersIsNotUsed(t *testing.T) {
	l := newLab(t, "a")
	a := l.hosts["a"]
	before := a.state(t)
	l.sign(nil, "a")
	must(t, os.Chmod(a.dir, 0o755))
	defer os.Chmod(a.dir, 0o700)
	if _, said, code := a.run("up", "--accept-cut", "--hosts", a.file("hosts")); code != 1 || !strings.Contains(said, "has mode 0755; chmod 700") || a.state(t) != before {
		t.Errorf("exit %d %s", code, said)
	}
}

// A rollback returns to what was confirmed before, not to nothing.
func TestARollbackReturnsToWhatWasConfirmed(t *testing.T) {
	l := newLab(t, "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	a.echo(t, 5000)
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	l.sign(func(m *fleet.Manifest) { m.Nodes = m.Nodes[:1] }, "a", "b")
	r := a.rise(t, "--confirm", "5s") // long enough for a busy machine to see that it was applied
	if b.reaches(a.over, 5000, closed) {
		t.Error("b was removed and still gets in")
	}
	if code, said := r.end(); code != 1 {
		t.Errorf("exit %d: %s", code, said)
	}
	eventually(t, "b is a member again", open, func() bool { return b.reaches(a.over, 5000, open) })
	a.must(t, "status")
}

func TestANewConnectionOfTheCallerConfirmsAndAnOldOneDoesNot(t *testing.T) {
	l := newLab(t, "a", "x")
	a, x := l.hosts["a"], l.hosts["x"]
	a.echo(t, 22)
	l.sign(nil, "a")
	old, err := x.dial(a.under, 22, open)
	must(t, err)
	defer old.Close()
	r := a.rise(t, "--caller", x.under.String(), "--confirm", "20s")
	for range 3 {
		must(t, says(old, open))
	}
	select {
	case said := <-r.rest:
		t.Fatalf("an established connection confirmed: %s", said)
	case <-time.After(time.Second):
	}
	fresh, err := x.dial(a.under, 22, open)
	must(t, err)
	defer fresh.Close()
	if code, said := r.end(); code != 0 || !strings.Contains(said, "confirmed: a new connection") {
		t.Errorf("exit %d: %s", code, said)
	}
}

// The processes that outlive a command stand in another folder than it did.
func TestTheStateFolderMayBeNamedRelatively(t *testing.T) {
	l := newLab(t, "a")
	a := l.hosts["a"]
	l.sign(nil, "a")
	whole := a.dir
	wd, err := os.Getwd()
	must(t, err)
	a.dir, err = filepath.Rel(wd, a.dir)
	must(t, err)
	a.up(t)
	a.must(t, "status")
	a.dir = whole
}

// Rules that somebody changed are not a guard, and status says which.
func TestChangedRulesAreFound(t *testing.T) {
	l := newLab(t, "a")
	a := l.hosts["a"]
	l.sign(nil, "a")
	a.up(t)
	a.do(func() {
		c, err := nftables.New()
		must(t, err)
		for _, r := range ourRules(t) {
			if s, _ := userdata.GetString(r.UserData, userdata.TypeComment); s == isolate.RuleLeak {
				must(t, c.DelRule(r))
				break
			}
		}
		must(t, c.Flush())
	})
	if _, said, code := a.run("status"); code != 1 || !strings.Contains(said, "missing: output: oifname") && !strings.Contains(said, "another order, or twice") {
		t.Errorf("status: %d %s", code, said)
	}
	a.must(t, "up", "--hosts", a.file("hosts"))
	a.must(t, "status")
	if nft, err := exec.LookPath("nft"); err == nil {
		plan, _ := a.must(t, "plan", "--nft")
		var out []byte
		a.do(func() { out, err = exec.Command(nft, "list", "table", "inet", isolate.TableName).Output() })
		must(t, err)
		if got := withoutCounts(string(out)); got != plan {
			t.Errorf("nft reads in the kernel\n%s\nplanned\n%s", got, plan)
		}
	}
}

// withoutCounts is nft's listing without what the counters stand at.
func withoutCounts(s string) string {
	var b strings.Builder
	for l := range strings.Lines(s) {
		if strings.TrimSpace(l) == "" {
			continue
		}
		words := strings.Split(l, " ")
		for i := 0; i < len(words); i++ {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(words[i])
			if strings.TrimSpace(words[i]) == "counter" {
				i += 4
			}
		}
	}
	return b.String()
}

// A key that is not of the fleet, a member that may send as another, and one that is missing: each is seen, and mended.
func TestChangedPeersAreFound(t *testing.T) {
	l := newLab(t, "a", "b", "c")
	a, b := l.hosts["a"], l.hosts["b"]
	l.sign(nil, "a", "b", "c")
	a.up(t)
	client, err := wgctrl.New()
	must(t, err)
	defer client.Close()
	key, err := wgtypes.ParseKey(b.key)
	must(t, err)
	stranger, err := wgtypes.GenerateKey()
	must(t, err)
	for want, peer := range map[string]wgtypes.PeerConfig{
		"has a peer " + stranger.PublicKey().String() + " that is not of the plan": {PublicKey: stranger.PublicKey()},
		"may send as 10.99.0.77/32, which is not its own":                          {PublicKey: key, AllowedIPs: []net.IPNet{*ipnet.Of(netip.MustParsePrefix("10.99.0.77/32"))}},

		"may not send as all of":  {PublicKey: key, ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*ipnet.Of(netip.PrefixFrom(b.over, 32))}},
		"lacks the peer " + b.key: {PublicKey: key, Remove: true},
	} {
		must(t, client.ConfigureDevice(a.device, wgtypes.Config{Peers: []wgtypes.PeerConfig{peer}}))
		if _, said, code := a.run("status"); code != 1 || !strings.Contains(said, want) {
			t.Errorf("status: exit %d, want %q: %s", code, want, said)
		}
		if _, said, code := a.run("exec", "--topology", "dp", "--", "echo", "RUNS"); code != 1 || !strings.Contains(said, want) {
			t.Errorf("exec: exit %d, want %q: %s", code, want, said)
		}
		a.must(t, "up", "--hosts", a.file("hosts"))
		a.must(t, "status")
	}
}

func TestOldExpiredAndForgedManifestsAreRefused(t *testing.T) {
	l := newLab(t, "a", "b", "x")
	a, b, x := l.hosts["a"], l.hosts["b"], l.hosts["x"]
	a.echo(t, 5000)
	first := l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	if !b.reaches(a.over, 5000, open) {
		t.Fatal("the overlay does not work")
	}
	// b is removed: a new serial, and its key is worth nothing any more.
	l.sign(func(m *fleet.Manifest) { m.Nodes = m.Nodes[:1] }, "a", "b")
	a.up(t)
	if b.reaches(a.over, 5000, closed) {
		t.Error("a removed node still gets in")
	}
	if _, said, code := b.run("up"); code != 1 || !strings.Contains(said, "or the node was removed") {
		t.Errorf("up on the removed node: %d %s", code, said)
	}
	must(t, os.WriteFile(a.file("manifest.signed"), first, 0o600))
	if _, said, code := a.run("up"); code != 1 || !strings.Contains(said, "an older manifest") {
		t.Errorf("an old manifest: %d %s", code, said)
	}
	must(t, os.WriteFile(a.file("manifest.signed"), bytes.Replace(first, []byte("192.0.2.2"), []byte("192.0.2.3"), 1), 0o600))
	if _, said, code := a.run("up"); code != 1 || !strings.Contains(said, "not signed by the pinned fleet key") {
		t.Errorf("a forged manifest: %d %s", code, said)
	}
	a.must(t, "status")
	// An outsider with the address of a node that is silent gets past every rule by address, and no further than that.
	b.must(t, "down")
	b.do(func() { must(t, linkDown(t)) })
	x.do(func() { must(t, takeAddress(t, b)) })
	if x.reaches(a.under, 5000, closed) || x.reaches(a.over, 5000, closed) {
		t.Error("a stolen address gets in")
	}
}
