package observe

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/ipnet"
	"github.com/vallum/vallum/internal/isolate/nft"
)

// Machine is a snapshot of the network namespace that the caller is in, and of the sockets of all others. psk is the
// folder of the pre-shared keys, of which the names are told.
func Machine(psk string) *isolate.Snapshot {
	s := &isolate.Snapshot{}
	miss := func(what string, err error) {
		if err != nil {
			s.Missing = append(s.Missing, isolate.Missing{What: what, Cause: err.Error()})
		}
	}
	var err error
	s.Hostname, err = os.Hostname()
	miss("host name", err)
	s.KernelWireGuard = kernelWireGuard()
	s.TUN = exists("/dev/net/tun")
	s.Forwarding = isOne("/proc/sys/net/ipv4/ip_forward") || isOne("/proc/sys/net/ipv6/conf/all/forwarding")
	s.Devices, err = devices()
	miss("devices", err)
	s.Routes, err = routes()
	miss("routes", err)
	s.Tables, err = nft.Tables()
	miss("nftables", err)
	var unseen int
	s.Sockets, unseen, err = Sockets()
	miss("sockets", err)
	if unseen > 0 {
		miss("sockets", fmt.Errorf("%d process(es) of vLLM or Ray could not be looked into; run it as root", unseen))
	}
	s.Processes, err = Processes()
	miss("processes", err)
	s.Bypasses = bypasses(os.DirFS("/"), s.Devices)
	for _, n := range names(psk) {
		s.Preshared = append(s.Preshared, strings.TrimSuffix(n, ".key"))
	}
	// sshd sets it: client address, client port, server address, server port.
	s.Caller, _, _ = strings.Cut(os.Getenv("SSH_CONNECTION"), " ")
	return s
}

func devices() ([]isolate.Device, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	var list []isolate.Device
	for _, l := range links {
		a := l.Attrs()
		d := isolate.Device{Name: a.Name, Kind: l.Type(), Up: a.Flags&net.FlagUp != 0, MTU: a.MTU}
		if d.Kind == "device" {
			d.Kind = ""
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return list, fmt.Errorf("addresses of %s: %w", a.Name, err)
		}
		for _, addr := range addrs {
			d.Addresses = append(d.Addresses, ipnet.Prefix(addr.IPNet))
		}
		list = append(list, d)
	}
	return list, nil
}

func routes() ([]isolate.Route, error) {
	var list []isolate.Route
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return list, err
		}
		for _, r := range found {
			one := isolate.Route{To: ipnet.Prefix(r.Dst), Type: routeTypes[r.Type], Metric: r.Priority}
			if !one.To.IsValid() {
				one.To = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
				if family == netlink.FAMILY_V6 {
					one.To = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				}
			}
			if i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == r.LinkIndex }); i >= 0 && one.Type == "unicast" {
				one.Device = links[i].Attrs().Name
			}
			list = append(list, one)
		}
	}
	return list, nil
}

var routeTypes = map[int]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_PROHIBIT: "prohibit", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable",
	unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_MULTICAST: "multicast", unix.RTN_ANYCAST: "anycast",
}

// kernelWireGuard reports whether the kernel has WireGuard, loaded or to be loaded. That it really makes devices shows
// when one is made: EOPNOTSUPP is then the answer of a kernel without.
func kernelWireGuard() bool {
	if exists("/sys/module/wireguard") {
		return true
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		b, err := os.ReadFile(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]), list))
		if err == nil && bytes.Contains(b, []byte("/wireguard.ko")) {
			return true
		}
	}
	return false
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func isOne(file string) bool {
	b, err := os.ReadFile(file)
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// names are the entries of a folder; none when it is not there.
func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
