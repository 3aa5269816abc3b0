//go:build unix

package sock

import "syscall"

// Quiet reports whether a socket is open and has nothing to read. It takes nothing and waits for nothing.
func Quiet(fd uintptr) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
}
