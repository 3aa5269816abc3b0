package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
)

// largest is more than any packet of a device: the kernel hands over what it has not cut up yet (GSO_MAX_SIZE is 512 KiB).
const largest = 1 << 20

// Capture shows the watcher the packets of every device but loopback, until ctx ends: those of the overlay's device as
// what is inside the tunnel, all others as what is on the wire.
func Capture(ctx context.Context, w *Watcher, p *isolate.Plan) error {
	fd, err := open()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// Room for what comes while this process does not run; what still finds none is counted and told.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	return w.read(ctx, fd, p.Device, make([]byte, largest))
}

// open is a socket that is given every packet of every device, from its IP header on.
func open() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))))
	if errors.Is(err, unix.EPERM) {
		return -1, errors.New("looking at packets needs CAP_NET_RAW; run it as root")
	}
	if err != nil {
		return -1, fmt.Errorf("opening a packet socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// read looks at what the socket was given until ctx ends, all of it, and counts what it was not given for want of room.
func (w *Watcher) read(ctx context.Context, fd int, overlay string, b []byte) error {
	name := deviceNames(overlay)
	read := 0
	next := func() error {
		n, from, err := unix.Recvfrom(fd, b, unix.MSG_TRUNC) // n is the packet's length, whatever of it there was room for
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			return nil // the timeout, by which the end of ctx is seen; or a device that went down
		}
		if err != nil {
			return fmt.Errorf("reading packets: %w", err)
		}
		read++
		if at, ok := from.(*unix.SockaddrLinklayer); ok {
			w.seeAt(name(at), overlay, b[:min(n, len(b))], n > len(b))
		}
		return nil
	}
	for ctx.Err() == nil {
		if err := next(); err != nil {
			return err
		}
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("asking how many packets were lost: %w", err)
	}
	w.lost += int(stats.Drops)
	// What came before the end and waits is of the watch too. The kernel counts what it dropped as packets.
	due := int(stats.Packets - stats.Drops)
	for nothing := 0; read < due && nothing < 3; {
		before := read
		if err := next(); err != nil {
			return err
		}
		if read == before {
			nothing++
		}
	}
	w.lost += max(0, due-read)
	return nil
}

// seeAt looks at a packet of a device: loopback's are nobody's, and the overlay's are inside.
func (w *Watcher) seeAt(device, overlay string, b []byte, cut bool) {
	switch {
	case device == "lo":
	case device == overlay:
		w.SeeInside(b)
	default:
		if cut {
			w.lost++
		}
		w.See(b)
	}
}

// deviceNames tells devices by their names, each looked up once and not once for all: a tunnel that is started again has a
// device of the same name and another index.
func deviceNames(overlay string) func(*unix.SockaddrLinklayer) string {
	known := map[int]string{}
	return func(at *unix.SockaddrLinklayer) string {
		if name, ok := known[at.Ifindex]; ok {
			return name
		}
		d, err := net.InterfaceByIndex(at.Ifindex)
		if err == nil {
			known[at.Ifindex] = d.Name
			return d.Name
		}
		// It is gone already. WireGuard's devices have no hardware address, an underlay has.
		if at.Hatype == unix.ARPHRD_NONE {
			return overlay
		}
		return ""
	}
}
