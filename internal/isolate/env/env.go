// Package env is what vLLM has to be told, per topology and node, so that its traffic takes the overlay.
// It refuses a topology or a node that it does not know; what nobody has run is marked unproven.
package env

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vallum/vallum/internal/isolate/fleet"
)

// Ports that vLLM takes when nothing is said (vllm 0.32.0: vllm/config/parallel.py, vllm/envs.py, vllm/config/kv_events.py).
const (
	masterPort   = 29501
	rpcPort      = 29550
	nixlPort     = 5600
	mooncakePort = 8998
	eventsPort   = 5557
	rayPort      = 6379
)

// Pair is an environment variable.
type Pair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Ask is what is wanted. The zero value asks for nothing that is known.
type Ask struct {
	Topology string // one of Topologies
	Node     string // a member of role vllm
	First    string // the node with rank 0; empty: the first by name
	PerNode  int    // engines (dp) or GPUs (tp, pp) of each node, from 1
	Events   bool   // KV events are published
	RDMA     bool   // there are RDMA devices, which would carry traffic past the overlay
}

// Setting is what one node's vLLM has to be told.
type Setting struct {
	Topology string   `json:"topology"`
	Node     string   `json:"node"`
	Rank     int      `json:"rank"`
	Proven   bool     `json:"proven"` // run with the real vLLM; otherwise read from its sources
	Env      []Pair   `json:"env"`
	Flags    []string `json:"flags"` // of vllm serve, after the model
	Before   []string `json:"before,omitempty"`
	Notes    []string `json:"notes"`
}

type topology struct {
	name   string
	proven bool
	what   string
	build  func(*place, *Setting)
}

// place is where a node stands in its deployment.
type place struct {
	ask    Ask
	device string
	own    netip.Addr // overlay address of the node
	first  netip.Addr // of the node with rank 0
	rank   int
	nodes  int
	api    string // what the HTTP server listens on
}

// In the order in which they are listed. Proven means: run with the real vLLM 0.32.0 over two nodes.
var topologies = []topology{
	{"dp", true, "data parallel over nodes: costs least over a tunnel", buildDP},
	{"tp", true, "tensor parallel over nodes: each layer waits for others", buildTP},
	{"pp", false, "pipeline parallel over nodes; vLLM's CPU build answers 500", buildPP},
	{"ray", false, "any of them with Ray as the executor", buildRay},
	{"pd-nixl", false, "prefill and decode apart, KV cache by NIXL", buildNIXL},
	{"pd-mooncake", false, "prefill and decode apart, KV cache by Mooncake", buildMooncake},
}

// Topologies are the names and what they are, one a line.
func Topologies() string {
	var b strings.Builder
	for _, t := range topologies {
		fmt.Fprintf(&b, "%-11s %-8s %s\n", t.name, Mark(t.proven), t.what)
	}
	return b.String()
}

// Mark is the word for what was run and what was only read.
func Mark(proven bool) string {
	if proven {
		return "proven"
	}
	return "unproven"
}

// Base is what every topology needs.
func Base(device string, self fleet.Node) []Pair {
	if len(self.Addresses) == 0 {
		return nil
	}
	return []Pair{
		{"VLLM_HOST_IP", self.Addresses[0].String()},
		{"GLOO_SOCKET_IFNAME", device},
		{"TP_SOCKET_IFNAME", device},
		{"NCCL_SOCKET_IFNAME", device},
	}
}

// For is what the node's vLLM has to be told.
func For(m *fleet.Manifest, device string, ask Ask) (*Setting, error) {
	if ask.Topology == "" {
		return nil, fmt.Errorf("--topology is missing; known are\n%s", strings.TrimRight(Topologies(), "\n"))
	}
	i := slices.IndexFunc(topologies, func(t topology) bool { return t.name == ask.Topology })
	if i < 0 {
		return nil, fmt.Errorf("topology %q is not known; known are\n%s", ask.Topology, strings.TrimRight(Topologies(), "\n"))
	}
	if ask.PerNode < 1 {
		return nil, fmt.Errorf("%d engines or GPUs a node are not a number from 1", ask.PerNode)
	}
	self, p, err := locate(m, device, ask)
	if err != nil {
		return nil, err
	}
	s := &Setting{Topology: ask.Topology, Node: ask.Node, Rank: p.rank, Proven: topologies[i].proven, Env: Base(device, self)}
	if ask.RDMA {
		s.Env = append(s.Env, Pair{"NCCL_IB_DISABLE", "1"}, Pair{"UCX_TLS", "tcp,sm,self"})
		s.Notes = append(s.Notes, "this machine has RDMA devices: NCCL_IB_DISABLE and UCX_TLS keep traffic off them, at the price of their speed")
	}
	topologies[i].build(p, s)
	if ask.Events {
		s.Flags = append(s.Flags, "--kv-events-config", fmt.Sprintf(`{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "%s"}`, eventsEndpoint(p.own)))
		s.Notes = append(s.Notes, "KV events carry token ids, and every node publishes them, headless ones too")
		if p.own.Is4() {
			s.Notes = append(s.Notes, fmt.Sprintf("vLLM listens for subscribers only on every address, port %d and one more a rank: only the firewall guards it", eventsPort))
		}
	}
	return s, nil
}

// eventsEndpoint is where subscribers connect. vLLM listens on an endpoint only when it has a * or a :: in it, and
// connects to any other (vllm/distributed/kv_events.py _is_bind_endpoint): an IPv4 address of one's own would publish to
// nobody.
func eventsEndpoint(own netip.Addr) string {
	if own.Is6() && strings.Contains(own.String(), "::") {
		return "tcp://" + netip.AddrPortFrom(own, eventsPort).String()
	}
	return fmt.Sprintf("tcp://*:%d", eventsPort)
}

// locate finds the node's rank: the first node, then the others by name.
func locate(m *fleet.Manifest, device string, ask Ask) (fleet.Node, *place, error) {
	var nodes []fleet.Node
	gateways := 0
	for _, n := range m.Nodes {
		if n.Has(fleet.RoleVLLM) {
			nodes = append(nodes, n)
		} else {
			gateways++
		}
	}
	index := func(name string) int {
		return slices.IndexFunc(nodes, func(n fleet.Node) bool { return n.Name == name })
	}
	if ask.First != "" {
		i := index(ask.First)
		if i < 0 {
			return fleet.Node{}, nil, fmt.Errorf("%q is not a node of role vllm", ask.First)
		}
		first := nodes[i]
		nodes = append([]fleet.Node{first}, slices.Delete(nodes, i, i+1)...)
	}
	rank := index(ask.Node)
	if rank < 0 {
		return fleet.Node{}, nil, fmt.Errorf("%q is not a node of role vllm", ask.Node)
	}
	self := nodes[rank]
	p := &place{ask: ask, device: device, own: self.Addresses[0], first: nodes[0].Addresses[0], rank: rank, nodes: len(nodes), api: "127.0.0.1"}
	if gateways > 0 {
		p.api = p.own.String()
	}
	return self, p, nil
}

func buildDP(p *place, s *Setting) {
	k := p.ask.PerNode
	s.Flags = []string{
		"--data-parallel-size", strconv.Itoa(k * p.nodes), "--data-parallel-size-local", strconv.Itoa(k),
		"--data-parallel-address", p.first.String(), "--data-parallel-rpc-port", strconv.Itoa(rpcPort),
	}
	if p.rank == 0 {
		s.Flags = append(s.Flags, "--host", p.api)
		return
	}
	s.Flags = append(s.Flags, "--data-parallel-start-rank", strconv.Itoa(k*p.rank), "--headless")
	s.Notes = append(s.Notes, "a headless node takes neither --host nor --api-server-count")
}

func buildTP(p *place, s *Setting) {
	multiNode(p, s)
	s.Flags = append(s.Flags, "--tensor-parallel-size", strconv.Itoa(p.nodes*p.ask.PerNode))
	s.Notes = append(s.Notes, "over a tunnel a third of tensor parallel's decoding speed may go: keep it inside a node and use dp across, or measure with vallum isolate verify")
}

func buildPP(p *place, s *Setting) {
	multiNode(p, s)
	s.Flags = append(s.Flags, "--pipeline-parallel-size", strconv.Itoa(p.nodes), "--tensor-parallel-size", strconv.Itoa(p.ask.PerNode))
}

// multiNode is what tensor and pipeline parallel share. VLLM_HOST_IP and GLOO_SOCKET_IFNAME are required: without one of
// them vLLM hangs at its start, without a word.
func multiNode(p *place, s *Setting) {
	s.Flags = []string{
		"--distributed-executor-backend", "mp", "--nnodes", strconv.Itoa(p.nodes), "--node-rank", strconv.Itoa(p.rank),
		"--master-addr", p.first.String(), "--master-port", strconv.Itoa(masterPort),
	}
	if p.rank == 0 {
		s.Flags = append(s.Flags, "--host", p.api)
	} else {
		s.Flags = append(s.Flags, "--headless")
	}
	s.Notes = append(s.Notes, fmt.Sprintf("TCPStore listens on every address of the first node, port %d, whatever is set: only the firewall guards it", masterPort))
}

func buildRay(p *place, s *Setting) {
	if p.rank == 0 {
		s.Before = []string{fmt.Sprintf("ray start --head --node-ip-address=%s --port=%d --include-dashboard=false", p.own, rayPort)}
		s.Flags = []string{"--distributed-executor-backend", "ray", "--host", p.api}
	} else {
		s.Before = []string{fmt.Sprintf("ray start --address=%s --node-ip-address=%s --block", netip.AddrPortFrom(p.first, rayPort), p.own)}
		s.Notes = append(s.Notes, "only the first node runs vllm serve")
	}
	s.Notes = append(s.Notes, "whoever reaches Ray's ports executes code: the overlay is what keeps strangers from them, not a password")
}

func buildNIXL(p *place, s *Setting) {
	s.Env = append(s.Env, Pair{"VLLM_NIXL_SIDE_CHANNEL_HOST", p.own.String()}, Pair{"VLLM_NIXL_SIDE_CHANNEL_PORT", strconv.Itoa(nixlPort)}, Pair{"UCX_NET_DEVICES", p.device})
	if !p.ask.RDMA {
		s.Env = append(s.Env, Pair{"UCX_TLS", "tcp,sm,self"})
	}
	s.Flags = []string{"--host", p.own.String(), "--kv-transfer-config", `{"kv_connector": "NixlConnector", "kv_role": "kv_both"}`}
	s.Notes = append(s.Notes, "the proxy between prefill and decode is a member too, and the gateway stands before it")
}

func buildMooncake(p *place, s *Setting) {
	s.Env = append(s.Env, Pair{"VLLM_MOONCAKE_BOOTSTRAP_PORT", strconv.Itoa(mooncakePort)})
	s.Flags = []string{"--host", p.own.String(), "--kv-transfer-config", `{"kv_connector": "MooncakeConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"mooncake_protocol": "tcp"}}`}
	s.Notes = append(s.Notes, fmt.Sprintf("the bootstrap server listens on every address, port %d, and believes whoever registers first: only the firewall guards it", mooncakePort))
}
