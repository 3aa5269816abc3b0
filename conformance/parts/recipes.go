package parts

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

var (
	// MakeModels is the Python program that makes the tiny models.
	//go:embed recipes/make_models.py
	MakeModels []byte
	// VLLMConstraints pins all that vLLM drags in: the versions it was seen to
	// run with.
	//go:embed recipes/vllm-constraints.txt
	VLLMConstraints []byte
	// OldestVLLMConstraints is what the oldest release needs otherwise.
	//go:embed recipes/vllm-oldest-constraints.txt
	OldestVLLMConstraints []byte
	// PythonClients is the requirements file of the official Python clients.
	//go:embed recipes/python-clients.txt
	PythonClients []byte
	// RecordClients holds the further clients whose requests the corpus records:
	// NAME.txt are the requirements of one venv each, node/ is npm's.
	//go:embed recipes/record
	RecordClients embed.FS
	// NodePackage and NodeLock are npm's two files for the Node clients.
	//go:embed recipes/node/package.json
	NodePackage []byte
	//go:embed recipes/node/package-lock.json
	NodeLock []byte
	// KubeModule and KubeSums are Go's two files of the module that builds kube-apiserver: k8s.io/kubernetes with its
	// staging modules, which it replaces by folders of its own, at the release of the same day.
	//go:embed recipes/kube-apiserver/go.mod.txt
	KubeModule []byte
	//go:embed recipes/kube-apiserver/go.sum.txt
	KubeSums []byte
	// MachinePasswd and MachineGroup are the accounts of the emulated machine's disk, which packages make when they are
	// installed, and not when they are unpacked.
	//go:embed recipes/machine/passwd
	MachinePasswd []byte
	//go:embed recipes/machine/group
	MachineGroup []byte
)

// DebianPackages are nginx, wrk, kube-apiserver's etcd, and the libraries of theirs that a slim system
// may lack.
var DebianPackages = []string{"nginx", "nginx-common", "wrk", "etcd-server", "libluajit-5.1-2", "libpcre2-8-0", "libssl3"}

var (
	// MachineHost is what emulates the machine and makes its disk.
	MachineHost = []string{"qemu-system-x86", "e2fsprogs"}
	// MachineDisk is what the machine's disk holds, with the kernel.
	MachineDisk = []string{
		"linux-image-amd64", "systemd", "systemd-sysv", "usr-is-merged", "dbus", "iproute2", "nftables", "kmod", "udev", "util-linux", "mount",
		"coreutils", "dash", "bash", "grep", "sed", "procps", "login", "libpam-systemd",
	}
	// MachineModules are the folders and files of the kernel's modules that it needs.
	MachineModules = []string{
		"net", "crypto", "lib", "arch/x86/crypto", "fs/ext4", "fs/jbd2", "fs/mbcache.ko", "drivers/virtio", "drivers/block/virtio_blk.ko",
		"drivers/net/wireguard", "drivers/net/veth.ko", "drivers/net/dummy.ko", "drivers/net/tun.ko",
	}
)

// EmulatorPackage holds qemu-aarch64-static, which runs arm64's programs.
const EmulatorPackage = "qemu-user-static"

// The parts, each named once.
var (
	UV         = New("uv", UVVersion)
	VLLM       = New("vllm", VLLMVersion, []byte("torch "+TorchVersion+" with pip"), VLLMConstraints)
	OldestVLLM = New("vllm-oldest", OldestVLLMVersion, []byte("torch "+TorchVersion+" with pip"), VLLMConstraints, OldestVLLMConstraints)
	Models     = New("models", VLLMVersion, MakeModels)
	Python     = New("python-clients", OpenAIPython, PythonClients)
	Records    = New("record-clients", "1", everyFile(RecordClients))
	Node       = New("node-clients", OpenAINode, NodePackage, NodeLock)
	Kube       = New("kube-apiserver", KubeVersion, KubeModule, KubeSums)
	Envoy      = New("envoy", EnvoyVersion) // for make bench
	Debian     = New("debian", "12", []byte(strings.Join(DebianPackages, " ")))
	Machine    = New("machine", "debian-12", []byte(strings.Join(append(append(append([]string{"1"}, MachineHost...), MachineDisk...), MachineModules...), " ")), MachinePasswd, MachineGroup)
	Emulator   = New(EmulatorPackage, "debian-12")
)

// VLLMOf is the part that holds a release of vLLM, and ErrMissing for one that
// nothing installs.
func VLLMOf(version string) (Part, error) {
	for _, p := range []Part{VLLM, OldestVLLM} {
		if p.Version == version {
			return p, nil
		}
	}
	return Part{}, fmt.Errorf("vLLM %s is no part; there are %s and %s: %w", version, VLLMVersion, OldestVLLMVersion, ErrMissing)
}

// everyFile is the names and contents of a tree, for a recipe's digest.
func everyFile(tree fs.FS) []byte {
	var all []byte
	err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(tree, path)
		all = append(append(all, path...), b...)
		return err
	})
	if err != nil {
		panic(err) // the tree is in the binary
	}
	return all
}
