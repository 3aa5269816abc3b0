package audit

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/isolate"
)

func TestSettingsAreJudged(t *testing.T) {
	rdma := []isolate.Bypass{{Name: "mlx5_0", Kind: isolate.InfiniBand}}
	for _, row := range []struct {
		name, value string
		bypasses    []isolate.Bypass
		want        Verdict
		why         string
	}{
		{"VLLM_HOST_IP", "10.99.0.1", nil, Inside, "on the overlay"},
		{"VLLM_HOST_IP", "::ffff:10.99.0.1", nil, Inside, "on the overlay"},
		{"VLLM_HOST_IP", "192.0.2.1", nil, Outside, "10.99.0.1"},
		{"VLLM_HOST_IP", "node-a", nil, Outside, "not an address"},
		{"GLOO_SOCKET_IFNAME", "vallum0", nil, Inside, "on the overlay"},
		{"GLOO_SOCKET_IFNAME", "eth0", nil, Outside, "vallum0"},
		{"TP_SOCKET_IFNAME", "vallum0,eth0", nil, Outside, "alone"},
		{"NCCL_SOCKET_IFNAME", "=vallum0", nil, Inside, "on the overlay"},
		{"NCCL_SOCKET_IFNAME", "^docker0", nil, Outside, "alone"},
		{"NCCL_NET", "socket", nil, Inside, ""},
		{"NCCL_NET", "IB", nil, NotProtected, "NCCL_NET=Socket"},
		{"NCCL_NET", "AWS Libfabric", nil, NotProtected, "NCCL_NET=Socket"},
		{"NCCL_IB_DISABLE", "1", rdma, NotProtected, "keeps to sockets"}, // the setting is right, and the adapter is there
		{"NCCL_IB_DISABLE", "0", rdma, NotProtected, "may use RDMA"},
		{"NCCL_IB_DISABLE", "0", nil, Inside, ""},
		{"UCX_TLS", "tcp,sm,self", nil, Inside, ""},
		{"UCX_TLS", "tcp,cuda_copy", nil, Inside, ""},
		{"UCX_TLS", "rc,tcp", nil, NotProtected, `"rc"`},
		{"UCX_TLS", "all", nil, NotProtected, `"all"`},
		{"UCX_TLS", "^tcp", nil, NotProtected, `"^tcp"`},
		{"UCX_TLS", "tcp,dc_mlx5", nil, NotProtected, "dc_mlx5"},
		{"UCX_TLS", "tcp,cuda_ipc", nil, NotProtected, "cuda_ipc"},
		{"UCX_NET_DEVICES", "vallum0", nil, Inside, ""},
		{"UCX_NET_DEVICES", "all", nil, NotProtected, "overlay's device"},
		{"UCX_NET_DEVICES", "mlx5_0:1,mlx5_1:1", nil, NotProtected, "overlay's device"},
		{"UCX_NET_DEVICES", "eth0", nil, Outside, "vallum0"},
	} {
		r := Judge(Input{Plan: plan(), Snapshot: &isolate.Snapshot{
			Sockets:   []isolate.Socket{listen("VLLM::EngineCor", "10.99.0.1:41000")},
			Bypasses:  row.bypasses,
			Processes: []isolate.Process{{PID: 7, Of: "ray", From: 7, Settings: map[string]string{row.name: row.value}}},
		}})
		if r.Verdict != row.want || len(r.Settings) != 1 || !strings.Contains(r.Settings[0].Why, row.why) || r.OK() != (row.want == Inside) {
			t.Errorf("%s=%s: %s, %+v", row.name, row.value, r.Verdict, r.Settings)
		}
	}
	if r := Judge(Input{Snapshot: &isolate.Snapshot{Processes: []isolate.Process{{PID: 7, Of: "vllm", From: 7, Settings: map[string]string{"UCX_TLS": "tcp"}}}}, Plan: plan()}); r.Verdict != Inconclusive {
		t.Errorf("good settings and no socket are %s", r.Verdict)
	}
}

// Equal values of many processes stand once; what is missing is said; an environment that cannot be read is not "unset".
func TestSettingsAreToldOncePerValue(t *testing.T) {
	process := func(pid, from int, settings map[string]string) isolate.Process {
		return isolate.Process{PID: pid, Name: "VLLM::Worker", Of: "vllm", From: from, Settings: settings}
	}
	r := Judge(Input{Plan: plan(), Snapshot: &isolate.Snapshot{Processes: []isolate.Process{
		process(9, 7, map[string]string{"VLLM_HOST_IP": "10.99.0.1"}), process(8, 7, map[string]string{"VLLM_HOST_IP": "10.99.0.1"}), process(10, 0, nil),
		{PID: 11, Of: "vllm", From: 11, Namespace: "net:[2]", Settings: map[string]string{"GLOO_SOCKET_IFNAME": "eth0", "UCX_TLS": "rc"}},
	}}})
	text, err := json.Marshal(r.Settings)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"verdict":"inside","name":"VLLM_HOST_IP","value":"10.99.0.1","set":true,"processes":[8,9]`,
		`"verdict":"guarded","name":"GLOO_SOCKET_IFNAME","value":"","set":false,"processes":[8,9]`,
		`"verdict":"guarded","name":"GLOO_SOCKET_IFNAME","value":"eth0","set":true,"processes":[11],"why":"in another network namespace`,
		`"verdict":"unprotected","name":"UCX_TLS","value":"rc","set":true,"processes":[11]`,
		`"verdict":"inconclusive","name":"","value":"","set":false,"processes":[10]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("lacks %s:\n%s", want, text)
		}
	}
}

// The two half-set environments that were measured, and what the node sees that waits for the other.
func TestHalfSetEnvironmentsAreNamed(t *testing.T) {
	counted := map[string]uint64{"input refused": 9}
	for want, row := range map[string]struct {
		k       isolate.Socket
		counted map[string]uint64
		given   map[string]string
	}{
		"VLLM::EngineCor (7) listens on the underlay, and VLLM_HOST_IP is not set: set VLLM_HOST_IP=10.99.0.1 (vallum isolate env prints all of it); the rules have refused 9 packet(s)":             {listen("VLLM::EngineCor", "192.0.2.1:43259"), counted, nil},
		"VLLM::Worker_TP (7) listens on the underlay, and GLOO_SOCKET_IFNAME is not set: set GLOO_SOCKET_IFNAME=vallum0 (vallum isolate env prints all of it); the rules have refused no packet yet": {listen("VLLM::Worker_TP", "192.0.2.1:41001"), nil, nil},
		"VLLM::Worker_TP (7) listens on the underlay, with GLOO_SOCKET_IFNAME=\"eth0\": set GLOO_SOCKET_IFNAME=vallum0 (vallum isolate env prints all of it); the rules have refused 9 packet(s)":    {listen("VLLM::Worker_TP", "192.0.2.1:41001"), counted, map[string]string{"GLOO_SOCKET_IFNAME": "eth0"}},
		"VLLM::Worker_TP (7) waits for 192.0.2.2:43259 of node b, outside the overlay: on that node VLLM_HOST_IP or GLOO_SOCKET_IFNAME is missing":                                                   {opening("192.0.2.1:50000", "192.0.2.2:43259"), nil, nil},
		"VLLM::DPCoordin (7) listens on the underlay: set --data-parallel-address with the first node's overlay address; the rules have refused 9 packet(s), so that who tries hangs without a word": {listen("VLLM::DPCoordin", "192.0.2.1:41002"), counted, nil},
	} {
		r := Judge(Input{Plan: plan(), Counters: row.counted, Snapshot: &isolate.Snapshot{
			Sockets: []isolate.Socket{row.k}, Processes: []isolate.Process{{PID: 7, Of: "vllm", From: 7, Settings: row.given}},
		}})
		if r.Verdict != Outside || len(r.Hints) != 1 || !strings.HasPrefix(r.Hints[0], want) {
			t.Errorf("%s, %q\nwant %q", r.Verdict, r.Hints, want)
		}
	}
}

func opening(from, to string) isolate.Socket {
	return isolate.Socket{
		Protocol: "tcp", Opening: true, Local: netip.MustParseAddrPort(from), Remote: netip.MustParseAddrPort(to), PID: 7, Process: "VLLM::Worker_TP", Of: "vllm",
	}
}
