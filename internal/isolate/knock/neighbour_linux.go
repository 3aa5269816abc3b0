package knock

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nobody reports whether the kernel has asked in vain who has the address, or the router that leads to it. A way without
// neighbours, such as a tunnel, has none to ask.
func nobody(to netip.Addr) bool {
	ways, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(ways) == 0 {
		return false // then the questions have told
	}
	next := to
	if gw, ok := netip.AddrFromSlice(ways[0].Gw); ok {
		next = gw.Unmap()
	}
	l, err := netlink.LinkByIndex(ways[0].LinkIndex)
	if err != nil || l.Attrs().RawFlags&(unix.IFF_NOARP|unix.IFF_LOOPBACK) != 0 || len(l.Attrs().HardwareAddr) == 0 {
		return false
	}
	known, err := netlink.NeighList(ways[0].LinkIndex, family(next))
	if err != nil {
		return false
	}
	for _, n := range known {
		if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == next {
			return n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0
		}
	}
	return true // it was asked for just now, and is forgotten because nobody answered
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
