package knock

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// echo asks by ICMP, as an outsider. Who may not send echoes asks by TCP and UDP alone.
func echo(ctx context.Context, to netip.Addr, wait time.Duration) outcome {
	_, err := Echo(netip.Addr{}, to, wait)
	switch {
	case err == nil:
		return outcome{answer: "an echo (ping) is answered: no rule keeps strangers from it"}
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return outcome{skipped: true}
	}
	return silence(ctx, err)
}

// Echo sends one ICMP echo from an own address, or from whichever the kernel takes for the zero one, and returns how long
// the answer took. It needs the right to send echoes (CAP_NET_RAW).
func Echo(from, to netip.Addr, wait time.Duration) (time.Duration, error) {
	network, request, answer := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, answer = "ip6:ipv6-icmp", 128, 129
	}
	var own *net.IPAddr
	if from.IsValid() {
		own = &net.IPAddr{IP: from.AsSlice()}
	}
	c, err := net.DialIP(network, own, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	id := uint16(rand.Uint32())
	packet := []byte{request, 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(packet[4:], id)
	if to.Is4() {
		binary.BigEndian.PutUint16(packet[2:], checksum(packet)) // for IPv6 the kernel makes it
	}
	begin := time.Now()
	if err := c.SetDeadline(begin.Add(wait)); err != nil {
		return 0, err
	}
	if _, err := c.Write(packet); err != nil {
		return 0, err
	}
	for b := make([]byte, 1500); ; {
		n, _, err := c.ReadFrom(b) // Read would leave the IPv4 header in
		if err != nil {
			return 0, err
		}
		if n >= 8 && b[0] == answer && binary.BigEndian.Uint16(b[4:]) == id {
			return time.Since(begin), nil
		}
	}
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
