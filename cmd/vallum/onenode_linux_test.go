package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/notrun"
	"github.com/vallum/vallum/internal/sealed"
)

// oneNode is a machine that was set up as examples/one-node/README.md says.
type oneNode struct {
	t *testing.T
	s *sealed.System
	c *http.Client
}

// setUp follows the page, word by word, up to the keys, which are its second block.
func setUp(t *testing.T) (n *oneNode, keysBlock string) {
	t.Helper()
	const example = "../../examples/one-node"
	page, err := os.ReadFile(example + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "\n## Set up\n")
	blocks := strings.Split(text, "```")
	if len(blocks) < 4 || !strings.HasPrefix(blocks[1], "sh\nuseradd") || !strings.HasPrefix(blocks[3], "sh\nrun()") {
		t.Fatalf("the page's blocks are others: %q", blocks)
	}
	state := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"cp", example + "/vallum.yaml", example + "/vallum.service", example + "/vllm.service", state},
		{"cp", self, filepath.Join(state, "vllm")},
		{"go", "build", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", filepath.Join(state, "vallum"), "."},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	if err := makeCertificate(filepath.Join(state, "tls"), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	n = &oneNode{t: t, s: sealed.Boot(t, sealed.Options{Name: "one-node", State: state, Own: []string{"/usr/local/bin", "/opt"}, Network: true, Journal: true})}
	transport := &http.Transport{DialContext: n.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	n.c = &http.Client{Transport: transport, Timeout: time.Minute}
	n.sh("mkdir -p /opt/vllm/bin; cp /run/state/vllm /opt/vllm/bin/vllm; chmod -R a+rX /opt")
	setup := strings.TrimPrefix(blocks[1], "sh\n")
	if _, err := exec.LookPath("openssl"); err != nil { // not every machine has it, and any 64 digits do
		setup = strings.Replace(setup, "$(openssl rand -hex 32)", strings.Repeat("5e", 32), 1)
	}
	n.sh("set -eu; cd /run/state\n" + setup)
	return n, strings.TrimPrefix(blocks[3], "sh\n")
}

func (n *oneNode) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.s.Dial(ctx, network, address)
}

// sh runs a script on the node, which has to end well.
func (n *oneNode) sh(script string) string {
	n.t.Helper()
	out, err := n.s.Sh(script)
	if err != nil {
		journal, _ := n.s.Sh("journalctl --no-pager -n 60")
		n.t.Fatalf("%s: %v\n%s\n%s%s", script, err, out, journal, n.s.Log())
	}
	return out
}

// refuses runs a script on the node, which has to fail.
func (n *oneNode) refuses(script string) string {
	n.t.Helper()
	out, err := n.s.Sh(script)
	if err == nil {
		n.t.Errorf("%s: it is done\n%s", script, out)
	}
	return out
}

// status is that of a request's answer; 0 when there is none.
func (n *oneNode) status(method, url, key string) int {
	request, err := http.NewRequestWithContext(n.t.Context(), method, url, http.NoBody)
	if err != nil {
		n.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	response, err := n.c.Do(request)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// until waits for a condition, up to a minute.
func (n *oneNode) until(what string, holds func() bool) {
	n.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout:
			journal, _ := n.s.Sh("journalctl --no-pager -n 60")
			n.t.Fatalf("not within a minute: %s\n%s", what, journal)
		}
	}
}

func (n *oneNode) pid() string {
	return strings.TrimSpace(n.sh("systemctl show --property=MainPID --value vallum"))
}

const (
	nodeGate  = "https://127.0.0.1:8443"
	nodeReady = "http://127.0.0.1:9090/readyz"
)

// examples/one-node, set up as its page says and started by systemd itself: what it promises of keys, files, reloads and
// stops holds with the units' hardening on.
func TestOneNodeUnderSystemd(t *testing.T) {
	if os.Geteuid() != 0 {
		notrun.For(t, "a machine of its own needs root: systemd does not start the units of examples/one-node")
	}
	n, keysBlock := setUp(t)
	n.until("vLLM is alive", func() bool { return n.status("GET", nodeReady, "") == 200 })
	keys := strings.Fields(n.sh("exec 2>/dev/null\n" + keysBlock))
	if len(keys) < 2 || !strings.HasPrefix(keys[0], "vlm_") || !strings.HasPrefix(keys[1], "vlm_") {
		t.Fatalf("keys: %q", keys)
	}
	n.until("the first key's file is gone", func() bool { _, err := n.s.Sh("test -e /var/lib/vallum/first-key"); return err != nil })
	n.until("the new keys are known", func() bool { return n.status("GET", nodeGate+"/v1/models", keys[0]) == 200 })
	for _, row := range []struct {
		method, path, key string
		want              int
	}{
		{"GET", "/v1/models", "", 401},
		{"POST", "/pause", keys[0], 403},
		{"GET", "/metrics", keys[0], 403},
		{"GET", "/metrics", keys[1], 200},
	} {
		if got := n.status(row.method, nodeGate+row.path, row.key); got != row.want {
			t.Errorf("%s %s: %d, not %d", row.method, row.path, got, row.want)
		}
	}
	if c, err := n.s.Dial(t.Context(), "tcp", "[::1]:8443"); err == nil {
		_ = c.Close()
		t.Error("0.0.0.0 is open to IPv6 too")
	}
	n.hardened()
	n.reloads(keys[0])
	n.survives(keys[0])
	n.stops(keys[0])
}

// hardened looks at the running process from outside of it.
func (n *oneNode) hardened() {
	n.t.Helper()
	status := n.sh("cat /proc/" + n.pid() + "/status")
	uid := strings.TrimSpace(n.sh("id -u vallum"))
	for _, want := range []string{"Uid:\t" + uid + "\t" + uid + "\t" + uid, "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			n.t.Errorf("the process lacks %q:\n%s", want, status)
		}
	}
	// Where it runs even root can write nothing but its state and its socket's directory.
	within := "nsenter -t " + n.pid() + " -m "
	for _, dir := range []string{"/var/lib/vallum", "/run/vallum"} {
		n.sh(within + "touch " + dir + "/t")
		n.sh("rm " + dir + "/t")
	}
	for _, dir := range []string{"/etc/vallum", "/usr/local/bin", "/var/lib", "/var/lib/vllm"} {
		n.sh("touch " + dir + "/t; rm " + dir + "/t")
		n.refuses(within + "touch " + dir + "/t")
	}
	as := within + "setpriv --reuid vallum --regid vallum --groups " + strings.TrimSpace(n.sh("id -g vllm")) + " "
	for _, dir := range []string{"/run", "/run/vllm"} { // which systemd 252 leaves writable, for whom its mode lets
		n.refuses(as + "touch " + dir + "/t")
	}
	n.sh(as + "cat /run/credentials/vallum.service/vllm-key")
	for _, file := range []string{"/etc/vallum/vllm-key", "/etc/vllm/vllm.yaml", "/run/credentials/vllm.service/vllm.yaml"} {
		n.sh("test -s " + file)
		n.refuses(as + "cat " + file)
	}
	// Nobody else of the machine can go around it to vLLM, nor read what it keeps.
	for _, path := range []string{"/run/vllm/vllm.sock", "/run/vallum/admin.sock", "/var/lib/vallum/vallum.db", "/run/credentials/vallum.service/vllm-key"} {
		n.sh("test -e " + path)
		n.refuses("setpriv --reuid nobody --regid nogroup --clear-groups test -e " + path)
	}
	if got := strings.TrimSpace(n.sh("stat -c %a:%U:%G /run/vllm/vllm.sock")); got != "770:vllm:vllm" {
		n.t.Errorf("vLLM's socket is %s", got)
	}
}

// reloads shows that `systemctl reload` says whether the file was taken.
func (n *oneNode) reloads(key string) {
	n.t.Helper()
	before := n.pid()
	n.sh("systemctl reload vallum")
	n.sh("sed -i 's/max_output_tokens:/max_output_token:/' /etc/vallum/vallum.yaml")
	n.refuses("systemctl reload vallum")
	n.until("the journal says why", func() bool {
		return strings.Contains(n.sh("journalctl --no-pager -u vallum"), "roles.chat-team.max_output_token: there is no such key")
	})
	if got := n.status("GET", nodeGate+"/v1/models", key); got != 200 {
		n.t.Errorf("with a wrong file on the disk: %d", got)
	}
	n.sh("sed -i -e 's/max_output_token:/max_output_tokens:/' -e 's/ models.list,//' /etc/vallum/vallum.yaml; systemctl reload vallum")
	n.until("the file is taken", func() bool { return n.status("GET", nodeGate+"/v1/models", key) == 403 })
	n.sh("sed -i 's/models.retrieve/models.list, models.retrieve/' /etc/vallum/vallum.yaml; systemctl reload vallum")
	n.until("and taken back", func() bool { return n.status("GET", nodeGate+"/v1/models", key) == 200 })
	if n.pid() != before {
		n.t.Error("a reload started another process")
	}
}

// survives shows what becomes of it when vLLM starts again, and when it is killed itself.
func (n *oneNode) survives(key string) {
	n.t.Helper()
	n.sh("systemctl kill --signal=KILL vllm")
	n.until("vLLM, which left its socket, is up again", func() bool {
		return n.status("GET", nodeReady, "") == 200 && n.status("GET", nodeGate+"/v1/models", key) == 200
	})
	before := n.pid()
	n.sh("systemctl kill --signal=KILL vallum")
	n.until("it is started again", func() bool { return n.pid() != before && n.status("GET", nodeReady, "") == 200 })
	if out := n.sh("setpriv --reuid vallum --regid vallum --clear-groups vallum log verify --state /var/lib/vallum"); !strings.HasPrefix(out, "holds to line ") {
		n.t.Error(out)
	}
}

// stops shows that a stop lets an answer end that runs, takes no other, and leaves records that hold to the last line.
func (n *oneNode) stops(key string) {
	n.t.Helper()
	request, err := http.NewRequestWithContext(n.t.Context(), "POST", nodeGate+"/v1/chat/completions", strings.NewReader(
		`{"model":"gpt-4o-mini","stream":true,"max_tokens":64,"messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		n.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Header.Set("Content-Type", "application/json")
	response, err := n.c.Do(request)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body := bufio.NewReader(response.Body)
	if _, err := body.ReadString('\n'); err != nil || response.StatusCode != 200 {
		n.t.Fatalf("%d %v", response.StatusCode, err)
	}
	n.sh("systemctl stop --no-block vallum")
	n.until("no other is taken", func() bool { return n.status("GET", nodeGate+"/v1/models", key) != 200 })
	rest, err := io.ReadAll(body)
	if err != nil || !strings.HasSuffix(string(rest), "data: [DONE]\n\n") {
		n.t.Errorf("the stream that ran: %v\n%s", err, rest)
	}
	n.until("it has stopped", func() bool { out, _ := n.s.Sh("systemctl is-active vallum"); return out == "inactive\n" })
	if got := n.sh("systemctl show --property=Result --value vallum"); got != "success\n" {
		n.t.Errorf("it stopped with %s", got)
	}
	if out := n.sh("setpriv --reuid vallum --regid vallum --clear-groups vallum log verify --state /var/lib/vallum"); !strings.Contains(out, ", signed at ") {
		n.t.Error(out)
	}
	n.refuses("test -e /run/vallum/admin.sock")
}
