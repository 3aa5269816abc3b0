package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// Up reports whether the device is there, one of WireGuard's, up, and holds the plan's addresses.
func Up(p *isolate.Plan) error {
	l, err := netlink.LinkByName(p.Device)
	if err != nil {
		return fmt.Errorf("the overlay's device %q is not there", p.Device)
	}
	if l.Type() != kernelType && !userspace(l) {
		return fmt.Errorf("the overlay's device %q is of type %q, and not WireGuard's: somebody put it in its place; delete it", p.Device, l.Type())
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("the overlay's device %q is down", p.Device)
	}
	have, err := addresses(l)
	if err != nil {
		return err
	}
	for _, a := range p.Addresses {
		if !have[a] {
			return fmt.Errorf("the overlay's address %s is not on device %q", a, p.Device)
		}
	}
	return nil
}

// kernelType is rtnetlink's word for a device of the kernel's WireGuard.
const kernelType = "wireguard"

func userspace(l netlink.Link) bool { return l.Type() == "tuntap" || l.Type() == "tun" }

// Userspace reports whether a process carries the device's packets, and not the kernel. A device that is not there is
// nobody's.
func Userspace(device string) bool {
	l, err := netlink.LinkByName(device)
	return err == nil && userspace(l)
}

// Peers says how the device differs from the plan: a key that is not the node's or not of the fleet, a peer that may send
// as more than itself, and one that packets are sent to elsewhere. A peer's port is not compared: what translates
// addresses on the way changes it, and WireGuard learns that. Its address is, because the rules let it in from no other.
func Peers(p *isolate.Plan, keys Keys) error {
	d, err := read(p.Device)
	if err != nil {
		return err
	}
	key, err := fleet.ReadNodeKey(keys.Node)
	if err != nil {
		return err
	}
	if d.PublicKey.String() != key.Public() {
		return fmt.Errorf("device %q has the key %s, and this node's is %s: the other nodes do not hear it", p.Device, d.PublicKey, key.Public())
	}
	if d.ListenPort != int(p.Port) {
		return fmt.Errorf("device %q listens on UDP port %d, and the other nodes send to %d", p.Device, d.ListenPort, p.Port)
	}
	want := map[string]isolate.Peer{}
	for _, peer := range p.Peers {
		want[peer.PublicKey] = peer
	}
	for _, peer := range d.Peers {
		planned, ours := want[peer.PublicKey.String()]
		if !ours {
			return fmt.Errorf("device %q has a peer %s that is not of the plan", p.Device, peer.PublicKey)
		}
		delete(want, planned.PublicKey)
		if err := same(p.Device, peer, planned, keys); err != nil {
			return err
		}
	}
	for key := range want {
		return fmt.Errorf("device %q lacks the peer %s", p.Device, key)
	}
	return nil
}

// same says how a peer of the device differs from the planned one.
func same(device string, have wgtypes.Peer, want isolate.Peer, keys Keys) error {
	for _, n := range have.AllowedIPs {
		if !slices.Contains(want.Allowed, ipnet.Prefix(&n)) {
			return fmt.Errorf("on device %q the peer %s may send as %s, which is not its own", device, have.PublicKey, n.String())
		}
	}
	if len(have.AllowedIPs) != len(want.Allowed) {
		return fmt.Errorf("on device %q the peer %s may not send as all of %v", device, have.PublicKey, want.Allowed)
	}
	at := netip.AddrPort{}
	if have.Endpoint != nil {
		at = netip.AddrPortFrom(have.Endpoint.AddrPort().Addr().Unmap(), uint16(have.Endpoint.Port))
	}
	if at.Addr() != want.Endpoint.Addr().Unmap() {
		return fmt.Errorf("packets for node %q leave for %s, and the manifest has it at %s", want.Name, at, want.Endpoint)
	}
	planned, err := peerConfig(want, keys)
	if err != nil {
		return err
	}
	if have.PresharedKey != *planned.PresharedKey {
		return fmt.Errorf("device %q has another pre-shared key for node %q than this node was given", device, want.Name)
	}
	return nil
}

// Routed says for which peer the kernel would take another way than the overlay's device; nil when for none. It asks the
// kernel and does not read routes: a rule of policy routing, or a route of another table, is decided on there.
func Routed(p *isolate.Plan) error {
	l, err := netlink.LinkByName(p.Device)
	if err != nil {
		return fmt.Errorf("the overlay's device %q is not there", p.Device)
	}
	for _, r := range p.Routes {
		if r.Device != p.Device {
			continue
		}
		ways, err := netlink.RouteGet(r.To.Addr().AsSlice())
		switch {
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EINVAL):
			return fmt.Errorf("the route of %s by device %q is missing: what is sent there is refused", r.To.Addr(), p.Device)
		case err != nil:
			return fmt.Errorf("asking for the route to %s: %w", r.To.Addr(), err)
		case len(ways) == 0 || ways[0].LinkIndex != l.Attrs().Index:
			return fmt.Errorf("packets for %s would leave by %s, and not by the overlay's device %q: the rules drop them; remove that route, or the rule (ip rule) that leads there", r.To.Addr(), wayOf(ways), p.Device)
		}
	}
	return nil
}

// wayOf is the name of the device that a packet would take.
func wayOf(ways []netlink.Route) string {
	if len(ways) > 0 {
		if l, err := netlink.LinkByIndex(ways[0].LinkIndex); err == nil {
			return fmt.Sprintf("%q", l.Attrs().Name)
		}
	}
	return "no device"
}

// read is what WireGuard says of a device.
func read(name string) (*wgtypes.Device, error) {
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("opening WireGuard's control: %w", err)
	}
	defer func() { _ = client.Close() }()
	d, err := client.Device(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the overlay's device %q is not there, or nothing of WireGuard's carries it", name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading device %q: %w", name, err)
	}
	return d, nil
}
