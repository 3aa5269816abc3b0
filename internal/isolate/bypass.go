package isolate

// Bypass is what carries traffic past every rule and tunnel of ours: an adapter that reads memory by itself, a link
// between GPUs, or a program in the kernel that runs before the rules do.
type Bypass struct {
	Name string     `json:"name"` // such as mlx5_0
	Kind BypassKind `json:"kind"`
}

// BypassKind is a kind of Bypass. The zero value is no kind, and has no way to be made safe.
type BypassKind string

// Kinds.
const (
	InfiniBand BypassKind = "InfiniBand"
	RoCE       BypassKind = "RoCE" // RDMA over Ethernet
	RDMA       BypassKind = "RDMA" // another adapter of RDMA, such as EFA or iWARP
	GPUDirect  BypassKind = "GPUDirect RDMA"
	NVSwitch   BypassKind = "NVLink, NVSwitch"
	IMEX       BypassKind = "NVLink between machines"
	XGMI       BypassKind = "XGMI between GPUs"
	EBPF       BypassKind = "forwarding to pods in eBPF"
)

// options are what an operator can do about it: switch it off, partition it, or encrypt where it happens.
var options = map[BypassKind]string{
	InfiniBand: "NCCL_IB_DISABLE=1 and UCX_TLS=tcp,sm,self keep vLLM off it; a partition (P_Key) isolates without encrypting; IPsec and MACsec are Ethernet's",
	RoCE:       "NCCL_IB_DISABLE=1 and UCX_TLS=tcp,sm,self keep vLLM off it; a VLAN isolates without encrypting; IPsec or MACsec in the adapter encrypts",
	RDMA:       "NCCL_IB_DISABLE=1, NCCL_NET=Socket and UCX_TLS=tcp,sm,self keep vLLM off it; a partition or VLAN isolates without encrypting; IPsec or MACsec in the adapter encrypts, where it can",
	GPUDirect:  "without the kernel's module (rmmod nvidia_peermem) adapters do not read the GPUs' memory; NCCL_NET_GDR_LEVEL=LOC keeps NCCL off it",
	NVSwitch:   "it joins the GPUs of this machine and stays in it; NCCL_P2P_DISABLE=1 keeps NCCL off it; the fabric manager partitions it; only GPUs in confidential mode encrypt it",
	IMEX:       "it joins GPUs of several machines; NCCL_MNNVL_ENABLE=0 keeps NCCL off it; the fabric manager and IMEX domains partition it; only GPUs in confidential mode encrypt it",
	XGMI:       "it joins the GPUs of this machine and stays in it; NCCL_P2P_DISABLE=1 keeps RCCL off it",
	EBPF:       "let the CNI isolate (vallum isolate policy kubernetes), and encrypt with the CNI",
}

// Text says what it is and what can be done.
func (b Bypass) Text() string {
	return string(b.Kind) + ", " + b.Name + ": past every rule and tunnel, in clear; " + b.Options()
}

// Options are what can be done about it.
func (b Bypass) Options() string {
	if o, ok := options[b.Kind]; ok {
		return o
	}
	return "it is of no kind that is known here: switch it off, or partition it"
}

// HasRDMA reports whether the machine has an adapter by which NCCL or UCX would leave it past the rules.
func (s *Snapshot) HasRDMA() bool {
	for _, b := range s.Bypasses {
		if b.Kind == InfiniBand || b.Kind == RoCE || b.Kind == RDMA {
			return true
		}
	}
	return false
}

// SettingNames are the variables by which NCCL, UCX, gloo and vLLM choose how they reach other nodes. No other variable
// of a process is ever kept or shown: environments hold keys.
var SettingNames = []string{
	"VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_NET", "NCCL_IB_DISABLE", "UCX_TLS", "UCX_NET_DEVICES",
}

// Process is a running process of vLLM, of Ray, or of one that these started.
type Process struct {
	PID      int               `json:"pid"`
	Name     string            `json:"name"`
	Of       string            `json:"of"`       // vllm or ray
	Settings map[string]string `json:"settings"` // of SettingNames, those that are set
	// Namespace is of the network, where it is not the one that was asked: names of devices mean others there.
	Namespace string `json:"namespace,omitempty"`
	// From is the process whose environment was whole: a title that is set (setproctitle) overwrites what a process was
	// given, so that it is read where the process comes from. 0: nobody's was whole, and what is not set is not known.
	From int `json:"from"`
}
