package observe

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
)

// TCP states of the kernel (include/net/tcp_states.h).
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpListen      = 10
)

// owner is a process that holds a socket.
type owner struct {
	pid  int
	name string
	of   string
}

// Sockets are the TCP and UDP sockets of every network namespace that a process is in: who looks only into his own
// misses the containers. unseen counts processes of vLLM and Ray, and namespaces with them, that could not be looked
// into; other processes' sockets stand without their owners.
func Sockets() (list []isolate.Socket, unseen int, err error) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, 0, fmt.Errorf("reading the network namespace: %w", err)
	}
	owners, namespaces, unseen, err := processes()
	defer func() {
		for _, ns := range namespaces {
			_ = ns.Close()
		}
	}()
	if err != nil {
		return nil, unseen, err
	}
	for name, ns := range namespaces {
		found, err := socketsOf(ns, owners)
		if err != nil {
			if name == own {
				return list, unseen, err
			}
			unseen++
			continue
		}
		past := ""
		if name != own && slices.ContainsFunc(found, func(k isolate.Socket) bool { return k.Of != "" }) {
			if past, err = wayPast(ns); err != nil {
				unseen++
			}
		}
		for _, k := range found {
			if name != own {
				k.Namespace = name
			}
			if k.Of != "" {
				k.Past = past
			}
			list = append(list, k)
		}
	}
	return list, unseen, nil
}

// processes maps socket inodes to who holds them, and opens every network namespace that a process is in; its caller
// closes them. They are held from here on: the process by which one was found may end before it is looked into.
func processes() (owners map[uint32]owner, namespaces map[string]netns.NsHandle, unseen int, err error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, nil, 0, fmt.Errorf("listing processes: %w", err)
	}
	owners, namespaces = map[uint32]owner{}, map[string]netns.NsHandle{}
	if err := hold(namespaces, os.Getpid()); err != nil {
		return nil, namespaces, 0, fmt.Errorf("opening the network namespace: %w", err)
	}
	family, _ := families(all)
	for _, p := range all {
		of := family(p.PID)
		if err := hold(namespaces, p.PID); err != nil {
			if !ended(err) && of != "" {
				unseen++
			}
			continue
		}
		targets, err := p.FileDescriptorTargets()
		if err != nil {
			if !ended(err) && of != "" {
				unseen++
			}
			continue
		}
		name := nameOf(p)
		for _, t := range targets {
			if inode, ok := strings.CutPrefix(t, "socket:["); ok {
				// One that vLLM and another hold, which it was handed to or inherited by, is vLLM's.
				if n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 32); err == nil && (of != "" || owners[uint32(n)].of == "") {
					owners[uint32(n)] = owner{p.PID, name, of}
				}
			}
		}
	}
	return owners, namespaces, unseen, nil
}

// hold opens the network namespace of a process, if it is not held yet.
func hold(namespaces map[string]netns.NsHandle, pid int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	if _, held := namespaces[name]; held {
		return nil
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	// A process may have changed its namespace, or its number its process, since its name was read.
	if name, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", int(ns))); err != nil {
		_ = ns.Close()
		return err
	}
	if _, held := namespaces[name]; held {
		return ns.Close()
	}
	namespaces[name] = ns
	return nil
}

// nameOf is the name that a process has given itself, without what would begin a line of its own where it is printed, or
// be obeyed by a terminal: any user may call a process anything.
func nameOf(p procfs.Proc) string {
	name, _ := p.Comm()
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, name)
}

// ended reports whether a process, or the last one of a namespace, went away while it was looked at.
func ended(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// families tells of a process whether it, or one that it came from, is vLLM or Ray: workers and their resource trackers
// have names of their own. parent tells who started a process.
func families(all procfs.Procs) (family func(pid int) string, parent map[int]int) {
	known := map[int]string{}
	parent = map[int]int{}
	for _, p := range all {
		if stat, err := p.Stat(); err == nil {
			parent[p.PID] = stat.PPID
		}
		args, _ := p.CmdLine()
		name := nameOf(p)
		known[p.PID] = familyOf(name, args)
	}
	return func(pid int) string {
		for range 64 {
			if known[pid] != "" || pid <= 1 {
				return known[pid]
			}
			pid = parent[pid]
		}
		return ""
	}, parent
}

// familyOf judges by the names that vLLM gives its processes (vllm/utils/system_utils.py set_process_title) and by what
// was started.
func familyOf(name string, args []string) string {
	if strings.HasPrefix(name, "VLLM::") || name == "vllm" {
		return "vllm"
	}
	if name == "raylet" || name == "gcs_server" || strings.HasPrefix(name, "ray::") {
		return "ray"
	}
	for _, a := range args[:min(len(args), 4)] {
		if filepath.Base(a) == "vllm" || strings.HasPrefix(a, "vllm.entrypoints.") {
			return "vllm"
		}
	}
	return ""
}

func socketsOf(ns netns.NsHandle, owners map[uint32]owner) ([]isolate.Socket, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var list []isolate.Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		tcp, err := h.SocketDiagTCP(family)
		if err != nil {
			return nil, fmt.Errorf("listing TCP sockets: %w", err)
		}
		udp, err := h.SocketDiagUDP(family)
		if err != nil {
			return nil, fmt.Errorf("listing UDP sockets: %w", err)
		}
		for _, s := range tcp {
			if s.State == tcpListen || s.State == tcpEstablished || s.State == tcpSynSent {
				k := socket("tcp", s, s.State == tcpListen, owners)
				k.Opening = s.State == tcpSynSent
				list = append(list, k)
			}
		}
		for _, s := range udp {
			list = append(list, socket("udp", s, s.ID.DestinationPort == 0, owners))
		}
	}
	return list, nil
}

func socket(protocol string, s *netlink.Socket, listening bool, owners map[uint32]owner) isolate.Socket {
	k := isolate.Socket{Protocol: protocol, Listening: listening, Local: addrPort(s.ID.Source, s.ID.SourcePort, s.Family)}
	if !listening {
		k.Remote = addrPort(s.ID.Destination, s.ID.DestinationPort, s.Family)
	}
	o := owners[s.INode]
	k.PID, k.Process, k.Of = o.pid, o.name, o.of
	return k
}

func addrPort(ip net.IP, port uint16, family uint8) netip.AddrPort {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		a = netip.IPv6Unspecified()
	}
	if family == unix.AF_INET {
		a = a.Unmap()
	}
	return netip.AddrPortFrom(a, port)
}
