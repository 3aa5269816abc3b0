package observe

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// wayPast names a device of a process's network namespace whose packets this machine's forward chain does not see; ""
// when there is none. A macvlan, an adapter that was moved there and a bridge that joins it to an adapter pass beside it.
func wayPast(ns netns.NsHandle) (string, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return "", err
	}
	defer h.Close()
	theirs, err := h.LinkList()
	if err != nil {
		return "", fmt.Errorf("listing the devices of a namespace: %w", err)
	}
	ours, err := netlink.LinkList()
	if err != nil {
		return "", err
	}
	// With both, what crosses a bridge passes the forward chain (Linux: br_netfilter).
	bridgesPass := isOne("/proc/sys/net/bridge/bridge-nf-call-iptables") && isOne("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
	for _, l := range theirs {
		if l.Attrs().Flags&net.FlagUp != 0 && passesBeside(l, ours, bridgesPass) {
			return l.Attrs().Name, nil
		}
	}
	return "", nil
}

// passesBeside judges a device of another namespace by its kind, and a cable by what its other end here is plugged into.
// A kind that is not known here passes beside.
func passesBeside(l netlink.Link, ours []netlink.Link, bridgesPass bool) bool {
	switch l.Type() {
	case "dummy", "ifb", "bridge", "tuntap", "tun", "wireguard":
		return false // it leads nowhere, or through a socket of some process, or through one of the other devices
	case "veth":
	default:
		return l.Attrs().Flags&net.FlagLoopback == 0
	}
	var end netlink.Link
	for _, o := range ours {
		if o.Type() == "veth" && o.Attrs().Index == l.Attrs().ParentIndex && o.Attrs().ParentIndex == l.Attrs().Index {
			end = o
		}
	}
	if end == nil {
		return true // plugged into a third namespace
	}
	if end.Attrs().MasterIndex == 0 {
		return false // what comes from it is routed
	}
	for _, o := range ours {
		plugged := o.Attrs().MasterIndex == end.Attrs().MasterIndex && o.Type() != "veth" && o.Type() != "tuntap" && o.Type() != "tun"
		master := o.Attrs().Index == end.Attrs().MasterIndex
		if plugged && !bridgesPass || master && o.Type() != "bridge" {
			return true
		}
	}
	return false
}
