package env

import (
	"bytes"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/golden"
	"github.com/vallum/vallum/internal/isolate/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func twoNodes(t *testing.T) *fleet.Manifest {
	t.Helper()
	text := "format: 1\nfleet: lab\nserial: 7\nexpires: 2027-01-31T00:00:00Z\noverlay: [10.99.0.0/24]\nnodes:\n"
	for i, name := range []string{"a", "b"} {
		text += fmt.Sprintf("  - {name: %s, public_key: %q, endpoint: \"192.0.2.%d:51820\", addresses: [10.99.0.%d], roles: [vllm]}\n", name, strings.Repeat(string(rune('A'+i)), 42)+"A=", i+1, i+1)
	}
	m, err := fleet.ParseDraft([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEveryTopologyAsItStandsInTheGoldenFile(t *testing.T) {
	m := twoNodes(t)
	for _, top := range topologies {
		var out bytes.Buffer
		for i, format := range strings.Split(Formats, ", ") {
			s, err := For(m, "vallum0", Ask{Topology: top.name, Node: []string{"a", "b"}[i%2], PerNode: 2, Events: i == 1, RDMA: i == 3})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Print(&out, format); err != nil {
				t.Fatal(err)
			}
			out.WriteByte('\n')
		}
		golden.Check(t, filepath.Join("testdata", top.name+".txt"), out.String(), *update, "go test ./internal/isolate/env -update")
	}
}

// What the real vLLM needs, measured: each of these missing made it hang, or listen outside the overlay.
func TestWhatWasMeasuredIsSet(t *testing.T) {
	m := twoNodes(t)
	for _, row := range []struct{ topology, node, want string }{
		{"tp", "a", "VLLM_HOST_IP=10.99.0.1 GLOO_SOCKET_IFNAME=vallum0 TP_SOCKET_IFNAME=vallum0 NCCL_SOCKET_IFNAME=vallum0"},
		{"tp", "a", "--master-addr 10.99.0.1 --master-port 29501"},
		{"tp", "b", "--node-rank 1 --master-addr 10.99.0.1"},
		{"tp", "b", "--headless"},
		{"dp", "a", "--data-parallel-address 10.99.0.1"},
		{"dp", "b", "--data-parallel-address 10.99.0.1"},
		{"dp", "b", "--data-parallel-start-rank 1 --headless"},
		{"pd-nixl", "b", "VLLM_NIXL_SIDE_CHANNEL_HOST=10.99.0.2"},
	} {
		s, err := For(m, "vallum0", Ask{Topology: row.topology, Node: row.node, PerNode: 1})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range s.Env {
			all = append(all, e.Name+"="+e.Value)
		}
		if got := strings.Join(append(all, s.Flags...), " "); !strings.Contains(got, row.want) {
			t.Errorf("%s on %s: %s\nlacks %s", row.topology, row.node, got, row.want)
		}
		if line := strings.Join(s.Flags, " "); row.node == "b" && (strings.Contains(line, "--host") || strings.Contains(line, "--api-server-count")) && row.topology != "pd-nixl" {
			t.Errorf("%s: a headless node would not start with %s", row.topology, line)
		}
		if s.Proven != (row.topology == "dp" || row.topology == "tp") {
			t.Errorf("%s is marked as proven: %v", row.topology, s.Proven)
		}
	}
}

func TestWhatIsNotKnownIsRefused(t *testing.T) {
	m := twoNodes(t)
	for name, ask := range map[string]Ask{
		"nothing":      {},
		"a topology":   {Topology: "sp", Node: "a", PerNode: 1},
		"a node":       {Topology: "tp", Node: "c", PerNode: 1},
		"a first node": {Topology: "tp", Node: "a", First: "c", PerNode: 1},
		"no engines":   {Topology: "tp", Node: "a"},
	} {
		if s, err := For(m, "vallum0", ask); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
	s, err := For(m, "vallum0", Ask{Topology: "tp", Node: "a", First: "b", PerNode: 1})
	if err != nil || s.Rank != 1 || !strings.Contains(strings.Join(s.Flags, " "), "--master-addr 10.99.0.2") {
		t.Errorf("another first node: %+v, %v", s, err)
	}
	if err := s.Print(&bytes.Buffer{}, "fish"); err == nil {
		t.Error("a format that is not known was written")
	}
}

func TestACommandIsCompletedAndNeverContradicted(t *testing.T) {
	s, err := For(twoNodes(t), "vallum0", Ask{Topology: "dp", Node: "b", PerNode: 1})
	if err != nil {
		t.Fatal(err)
	}
	all, added, err := s.Complete([]string{"vllm", "serve", "m", "--data-parallel-size=2", "--data-parallel-address", "10.99.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	want := "vllm serve m --data-parallel-size=2 --data-parallel-address 10.99.0.1 --data-parallel-size-local 1 --data-parallel-rpc-port 29550 --data-parallel-start-rank 1 --headless"
	if got := strings.Join(all, " "); got != want || len(added) != 7 {
		t.Errorf("%s, added %q", got, added)
	}
	for _, bad := range [][]string{
		{"vllm", "serve", "m", "--data-parallel-address", "192.0.2.1"},
		{"vllm", "serve", "m", "--data-parallel-address=192.0.2.1"},
		{"vllm", "serve", "m", "--api-server-count", "2"},
	} {
		if all, _, err := s.Complete(bad); err == nil {
			t.Errorf("%q became %q", bad, all)
		}
	}
}
