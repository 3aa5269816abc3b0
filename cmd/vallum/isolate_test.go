package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// isolateLab is an operator's folder and the folders of his nodes.
type isolateLab struct {
	t       *testing.T
	dir     string
	public  string
	nodeKey map[string]string
	stdin   string // of the next command
}

func (l *isolateLab) vallum(want int, args ...string) (out, errs string) {
	l.t.Helper()
	var o, e bytes.Buffer
	if code := run(context.Background(), append([]string{"isolate"}, args...), strings.NewReader(l.stdin), &o, &e); code != want {
		l.t.Fatalf("isolate %q: exit %d, want %d\n%s%s", args, code, want, o.String(), e.String())
	}
	return o.String(), strings.Join(strings.Fields(e.String()), " ") // wherever a terminal's width breaks it
}

func (l *isolateLab) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

func (l *isolateLab) write(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(l.path(name), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// fleetYAML is the lab's fleet with two nodes.
func (l *isolateLab) fleetYAML(serial int) string {
	text := fmt.Sprintf("format: 1\nfleet: lab\nserial: %d\nexpires: %s\noverlay: [10.99.0.0/24]\nnodes:\n", serial, time.Now().UTC().AddDate(0, 1, 0).Format(time.RFC3339))
	for i, name := range []string{"a", "b"} {
		text += fmt.Sprintf("  - {name: %s, public_key: %q, endpoint: \"192.0.2.%d:51820\", addresses: [10.99.0.%d], roles: [vllm]}\n", name, l.nodeKey[name], i+1, i+1)
	}
	return text
}

func newIsolateLab(t *testing.T) *isolateLab {
	l := &isolateLab{t: t, dir: t.TempDir(), nodeKey: map[string]string{}}
	out, _ := l.vallum(0, "init", "lab", "--dir", l.dir)
	l.public = strings.TrimSpace(out)
	for _, name := range []string{"a", "b"} {
		out, _ := l.vallum(0, "keygen", "--state", l.path(name))
		l.nodeKey[name] = strings.TrimSpace(out)
	}
	l.write("fleet.yaml", l.fleetYAML(1))
	l.vallum(0, "sign", "--dir", l.dir)
	l.write("vallum.yaml", fmt.Sprintf("version: 1\nisolate: {fleet_key: %q}\n", l.public))
	l.write("snapshot.json", `{"tun": true, "devices": [{"name": "eth0", "up": true, "mtu": 1500, "addresses": ["192.0.2.1/24"]}],
 "routes": [{"to": "192.0.2.0/24", "device": "eth0", "type": "unicast"}],
 "sockets": [{"protocol": "tcp", "listening": true, "local": "0.0.0.0:9100", "pid": 9, "process": "node_exporter"}]}`)
	return l
}

func (l *isolateLab) node(command string, more ...string) []string {
	return append([]string{command, "--state", l.path("a"), "--config", l.path("vallum.yaml"), "--manifest", l.path("manifest.signed")}, more...)
}

func TestAFleetFromItsKeyToAPlan(t *testing.T) {
	l := newIsolateLab(t)
	out, _ := l.vallum(0, "show", l.path("manifest.signed"), "--key", l.path("fleet.pub"))
	if !strings.Contains(out, "fleet lab, serial 1") || !strings.Contains(out, l.nodeKey["b"]) {
		t.Errorf("show: %s", out)
	}
	out, _ = l.vallum(0, l.node("plan", "--snapshot", l.path("snapshot.json"))...)
	for _, want := range []string{"node a of fleet lab, manifest serial 1", "MTU 1420", "prohibit 10.99.0.0/24 metric 4278", "node_exporter (9) listens on tcp 0.0.0.0:9100", "::ffff:10.99.0.2 b.lab.internal"} {
		if !strings.Contains(out, want) {
			t.Errorf("plan lacks %q:\n%s", want, out)
		}
	}
	out, _ = l.vallum(0, l.node("env", "--topology", "tp", "--node", "b", "--format", "systemd")...)
	if !strings.Contains(out, `Environment="VLLM_HOST_IP=10.99.0.2"`) || !strings.Contains(strings.ReplaceAll(out, "\\\n#   ", ""), "--node-rank 1 --master-addr 10.99.0.1") {
		t.Errorf("env: %s", out)
	}
	for _, name := range []string{"fleet.key", "a/node.key"} {
		if info, err := os.Stat(l.path(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		secret, err := os.ReadFile(l.path(name))
		if err != nil || strings.Contains(out, strings.TrimSpace(string(secret))) {
			t.Errorf("%s is printed, or unreadable: %v", name, err)
		}
	}
	if again, _ := l.vallum(0, "keygen", "--state", l.path("a")); strings.TrimSpace(again) != l.nodeKey["a"] {
		t.Error("keygen made another key in the place of the one that was there")
	}
}

// A secrets manager carries a manifest, and a configuration, by standard input as well as by files.
func TestAManifestComesByStandardInputToo(t *testing.T) {
	l := newIsolateLab(t)
	byFile, _ := l.vallum(0, l.node("plan", "--snapshot", l.path("snapshot.json"))...)
	for name, args := range map[string][]string{
		"manifest.signed": {"--config", l.path("vallum.yaml"), "--manifest", "-"},
		"vallum.yaml":     {"--config", "-", "--manifest", l.path("manifest.signed")},
	} {
		b, err := os.ReadFile(l.path(name))
		if err != nil {
			t.Fatal(err)
		}
		l.stdin = string(b)
		if out, _ := l.vallum(0, append([]string{"plan", "--state", l.path("a"), "--snapshot", l.path("snapshot.json")}, args...)...); out != byFile {
			t.Errorf("%s by standard input:\n%s\nby file:\n%s", name, out, byFile)
		}
		l.stdin = "x" + string(b)
		l.vallum(1, append([]string{"plan", "--state", l.path("a"), "--snapshot", l.path("snapshot.json")}, args...)...)
	}
}

func TestIsolateRefusesWhatWasNotSignedOrIsOld(t *testing.T) {
	l := newIsolateLab(t)
	if _, errs := l.vallum(1, "sign", "--dir", l.dir); !strings.Contains(errs, "serial 1 was signed already; write serial: 2") {
		t.Errorf("signing twice: %s", errs)
	}
	if _, errs := l.vallum(1, "init", "lab", "--dir", l.dir); !strings.Contains(errs, "never overwritten") {
		t.Errorf("init twice: %s", errs)
	}
	l.write("a/seen.json", `{"fleet": "lab", "serial": 2, "digest": "x"}`)
	if _, errs := l.vallum(1, l.node("plan", "--snapshot", l.path("snapshot.json"))...); !strings.Contains(errs, "an older manifest than this node has seen: serial 1, seen 2") {
		t.Errorf("an older manifest: %s", errs)
	}
	other := newIsolateLab(t)
	l.write("vallum.yaml", fmt.Sprintf("isolate: {fleet_key: %q}\n", other.public))
	if _, errs := l.vallum(1, l.node("plan", "--snapshot", l.path("snapshot.json"))...); !strings.Contains(errs, "not signed by the pinned fleet key") {
		t.Errorf("another fleet's key: %s", errs)
	}
	l.write("vallum.yaml", "isolate: {fleet_key: k, alow: []}\n")
	if _, errs := l.vallum(1, l.node("plan")...); !strings.Contains(errs, "there is no such key") {
		t.Errorf("a misspelt key: %s", errs)
	}
	if _, errs := l.vallum(2, "policy", "openshift"); !strings.Contains(errs, "known is kubernetes") {
		t.Errorf("policy: %s", errs)
	}
}

// Each mistake of a newcomer is answered with what is wrong, where, and what would be right.
func TestIsolateSaysWhatWouldBeRight(t *testing.T) {
	l := newIsolateLab(t)
	good := l.fleetYAML(2)
	for name, row := range map[string]struct{ from, to, want string }{
		"a key that there is not": {"expires:", "expire:", `line 4: there is no key "expire"`},
		"an endpoint, no port":    {"192.0.2.2:51820", "192.0.2.2", `line 8: not ADDRESS:PORT, such as "192.0.2.1:51820"`},
		"an endpoint's name":      {"192.0.2.2:51820", "node-b:51820", `line 8: "node-b" is not an address`},
		"an address elsewhere":    {"10.99.0.2]", "10.98.0.2]", `node "b" has no address of its own in 10.99.0.0/24`},
		"an address twice":        {"10.99.0.2]", "10.99.0.1]", "overlay address 10.99.0.1"},
		"no key":                  {l.nodeKey["b"], "", "`vallum isolate keygen` on the node prints it"},
		"a key twice":             {l.nodeKey["b"], l.nodeKey["a"], "have one key; each makes its own"},
		"a role":                  {"roles: [vllm]", "roles: [worker]", `role "worker" is not one of vllm, gateway`},
		"a range of one address":  {"10.99.0.0/24", "10.99.0.0/32", "with room for nodes; write one such as 10.99.0.0/24"},
		"an address, no range":    {"10.99.0.0/24", "10.99.0.1/24", "did you mean 10.99.0.0/24?"},
		"the underlay's range":    {"10.99.0.0/24", "192.0.2.0/24", "the tunnel would have to go through itself"},
		"an endpoint twice":       {"192.0.2.2:51820", "192.0.2.1:51820", "have one endpoint 192.0.2.1:51820"},
		"a name for a terminal":   {"name: b", `name: "b\e[2J"`, `node "b\x1b[2J" has no proper name`},
		"nothing":                 {good, "", "the file is empty; `vallum isolate init` writes a draft"},
		"no time":                 {"expires: 20", "expires: next ", "is not a time such as 2027-01-31T00:00:00Z"},
	} {
		if !strings.Contains(good, row.from) {
			t.Fatalf("%s: the draft lacks %q", name, row.from)
		}
		l.write("fleet.yaml", strings.Replace(good, row.from, row.to, 1))
		if _, errs := l.vallum(1, "sign", "--dir", l.dir); !strings.Contains(errs, row.want) || strings.Contains(errs, "fleet.Manifest") || strings.Contains(errs, "netip") {
			t.Errorf("%s: %s\nwant %q", name, errs, row.want)
		}
	}
	for name, row := range map[string]struct {
		args []string
		want string
	}{
		"no configuration": {[]string{"plan", "--state", l.path("a"), "--config", l.path("none.yaml")}, "hint: it holds at least isolate: {fleet_key:"},
		"no manifest":      {[]string{"plan", "--state", l.path("a"), "--config", l.path("vallum.yaml")}, "hint: put the operator's manifest.signed there"},
		"no key":           {[]string{"plan", "--state", l.path("c"), "--config", l.path("vallum.yaml"), "--manifest", l.path("manifest.signed")}, "`vallum isolate keygen` makes it"},
		"no public key":    {[]string{"show", l.path("manifest.signed"), "--key", l.path("none.pub")}, "hint: --key names it"},
		"no topology":      {append(l.node("env"), "--node", "a"), "--topology is missing; known are"},
		"no fleet":         {[]string{"sign", "--dir", l.path("none")}, "hint: --dir names the folder"},
	} {
		want := 1
		if name == "no topology" {
			want = 2
		}
		if _, errs := l.vallum(want, row.args...); !strings.Contains(errs, row.want) {
			t.Errorf("%s: %s\nwant %q", name, errs, row.want)
		}
	}
	if _, errs := l.vallum(2, "keygen", "--state", l.path("a"), "--preshared", "b\x1b[2J"); !strings.Contains(errs, `"b\x1b[2J" is not a node's name`) {
		t.Errorf("a peer's name for a terminal: %s", errs)
	}
}

// A manifest that does not open says why: what an operator does about it differs.
func TestAManifestThatDoesNotOpenSaysWhy(t *testing.T) {
	l := newIsolateLab(t)
	signed, err := os.ReadFile(l.path("manifest.signed"))
	if err != nil {
		t.Fatal(err)
	}
	other := newIsolateLab(t)
	others, err := os.ReadFile(other.path("manifest.signed"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"":                   "it is empty; copy the operator's manifest.signed again",
		"\n\n":               "it is empty; copy the operator's manifest.signed again",
		string(signed[:200]): "it is cut off, or no manifest; copy",
		"\x00\xff\x1b":       "it is cut off, or no manifest; copy",
		l.fleetYAML(1):       "it is not signed at all; `vallum isolate sign`",
		string(others):       "another key signed it; fleet_key or the manifest is of another fleet",
		strings.Replace(string(signed), "192.0.2.2", "192.0.2.3", 1): "it was changed after it was signed",
	} {
		l.write("manifest.signed", text)
		if _, errs := l.vallum(1, l.node("plan", "--snapshot", l.path("snapshot.json"))...); !strings.Contains(errs, "the manifest is not signed by the pinned fleet key lab: "+want) {
			t.Errorf("%.40q: %s\nwant %q", text, errs, want)
		}
	}
}

func TestKubernetesPolicyNamesItsLimits(t *testing.T) {
	l := &isolateLab{t: t}
	out, _ := l.vallum(0, "policy", "kubernetes", "--app", "engine")
	for _, want := range []string{"hostNetwork: true are not covered", `podSelector: {matchLabels: {app: "engine"}}`, "port: 8000"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	for flag, bad := range map[string][]string{
		"--app":               {"a}, {b", "-a", "a-", "", "a\nb"},
		"--gateway":           {"a}, {b"},
		"--namespace":         {"Edge", "a.b"},
		"--gateway-namespace": {"a_b"},
		"--api-port":          {"0"},
	} {
		for _, value := range bad {
			if out, errs := l.vallum(2, "policy", "kubernetes", flag, value); out != "" || !strings.Contains(errs, flag) {
				t.Errorf("%s %q: %s%s", flag, value, out, errs)
			}
		}
	}
}
