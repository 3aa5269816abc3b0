package apply_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
)

// resolver answers nothing on the host and counts the questions for names of addresses that it is asked.
func (h *host) resolver(t *testing.T) *atomic.Int32 {
	t.Helper()
	var asked atomic.Int32
	h.do(func() {
		c, err := net.ListenPacket("udp", h.under.String()+":53")
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 1500)
			for {
				n, _, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				if bytes.Contains(b[:n], []byte("\x04arpa")) {
					asked.Add(1)
				}
			}
		}()
	})
	return &asked
}

// nameOf asks the C library, as torch does, for the name of an address; with the hosts file, and a resolver behind it.
func (h *host) nameOf(t *testing.T, hosts string, of string) string {
	t.Helper()
	c := exec.Command("unshare", "--mount", "sh", "-c", `set -e
mount --make-rprivate /
for f in hosts resolv.conf nsswitch.conf; do [ -e /etc/$f ] || { echo "/etc/$f is not there"; exit 99; }; done
mount --bind "$HOSTS" /etc/hosts; mount --bind "$LAB/resolv.conf" /etc/resolv.conf; mount --bind "$LAB/nsswitch.conf" /etc/nsswitch.conf
getent hosts "$ADDRESS" || [ $? = 2 ]`)
	c.Env = append(os.Environ(), "HOSTS="+hosts, "LAB="+h.dir, "ADDRESS="+of)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	h.do(func() { must(t, c.Start()) })
	if err := c.Wait(); err != nil {
		t.Fatalf("asking for the name of %s: %v\n%s", of, err, out.String())
	}
	return out.String()
}

// torch asks for the names of its peers, as ::ffff:A. Without the lines of up each question leaves in clear, and costs as
// long as the resolver does not answer; with them none leaves, for any member and in any spelling.
func TestNoNameOfTheOverlayIsAskedForInClear(t *testing.T) {
	l := newLab(t, "a", "b", "gw", "x")
	a, b, gw, x := l.hosts["a"], l.hosts["b"], l.hosts["gw"], l.hosts["x"]
	asked := x.resolver(t)
	must(t, os.WriteFile(a.file("resolv.conf"), []byte("nameserver "+x.under.String()+"\noptions timeout:1 attempts:1\n"), 0o644))
	must(t, os.WriteFile(a.file("nsswitch.conf"), []byte("hosts: files dns\n"), 0o644))
	plain := a.file("plain")
	must(t, os.WriteFile(plain, []byte("127.0.0.1 localhost\n"+b.over.String()+" b.lab.internal\n"), 0o644))
	mapped := "::ffff:" + b.over.String()
	for name, file := range map[string]string{"without lines": a.file("hosts"), "with a plain one": plain} {
		before := asked.Load()
		if out := a.nameOf(t, file, mapped); asked.Load() == before {
			t.Errorf("%s nobody was asked for %s, and the answer is %q: this proves nothing", name, mapped, out)
		}
	}
	l.sign(nil, "a", "b", "gw")
	a.up(t)
	before := asked.Load()
	for want, addresses := range map[string][]string{
		"a.lab.internal":  {a.over.String(), "::ffff:" + a.over.String(), a.over6.String()},
		"b.lab.internal":  {b.over.String(), mapped, b.over6.String()},
		"gw.lab.internal": {gw.over.String(), "::ffff:" + gw.over.String(), gw.over6.String()},
	} {
		for _, address := range addresses {
			if out := a.nameOf(t, a.file("hosts"), address); !bytes.Contains([]byte(out), []byte(want)) {
				t.Errorf("the name of %s is %q, want %s", address, out, want)
			}
		}
	}
	if n := asked.Load() - before; n != 0 {
		t.Errorf("%d questions for names of overlay addresses left in clear", n)
	}
}
