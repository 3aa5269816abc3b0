package audit

import (
	"strings"

	"github.com/vallum/vallum/internal/isolate"
)

// Ports that vLLM and what runs beside it take when nothing else is said (vllm 0.32.0: vllm/config/parallel.py,
// vllm/envs.py, vllm/config/kv_events.py, vllm/config/kv_transfer.py). All other ports are the kernel's choice.
var ports = map[uint16]string{
	29501: "TCPStore of torch.distributed",
	29500: "TCPStore of data parallel",
	29550: "data parallel handshake",
	9256:  "data parallel supervisor",
	14579: "KV transfer",
	5600:  "NIXL side channel",
	5601:  "encoder cache side channel",
	8998:  "Mooncake bootstrap",
	5555:  "LMCache",
	6379:  "Ray GCS",
	8265:  "Ray dashboard",
	10001: "Ray client",
	52365: "Ray dashboard agent",
}

// processes are the names that vLLM gives its processes, as the kernel cuts them (15 bytes).
var processes = []struct{ prefix, channel string }{
	{"VLLM::EngineCor", "message queue of the workers"},
	{"VLLM::DPCoordin", "data parallel coordinator"},
	{"VLLM::Worker", "gloo, or a worker's queue"},
	{"VLLM::APIServer", "engine input and output"},
	{"vllm", "engine input and output, or the store of data parallel"},
}

// Ports are the well-known ports of vLLM's channels, the API's left out.
func Ports() []uint16 {
	list := []uint16{5557, 5558}
	for p := range ports {
		list = append(list, p)
	}
	return list
}

// Channel names what a socket is for, by its port and by who holds it.
func Channel(k isolate.Socket, api uint16) string {
	for _, p := range []uint16{k.Local.Port(), k.Remote.Port()} {
		if name := PortChannel(p, api); name != "" {
			return name
		}
	}
	for _, p := range processes {
		if strings.HasPrefix(k.Process, p.prefix) {
			return p.channel
		}
	}
	return "of " + k.Process
}

// PortChannel names the channel of a well-known port; empty for all others.
func PortChannel(p, api uint16) string {
	switch {
	case p == api:
		return "HTTP API"
	case p >= 5557 && p < 5557+16:
		return "KV events" // 5557 and the data parallel rank
	}
	return ports[p]
}
