package measure

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The bare path goes past the overlay and no rule is opened for it. Both ends connect to each other at once (RFC 9293,
// section 3.5, simultaneous open): each side's first packet makes the other's a reply, which the rules let in as they
// let in every answer to what the machine has asked for itself. Nobody who was not connected to gets in.

// meeting is how long the two ends may take to meet.
const meeting = 3 * time.Second

// lead is what the end that answers gets to set out first: a packet that arrives before it has is dropped by the rules,
// and is repeated only after a second.
const lead = 50 * time.Millisecond

// Meet is the asking end: it takes a port at its own address, has ask name it to the peer over the overlay, and connects.
// It returns what ask returned too, because the connection has to be greeted with it.
func Meet(ctx context.Context, own netip.Addr, peer netip.AddrPort, ask func(port uint16) (Ticket, error)) (net.Conn, Ticket, error) {
	var ticket Ticket
	d := net.Dialer{Timeout: meeting, FallbackDelay: -1}
	d.ControlContext = func(ctx context.Context, _, _ string, raw syscall.RawConn) error {
		port, err := bind(raw, own)
		if err != nil {
			return err
		}
		if ticket, err = ask(port); err != nil {
			return err
		}
		select {
		case <-time.After(lead):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c, err := d.DialContext(ctx, "tcp", peer.String())
	return c, ticket, err
}

// bind gives a socket a free port at the address, before it connects.
func bind(raw syscall.RawConn, own netip.Addr) (port uint16, err error) {
	var inner error
	err = raw.Control(func(fd uintptr) {
		var at unix.Sockaddr = &unix.SockaddrInet6{Addr: own.As16()}
		if own.Is4() {
			at = &unix.SockaddrInet4{Addr: own.As4()}
		}
		if inner = unix.Bind(int(fd), at); inner != nil {
			inner = fmt.Errorf("%s is not an address of this machine, as behind a translation of addresses: %w", own, inner)
			return
		}
		at, inner = unix.Getsockname(int(fd))
		switch a := at.(type) {
		case *unix.SockaddrInet4:
			port = uint16(a.Port)
		case *unix.SockaddrInet6:
			port = uint16(a.Port)
		}
	})
	if err == nil {
		err = inner
	}
	return port, err
}

// MeetBack is the answering end: from its own address and port to the one that was named.
func MeetBack(ctx context.Context, own, peer netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: meeting, FallbackDelay: -1, LocalAddr: net.TCPAddrFromAddrPort(own)}
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		var inner error
		// The port may have a connection of a moment ago in TIME_WAIT.
		err := raw.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		if err == nil {
			err = inner
		}
		return err
	}
	return d.DialContext(ctx, "tcp", peer.String())
}
