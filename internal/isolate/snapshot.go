// Package isolate plans the network between the nodes of one deployment: configuration, manifest and a snapshot of the
// machine in, a plan out. It refuses to touch the machine; what does is in the packages below it, asked for by name.
package isolate

import (
	"net/netip"
	"slices"
	"strings"
)

// Snapshot is a machine as it was observed: all that a plan knows of it. `vallum isolate observe` prints one as JSON.
type Snapshot struct {
	Hostname        string    `json:"hostname"`
	KernelWireGuard bool      `json:"kernel_wireguard"` // the kernel makes devices of type wireguard
	TUN             bool      `json:"tun"`              // /dev/net/tun is there
	Forwarding      bool      `json:"forwarding"`       // IPv4 or IPv6 packets are forwarded between devices
	Devices         []Device  `json:"devices"`
	Routes          []Route   `json:"routes"`
	Sockets         []Socket  `json:"sockets"`
	Tables          []Table   `json:"tables"`    // of nftables, iptables-nft's included
	Processes       []Process `json:"processes"` // of vLLM and Ray
	Paths           []Path    `json:"paths"`     // to the peers, where they were probed
	Bypasses        []Bypass  `json:"bypasses"`  // what the overlay never sees
	Preshared       []string  `json:"preshared"`
	Caller          string    `json:"caller"` // address of the SSH client that asks, if any
	Missing         []Missing `json:"missing"`
}

// Missing is something that could not be observed; a plan passes it on instead of taking it for "nothing there".
type Missing struct {
	What  string `json:"what"`
	Cause string `json:"cause"`
}

// Device is a network device.
type Device struct {
	Name      string         `json:"name"`
	Kind      string         `json:"kind"` // as rtnetlink says: bridge, veth, wireguard, tun; empty for hardware
	Up        bool           `json:"up"`
	MTU       int            `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses"`
}

// Route is a route of the main table.
type Route struct {
	To     netip.Prefix `json:"to"`
	Device string       `json:"device"` // empty for prohibit and the like
	Type   string       `json:"type"`   // unicast, prohibit, blackhole, unreachable
	Metric int          `json:"metric"`
}

// Socket is a TCP or UDP socket of some process, in any network namespace of the machine.
type Socket struct {
	Protocol  string         `json:"protocol"` // tcp or udp
	Listening bool           `json:"listening"`
	Opening   bool           `json:"opening,omitempty"` // it has asked and has no answer yet (SYN sent)
	Local     netip.AddrPort `json:"local"`
	Remote    netip.AddrPort `json:"remote"`    // of a connected one
	PID       int            `json:"pid"`       // 0 when nobody was found to hold it
	Process   string         `json:"process"`   // the command's name
	Of        string         `json:"of"`        // vllm or ray when the process or one that started it is; otherwise empty
	Namespace string         `json:"namespace"` // of the network; empty for the one that was asked
	// Past is a device of another namespace by which it is reached without passing this machine's rules, such as a macvlan;
	// of vLLM's and Ray's sockets only.
	Past string `json:"past,omitempty"`
}

// Table is a table of nftables, with the names of its chains.
type Table struct {
	Family string   `json:"family"`
	Name   string   `json:"name"`
	Chains []string `json:"chains"`
}

// device finds a device by its name.
func (s *Snapshot) device(name string) (Device, bool) {
	i := slices.IndexFunc(s.Devices, func(d Device) bool { return d.Name == name })
	if i < 0 {
		return Device{}, false
	}
	return s.Devices[i], true
}

// towards is the device by which the machine would send to addr: the longest route, then the lowest metric.
func (s *Snapshot) towards(addr netip.Addr) (Device, bool) {
	best := Route{Metric: -1}
	for _, r := range s.Routes {
		if r.Type != "unicast" || !r.To.Contains(addr) {
			continue
		}
		if best.Metric < 0 || r.To.Bits() > best.To.Bits() || r.To.Bits() == best.To.Bits() && r.Metric < best.Metric {
			best = r
		}
	}
	return s.device(best.Device)
}

// Own reports whether the address is one of this machine's.
func (s *Snapshot) Own(addr netip.Addr) bool {
	for _, d := range s.Devices {
		if slices.ContainsFunc(d.Addresses, func(p netip.Prefix) bool { return p.Addr() == addr }) {
			return true
		}
	}
	return addr.IsLoopback()
}

// Forwarders of packets to containers: what they forward passes the forward chain, or no chain at all, but never input.
const (
	docker     = "docker"
	kubernetes = "kubernetes"
	containers = "containers" // of another runtime, such as podman
)

// forwarder names who forwards packets to containers on this machine; empty for nobody. The devices tell as well as the
// tables do: iptables' older tables are not nftables', and eBPF has none.
func (s *Snapshot) forwarder() string {
	found := map[string]bool{}
	for _, t := range s.Tables {
		for _, c := range append(slices.Clone(t.Chains), t.Name) {
			switch lower := strings.ToLower(c); {
			case strings.HasPrefix(lower, "kube-"), strings.HasPrefix(lower, "cali-"), strings.HasPrefix(lower, "cilium"):
				found[kubernetes] = true
			case strings.HasPrefix(lower, "docker"), strings.Contains(lower, "_docker"):
				found[docker] = true
			case strings.HasPrefix(lower, "netavark"), strings.HasPrefix(lower, "cni-"):
				found[containers] = true
			}
		}
	}
	for _, d := range s.Devices {
		switch {
		case hasPrefix(d.Name, "kube-", "cilium_", "cali", "flannel", "cni0", "antrea-", "ovn-k8s", "weave"):
			found[kubernetes] = true
		case d.Name == "docker0", d.Kind == "bridge" && strings.HasPrefix(d.Name, "br-") && len(d.Name) == len("br-0123456789ab"):
			found[docker] = true
		case hasPrefix(d.Name, "podman", "cni-", "lxcbr", "lxdbr", "incusbr", "virbr"):
			found[containers] = true
		}
	}
	for _, who := range []string{kubernetes, docker, containers} {
		if found[who] {
			return who
		}
	}
	return ""
}

func hasPrefix(s string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}
