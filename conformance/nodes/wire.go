package nodes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxRecorded is how many bytes of payload a recording keeps.
const maxRecorded = 256 << 20

// Flow is the packets from one end to another. Ports are 0 for what is neither TCP nor UDP.
type Flow struct {
	Protocol string // tcp, udp, icmp, icmpv6, or a number
	From, To netip.AddrPort
}

func (f Flow) String() string { return fmt.Sprintf("%s %s to %s", f.Protocol, f.From, f.To) }

// segment is the payload of one packet; seq orders those of TCP.
type segment struct {
	seq     uint32
	payload []byte
}

// Recording is what crossed the switch, each packet once, as it came from the machine that sent it.
type Recording struct {
	mu      sync.Mutex
	flows   map[Flow][]segment
	kept    int
	lost    int   // packets that are not in it
	failed  error // of asking that
	stop    atomic.Bool
	stopped chan struct{}
}

// Record begins to record what crosses the switch.
func (l *Lab) Record() (*Recording, error) {
	ports := map[int]bool{}
	fd := -1
	err := l.sw.Do(func() error {
		for _, n := range l.nodes {
			port, err := netlink.LinkByName("to" + n.Name)
			if err != nil {
				return err
			}
			ports[port.Attrs().Index] = true
		}
		var err error
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})))
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	})
	if err != nil {
		return nil, fmt.Errorf("listening on the switch: %w", err)
	}
	r := &Recording{flows: map[Flow][]segment{}, stopped: make(chan struct{})}
	go r.read(fd, ports)
	return r, nil
}

func (r *Recording) read(fd int, ports map[int]bool) {
	defer close(r.stopped)
	defer unix.Close(fd)
	b := make([]byte, 1<<17)
	for {
		n, from, err := unix.Recvfrom(fd, b, unix.MSG_TRUNC) // n is the packet's length, whatever of it there was room for
		if err != nil {
			if r.stop.Load() {
				break // nothing came for a while: what was sent before Stop has been read
			}
			continue
		}
		at, ok := from.(*unix.SockaddrLinklayer)
		if ok && at.Pkttype != unix.PACKET_OUTGOING && ports[at.Ifindex] {
			r.add(b[:min(n, len(b))], n > len(b))
		}
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failed = fmt.Errorf("asking how many packets were lost: %w", err)
		return
	}
	r.lost += int(stats.Drops)
}

// Stop ends the recording. A recording that missed a packet is an error, for nothing can be said of it.
func (r *Recording) Stop() error {
	r.stop.Store(true)
	<-r.stopped
	if r.lost > 0 {
		return fmt.Errorf("the recording of the wire has holes: %d packets are not in it, %d bytes are, of at most %d", r.lost, r.kept, maxRecorded)
	}
	return r.failed
}

func (r *Recording) add(frame []byte, cut bool) {
	f, s, ok := parse(frame)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if cut {
		r.lost++
	}
	if r.kept += len(s.payload); r.kept > maxRecorded {
		r.lost++
		return
	}
	r.flows[f] = append(r.flows[f], segment{s.seq, bytes.Clone(s.payload)})
}

// Flows are the flows for which keep holds, with the number of their packets.
func (r *Recording) Flows(keep func(Flow) bool) map[Flow]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[Flow]int{}
	for f, s := range r.flows {
		if keep(f) {
			out[f] = len(s)
		}
	}
	return out
}

// Tunnel tells whether the flow is WireGuard's between members.
func Tunnel(f Flow) bool {
	return f.Protocol == "udp" && f.From.Port() == TunnelPort && f.To.Port() == TunnelPort
}

// Inside tells whether an overlay address is on the wire, which none may ever be.
func Inside(f Flow) bool { return Overlay.Contains(f.From.Addr()) || Overlay.Contains(f.To.Addr()) }

// Empty tells whether nothing but zeros was in the flow's packets: a probe of the path, as `isolate up` sends to the
// tunnel's port.
func (r *Recording) Empty(f Flow) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.flows[f] {
		if len(bytes.Trim(s.payload, "\x00")) > 0 {
			return false
		}
	}
	return true
}

// Find returns the flows in which one of the needles is, TCP put together in the order in which it was sent, and how
// often the most frequent needle is.
func (r *Recording) Find(needles [][]byte) map[Flow]int {
	r.mu.Lock()
	flows := maps.Clone(r.flows)
	r.mu.Unlock()
	found := map[Flow]int{}
	for f, segments := range flows {
		text := stream(f, segments)
		for _, n := range needles {
			if c := bytes.Count(text, n); c > found[f] {
				found[f] = c
			}
		}
	}
	return found
}

// stream is the payload of a flow: of TCP each byte once and in order, of others packet after packet.
func stream(f Flow, segments []segment) []byte {
	if f.Protocol != "tcp" || len(segments) == 0 {
		var all []byte
		for _, s := range segments {
			all = append(all, s.payload...)
		}
		return all
	}
	first := segments[0].seq
	sorted := slices.SortedStableFunc(slices.Values(segments), func(a, b segment) int { return int(int32(a.seq-first)) - int(int32(b.seq-first)) })
	var all []byte
	next := sorted[0].seq
	for _, s := range sorted {
		again := int(int32(next - s.seq)) // bytes that were sent before
		if again >= len(s.payload) && again > 0 {
			continue
		}
		all = append(all, s.payload[max(0, again):]...)
		next = s.seq + uint32(len(s.payload))
	}
	return all
}

// parse reads an Ethernet frame with IPv4 or IPv6 in it.
func parse(b []byte) (f Flow, s segment, ok bool) {
	if len(b) < 14 {
		return f, s, false
	}
	kind, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	var from, to netip.Addr
	var protocol byte
	switch {
	case kind == unix.ETH_P_IP && len(b) >= 20 && len(b) >= int(b[0]&15)*4:
		from, to, protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		if size := int(binary.BigEndian.Uint16(b[2:])); size >= 20 && size < len(b) {
			b = b[:size] // short frames are filled up
		}
		b = b[int(b[0]&15)*4:]
	case kind == unix.ETH_P_IPV6 && len(b) >= 40:
		from, to, protocol = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6]
		b = b[40:]
	default:
		return f, s, false
	}
	f = Flow{fmt.Sprint(protocol), netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)}
	switch {
	case protocol == unix.IPPROTO_ICMP:
		f.Protocol = "icmp"
	case protocol == unix.IPPROTO_ICMPV6:
		f.Protocol = "icmpv6"
	case protocol == unix.IPPROTO_UDP && len(b) >= 8:
		f.Protocol = "udp"
		f.From, f.To = ports(from, to, b)
		b = b[8:]
	case protocol == unix.IPPROTO_TCP && len(b) >= 20 && len(b) >= int(b[12]>>4)*4:
		f.Protocol = "tcp"
		f.From, f.To = ports(from, to, b)
		s.seq = binary.BigEndian.Uint32(b[4:])
		b = b[int(b[12]>>4)*4:]
	}
	s.payload = b
	return f, s, true
}

func ports(from, to netip.Addr, b []byte) (netip.AddrPort, netip.AddrPort) {
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:]))
}
