package apply

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/observe"
)

// cutOff ends what the rules would not let in if it came now. Without this a stranger's connection from before would go
// on as a reply. Both halves are needed: the socket, or it would send and open the way again; and what the kernel
// remembers of the flow. It returns what could not be ended.
func cutOff(p *isolate.Plan) (left []string) {
	snapshot := observe.Machine("")
	for _, k := range snapshot.Uninvited(p.Rules) {
		err := netlink.SocketDestroy(tcpAddr(k.Local), tcpAddr(k.Remote))
		if err != nil {
			left = append(left, fmt.Sprintf("the connection of %s with %s could not be ended (%v): restart %s", k.Process, k.Remote, err, k.Process))
		}
	}
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, uninvited{snapshot, p.Rules}); err != nil {
			left = append(left, fmt.Sprintf("the kernel's list of connections was not cleared (%v): connections from before may go on", err))
		}
	}
	return left
}

// uninvited matches flows that began outside, towards this machine or through it, and that the rules would refuse now.
type uninvited struct {
	snapshot *isolate.Snapshot
	rules    isolate.Ruleset
}

// MatchConntrackFlow is netlink's interface.
func (u uninvited) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	from, ok := netip.AddrFromSlice(f.Forward.SrcIP)
	to, ok2 := netip.AddrFromSlice(f.Forward.DstIP)
	if !ok || !ok2 {
		return false
	}
	// What is translated to a container was sent to this machine; what is routed to one was not.
	if u.snapshot.RefusedForward(u.rules, from, to) {
		return true
	}
	protocol := map[uint8]string{6: "tcp", 17: "udp"}[f.Forward.Protocol]
	return protocol != "" && u.snapshot.Refused(u.rules, protocol, from.Unmap(), netip.AddrPortFrom(to.Unmap(), f.Forward.DstPort))
}

func tcpAddr(a netip.AddrPort) net.Addr { return net.TCPAddrFromAddrPort(a) }
