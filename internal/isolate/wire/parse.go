package wire

import (
	"encoding/binary"
	"net/netip"
)

// IP protocol numbers.
const (
	icmp   = 1
	tcp    = 6
	udp    = 17
	icmpv6 = 58
)

var names = map[byte]string{icmp: "icmp", tcp: "tcp", udp: "udp", icmpv6: "icmpv6"}

// parse reads the headers of an IP packet. payload is what follows the transport header of TCP and UDP, and all that
// follows the IP header for others. Fragments after the first have no ports.
func parse(b []byte) (k Flow, protocol byte, payload []byte, ok bool) {
	var from, to netip.Addr
	first := true
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		header := int(b[0]&15) * 4
		if header < 20 || len(b) < header {
			return k, 0, nil, false
		}
		from, to, protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		first = binary.BigEndian.Uint16(b[6:8])&0x1fff == 0
		payload = b[header:]
	case len(b) >= 40 && b[0]>>4 == 6:
		from, to, protocol = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6]
		payload = b[40:]
		// Hop-by-hop, routing and destination options stand before what matters; a fragment header is 8 bytes.
		for (protocol == 0 || protocol == 43 || protocol == 60 || protocol == 44) && len(payload) >= 8 {
			size := 8
			if protocol != 44 {
				size = (int(payload[1]) + 1) * 8
			} else {
				first = binary.BigEndian.Uint16(payload[2:4])&0xfff8 == 0
			}
			if len(payload) < size {
				return k, 0, nil, false
			}
			protocol, payload = payload[0], payload[size:]
		}
	default:
		return k, 0, nil, false
	}
	k.Protocol = names[protocol]
	k.From, k.To = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)
	if !first || protocol != tcp && protocol != udp || len(payload) < 8 {
		return k, protocol, payload, true
	}
	k.From = netip.AddrPortFrom(from, binary.BigEndian.Uint16(payload))
	k.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(payload[2:]))
	header := 8
	if protocol == tcp {
		if len(payload) < 20 {
			return k, protocol, nil, true
		}
		header = int(payload[12]>>4) * 4
	}
	return k, protocol, payload[min(header, len(payload)):], true
}
