package observe

import (
	"io/fs"
	"path"
	"strings"

	"github.com/vallum/vallum/internal/isolate"
)

// bypasses finds what carries traffic past the kernel's IP layer. root is the machine's file system.
func bypasses(root fs.FS, devices []isolate.Device) []isolate.Bypass {
	var list []isolate.Bypass
	add := func(name string, kind isolate.BypassKind) {
		list = append(list, isolate.Bypass{Name: name, Kind: kind})
	}
	for _, adapter := range entries(root, "sys/class/infiniband") {
		add(adapter, adapterKind(root, adapter))
	}
	for _, module := range []string{"nvidia_peermem", "nv_peer_mem"} {
		if _, err := fs.Stat(root, "sys/module/"+module); err == nil {
			add(module, isolate.GPUDirect)
		}
	}
	for _, d := range entries(root, "dev") {
		// nvidia-nvswitchctl is there with the driver; a number is a switch.
		if number, ok := strings.CutPrefix(d, "nvidia-nvswitch"); ok && number != "" && strings.Trim(number, "0123456789") == "" {
			add(d, isolate.NVSwitch)
		}
	}
	for _, channel := range entries(root, "dev/nvidia-caps-imex-channels") {
		add(channel, isolate.IMEX)
	}
	for _, node := range linkedByXGMI(root) {
		add("node "+node, isolate.XGMI)
	}
	for _, d := range devices {
		// Cilium hands packets to pods before netfilter sees them (its host routing in eBPF).
		if d.Name == "cilium_host" {
			add(d.Name, isolate.EBPF)
		}
	}
	return list
}

// adapterKind reads what lies under RDMA: the port's link layer (Documentation/ABI/stable/sysfs-class-infiniband).
func adapterKind(root fs.FS, adapter string) isolate.BypassKind {
	for _, port := range entries(root, path.Join("sys/class/infiniband", adapter, "ports")) {
		b, err := fs.ReadFile(root, path.Join("sys/class/infiniband", adapter, "ports", port, "link_layer"))
		switch layer := strings.TrimSpace(string(b)); {
		case err != nil:
			continue
		case layer == "InfiniBand":
			return isolate.InfiniBand
		case layer == "Ethernet":
			return isolate.RoCE
		}
	}
	return isolate.RDMA
}

// linkedByXGMI are the GPUs of AMD's driver that have a link of type 11 (HSA_IOLINK_TYPE_XGMI).
func linkedByXGMI(root fs.FS) (nodes []string) {
	const topology = "sys/class/kfd/kfd/topology/nodes"
	for _, node := range entries(root, topology) {
		for _, link := range entries(root, path.Join(topology, node, "io_links")) {
			b, err := fs.ReadFile(root, path.Join(topology, node, "io_links", link, "properties"))
			if err == nil && strings.Contains("\n"+string(b), "\ntype 11\n") {
				nodes = append(nodes, node)
				break
			}
		}
	}
	return nodes
}

// entries are the names in a folder; none when it is not there.
func entries(root fs.FS, dir string) (names []string) {
	list, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}
