// Package sock reads and writes sockets without a word to Go's scheduler, where that is worth it.
// It refuses to wait within a system call: every one is told not to, whatever mode the socket is in.
//
// Package net tells the scheduler of each read and write, as of a call that may take long. One that takes more than
// 20 µs, as a write to a busy loopback does, has its processor taken away by another thread, which is woken for
// it; and that was a tenth of what a short request costs.
package sock

import "net"

// Of gives a connection whose Read and Write do what c's do, for one reader and one writer at a time; deadlines and
// closing are c's own. What is no socket, and any socket where this is not built for, comes back as it is.
func Of(c net.Conn) net.Conn { return of(c) }
