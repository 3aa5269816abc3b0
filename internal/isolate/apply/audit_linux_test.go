package apply_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vallum/vallum/internal/isolate/audit"
)

// Sockets that live only while vLLM starts are in the report of a watch, and in no other.
func TestAWatchSeesSocketsThatLiveOnlyAtTheStart(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	a.up(t)
	c := a.command("audit", "--watch", "2m", "--json")
	var out bytes.Buffer
	c.Stdout = &out
	errs, err := c.StderrPipe()
	must(t, err)
	a.do(func() { must(t, c.Start()) })
	said := bufio.NewScanner(errs)
	await := func(what string) {
		t.Helper()
		for said.Scan() {
			if strings.Contains(said.Text(), what) {
				return
			}
		}
		t.Fatalf("the watch never said %q", what)
	}
	await("watching for 2m0s")
	end := a.vllm(t, "vllm", "0.0.0.0:29550")
	await(":29550 (data") // a terminal's width may break it behind that
	end()
	end = a.vllm(t, "vllm", a.under.String()+":29500")
	await(":29500 (TCPStore")
	end()
	a.vllm(t, "vllm", "0.0.0.0:8998")
	must(t, c.Process.Signal(syscall.SIGINT)) // what is there when it is told to end is seen
	for said.Scan() {
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit %d, with a socket that was on the underlay", code)
	}
	var r audit.Report
	must(t, json.Unmarshal(out.Bytes(), &r))
	for at, want := range map[string]audit.Verdict{"[::]:29550": audit.Guarded, "[::]:8998": audit.Guarded, "192.0.2.1:29500": audit.Outside} {
		i := slices.IndexFunc(r.Findings, func(f audit.Finding) bool {
			return f.Socket.Namespace == "" && f.Socket.Local == netip.MustParseAddrPort(at)
		})
		if i < 0 || r.Findings[i].Verdict != want {
			t.Errorf("%s is not %s in the report of the watch: %+v", at, want, r.Findings)
		}
	}
	now, _, _ := a.run("audit")
	if slices.ContainsFunc(strings.Split(now, "\n"), func(l string) bool { // of other machines' servers it sees them too
		return strings.Contains(l, ":29550 ") && !strings.Contains(l, "another network namespace")
	}) {
		t.Error("the socket is still there: the watch was not needed, and this proves nothing")
	}
}

// The two half-set environments over real rules: who listens says what is missing, who waits says where, and the rules
// have counted it.
func TestAHalfSetEnvironmentIsNamedOnBothNodes(t *testing.T) {
	// Other tests' audits see these processes too; with other addresses they are no members there.
	l := newLab(t, "x1", "x2", "x3", "a", "b")
	a, b := l.hosts["a"], l.hosts["b"]
	l.sign(nil, "a", "b")
	a.up(t)
	b.up(t)
	a.vllm(t, "VLLM::EngineCore", a.under.String()+":7003")
	a.posing(t, "VLLM::Worker_TP0", []string{"VLLM_HOST_IP=" + a.over.String(), "GLOO_SOCKET_IFNAME=eth0"}, a.under.String()+":7004")
	b.posing(t, "VLLM::Worker_TP1", []string{dialEnv + "=" + a.under.String() + ":7003"}, "127.0.0.1:0")
	eventually(t, "the rules refuse what b sends", open, func() bool { return a.counter(t, "refused") > 0 })
	_, said, code := a.run("audit")
	for _, want := range []string{"VLLM_HOST_IP is not set: set VLLM_HOST_IP=" + a.over.String(), `with GLOO_SOCKET_IFNAME="eth0": set GLOO_SOCKET_IFNAME=` + a.device, "packet(s), so that who tries hangs"} {
		if code != 1 || !strings.Contains(said, want) {
			t.Errorf("on a: exit %d, lacks %q\n%s", code, want, said)
		}
	}
	eventually(t, "b is told where it waits", open, func() bool {
		_, said, code := b.run("audit")
		return code == 1 && strings.Contains(said, fmt.Sprintf("waits for %s:7003 of node a, outside the overlay", a.under))
	})
}

// Scripts for alone: a process of vLLM's that listens, and an audit that sees it and no other.
const (
	start = "mkfifo $STATE/hold; $ENGINE <$STATE/hold >$STATE/said & exec 9>$STATE/hold; rm $STATE/hold; until grep -q listening $STATE/said; do sleep .05; done; "
	look  = "$PROGRAM isolate audit --state $STATE"
)

// alone runs a shell script on the host with processes and mounts of its own, so that it sees no other test's.
func (h *host) alone(t *testing.T, script string, env ...string) (out string, code int) {
	t.Helper()
	c := exec.Command("unshare", "--fork", "--pid", "--mount", "--mount-proc", "sh", "-c", script)
	c.Env = append(append(os.Environ(), "PROGRAM="+program, "STATE="+h.dir, "SSH_CONNECTION="), env...)
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	h.do(func() { must(t, c.Start()) })
	_ = c.Wait()
	return joined(b.String()), c.ProcessState.ExitCode()
}

// Hardware that goes past the rules is never green, whatever is set; and of an environment nothing else is told.
func TestAuditIsNeverGreenBesideRDMA(t *testing.T) {
	l := newLab(t, "a", "b")
	a := l.hosts["a"]
	l.sign(nil, "a", "b")
	a.up(t)
	engine := []string{
		"ENGINE=" + a.named(t, "VLLM::EngineCore"), listenEnv + "=" + a.over.String() + ":7005", "VLLM_HOST_IP=" + a.over.String(),
		"GLOO_SOCKET_IFNAME=" + a.device, "NCCL_SOCKET_IFNAME=" + a.device, "TP_SOCKET_IFNAME=" + a.device, "NCCL_IB_DISABLE=1", "UCX_TLS=tcp,sm,self", "HF_TOKEN=hf_verysecret",
	}
	const adapter = "mount -t tmpfs none /sys/class && mkdir -p /sys/class/infiniband/mlx5_0/ports/1 && echo InfiniBand >/sys/class/infiniband/mlx5_0/ports/1/link_layer; "
	if out, code := a.alone(t, start+look, engine...); code != 0 || !strings.Contains(out, "keeps to sockets") || strings.Contains(out, "verysecret") || strings.Contains(out, "HF_TOKEN") {
		t.Fatalf("without an adapter: exit %d\n%s", code, out)
	}
	// Root without the right to look into processes that have more rights than it has.
	if out, code := a.alone(t, start+"setpriv --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace "+look, engine...); code != 3 || !strings.Contains(out, "not observed: sockets: ") {
		t.Errorf("an audit that may not look into vLLM: exit %d\n%s", code, out)
	}
	out, code := a.alone(t, adapter+start+look, engine...)
	if code != 4 || !strings.Contains(out, "NOT PROTECTED: InfiniBand, mlx5_0") || !strings.Contains(strings.Join(strings.Fields(out), " "), "a partition (P_Key) isolates without encrypting") || !strings.Contains(out, "socket(s): unprotected") {
		t.Errorf("with an adapter: exit %d\n%s", code, out)
	}
	if out, code := a.alone(t, adapter+look); code != 4 {
		t.Errorf("with an adapter and no vLLM: exit %d\n%s", code, out)
	}
	out, code = a.alone(t, start+look+" --json", append(engine, "NCCL_NET=IB")...)
	var r audit.Report
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &r); err != nil || code != 4 || r.Verdict != audit.NotProtected || strings.Contains(out, "verysecret") {
		t.Errorf("with NCCL_NET=IB: exit %d %v\n%s", code, err, out)
	}
	l.hosts["b"].up(t)
	verify := "$PROGRAM isolate verify --state $STATE --config $STATE/vallum.yaml --ports 8000"
	if out, code := a.alone(t, verify); code != 0 {
		t.Errorf("verify without an adapter: exit %d\n%s", code, out)
	}
	if out, code := a.alone(t, adapter+verify); code != 4 || !strings.Contains(out, "NOT PROTECTED: InfiniBand, mlx5_0") || !strings.Contains(out, "b answers inside") {
		t.Errorf("verify with an adapter: exit %d\n%s", code, out)
	}
	if out, code := a.alone(t, start+"$PROGRAM isolate observe --state $STATE", engine...); code != 0 || !strings.Contains(out, `"NCCL_IB_DISABLE": "1"`) || strings.Contains(out, "verysecret") || strings.Contains(out, listenEnv) {
		t.Errorf("observe: exit %d\n%s", code, out)
	}
}
