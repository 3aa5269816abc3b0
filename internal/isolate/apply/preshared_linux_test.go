package apply_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// share gives the host a key for a peer, as an operator does: by keygen, from standard input.
func (h *host) share(t *testing.T, peer, key string) {
	t.Helper()
	c := h.command("keygen", "--preshared", peer)
	c.Stdin = strings.NewReader(key + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("keygen --preshared %s on %s: %v\n%s", peer, h.name, err, out)
	}
}

func preshared(fill string) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(fill, 32)))
}

// Two nodes hear each other with one key on both sides, and not with another key, or with a key on one side only,
// although everything else about them is right.
func TestPresharedKeysConnectOnlyWhereTheyAreEqual(t *testing.T) {
	for name, row := range map[string]struct {
		a, b  string
		hears bool
	}{
		"the same on both":  {preshared("s"), preshared("s"), true},
		"another":           {preshared("s"), preshared("t"), false},
		"on one side alone": {preshared("s"), "", false},
		"on neither":        {"", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "a", "b", "c")
			a, b, c := l.hosts["a"], l.hosts["b"], l.hosts["c"]
			if row.a != "" {
				a.share(t, "b", row.a)
			}
			if row.b != "" {
				b.share(t, "a", row.b)
			}
			a.echo(t, 5000)
			l.sign(nil, "a", "b", "c")
			for _, h := range []*host{a, b, c} {
				h.up(t)
			}
			// The third node shows that the overlay works, and so that only the key keeps b out.
			if !c.reaches(a.over, 5000, open) {
				t.Fatal("the overlay does not work at all")
			}
			wait := open
			if !row.hears {
				wait = 3 * closed
			}
			if got := b.reaches(a.over, 5000, wait); got != row.hears {
				t.Errorf("b reaches a: %v, want %v", got, row.hears)
			}
			plan, _ := a.must(t, "plan")
			if told := strings.Contains(plan, "at 192.0.2.2:51820, pre-shared key"); told != (row.a != "") {
				t.Errorf("the plan says that there is a key: %v\n%s", told, plan)
			}
			status, _ := a.must(t, "status")
			if doubts := strings.Contains(status, "never heard; is the pre-shared key there the same?"); doubts == row.hears {
				t.Errorf("status: %s", status)
			}
			for _, printed := range []string{plan, status} {
				if row.a != "" && strings.Contains(printed, row.a) {
					t.Error("the key is printed")
				}
			}
		})
	}
}

func TestPresharedKeysThatAreNoneAreRefused(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	for name, key := range map[string]string{"nothing": "", "no base64": "?", "31 bytes": base64.StdEncoding.EncodeToString(make([]byte, 31)), "zeros": base64.StdEncoding.EncodeToString(make([]byte, 32))} {
		c := a.command("keygen", "--preshared", "b")
		c.Stdin = strings.NewReader(key)
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "base64 of 32 bytes") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	a.share(t, "b", preshared("s"))
	info, err := os.Stat(a.file("preshared/b.key"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %04o", info.Mode().Perm())
	}
	// One that others can read is refused, and so is the whole up, before anything changed.
	must(t, os.Chmod(a.file("preshared/b.key"), 0o644))
	l.sign(nil, "a", "b")
	before := a.state(t)
	if _, said, code := a.run("up", "--hosts", a.file("hosts"), "--accept-cut"); code != 1 || !strings.Contains(said, "others can read it") {
		t.Errorf("exit %d\n%s", code, said)
	}
	if is := a.state(t); is != before {
		t.Errorf("something was left:\n%s\nbefore:\n%s", is, before)
	}
}

// Keys are in files of mode 0600, and in what the device holds: in no argument, no environment, no other file and no answer.
func TestKeysStandNowhereElse(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	shared := preshared("q")
	a.share(t, "b", shared)
	a.up(t)
	private, err := os.ReadFile(a.file("node.key"))
	must(t, err)
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(private)))
	must(t, err)
	secrets := map[string][]byte{}
	for name, key := range map[string][]byte{"the node's key": raw, "the shared key": []byte(strings.Repeat("q", 32))} {
		secrets[name+" in base64"] = []byte(base64.StdEncoding.EncodeToString(key))
		secrets[name+" in hex"] = []byte(hex.EncodeToString(key))
	}
	look := func(where string, text []byte) {
		t.Helper()
		for name, secret := range secrets {
			if bytes.Contains(text, secret) {
				t.Errorf("%s stands in %s", name, where)
			}
		}
	}
	ours := 0
	all, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, dir := range all {
		args, _ := os.ReadFile(dir + "/cmdline")
		environ, _ := os.ReadFile(dir + "/environ")
		look("the arguments of "+dir, args)
		look("the environment of "+dir, environ)
		if bytes.Contains(args, []byte(a.dir)) {
			ours++
		}
	}
	if ours == 0 {
		t.Error("no process of the tunnel was looked at, and this proves nothing")
	}
	must(t, filepath.WalkDir(a.dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if filepath.Ext(file) != ".key" {
			b, err := os.ReadFile(file)
			look(file, b)
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o", file, info.Mode().Perm())
		}
		return err
	}))
	for _, args := range [][]string{{"plan"}, {"plan", "--json"}, {"status"}, {"observe"}, {"audit", "--json"}, {"env", "--topology", "dp"}, {"unit"}, {"keygen"}} {
		out, said, _ := a.run(args...)
		look(strings.Join(args, " "), []byte(out+said))
	}
}
