package isolate

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/golden"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/notrun"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func wgKey(n int) string { return strings.Repeat(string(rune('A'+n)), 42) + "A=" }

// threeNodes are two vLLM nodes and a gateway, over IPv4 or IPv6 underneath and both inside.
func threeNodes(t *testing.T, underlay string) *fleet.Manifest {
	t.Helper()
	var b strings.Builder
	b.WriteString("format: 1\nfleet: lab\nserial: 7\nexpires: 2027-01-31T00:00:00Z\noverlay: [10.99.0.0/24, \"fd00:99::/64\"]\nnodes:\n")
	for i, role := range []string{"gateway", "vllm", "vllm"} {
		name := []string{"gate", "node-a", "node-b"}[i]
		fmt.Fprintf(&b, "  - {name: %s, public_key: %q, endpoint: %q, addresses: [10.99.0.%d, \"fd00:99::%d\"], roles: [%s]}\n",
			name, wgKey(i+1), fmt.Sprintf(underlay, i+1), i+1, i+1, role)
	}
	m, err := fleet.ParseDraft([]byte(b.String()))
	if err == nil {
		err = m.Check()
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func nodeConfig(t *testing.T, text string) *config.Isolate {
	t.Helper()
	o, err := config.ParseNode("vallum.yaml", []byte("isolate: {fleet_key: k"+text+"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func machine() *Snapshot {
	p := netip.MustParsePrefix
	ap := netip.MustParseAddrPort
	return &Snapshot{
		Hostname: "node-a", TUN: true, Caller: "198.51.100.7",
		Devices: []Device{
			{Name: "lo", Up: true, MTU: 65536, Addresses: []netip.Prefix{p("127.0.0.1/8"), p("::1/128")}},
			{Name: "eth0", Up: true, MTU: 9000, Addresses: []netip.Prefix{p("192.0.2.2/24")}},
		},
		Routes: []Route{{To: p("192.0.2.0/24"), Device: "eth0", Type: "unicast"}, {To: p("0.0.0.0/0"), Device: "eth0", Type: "unicast"}, {To: p("2001:db8::/32"), Device: "eth0", Type: "unicast"}},
		Sockets: []Socket{
			{Protocol: "tcp", Listening: true, Local: ap("0.0.0.0:22"), PID: 1, Process: "sshd"},
			{Protocol: "tcp", Local: ap("192.0.2.2:22"), Remote: ap("198.51.100.7:4000"), PID: 2, Process: "sshd"},
			{Protocol: "tcp", Listening: true, Local: ap("[::]:9100"), PID: 3, Process: "node_exporter"},
			{Protocol: "tcp", Local: ap("192.0.2.2:9100"), Remote: ap("198.51.100.8:4001"), PID: 3, Process: "node_exporter"},
			{Protocol: "tcp", Listening: true, Local: ap("127.0.0.1:631"), PID: 4, Process: "cupsd"},
			{Protocol: "tcp", Local: ap("192.0.2.2:5000"), Remote: ap("198.51.100.9:443"), PID: 5, Process: "python3"},
			{Protocol: "udp", Listening: true, Local: ap("0.0.0.0:68"), PID: 6, Process: "dhclient"},
		},
	}
}

func asGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	golden.Check(t, filepath.Join("testdata", name), string(got), *update, "go test ./internal/isolate -update")
}

func TestPlansAreAsTheyStandInTheGoldenFiles(t *testing.T) {
	for name, row := range map[string]struct {
		underlay, conf string
		key            int
		edit           func(*Snapshot)
	}{
		"node": {"192.0.2.%d:51820", "", 2, func(s *Snapshot) {
			s.Paths = []Path{{netip.MustParseAddr("192.0.2.1"), 1400, PathTold}, {netip.MustParseAddr("192.0.2.3"), 9000, PathEcho}}
		}},
		"gateway": {"192.0.2.%d:51820", ", allow: [{name: ssh, port: 22, from: [198.51.100.0/24], device: eth0}]", 1, func(*Snapshot) {}},
		"ipv6": {"[2001:db8::%d]:51820", ", mtu: 1400", 3, func(s *Snapshot) {
			s.KernelWireGuard = true
			s.Bypasses = []Bypass{{"mlx5_0", RoCE}}
			s.Preshared = []string{"node-a", "node-z"}
		}},
		"loneliest": {"203.0.113.%d:51820", ", allow: []", 2, func(s *Snapshot) {
			s.Routes = nil
			s.Tables = []Table{{Family: "ip", Name: "nat", Chains: []string{"DOCKER"}}}
			s.Missing = []Missing{{What: "conntrack", Cause: "no such file"}}
		}},
	} {
		s := machine()
		row.edit(s)
		p, err := New(nodeConfig(t, row.conf), threeNodes(t, row.underlay), s, wgKey(row.key))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var out bytes.Buffer
		if err := p.Print(&out); err != nil {
			t.Fatal(err)
		}
		asGolden(t, "plan-"+name+".txt", out.Bytes())
		b, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		var again Plan
		if err := json.Unmarshal(b, &again); err != nil || !slices.Equal(again.Rules.Lines(), p.Rules.Lines()) {
			t.Errorf("%s: the plan is not read again as it was written: %v", name, err)
		}
	}
}

func TestPlansThatAreRefused(t *testing.T) {
	p := netip.MustParsePrefix
	for want, row := range map[string]struct {
		conf string
		key  int
		edit func(*Snapshot)
	}{
		"is not in the manifest with serial 7":  {"", 9, func(*Snapshot) {}},
		"no way to make the overlay":            {"", 2, func(s *Snapshot) { s.TUN = false }},
		"a source address is no authentication": {", allow: [{name: api, port: 8000, from: [192.0.2.0/24]}]", 2, func(*Snapshot) {}},
		`device "eth1" has address 10.99.0.9/24 inside`: {"", 2, func(s *Snapshot) {
			s.Devices = append(s.Devices, Device{Name: "eth1", Addresses: []netip.Prefix{p("10.99.0.9/24")}})
		}},
	} {
		s := machine()
		row.edit(s)
		_, err := New(nodeConfig(t, row.conf), threeNodes(t, "192.0.2.%d:51820"), s, wgKey(row.key))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := New(nodeConfig(t, ", insecure_underlay_api: true, allow: [{name: api, port: 8000}]"), threeNodes(t, "192.0.2.%d:51820"), machine(), wgKey(2)); err != nil {
		t.Errorf("what was written out is refused: %v", err)
	}
}

// What would be let in, row by row: the rules decide it, not this test's idea of them.
func TestTheRulesSayNoByDefault(t *testing.T) {
	m := threeNodes(t, "192.0.2.%d:51820")
	plan, err := New(nodeConfig(t, ""), m, machine(), wgKey(2))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		device, protocol, from, to string
		want                       bool
	}{
		{"lo", "tcp", "127.0.0.1", "127.0.0.1:8000", true},
		{"lo", "tcp", "10.99.0.2", "10.99.0.2:8000", true},
		{"eth0", "tcp", "192.0.2.3", "192.0.2.2:29501", false},
		{"eth0", "tcp", "192.0.2.9", "192.0.2.2:8000", false},
		{"eth0", "tcp", "192.0.2.9", "192.0.2.2:22", true},
		{"eth0", "tcp", "192.0.2.9", "10.99.0.2:22", false}, // the weak host model
		{"eth0", "tcp", "10.99.0.3", "192.0.2.2:22", false}, // an overlay address that did not come by the tunnel
		{"eth0", "udp", "192.0.2.3", "192.0.2.2:51820", true},
		{"eth0", "udp", "192.0.2.9", "192.0.2.2:51820", false},
		{"vallum0", "tcp", "10.99.0.3", "10.99.0.2:41234", true},
		{"vallum0", "tcp", "10.99.0.1", "10.99.0.2:8000", true}, // the gateway: the API
		{"vallum0", "tcp", "10.99.0.1", "10.99.0.2:29501", false},
		{"vallum0", "tcp", "fd00:99::3", "[fd00:99::2]:5557", true},
		{"vallum0", "tcp", "fd00:99::9", "[fd00:99::2]:5557", false},
		{"vallum0", "tcp", "10.99.0.77", "10.99.0.2:8000", false},
		{"docker0", "tcp", "172.17.0.2", "172.17.0.1:8000", false},
	} {
		if got := plan.Rules.accepts(row.device, row.protocol, netip.MustParseAddr(row.from), netip.MustParseAddrPort(row.to)); got != row.want {
			t.Errorf("%s %s from %s to %s: let in %v, want %v", row.device, row.protocol, row.from, row.to, got, row.want)
		}
	}
}

// Who forwards packets past input is found by tables and by devices, and never passed over.
func TestForwardersAreFound(t *testing.T) {
	table := func(name string, chains ...string) func(*Snapshot) {
		return func(s *Snapshot) { s.Tables = []Table{{Family: "ip", Name: name, Chains: chains}} }
	}
	device := func(name, kind string) func(*Snapshot) {
		return func(s *Snapshot) { s.Devices = append(s.Devices, Device{Name: name, Kind: kind}) }
	}
	for name, row := range map[string]struct {
		edit func(*Snapshot)
		want string
	}{
		"docker, iptables-nft":         {table("nat", "PREROUTING", "DOCKER"), "docker forwards"},
		"docker, its chain of users":   {table("filter", "FORWARD", "DOCKER-USER"), "docker forwards"},
		"docker, nftables":             {table("docker-bridges", "filter-FORWARD"), "docker forwards"},
		"docker, iptables' older":      {device("docker0", "bridge"), "docker forwards"},
		"docker, a network of its own": {device("br-0123456789ab", "bridge"), "docker forwards"},
		"kube-proxy, iptables":         {table("nat", "KUBE-SERVICES"), "kube-proxy or the CNI"},
		"kube-proxy, nftables":         {table("kube-proxy", "services"), "kube-proxy or the CNI"},
		"kube-proxy, ipvs":             {device("kube-ipvs0", "dummy"), "kube-proxy or the CNI"},
		"Cilium, without kube-proxy":   {device("cilium_host", "veth"), "kube-proxy or the CNI"},
		"Calico":                       {device("cali0123456789a", "veth"), "kube-proxy or the CNI"},
		"Kubernetes on docker":         {func(s *Snapshot) { table("nat", "DOCKER", "KUBE-SERVICES")(s) }, "kube-proxy or the CNI"},
		"podman":                       {table("netavark", "FORWARD"), "containers or virtual machines"},
		"libvirt":                      {device("virbr0", "bridge"), "containers or virtual machines"},
		"a router":                     {func(s *Snapshot) { s.Forwarding = true }, "forwards packets between its devices"},
		"nobody":                       {func(*Snapshot) {}, ""},
		"a bridge that is nobody's":    {device("br-lan", "bridge"), ""},
		"somebody's table, not theirs": {table("filter", "FORWARD", "INPUT"), ""},
	} {
		for _, conf := range []string{"", ", container_bridges: [docker0]"} {
			s := machine()
			row.edit(s)
			p, err := New(nodeConfig(t, conf), threeNodes(t, "192.0.2.%d:51820"), s, wgKey(2))
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, c := range p.Cuts {
				found = found || row.want != "" && strings.Contains(c.What, row.want)
				if row.want == "" && strings.Contains(c.What, "forward") {
					t.Errorf("%s%s: %s", name, conf, c.What)
				}
			}
			if found != (row.want != "") {
				t.Errorf("%s%s: no word of %q in %+v", name, conf, row.want, p.Cuts)
			}
		}
	}
}

// What was known of a path stays known while nothing answers, and no longer.
func TestAPathThatWasProvenIsRemembered(t *testing.T) {
	gate, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.3")
	earlier := &Plan{Peers: []Peer{
		{Endpoint: netip.AddrPortFrom(gate, 51820), Path: Path{gate, 1400, PathEcho}},
		{Endpoint: netip.AddrPortFrom(b, 51820), Path: Path{b, 1500, PathRoute}},
	}}
	for name, row := range map[string]struct {
		now  []Path
		want int
	}{
		"nothing was probed":  {nil, 1400 - overhead},
		"nothing answers":     {[]Path{{gate, 9000, PathRoute}, {b, 9000, PathRoute}}, 1400 - overhead},
		"it is wider now":     {[]Path{{gate, 9000, PathEcho}, {b, 9000, PathRoute}}, 9000 - overhead},
		"it is narrower":      {[]Path{{gate, 1300, PathTold}}, leastMTU},
		"the device is":       {[]Path{{gate, 1390, PathRoute}}, 1390 - overhead},
		"another is narrower": {[]Path{{gate, 9000, PathRoute}, {b, 1380, PathTold}}, 1380 - overhead},
	} {
		s := machine()
		s.Paths = row.now
		s.Remember(earlier)
		p, err := New(nodeConfig(t, ""), threeNodes(t, "192.0.2.%d:51820"), s, wgKey(2))
		if err != nil {
			t.Fatal(err)
		}
		if p.MTU != row.want {
			t.Errorf("%s: MTU %d, want %d", name, p.MTU, row.want)
		}
		warned := strings.Contains(strings.Join(p.Warnings, "\n"), `only 1300 fit through to "gate"`)
		if warned != (name == "it is narrower") {
			t.Errorf("%s: warnings %q", name, p.Warnings)
		}
	}
	s := machine()
	s.Remember(nil)
	if len(s.Paths) != 0 {
		t.Error("nothing is remembered as something")
	}
}

// The real nft reads the text, and prints it back as it stands here.
func TestNftReadsTheRules(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil || os.Geteuid() != 0 {
		notrun.For(t, "nft or root is not here: the text of the rules is not checked by the real nft (%v)", err)
	}
	for key := 1; key <= 3; key++ {
		p, err := New(nodeConfig(t, ", container_bridges: [docker0]"), threeNodes(t, "192.0.2.%d:51820"), machine(), wgKey(key))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(p.Rules.Text()), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("unshare", "-n", "sh", "-c", nft+" -f "+file+" && "+nft+" list ruleset | sed -e '/^$/d' -e 's/counter packets 0 bytes 0/counter/'").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got, want := string(out), p.Rules.Text()
		if got != want {
			t.Errorf("nft prints\n%s\nwant\n%s", got, want)
		}
	}
}

func TestDifference(t *testing.T) {
	want := []string{"a", "b"}
	for name, got := range map[string][]string{"missing": {"a"}, "not ours": {"a", "b", "c"}, "order": {"b", "a"}, "twice": {"a", "b", "b"}} {
		if d := Difference(want, got); len(d) == 0 {
			t.Errorf("%s: no difference was found", name)
		}
	}
	if d := Difference(want, slices.Clone(want)); len(d) != 0 {
		t.Errorf("equal lists differ: %q", d)
	}
}
