// Package nodes makes a small network of machines out of Linux namespaces, members of a fleet and outsiders on one
// Ethernet, runs the real vallum and anything else inside them, and records what crosses the wire. It refuses to let
// anything that it made outlive the program, and to report on a wire of which it missed a packet.
package nodes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What every machine has. The addresses of the Ethernet are those of RFC 5737.
const (
	Ethernet   = "eth0"    // the device on the Ethernet
	Device     = "vallum0" // the overlay's device, once up has run
	TunnelPort = 51820
	MTU        = 1500 // of the Ethernet, when nothing else is said
	prefixBits = 24
)

// Overlay is the range of the members' overlay addresses.
var Overlay = netip.MustParsePrefix("10.99.0.0/24")

// gateway is where every machine's default route leads, so that what leaks has somewhere to go: the switch, which
// answers nothing.
var gateway = netip.MustParseAddr("192.0.2.254")

// Options of a Lab. The zero value is refused: Dir and Vallum have to be named.
type Options struct {
	Dir    string // everything that the machines write lies under it
	Vallum string // the binary that the members run
	MTU    int    // of the Ethernet in bytes; 0 is MTU
}

// Lab is machines on one switch, and the operator who signs for those that are members.
type Lab struct {
	Options
	sw     *machine
	nodes  []*Node
	public string // the fleet's public key
	serial int
}

// Node is a machine of the lab: a member of the fleet, or an outsider.
type Node struct {
	*machine
	Name   string
	Under  netip.Addr // on the Ethernet
	Over   netip.Addr // in the overlay; an outsider has none
	Dir    string     // logs; its state folder is Dir/state
	key    string     // WireGuard's public key
	vallum string
	cache  string // what vLLM found out about the model, which takes it 15 s: beside the lab, for the next one
}

// ErrNotRoot says that namespaces cannot be made.
var ErrNotRoot = errors.New("network namespaces need root")

// New makes the machines and gives the members a key, a configuration and a signed manifest. The overlay is not up:
// until Up the network is the one that vLLM has without Vallum. The caller closes the lab.
func New(ctx context.Context, o Options, members, outsiders []string) (l *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if o.Dir == "" || o.Vallum == "" {
		return nil, errors.New("a lab needs a folder and a vallum binary")
	}
	if o.MTU == 0 {
		o.MTU = MTU
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	l = &Lab{Options: o}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := l.makeMachines(members, outsiders); err != nil {
		return nil, err
	}
	if len(members) == 0 {
		return l, nil
	}
	if err := l.found(ctx); err != nil {
		return nil, fmt.Errorf("founding the fleet: %w", err)
	}
	return l, l.Sign(ctx, l.members()...)
}

func (l *Lab) makeMachines(members, outsiders []string) error {
	names := append(append([]string{}, members...), outsiders...)
	hosts := []byte("127.0.0.1 localhost\n")
	for i, name := range names {
		under := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		// Also as torch asks for it: an answer that does not come costs it 10 s a peer.
		hosts = fmt.Appendf(hosts, "%s %s\n::ffff:%s %s\n", under, name, under, name)
	}
	var err error
	if l.sw, err = newMachine(filepath.Join(l.Dir, "switch"), "switch", hosts, gateway); err != nil {
		return err
	}
	if err := l.sw.Do(l.makeSwitch); err != nil {
		return fmt.Errorf("making the switch: %w", err)
	}
	for i, name := range names {
		n := &Node{Name: name, Dir: filepath.Join(l.Dir, name), vallum: l.Vallum, cache: filepath.Join(filepath.Dir(l.Dir), "vllm-cache"), Under: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}
		if i < len(members) {
			n.Over = netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)})
		}
		if n.machine, err = newMachine(n.Dir, name, hosts, gateway); err != nil {
			return fmt.Errorf("making the machine %q: %w", name, err)
		}
		l.nodes = append(l.nodes, n)
		if err := l.plug(n); err != nil {
			return fmt.Errorf("connecting %q: %w", name, err)
		}
	}
	return nil
}

func (l *Lab) makeSwitch() error {
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sw", MTU: l.MTU}}); err != nil {
		return err
	}
	sw, err := netlink.LinkByName("sw")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(sw, address(gateway)), netlink.LinkSetUp(sw))
}

// plug connects a machine with the switch.
func (l *Lab) plug(n *Node) error {
	port := "to" + n.Name
	err := l.sw.Do(func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MTU: l.MTU}, PeerName: Ethernet, PeerMTU: uint32(l.MTU), PeerNamespace: netlink.NsFd(n.net.Fd())}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		sw, err := netlink.LinkByName("sw")
		if err != nil {
			return err
		}
		end, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(end, sw), netlink.LinkSetUp(end))
	})
	if err != nil {
		return err
	}
	return n.Do(func() error {
		eth, err := netlink.LinkByName(Ethernet)
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.AddrAdd(eth, address(n.Under)), netlink.LinkSetUp(eth)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway.AsSlice()})
	})
}

func address(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(prefixBits, 32)}, Flags: unix.IFA_F_NODAD}
}

// Node is the machine of that name, which has to be there.
func (l *Lab) Node(name string) *Node {
	for _, n := range l.nodes {
		if n.Name == name {
			return n
		}
	}
	panic("the lab has no machine " + name)
}

func (l *Lab) members() []string {
	var names []string
	for _, n := range l.nodes {
		if n.Over.IsValid() {
			names = append(names, n.Name)
		}
	}
	return names
}

// found makes the fleet's key, and the members' keys and configurations, with the commands that people use.
func (l *Lab) found(ctx context.Context) error {
	r, err := l.sw.Run(ctx, l.Vallum, "isolate", "init", "lab", "--dir", l.fleetDir())
	if err != nil {
		return err
	}
	l.public = strings.TrimSpace(r.Out)
	for _, n := range l.nodes {
		if !n.Over.IsValid() {
			continue
		}
		if err := os.MkdirAll(n.state(), 0o700); err != nil {
			return err
		}
		config := fmt.Sprintf("isolate: {fleet_key: %q, device: %s, allow: [{name: ssh, port: 22}]}\n", l.public, Device)
		if err := os.WriteFile(n.config(), []byte(config), 0o644); err != nil {
			return err
		}
		r, err := n.Vallum(ctx, "keygen")
		if err != nil {
			return err
		}
		n.key = strings.TrimSpace(r.Out)
	}
	return nil
}

func (l *Lab) fleetDir() string { return filepath.Join(l.Dir, "fleet") }

// Sign signs a manifest of the named members with the next serial and gives it to them.
func (l *Lab) Sign(ctx context.Context, names ...string) error {
	l.serial++
	var b bytes.Buffer
	fmt.Fprintf(&b, "format: 1\nfleet: lab\nserial: %d\nexpires: %s\noverlay: [%s]\napi_port: 8000\nnodes:\n",
		l.serial, time.Now().Add(time.Hour).UTC().Format(time.RFC3339), Overlay)
	for _, name := range names {
		n := l.Node(name)
		fmt.Fprintf(&b, "  - {name: %s, public_key: %q, endpoint: \"%s:%d\", addresses: [%s], roles: [vllm]}\n", name, n.key, n.Under, TunnelPort, n.Over)
	}
	if err := os.WriteFile(filepath.Join(l.fleetDir(), "fleet.yaml"), b.Bytes(), 0o644); err != nil {
		return err
	}
	if _, err := l.sw.Run(ctx, l.Vallum, "isolate", "sign", "--dir", l.fleetDir()); err != nil {
		return err
	}
	signed, err := os.ReadFile(filepath.Join(l.fleetDir(), "manifest.signed"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(l.Node(name).state(), "manifest.signed"), signed, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every process of every machine, and the machines.
func (l *Lab) Close() {
	for _, n := range l.nodes {
		if n.machine != nil {
			n.machine.end()
		}
	}
	if l.sw != nil {
		l.sw.end()
	}
}
