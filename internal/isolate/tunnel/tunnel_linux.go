package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// keepalive keeps the way through stateful firewalls open, and makes a dead peer show in the handshake's age.
const keepalive = 25 * time.Second

// protocol marks our routes (rtm_protocol), so that down removes those and no others. No routing daemon uses it.
const protocol netlink.RouteProtocol = 178

// prohibitProtocol is the kernel's own mark. When systemd-networkd starts, it removes the routes that have no device and
// that it has not made, unless they are the kernel's (networkd-route.c, systemd 252): without them a dead tunnel would
// send in clear but for the rules. Type and metric tell ours.
const prohibitProtocol netlink.RouteProtocol = unix.RTPROT_KERNEL

// Keys are where the secrets lie. They are read when they are needed and stand in no argument and no environment.
type Keys struct {
	Node      string // file of the node's key
	Preshared string // folder of NAME.key, one for each peer that has one
}

// Serve is wireguard-go: it makes the device, configures it and carries its packets until ctx ends or the device is
// deleted. ready is called when the overlay is up. The device ends with the process; its keys and addresses come back
// with the next one, and connections through it go on.
func Serve(ctx context.Context, p *isolate.Plan, keys Keys, ready func()) error {
	// Before the device: whoever finds that one may configure it, and must not reach another's by this socket.
	socket, err := ipc.UAPIOpen(p.Device)
	if err != nil {
		return fmt.Errorf("opening the control socket of %q: %w", p.Device, err)
	}
	t, err := tun.CreateTUN(p.Device, p.MTU)
	if err != nil {
		return errors.Join(fmt.Errorf("making device %q: %w", p.Device, err), socket.Close())
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, p.Device+" "))
	defer d.Close()
	control, err := ipc.UAPIListen(p.Device, socket)
	if err != nil {
		return fmt.Errorf("listening on the control socket of %q: %w", p.Device, err)
	}
	stopped := make(chan struct{})
	go func() {
		for {
			c, err := control.Accept()
			if err != nil {
				close(stopped)
				return
			}
			go d.IpcHandle(c)
		}
	}()
	defer func() {
		_ = control.Close()
		<-stopped
	}()
	if err := Configure(p, keys); err != nil {
		return err
	}
	ready()
	select {
	case <-ctx.Done():
		return nil
	case <-d.Wait():
		return errors.New("the device was deleted")
	}
}

// MakeKernel makes a device of the kernel's WireGuard, if it is not there yet. errors.Is(err, errors.ErrUnsupported)
// says that the kernel has none.
func MakeKernel(p *isolate.Plan) error {
	if l, err := netlink.LinkByName(p.Device); err == nil {
		if l.Type() != kernelType {
			return fmt.Errorf("device %q is there and of type %q; choose another name as isolate.device", p.Device, l.Type())
		}
		return nil
	}
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: p.Device, MTU: p.MTU}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("making device %q: %w", p.Device, errors.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("making device %q: %w", p.Device, err)
	}
	return nil
}

// Configure makes an existing device what the plan says: keys, peers, addresses and routes; what it has beyond that is
// removed. It can be repeated, and does not disturb peers that stay as they are.
func Configure(p *isolate.Plan, keys Keys) error {
	// wireguard-go is reached by a file, which may be another network namespace's device of the same name.
	if _, err := netlink.LinkByName(p.Device); err != nil {
		return fmt.Errorf("looking for device %q: %w", p.Device, err)
	}
	client, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("opening WireGuard's control: %w", err)
	}
	defer func() { _ = client.Close() }()
	now, err := client.Device(p.Device)
	if err != nil {
		return fmt.Errorf("reading device %q: %w", p.Device, err)
	}
	conf, err := config(p, keys, now)
	if err != nil {
		return err
	}
	err = client.ConfigureDevice(p.Device, conf)
	if errors.Is(err, unix.EADDRINUSE) {
		return PortTaken(p.Port)
	}
	if err != nil {
		return fmt.Errorf("configuring device %q: %w", p.Device, err)
	}
	return link(p)
}

func config(p *isolate.Plan, keys Keys, now *wgtypes.Device) (wgtypes.Config, error) {
	key, err := fleet.ReadNodeKey(keys.Node)
	if err != nil {
		return wgtypes.Config{}, err
	}
	private, err := wgtypes.NewKey(key.Bytes())
	if err != nil {
		return wgtypes.Config{}, err
	}
	port := int(p.Port)
	conf := wgtypes.Config{ListenPort: &port}
	if now.PrivateKey != private {
		conf.PrivateKey = &private // setting it again would end every session
	}
	stays := map[wgtypes.Key]bool{}
	for _, peer := range p.Peers {
		one, err := peerConfig(peer, keys)
		if err != nil {
			return wgtypes.Config{}, err
		}
		stays[one.PublicKey] = true
		conf.Peers = append(conf.Peers, one)
	}
	for _, peer := range now.Peers {
		if !stays[peer.PublicKey] {
			conf.Peers = append(conf.Peers, wgtypes.PeerConfig{PublicKey: peer.PublicKey, Remove: true})
		}
	}
	return conf, nil
}

func peerConfig(peer isolate.Peer, keys Keys) (wgtypes.PeerConfig, error) {
	public, err := wgtypes.ParseKey(peer.PublicKey)
	if err != nil {
		return wgtypes.PeerConfig{}, fmt.Errorf("key of peer %q: %w", peer.Name, err)
	}
	every := keepalive
	one := wgtypes.PeerConfig{
		PublicKey: public, Endpoint: net.UDPAddrFromAddrPort(peer.Endpoint), PersistentKeepaliveInterval: &every,
		ReplaceAllowedIPs: true, PresharedKey: &wgtypes.Key{},
	}
	for _, a := range peer.Allowed {
		one.AllowedIPs = append(one.AllowedIPs, *ipnet.Of(a))
	}
	if !peer.Preshared {
		return one, nil
	}
	line, err := fleet.ReadSecret(filepath.Join(keys.Preshared, peer.Name+".key"))
	if err != nil {
		return one, err
	}
	raw, err := fleet.ParsePreshared(line)
	if err != nil {
		return one, fmt.Errorf("the key shared with peer %q: %w", peer.Name, err)
	}
	*one.PresharedKey = wgtypes.Key(raw)
	return one, nil
}

// Remove deletes the device if it is there and WireGuard's.
func Remove(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for device %q: %w", name, err)
	}
	if l.Type() != kernelType && !userspace(l) {
		return fmt.Errorf("device %q is of type %q and not ours; it stays", name, l.Type())
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting device %q: %w", name, err)
	}
	return nil
}

// Free refuses a name that a device which is not ours has.
func Free(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for device %q: %w", name, err)
	}
	return fmt.Errorf("device %q (%s) is there and nothing says that it is ours; choose another name as isolate.device, or delete it", name, l.Type())
}

// Handshake is a peer of the running overlay.
type Handshake struct {
	Name     string
	Last     time.Time // zero: never
	Sent     int64     // bytes
	Received int64
}

// Handshakes are the plan's peers as the device sees them.
func Handshakes(p *isolate.Plan) ([]Handshake, error) {
	d, err := read(p.Device)
	if err != nil {
		return nil, err
	}
	var list []Handshake
	for _, peer := range p.Peers {
		one := Handshake{Name: peer.Name}
		for _, at := range d.Peers {
			if at.PublicKey.String() == peer.PublicKey {
				one.Last, one.Sent, one.Received = at.LastHandshakeTime, at.TransmitBytes, at.ReceiveBytes
			}
		}
		list = append(list, one)
	}
	return list, nil
}
