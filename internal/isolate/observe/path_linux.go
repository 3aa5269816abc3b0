package observe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
)

const (
	smallEcho = 64              // bytes that get through everywhere
	leastPath = 1280            // no path of ours is narrower (RFC 8200, section 5)
	stepEcho  = 8               // how exact a search by echo is, in bytes
	telling   = 2 * time.Second // at most, for routers that tell one after the other
)

// Paths is how much fits through to each address without being taken apart. Where routers tell, the kernel knows after
// one packet; where they are silent, or a switch drops what is too large, echoes find out; where nothing answers, the
// device's MTU is all that is known. wait is how long an answer may take.
func Paths(to []netip.AddrPort, wait time.Duration) ([]isolate.Path, error) {
	found, errs := make([]isolate.Path, len(to)), make([]error, len(to))
	var all sync.WaitGroup
	for i, at := range to {
		all.Go(func() { found[i], errs[i] = wayTo(at, wait) })
	}
	all.Wait()
	var paths []isolate.Path
	for i, p := range found {
		if errs[i] == nil {
			paths = append(paths, p)
		}
	}
	return paths, errors.Join(errs...)
}

func wayTo(to netip.AddrPort, wait time.Duration) (isolate.Path, error) {
	p := isolate.Path{To: to.Addr(), Proof: isolate.PathRoute}
	device, mtu, err := told(to, wait)
	if err != nil {
		return p, fmt.Errorf("probing the path to %s: %w", to.Addr(), err)
	}
	p.MTU = mtu
	if mtu < device {
		p.Proof = isolate.PathTold
	}
	largest, answers, err := Largest(to.Addr(), mtu, wait)
	// Without the right to send echoes, and where only small ones are answered, what was told stands.
	if err == nil && answers && largest >= leastPath {
		p.MTU, p.Proof = largest, isolate.PathEcho
	}
	return p, nil
}

// told sends packets that must not be taken apart to the port where WireGuard listens, which answers none, and asks the
// kernel what it has learnt: at first that is the device's MTU or the route's.
func told(to netip.AddrPort, wait time.Duration) (device, mtu int, err error) {
	family, level, header := unix.AF_INET, unix.IPPROTO_IP, 28
	discover, option := unix.IP_MTU_DISCOVER, unix.IP_MTU
	if to.Addr().Is6() {
		family, level, header = unix.AF_INET6, unix.IPPROTO_IPV6, 48
		discover, option = unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	// IP_PMTUDISC_DO and IPV6_PMTUDISC_DO are both 2: never taken apart, and what routers said counts.
	if err := unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_DO); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return 0, 0, err
	}
	if mtu, err = unix.GetsockoptInt(fd, level, option); err != nil {
		return 0, 0, err
	}
	device = max(mtu, linkMTU(fd))
	for end := time.Now().Add(telling); time.Now().Before(end); {
		// What comes back is an ICMP error at most, and no error of ours: the port may be closed.
		_ = unix.Sendto(fd, make([]byte, min(mtu, 65000)-header), unix.MSG_DONTWAIT, nil)
		now := mtu
		for until := time.Now().Add(wait); now == mtu && time.Now().Before(until); {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLERR}}, 10)
			if now, err = unix.GetsockoptInt(fd, level, option); err != nil {
				return 0, 0, err
			}
			_, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // or Poll would return at once
		}
		if now == mtu {
			return device, mtu, nil
		}
		mtu = now
	}
	return device, mtu, nil
}

// linkMTU is the MTU of the device that holds the socket's own address; 0 when it is not found.
func linkMTU(fd int) int {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0
	}
	own := addrOf(sa)
	list, err := devices()
	if err != nil {
		return 0
	}
	for _, d := range list {
		for _, a := range d.Addresses {
			if a.Addr() == own {
				return d.MTU
			}
		}
	}
	return 0
}

// Largest is the largest echo, up to the limit, that comes back from the address without being taken apart, to within 8
// bytes; answers is false when not even a small one does.
func Largest(to netip.Addr, limit int, wait time.Duration) (size int, answers bool, err error) {
	e, err := newEcho(to)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = unix.Close(e.fd) }()
	// The first may wait for a neighbour's address or a handshake.
	through := func(size int) bool {
		for range 2 { // one may be lost
			if e.comesBack(size, wait) {
				return true
			}
		}
		return false
	}
	if !through(smallEcho) {
		return 0, false, nil
	}
	begin := time.Now()
	if e.comesBack(smallEcho, wait) {
		wait = min(wait, 50*time.Millisecond+4*time.Since(begin))
	}
	if through(limit) {
		return limit, true, nil
	}
	low, high := smallEcho, limit
	for high-low > stepEcho {
		if middle := (low + high) / 2; through(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return low, true, nil
}

// echo sends ICMP echoes of chosen sizes that must not be taken apart.
type echo struct {
	fd              int
	to              unix.Sockaddr
	six             bool
	header          int
	request, answer byte
	id, seq         uint16
}

func newEcho(to netip.Addr) (*echo, error) {
	e := &echo{header: 20, request: 8, answer: 0, id: uint16(rand.Uint32()), six: to.Is6(), to: sockaddr(netip.AddrPortFrom(to, 0))}
	family, protocol, level, discover := unix.AF_INET, unix.IPPROTO_ICMP, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if e.six {
		e.header, e.request, e.answer = 40, 128, 129
		family, protocol, level, discover = unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	var err error
	if e.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(e.fd, level, discover, unix.IP_PMTUDISC_DO); err != nil {
		return nil, errors.Join(err, unix.Close(e.fd))
	}
	return e, nil
}

// comesBack reports whether an echo with an IP packet of the size was answered in time.
func (e *echo) comesBack(size int, wait time.Duration) bool {
	e.seq++
	b := make([]byte, max(size-e.header, 8))
	b[0] = e.request
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], e.seq)
	if !e.six { // for IPv6 the kernel makes it
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	if unix.Sendto(e.fd, b, unix.MSG_DONTWAIT, e.to) != nil {
		return false // larger than the kernel knows to fit
	}
	in := make([]byte, 1<<16)
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1); err != nil || n == 0 {
			continue
		}
		n, _, err := unix.Recvfrom(e.fd, in, unix.MSG_DONTWAIT)
		if err != nil {
			continue // an ICMP error that was queued; the answer may still come
		}
		if e.answers(in[:n], len(b)) {
			return true
		}
	}
}

// answers reports whether a packet is the answer to the last echo, whole.
func (e *echo) answers(b []byte, size int) bool {
	if !e.six { // with its IP header
		if len(b) < 20 || len(b) < int(b[0]&15)*4 {
			return false
		}
		b = b[int(b[0]&15)*4:]
	}
	return len(b) == size && b[0] == e.answer && binary.BigEndian.Uint16(b[4:]) == e.id && binary.BigEndian.Uint16(b[6:]) == e.seq
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrOf(sa unix.Sockaddr) netip.Addr {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr)
	}
	return netip.Addr{}
}
