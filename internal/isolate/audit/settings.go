package audit

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/isolate"
)

// Setting is one variable of running processes, as they were started with it.
type Setting struct {
	Verdict   Verdict `json:"verdict"`
	Name      string  `json:"name"`
	Value     string  `json:"value"`
	Set       bool    `json:"set"`
	Processes []int   `json:"processes"`
	Why       string  `json:"why"`
}

// wanted are the settings that every process of vLLM needs; the others may be missing.
var wanted = []string{"VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"}

// settings judges what the processes were started with, each value once.
func (in Input) settings() []Setting {
	type key struct {
		name, value string
		set, away   bool
	}
	at := map[key]*Setting{}
	see := func(k key, pid int) {
		if at[k] == nil {
			at[k] = &Setting{Name: k.name, Value: k.value, Set: k.set}
			at[k].Verdict, at[k].Why = in.judgeSetting(k.name, k.value, k.set, k.away)
		}
		at[k].Processes = append(at[k].Processes, pid)
	}
	for _, p := range in.Snapshot.Processes {
		if p.From == 0 {
			see(key{}, p.PID)
		}
		for _, name := range isolate.SettingNames {
			value, set := p.Settings[name]
			if set || p.From != 0 && p.Of == "vllm" && slices.Contains(wanted, name) {
				see(key{name, value, set, set && p.Namespace != ""}, p.PID)
			}
		}
	}
	var list []Setting
	for _, s := range at {
		slices.Sort(s.Processes)
		list = append(list, *s)
	}
	slices.SortFunc(list, func(a, b Setting) int {
		return cmp.Or(rank(b.Verdict)-rank(a.Verdict), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Value, b.Value))
	})
	return list
}

// judgeSetting judges a value; away says that the process is in another network namespace.
func (in Input) judgeSetting(name, value string, set, away bool) (Verdict, string) {
	switch {
	case name == "":
		return Inconclusive, "titles have overwritten its environment and those of the processes that it comes from: what else it was told is not known"
	case !set:
		return Guarded, "it chooses by itself; the rules keep it off the underlay, which makes it hang where it chooses wrongly"
	case away && (slices.Contains(wanted, name) || name == "UCX_NET_DEVICES" && !namesRDMA(value)):
		return Guarded, "in another network namespace, from which the rules let nothing reach the overlay"
	}
	switch name {
	case "VLLM_HOST_IP":
		return in.judgeAddress(value)
	case "NCCL_NET":
		if !strings.EqualFold(value, "Socket") {
			return NotProtected, "NCCL takes a transport that no rule and no tunnel sees; NCCL_NET=Socket keeps it on the overlay"
		}
	case "NCCL_IB_DISABLE":
		if value != "1" && in.Snapshot.HasRDMA() {
			return NotProtected, "NCCL may use RDMA, which no rule and no tunnel sees; NCCL_IB_DISABLE=1 keeps it off"
		}
	case "UCX_TLS":
		return judgeTransports(value)
	case "UCX_NET_DEVICES":
		if namesRDMA(value) {
			return NotProtected, "UCX may use RDMA, which no rule and no tunnel sees; name the overlay's device"
		}
		return in.judgeDevice(value)
	default:
		return in.judgeDevice(value)
	}
	return Inside, "keeps to sockets"
}

// namesRDMA reports whether UCX_NET_DEVICES lets an adapter of RDMA in: they are named with a port, as in mlx5_0:1, and
// "all" is the default.
func namesRDMA(devices string) bool { return devices == "all" || strings.Contains(devices, ":") }

func (in Input) judgeAddress(value string) (Verdict, string) {
	a, err := netip.ParseAddr(value)
	switch {
	case err != nil:
		return Outside, "is not an address"
	case a.IsLoopback() || in.overlay(a.Unmap()):
		return Inside, "on the overlay"
	case in.Plan == nil:
		return Outside, "no overlay is applied"
	}
	return Outside, fmt.Sprintf("is not on the overlay; this node has %v there", in.Plan.Addresses)
}

// judgeDevice judges a list of device names. NCCL takes prefixes, or whole names after "="; "^" means all others.
func (in Input) judgeDevice(value string) (Verdict, string) {
	if in.Plan == nil {
		return Outside, "no overlay is applied"
	}
	for d := range strings.SplitSeq(strings.TrimPrefix(value, "="), ",") {
		if d != in.Plan.Device && d != "lo" {
			return Outside, fmt.Sprintf("is not the overlay's device alone, %s", in.Plan.Device)
		}
	}
	return Inside, "on the overlay"
}

// softTransports are UCX's that use the kernel's sockets or stay in memory (ucx_info -d); every other is refused,
// because those that are not known here may well be hardware's.
var softTransports = []string{"tcp", "self", "sm", "shm", "mm", "posix", "sysv", "cma", "knem", "xpmem", "cuda_copy", "gdr_copy", "rocm_copy", "ze_copy"}

func judgeTransports(value string) (Verdict, string) {
	for t := range strings.SplitSeq(value, ",") {
		if !slices.Contains(softTransports, strings.TrimPrefix(strings.TrimSpace(t), `\`)) {
			return NotProtected, fmt.Sprintf("UCX may use %q, which no rule and no tunnel sees; UCX_TLS=tcp,sm,self keeps it on the overlay", t)
		}
	}
	return Inside, "keeps to sockets and memory"
}
