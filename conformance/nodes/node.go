package nodes

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

func (n *Node) state() string  { return filepath.Join(n.Dir, "state") }
func (n *Node) config() string { return filepath.Join(n.Dir, "vallum.yaml") }

// Command is `vallum isolate args…` with the node's state folder and configuration, not started.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{"isolate", args[0], "--state", n.state()}
	outsider := slices.Contains(args, "--as-outsider")
	switch args[0] {
	case "plan", "up", "env", "exec", "verify", "unit":
		if !outsider {
			all = append(all, "--config", n.config())
		}
	}
	c := exec.CommandContext(ctx, n.vallum, append(all, args[1:]...)...)
	c.Env = append(os.Environ(), "SSH_CONNECTION=")
	return c
}

// Vallum runs `vallum isolate args…` on the node to its end.
func (n *Node) Vallum(ctx context.Context, args ...string) (Result, error) {
	return n.Finish(n.Command(ctx, args...))
}

// Up applies the manifest that was signed last, and confirms it.
func (n *Node) Up(ctx context.Context) error {
	c := n.Command(ctx, "up", "--accept-cut")
	errs, err := c.StderrPipe()
	if err != nil {
		return err
	}
	if err := n.Start(c); err != nil {
		return err
	}
	var said strings.Builder
	lines := bufio.NewReader(errs)
	for {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			break // it has ended: it repaired what was confirmed before, or failed
		}
		if !strings.Contains(line, "applied; confirm") {
			continue
		}
		if _, err := n.Vallum(ctx, "confirm"); err != nil {
			return err
		}
		_, err = io.Copy(&said, lines)
		if err != nil {
			return err
		}
		break
	}
	if err := c.Wait(); err != nil {
		return fmt.Errorf("isolate up on %s: %w\n%s", n.Name, err, said.String())
	}
	return nil
}

// Dial opens a connection from the node. Its address has to be a number, not a name.
func (n *Node) Dial(network string, to netip.AddrPort, wait time.Duration) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = net.DialTimeout(network, to.String(), wait)
		return err
	})
	return c, err
}

// Listen listens on the node for TCP.
func (n *Node) Listen(at netip.AddrPort) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	return l, err
}

// Client is an HTTP client that speaks from the node, keeps no connection and gives up after the time.
func (n *Node) Client(wait time.Duration) *http.Client {
	return &http.Client{Timeout: wait, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, to string) (net.Conn, error) {
			a, err := netip.ParseAddrPort(to)
			if err != nil {
				return nil, err
			}
			return n.Dial(network, a, wait)
		},
	}}
}

// Open returns which of the addresses let the node in by TCP, each tried for the time, all side by side.
func (n *Node) Open(addrs []netip.AddrPort, wait time.Duration) []netip.AddrPort {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var open []netip.AddrPort
	for _, a := range addrs {
		wg.Go(func() {
			c, err := n.Dial("tcp", a, wait)
			if err != nil {
				return
			}
			_ = c.Close()
			mu.Lock()
			defer mu.Unlock()
			open = append(open, a)
		})
	}
	wg.Wait()
	slices.SortFunc(open, netip.AddrPort.Compare)
	return open
}

// Listeners are the TCP addresses on which something on the node listens, loopback left out.
func (n *Node) Listeners() ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, name := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", n.init.Process.Pid, name))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "0A" { // TCP_LISTEN of include/net/tcp_states.h
				continue
			}
			a, err := kernelAddr(f[1])
			if err != nil {
				return nil, err
			}
			if !a.Addr().IsLoopback() {
				all = append(all, a)
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all), nil
}

// kernelAddr reads ADDRESS:PORT as /proc/net/tcp prints it: words of 32 bits in the machine's order.
func kernelAddr(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if err := errors.Join(err, err2); err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address of /proc/net/tcp: %w", s, err)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// RouteBy sends an address by the Ethernet, past the overlay: what a routing daemon does by mistake, and an outsider on
// purpose.
func (n *Node) RouteBy(to netip.Addr) error {
	return n.Do(func() error {
		r, err := byEthernet(to)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(r)
	})
}

func byEthernet(to netip.Addr) (*netlink.Route, error) {
	eth, err := netlink.LinkByName(Ethernet)
	if err != nil {
		return nil, err
	}
	dst := &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}
	return &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst}, nil
}

// TakeAddress gives the node an address of another machine on the same Ethernet. Its own is dropped, or the kernel would
// go on to send from it.
func (n *Node) TakeAddress(of netip.Addr) error {
	return n.Do(func() error {
		eth, err := netlink.LinkByName(Ethernet)
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(eth, address(n.Under)); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return err
		}
		return netlink.AddrAdd(eth, address(of))
	})
}

// SetEthernet connects the node with the switch, or pulls its plug.
func (n *Node) SetEthernet(up bool) error {
	return n.Do(func() error {
		eth, err := netlink.LinkByName(Ethernet)
		if err != nil {
			return err
		}
		if !up {
			return netlink.LinkSetDown(eth)
		}
		if err := netlink.LinkSetUp(eth); err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway.AsSlice()})
	})
}

// Process is a process of the node. PID is its number outside the node.
type Process struct {
	PID  int
	Name string // as the kernel keeps it: 15 bytes
	Args []string
}

// Processes are the node's processes, the first one left out.
func (n *Node) Processes() ([]Process, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.init.Process.Pid))
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == n.init.Process.Pid {
			continue
		}
		if space, err := os.Readlink(dir + "/ns/pid"); err != nil || space != own {
			continue // another machine's, or gone
		}
		name, _ := os.ReadFile(dir + "/comm")
		args, _ := os.ReadFile(dir + "/cmdline")
		all = append(all, Process{pid, strings.TrimSpace(string(name)), strings.Split(strings.TrimRight(string(args), "\x00"), "\x00")})
	}
	return all, nil
}

// KillTunnel kills wireguard-go; with its supervisor nobody starts it again but `isolate up`.
func (n *Node) KillTunnel(supervisor bool) error {
	all, err := n.Processes()
	if err != nil {
		return err
	}
	killed := 0
	for _, child := range []bool{false, true} { // the supervisor first, or it starts another
		for _, p := range all {
			isTunnel := len(p.Args) > 2 && p.Args[1] == "isolate" && p.Args[2] == "tunnel"
			if !isTunnel || slices.Contains(p.Args, "--child") != child || !child && !supervisor {
				continue
			}
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
			killed++
		}
	}
	if killed == 0 {
		return fmt.Errorf("no tunnel runs on %s", n.Name)
	}
	return nil
}
