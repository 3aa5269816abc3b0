//go:build linux && (amd64 || arm64) && !race

package sock

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

func of(c net.Conn) net.Conn {
	socket, ok := c.(syscall.Conn) // also one that something else is kept with
	if !ok {
		return c
	}
	system, err := socket.SyscallConn()
	if err != nil {
		return c
	}
	s := &conn{Conn: c, system: system}
	s.in.step, s.out.step, s.look = s.receive, s.send, s.arrived
	return s
}

// conn is a socket of package net, read and written here.
type conn struct {
	net.Conn
	system  syscall.RawConn
	in, out direction
	look    func(fd uintptr) bool // arrived
	looked  bool
	peeked  [1]byte
}

// NetConn is what it was made of.
func (c *conn) NetConn() net.Conn { return c.Conn }

// CloseWrite tells the other side that nothing more comes.
func (c *conn) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// direction is one read or write on its way.
type direction struct {
	p    []byte // what is left to fill or to send
	n    int    // bytes that were
	err  error
	step func(fd uintptr) bool // made once; false: the socket is not ready
}

// most is what one call moves, so that it holds the processor for some tens of microseconds and no longer: while it
// runs, the garbage collector waits.
const most = 256 << 10

// Read reads what there is, waiting for something until the deadline.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	d := &c.in
	d.p, d.n, d.err = p[:min(len(p), most)], 0, nil
	err := c.system.Read(d.step)
	d.p = nil
	switch {
	case err != nil:
		return 0, err
	case d.err != nil:
		return 0, c.failed("read", d.err)
	case d.n == 0:
		return 0, io.EOF
	}
	return d.n, nil
}

// Write writes all of p, waiting for room until the deadline.
func (c *conn) Write(p []byte) (int, error) {
	d := &c.out
	d.p, d.n, d.err = p, 0, nil
	err := c.system.Write(d.step)
	d.p = nil
	if err == nil && d.err != nil {
		err = c.failed("write", d.err)
	}
	return d.n, err
}

func await(c net.Conn) {
	if s, ok := c.(*conn); ok {
		s.looked = false
		_ = s.system.Read(s.look) // a deadline that passed, or a close, is the next Read's error
	}
}

// arrived looks once: when it is asked again, something has come, or has gone wrong.
func (c *conn) arrived(fd uintptr) bool {
	if c.looked {
		return true
	}
	c.looked = true
	_, errno := call(syscall.SYS_RECVFROM, fd, c.peeked[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return errno != syscall.EAGAIN
}

func (c *conn) receive(fd uintptr) bool {
	for {
		n, errno := call(syscall.SYS_RECVFROM, fd, c.in.p, syscall.MSG_DONTWAIT)
		switch errno {
		case 0:
			c.in.n = n
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			c.in.err = os.NewSyscallError("recvfrom", errno)
			return true
		}
	}
}

func (c *conn) send(fd uintptr) bool {
	for len(c.out.p) > 0 {
		n, errno := call(syscall.SYS_SENDTO, fd, c.out.p[:min(len(c.out.p), most)], syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		switch errno {
		case 0:
			c.out.n += n
			c.out.p = c.out.p[n:]
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			c.out.err = os.NewSyscallError("sendto", errno)
			return true
		}
	}
	return true
}

// call makes a system call with the bytes of p, which is not empty.
func call(number, fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(number, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), flags, 0, 0)
	return int(n), errno
}

func (c *conn) failed(doing string, err error) error {
	return &net.OpError{Op: doing, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
