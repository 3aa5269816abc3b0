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

// packet is what the headers of a packet say.
type packet struct {
	flow     Flow
	protocol byte
	payload  []byte // what follows the transport header of TCP and UDP, and all that follows the IP header for others
	seq      uint32 // where the payload stands in its stream, if numbered
	numbered bool
	part     part // of which packet it is a part; the zero part of none
}

// part names a packet that was taken apart on its way.
type part struct {
	from, to netip.Addr
	id       uint32
}

// parse reads the headers of an IP packet. Fragments after the first have no ports.
func parse(b []byte) (p packet, ok bool) {
	from, to, payload, first, ok := p.network(b)
	if !ok {
		return packet{}, false
	}
	p.flow = Flow{Protocol: names[p.protocol], From: netip.AddrPortFrom(from, 0), To: netip.AddrPortFrom(to, 0)}
	p.payload = payload
	if !first || p.protocol != tcp && p.protocol != udp || len(payload) < 8 {
		return p, true
	}
	p.flow.From = netip.AddrPortFrom(from, binary.BigEndian.Uint16(payload))
	p.flow.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(payload[2:]))
	header := 8
	if p.protocol == tcp {
		if len(payload) < 20 {
			p.payload = nil
			return p, true
		}
		header = int(payload[12]>>4) * 4
		p.seq, p.numbered = binary.BigEndian.Uint32(payload[4:]), true
	}
	p.payload = payload[min(header, len(payload)):]
	return p, true
}

// network reads the IP header. first is false for a fragment that is not the first.
func (p *packet) network(b []byte) (from, to netip.Addr, payload []byte, first, ok bool) {
	first = true
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		header := int(b[0]&15) * 4
		// Ethernet fills small packets up to 60 bytes; 0 is a packet so large that the field does not hold its length.
		if total := int(binary.BigEndian.Uint16(b[2:4])); total >= header && total < len(b) {
			b = b[:total]
		}
		if header < 20 || len(b) < header {
			return from, to, nil, false, false
		}
		from, to, p.protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		at := binary.BigEndian.Uint16(b[6:8])
		if at&0x3fff != 0 { // more to come, or not the first
			p.part = part{from, to, uint32(binary.BigEndian.Uint16(b[4:6]))}
		}
		return from, to, b[header:], at&0x1fff == 0, true
	case len(b) >= 40 && b[0]>>4 == 6:
		if length := int(binary.BigEndian.Uint16(b[4:6])); length > 0 && 40+length < len(b) {
			b = b[:40+length]
		}
		from, to, p.protocol = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6]
		payload = b[40:]
		// Hop-by-hop, routing and destination options stand before what matters; a fragment header is 8 bytes.
		for (p.protocol == 0 || p.protocol == 43 || p.protocol == 60 || p.protocol == 44) && len(payload) >= 8 {
			size := 8
			if p.protocol != 44 {
				size = (int(payload[1]) + 1) * 8
			} else {
				first = binary.BigEndian.Uint16(payload[2:4])&0xfff8 == 0
				p.part = part{from, to, binary.BigEndian.Uint32(payload[4:8])}
			}
			if len(payload) < size {
				return from, to, nil, false, false
			}
			p.protocol, payload = payload[0], payload[size:]
		}
		return from, to, payload, first, true
	}
	return from, to, nil, false, false
}
