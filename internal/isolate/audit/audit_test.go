package audit

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/isolate"
)

func plan() *isolate.Plan {
	return &isolate.Plan{
		Device: "vallum0", APIPort: 8000, Addresses: []netip.Addr{netip.MustParseAddr("10.99.0.1")},
		Routes: []isolate.Route{{To: netip.MustParsePrefix("10.99.0.0/24"), Type: "prohibit"}},
		Peers:  []isolate.Peer{{Name: "b", Endpoint: netip.MustParseAddrPort("192.0.2.2:51820")}},
		Rules:  isolate.Ruleset{Chains: []isolate.Chain{{Hook: "input", Drop: true, Rules: []isolate.Rule{{Name: "allow-metrics", Protocol: "tcp", Port: 9000, Accept: true}}}}},
	}
}

func listen(process, at string) isolate.Socket {
	return isolate.Socket{Protocol: "tcp", Listening: true, Local: netip.MustParseAddrPort(at), PID: 7, Process: process, Of: "vllm"}
}

func connect(process, from, to string) isolate.Socket {
	return isolate.Socket{Protocol: "tcp", Local: netip.MustParseAddrPort(from), Remote: netip.MustParseAddrPort(to), PID: 7, Process: process, Of: "vllm"}
}

// away is the socket in another network namespace, with a device that the rules do not see, or "".
func away(k isolate.Socket, past string) isolate.Socket {
	k.Namespace, k.Past = "net:[2]", past
	return k
}

// The rows are sockets that were seen on the real vLLM over two nodes.
func TestSocketsAreJudged(t *testing.T) {
	for _, row := range []struct {
		k                      isolate.Socket
		want                   Verdict
		channel, why, withHint string
	}{
		{listen("vllm", "0.0.0.0:8000"), Guarded, "HTTP API", "wildcard, guarded by rule refused", ""},
		{listen("VLLM::Worker_TP", "[::]:29501"), Guarded, "TCPStore of torch", "wildcard", ""},
		{listen("VLLM::EngineCor", "0.0.0.0:5558"), Guarded, "KV events", "wildcard", ""},
		{listen("VLLM::EngineCor", "10.99.0.1:41000"), Inside, "message queue", "on the overlay", ""},
		{listen("VLLM::EngineCor", "192.0.2.1:41000"), Outside, "message queue", "underlay's address", "VLLM_HOST_IP=10.99.0.1"},
		{listen("VLLM::Worker_TP", "192.0.2.1:41001"), Outside, "gloo", "underlay's address", "GLOO_SOCKET_IFNAME=vallum0"},
		{listen("VLLM::DPCoordin", "127.0.0.1:41002"), Inside, "coordinator", "loopback", ""},
		{listen("vllm", "0.0.0.0:9000"), Outside, "engine", "open to the underlay by rule allow-metrics", ""},
		{connect("VLLM::Worker_TP", "10.99.0.1:41001", "10.99.0.2:39000"), Inside, "gloo", "on the overlay", ""},
		{connect("VLLM::Worker_TP", "192.0.2.1:41001", "192.0.2.2:39000"), Outside, "gloo", "in clear between members", ""},
		{connect("vllm", "192.0.2.1:50000", "203.0.113.9:443"), Inside, "engine", "no member", ""},
		{isolate.Socket{Protocol: "tcp", Listening: true, Local: netip.MustParseAddrPort("0.0.0.0:8000"), Of: "vllm", Namespace: "net:[2]"}, Guarded, "HTTP API", "not-forwarded", ""},
		{isolate.Socket{Protocol: "tcp", Listening: true, Local: netip.MustParseAddrPort("0.0.0.0:8000"), Of: "vllm", Namespace: "net:[2]", Past: "net1"}, Outside, "HTTP API", `with a device "net1" that this machine's rules do not see`, ""},
		{away(connect("VLLM::EngineCor", "192.0.2.7:37600", "192.0.2.8:57195"), "eth0"), Outside, "message queue", `with a device "eth0" that this machine's rules do not see`, ""},
		{away(connect("VLLM::EngineCor", "10.99.0.1:37600", "10.99.0.2:57195"), ""), Outside, "message queue", "to which this overlay does not lead", ""},
		{away(connect("VLLM::EngineCor", "172.17.0.2:37600", "203.0.113.9:443"), ""), Inside, "message queue", "no member", ""},
		{away(connect("VLLM::EngineCor", "172.17.0.2:37600", "172.17.0.2:443"), "eth0"), Inside, "message queue", "loopback", ""},
		{away(listen("VLLM::EngineCor", "192.0.2.7:41000"), "eth0"), Outside, "message queue", "that this machine's rules do not see", ""},
	} {
		r := Judge(Input{Snapshot: &isolate.Snapshot{Sockets: []isolate.Socket{row.k}}, Plan: plan(), Counters: map[string]uint64{"input refused": 9}})
		f := r.Findings[0]
		if f.Verdict != row.want || r.Verdict != row.want || !strings.Contains(f.Channel, row.channel) || !strings.Contains(f.Why, row.why) {
			t.Errorf("%s on %s: %+v", row.k.Process, row.k.Local, f)
		}
		if r.OK() == (row.want == Outside) {
			t.Errorf("%s on %s: OK is %v", row.k.Process, row.k.Local, r.OK())
		}
		if hints := strings.Join(r.Hints, "\n"); !strings.Contains(hints, row.withHint) || (row.withHint == "") != (hints == "") {
			t.Errorf("%s on %s: hints %q", row.k.Process, row.k.Local, hints)
		}
	}
}

// Who opened a connection shows by the listener on its port: one that somebody else opened came past the rules.
func TestAConnectionThatSomebodyElseOpenedIsOutside(t *testing.T) {
	listener, from := listen("vllm", "0.0.0.0:8000"), connect("vllm", "192.0.2.1:8000", "203.0.113.9:50000")
	for name, row := range map[string]struct {
		sockets []isolate.Socket
		want    Verdict
	}{
		"to a listener":                           {[]isolate.Socket{listener, from}, Outside},
		"without one":                             {[]isolate.Socket{from}, Inside},
		"to a listener of another namespace":      {[]isolate.Socket{away(listener, ""), from}, Guarded},
		"of this machine, to its own listener":    {[]isolate.Socket{listener, connect("vllm", "192.0.2.1:8000", "192.0.2.1:50000")}, Guarded},
		"over the overlay, from the gateway":      {[]isolate.Socket{listener, connect("vllm", "10.99.0.1:8000", "10.99.0.9:50000")}, Guarded},
		"with the rules not as they should be":    {[]isolate.Socket{connect("vllm", "10.99.0.1:8000", "10.99.0.9:50000")}, Outside},
		"a listener, rules not as they should be": {[]isolate.Socket{listen("vllm", "10.99.0.1:8000")}, Outside},
	} {
		in := Input{Snapshot: &isolate.Snapshot{Sockets: row.sockets}, Plan: plan()}
		if strings.Contains(name, "not as they should be") {
			in.Rules = errors.New("missing")
		}
		if r := Judge(in); r.Verdict != row.want {
			t.Errorf("%s: %s, %+v", name, r.Verdict, r.Findings)
		}
	}
}

func TestNothingIsGreenWithoutReason(t *testing.T) {
	k := []isolate.Socket{listen("VLLM::EngineCor", "10.99.0.1:41000")}
	for name, in := range map[string]Input{
		"nothing seen":         {Snapshot: &isolate.Snapshot{}, Plan: plan()},
		"only others' sockets": {Snapshot: &isolate.Snapshot{Sockets: []isolate.Socket{{Protocol: "tcp", Listening: true, Process: "sshd"}}}, Plan: plan()},
		"no overlay":           {Snapshot: &isolate.Snapshot{Sockets: k}},
		"rules not loaded":     {Snapshot: &isolate.Snapshot{Sockets: k}, Plan: plan(), Rules: errors.New("missing")},
		"RDMA":                 {Snapshot: &isolate.Snapshot{Sockets: k, Bypasses: []isolate.Bypass{{Name: "mlx5_0", Kind: isolate.RoCE}}}, Plan: plan()},
		"NVLink":               {Snapshot: &isolate.Snapshot{Sockets: k, Bypasses: []isolate.Bypass{{Name: "nvidia-nvswitch0", Kind: isolate.NVSwitch}}}, Plan: plan()},
		"only RDMA":            {Snapshot: &isolate.Snapshot{Bypasses: []isolate.Bypass{{Name: "mlx5_0", Kind: isolate.RoCE}}}, Plan: plan()},
		"not all was seen":     {Snapshot: &isolate.Snapshot{Sockets: k, Missing: []isolate.Missing{{What: "sockets", Cause: "2 processes could not be looked into"}}}, Plan: plan()},
		"no overlay, outbound": {Snapshot: &isolate.Snapshot{Sockets: []isolate.Socket{connect("vllm", "192.0.2.1:50000", "192.0.2.2:29501")}}},
		"a kind of tomorrow":   {Snapshot: &isolate.Snapshot{Sockets: k, Bypasses: []isolate.Bypass{{Name: "x"}}}, Plan: plan()},
	} {
		if r := Judge(in); r.OK() || len(r.NotTested) == 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if (Report{}).OK() {
		t.Error("the zero report is green")
	}
	if !slices.Contains(Ports(), 29501) {
		t.Error("the store's port is missing")
	}
}

// Who reads the documentation and who runs the audit are told the same.
func TestWhatWasNotTestedStandsInTheDocumentation(t *testing.T) {
	b, err := os.ReadFile("../../../docs/isolate.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(b), "\n## Not tested here\n\n")
	if want := "- " + strings.Join(NotTested, "\n- ") + "\n"; !found || section != want {
		t.Errorf("docs/isolate.md ends with\n%s\nwant\n%s", section, want)
	}
}

// A table of what is held names tests that there are.
func TestWhatHoldsItIsThere(t *testing.T) {
	b, err := os.ReadFile("../../../docs/isolate.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## What holds it\n")
	section, _, found := strings.Cut(section, "\n## ")
	var sources strings.Builder
	for _, pattern := range []string{"../*_test.go", "../*/*_test.go", "../../../conformance/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	rows := 0
	for line := range strings.Lines(section) {
		what, by, row := strings.Cut(strings.Trim(line, "| \n"), " | ")
		if !row || by == "held by" {
			continue
		}
		rows++
		names := regexp.MustCompile(`Test[A-Za-z0-9]+`).FindAllString(by, -1)
		if len(names) == 0 {
			t.Errorf("nothing holds %q", what)
		}
		for _, name := range names {
			if !strings.Contains(sources.String(), "func "+name+"(") {
				t.Errorf("%q is held by %s, which there is not", what, name)
			}
		}
	}
	if !found || rows != 12+11 {
		t.Errorf("%d rows are found: did the form of the tables change?", rows)
	}
}
