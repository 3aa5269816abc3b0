package apply_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// exampleDir is the example whose page is run.
const exampleDir = "../../../examples/two-nodes"

// sealedHost runs a command of the page where /var/lib, /run and the hosts file are the host's own, and vallum is the real one.
const sealedHost = `set -eu
mount --make-rprivate /
mount -t tmpfs lab /var/lib
mount -t tmpfs lab /run
mkdir -p /var/lib/vallum /run/wireguard
mount --bind "$LAB/run" /run/wireguard
mount --bind "$LAB/state" /var/lib/vallum
mount --bind "$LAB/hosts" /etc/hosts
cd "$LAB"
PATH="$LAB/bin:$PATH"
`

// pageLine is a command of a ```console block, who runs it, and what it is said to print.
type pageLine struct {
	who, command string
	prints       []string
}

var prompt = regexp.MustCompile(`^(operator|a|b|x)[$#] (.*)$`)

func consoleLines(text string) (lines []pageLine) {
	in := false
	for line := range strings.SplitSeq(text, "\n") {
		m := prompt.FindStringSubmatch(line)
		switch {
		case strings.HasPrefix(line, "```"):
			in = line == "```console"
		case in && m != nil:
			lines = append(lines, pageLine{who: m[1], command: m[2]})
		case in:
			last := &lines[len(lines)-1]
			last.prints = append(last.prints, line)
		}
	}
	return lines
}

// walk is the example's machines, with what its commands have printed so far.
type walk struct {
	t     *testing.T
	hosts map[string]*host
	key   map[string]string // what keygen and init printed
	up    map[string]*rising
}

// The page of the example, from nothing to a fleet and back, as it stands, with real keys in its files.
func TestTheExamplesPageIsRight(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(exampleDir, "README.md"))
	must(t, err)
	lines := consoleLines(string(b))
	if len(lines) < 15 {
		t.Fatalf("%d commands are found: did the form of the blocks change?", len(lines))
	}
	l := newLab(t, "xa", "xb", "x") // hosts that newLab has not made members of a fleet
	w := &walk{t: t, key: map[string]string{}, up: map[string]*rising{}, hosts: map[string]*host{"a": l.hosts["xa"], "b": l.hosts["xb"], "x": l.hosts["x"], "operator": l.hosts["x"]}}
	for name, h := range map[string]*host{"a": l.hosts["xa"], "b": l.hosts["xb"], "x": l.hosts["x"]} {
		must(t, os.RemoveAll(h.file("vallum.yaml")))
		for _, dir := range []string{"state", "bin", "run"} {
			must(t, os.Mkdir(h.file(dir), 0o700))
		}
		must(t, os.Symlink(program, h.file("bin/vallum")))
		must(t, os.WriteFile(h.file("bin/vllm"), []byte("#!/bin/sh\necho \"vllm $* with $VLLM_HOST_IP\"\n"), 0o700))
		if name != "x" {
			t.Cleanup(func() { w.run(name, "vallum isolate down") })
		}
	}
	for _, line := range lines {
		w.line(line)
	}
}

func (w *walk) line(line pageLine) {
	w.t.Helper()
	h := w.hosts[line.who]
	switch words := strings.Fields(line.command); {
	case words[0] == "scp":
		w.copyTo(w.hosts[strings.TrimPrefix(words[2][:strings.Index(words[2], ":")], "root@")], h.file(words[1]))
		return
	case words[0] == "ip": // what the machine that runs this test may not have
		h.do(func() {
			must(w.t, netlink.RouteAdd(&netlink.Route{Dst: ipnet.Of(netip.MustParsePrefix(words[3] + "/32")), Gw: net.ParseIP(words[5])}))
		})
		return
	case strings.HasSuffix(line.command, "isolate sign --dir fleet"):
		w.write(h, "fleet/fleet.yaml")
	case strings.HasSuffix(line.command, "isolate up"):
		// Nothing of a page asks for it, and these machines have no ssh that could be cut off.
		w.up[line.who] = h.riseBy(w.t, w.command(line.who, line.command))
		return
	}
	out, code := w.run(line.who, line.command)
	if code != 0 && !strings.HasSuffix(line.command, "isolate audit") { // it judges what else runs on this machine
		w.t.Fatalf("%s# %s\nends with %d\n%s", line.who, line.command, code, out)
	}
	for _, p := range line.prints {
		if !regexp.MustCompile(`(?m)^` + strings.ReplaceAll(regexp.QuoteMeta(p), "…", ".*")).MatchString(out) {
			w.t.Errorf("%s# %s\nprinted\n%s\nand the page says %s", line.who, line.command, out, p)
		}
	}
	switch {
	case strings.Contains(line.command, " isolate init "), strings.HasSuffix(line.command, " isolate keygen"):
		w.key[line.who], _, _ = strings.Cut(out, "\n")
	case strings.Contains(line.command, " -- vllm "):
		if want := "vllm serve Qwen/Qwen3-8B --data-parallel-size 2 "; !strings.Contains(out, want) || !strings.Contains(out, " with 10.99.0.") {
			w.t.Errorf("%s starts %q, want %q…", line.who, out, want)
		}
	case strings.HasSuffix(line.command, "isolate confirm"):
		if code, said := w.up[line.who].end(); code != 0 {
			w.t.Fatalf("up on %s: exit %d\n%s", line.who, code, said)
		}
	}
}

// write gives a host a file of the example, with the keys that stand for others there.
func (w *walk) write(h *host, name string) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(exampleDir, name))
	must(w.t, err)
	text := strings.NewReplacer("KEY-OF-A", w.key["a"], "KEY-OF-B", w.key["b"], "FLEET-KEY", w.key["operator"]).Replace(string(b))
	must(w.t, os.WriteFile(h.file(name), []byte(text), 0o600))
}

func (w *walk) copyTo(h *host, file string) {
	w.t.Helper()
	b, err := os.ReadFile(file)
	must(w.t, err)
	must(w.t, os.WriteFile(h.file("state/isolate/manifest.signed"), b, 0o600))
	w.write(h, "vallum.yaml")
}

func (w *walk) command(who, command string) *exec.Cmd {
	c := exec.Command("unshare", "--mount", "sh", "-c", sealedHost+"exec "+command)
	c.Env = append(os.Environ(), "LAB="+w.hosts[who].dir, "SSH_CONNECTION=")
	return c
}

func (w *walk) run(who, command string) (out string, code int) {
	c := w.command(who, command)
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	w.hosts[who].do(func() { must(w.t, c.Start()) })
	_ = c.Wait()
	return joined(b.String()), c.ProcessState.ExitCode()
}
