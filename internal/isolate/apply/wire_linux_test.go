package apply_test

import (
	"bytes"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// wire counts what crosses a switch: packets of the tunnel, and packets with an overlay address outside it.
type wire struct {
	mu            sync.Mutex
	tunnel, clear int
	fragments     int  // of IPv4
	payload       bool // the text of says was seen
	stop          chan struct{}
	done          chan struct{}
}

func (l *lab) watch() *wire {
	l.t.Helper()
	w := &wire{stop: make(chan struct{}), done: make(chan struct{})}
	var fd int
	l.sw.do(func() {
		var err error
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(be16(unix.ETH_P_ALL)))
		must(l.t, err)
		must(l.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}))
	})
	go func() {
		defer close(w.done)
		defer unix.Close(fd)
		b := make([]byte, 1<<16)
		for ended := false; ; {
			select {
			case <-w.stop:
				ended = true // what has crossed already is still looked at
			default:
			}
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err == nil {
				w.see(b[:n])
			} else if ended {
				return
			}
		}
	}()
	return w
}

func be16(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) see(frame []byte) {
	if len(frame) < 14 {
		return
	}
	var from, to netip.Addr
	packet := frame[14:]
	var protocol byte
	fragment := false
	switch {
	case frame[12] == 8 && frame[13] == 0 && len(packet) >= 20:
		from, to, protocol = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20])), packet[9]
		fragment = (int(packet[6])<<8|int(packet[7]))&0x3fff != 0 // more to come, or not the first
	case frame[12] == 0x86 && frame[13] == 0xdd && len(packet) >= 40:
		from, to, protocol = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40])), packet[6]
	default:
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("fd00:99::/64")} {
		if p.Contains(from) || p.Contains(to) {
			w.clear++
		}
	}
	if protocol == unix.IPPROTO_UDP {
		w.tunnel++
	}
	if fragment {
		w.fragments++
	}
	w.payload = w.payload || bytes.Contains(packet, []byte("prompt\n"))
}

// end returns what was seen.
func (w *wire) end() (tunnel, inClear int, payload bool) {
	close(w.stop)
	<-w.done
	return w.tunnel, w.clear, w.payload
}

// An instrument that sees nothing proves nothing.
func TestTheWireWatcherSeesClearText(t *testing.T) {
	l := newLab(t, "x1", "x2")
	l.hosts["x1"].echo(t, 5000)
	w := l.watch()
	if !l.hosts["x2"].reaches(l.hosts["x1"].under, 5000, open) {
		t.Fatal("the lab's network does not work")
	}
	if _, _, payload := w.end(); !payload {
		t.Error("clear text crossed the switch and was not seen")
	}
}
