package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
)

// Capture shows the watcher the packets of every device but loopback and the overlay's, until ctx ends.
func Capture(ctx context.Context, w *Watcher, p *isolate.Plan) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))))
	if errors.Is(err, unix.EPERM) {
		return errors.New("looking at packets needs CAP_NET_RAW; run it as root")
	}
	if err != nil {
		return fmt.Errorf("opening a packet socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return err
	}
	// Room for what comes while this process does not run; what still finds none is counted and told.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	// By name and not once for all: a tunnel that is started again has a device of the same name and another index.
	known := map[int]bool{}
	skip := func(at *unix.SockaddrLinklayer) bool {
		inside, seen := known[at.Ifindex]
		if seen {
			return inside
		}
		d, err := net.InterfaceByIndex(at.Ifindex)
		if err != nil { // it is gone already; WireGuard's devices have no hardware address, an underlay has
			return at.Hatype == unix.ARPHRD_NONE
		}
		known[at.Ifindex] = d.Name == "lo" || d.Name == p.Device
		return known[at.Ifindex]
	}
	b := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			continue // the timeout, by which the end of ctx is seen
		}
		if at, ok := from.(*unix.SockaddrLinklayer); ok && !skip(at) {
			w.See(b[:n])
		}
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("asking how many packets were lost: %w", err)
	}
	w.lost += int(stats.Drops)
	return nil
}

// Echo sends one ICMP echo from an overlay address to another and returns how long the answer took.
func Echo(from, to netip.Addr, wait time.Duration) (time.Duration, error) {
	network, request, answer := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, answer = "ip6:ipv6-icmp", 128, 129
	}
	c, err := net.DialIP(network, &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
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
