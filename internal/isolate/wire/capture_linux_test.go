package wire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/notrun"
)

// alone runs f in a network namespace of its own, with a device outside the tunnel and one that stands for the overlay's.
func alone(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		notrun.For(t, "isolate's tests make network namespaces and need root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		far, err := plug()
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(far)
		f()
	}()
	<-done
}

// plug makes the namespace and its two devices, whose other ends are in a namespace that nobody looks at. It lives, and with
// it the devices, until what is given is closed.
func plug() (far int, err error) {
	if err := newNet(); err != nil {
		return -1, err
	}
	if far, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	if err := newNet(); err != nil {
		return -1, errors.Join(err, unix.Close(far))
	}
	if err := devices(far); err != nil {
		return -1, errors.Join(err, unix.Close(far))
	}
	return far, nil
}

// newNet gives the thread a namespace in which nothing is sent but by the test: IPv6 would look for its neighbours and routers.
func newNet() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644)
	if errors.Is(err, os.ErrNotExist) { // a kernel without it
		return nil
	}
	return err
}

// devices makes those of plug, from this namespace to the far one.
func devices(far int) error {
	there, err := netlink.NewHandleAt(netns.NsHandle(far))
	if err != nil {
		return err
	}
	defer there.Close()
	for name, net3 := range map[string]string{"wire0": "192.0.2.", "inside0": "10.99.0."} {
		own, err := netlink.ParseAddr(net3 + "1/24")
		if err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(far)}); err != nil {
			return err
		}
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		// Somebody else's address, so that a packet is sent without being asked for.
		neighbour := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(net3 + "2"), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
		end, err := there.LinkByName(name)
		if err != nil {
			return err
		}
		if err := errors.Join(there.LinkSetUp(end), netlink.LinkSetUp(l), netlink.AddrAdd(l, own), netlink.NeighAdd(neighbour)); err != nil {
			return err
		}
		for until := time.Now().Add(5 * time.Second); l.Attrs().OperState != netlink.OperUp; { // before that packets are thrown away
			if l, err = netlink.LinkByName(name); err != nil || time.Now().After(until) {
				return errors.Join(err, errors.New("the device does not come up"))
			}
		}
	}
	return nil
}

// send puts datagrams on the device that leads to the address.
func send(t *testing.T, to string, text string, times int) {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range times {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
}

func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// What came before the end of a watch is looked at, and what found no room is counted: a wire of which a part was not seen
// is never clean.
func TestNothingThatCrossedTheWireIsPassedOver(t *testing.T) {
	const packets = 400
	for name, room := range map[string]int{"with room": 16 << 20, "without": 1} {
		alone(t, func() {
			fd, err := open()
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room); err != nil {
				t.Error(err)
			}
			send(t, "192.0.2.2:5557", "needle", packets)
			w := watcher([]byte("needle"))
			if err := w.read(over(), fd, "inside0", make([]byte, largest)); err != nil {
				t.Error(err)
			}
			w.tunnel, w.crossed = 1, 1
			r, seen := w.Report(), 0
			for _, f := range r.Flows {
				if f.To == netip.MustParseAddrPort("192.0.2.2:5557") && f.Marked {
					seen = f.Packets
				}
			}
			if name == "with room" && (seen != packets || r.Lost != 0) {
				t.Errorf("%s: %d of %d packets were looked at, %d are said to be lost", name, seen, packets, r.Lost)
			}
			if name == "without" && (seen == packets || seen+r.Lost < packets || r.Verdict == Clean) {
				t.Errorf("%s: %d of %d packets were looked at, %d are said to be lost: %s", name, seen, packets, r.Lost, r.Verdict)
			}
		})
	}
}

// capture lets f judge a watcher that looked at 3 packets with a buffer of so many bytes.
func capture(t *testing.T, to, text string, buffer int, f func(w *Watcher)) {
	t.Helper()
	alone(t, func() {
		fd, err := open()
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		send(t, to, text, 3)
		w := watcher([]byte("needle"))
		if err := w.read(over(), fd, "inside0", make([]byte, buffer)); err != nil {
			t.Error(err)
		}
		f(w)
	})
}

// The overlay's own device is inside: what crosses it is not in clear, and shows whether the prompt was sent at all.
func TestWhatCrossesTheOverlaysDeviceIsInside(t *testing.T) {
	capture(t, "10.99.0.2:5557", "needle", largest, func(w *Watcher) {
		if r := w.Report(); r.Crossed != 3 || len(r.Flows) != 0 || r.Verdict != Inconclusive {
			t.Errorf("%+v", r)
		}
	})
}

// Of a packet that does not fit the buffer only a part is looked at: the rest counts as lost.
func TestAPacketThatWasNotSeenWholeIsLost(t *testing.T) {
	capture(t, "192.0.2.2:5557", strings.Repeat("long ", 100)+"needle", 64, func(w *Watcher) {
		w.tunnel, w.crossed = 1, 1
		if r := w.Report(); r.Lost != 3 || r.Verdict == Clean {
			t.Errorf("%+v", r)
		}
	})
}
