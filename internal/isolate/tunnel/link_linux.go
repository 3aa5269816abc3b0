package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/ipnet"
)

// link gives the device its MTU, addresses and routes, and takes away those that the plan does not have.
func link(p *isolate.Plan) error {
	l, err := netlink.LinkByName(p.Device)
	if err != nil {
		return fmt.Errorf("looking for device %q: %w", p.Device, err)
	}
	if err := netlink.LinkSetMTU(l, p.MTU); err != nil {
		return fmt.Errorf("setting the MTU of %q: %w", p.Device, err)
	}
	have, err := addresses(l)
	if err != nil {
		return err
	}
	for _, a := range p.Addresses {
		// A duplicate cannot be on a point-to-point device, and an address that is being probed cannot be listened on.
		if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("giving %q the address %s: %w", p.Device, a, err)
		}
		delete(have, a)
	}
	for a := range have {
		if a.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(l, &netlink.Addr{IPNet: ipnet.Of(netip.PrefixFrom(a, a.BitLen()))}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("taking the address %s from %q: %w", a, p.Device, err)
		}
	}
	err = netlink.LinkSetUp(l)
	if errors.Is(err, unix.EADDRINUSE) {
		return PortTaken(p.Port) // the kernel's WireGuard opens its socket when its device is set up
	}
	if err != nil {
		return fmt.Errorf("setting %q up: %w", p.Device, err)
	}
	return routes(p, l)
}

// PortTaken says that another program has the UDP port of this node's WireGuard.
func PortTaken(port uint16) error {
	return fmt.Errorf("UDP port %d, on which the manifest has this node's WireGuard, is taken by another program; end it, or give the node another port", port)
}

func routes(p *isolate.Plan, l netlink.Link) error {
	stays := map[netip.Prefix]bool{}
	for _, r := range p.Routes {
		if r.Device != p.Device {
			continue
		}
		stays[r.To] = true
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet.Of(r.To), Scope: netlink.SCOPE_LINK, Protocol: protocol}
		for _, a := range p.Addresses {
			if a.Is4() == r.To.Addr().Is4() {
				route.Src = a.AsSlice()
			}
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("routing %s by %q: %w", r.To, p.Device, err)
		}
	}
	ours, err := ourRoutes()
	if err != nil {
		return err
	}
	for _, r := range ours {
		if to := ipnet.Prefix(r.Dst); r.LinkIndex == l.Attrs().Index && r.Type == unix.RTN_UNICAST && !stays[to] {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("removing the route to %s: %w", to, err)
			}
		}
	}
	return nil
}

// Prohibit adds the routes that refuse: without the device nothing for the overlay takes another way. It comes before
// the device and goes after it.
func Prohibit(p *isolate.Plan) error {
	stays := map[netip.Prefix]bool{}
	for _, r := range p.Routes {
		if r.Type != "prohibit" {
			continue
		}
		stays[r.To] = true
		route := &netlink.Route{Dst: ipnet.Of(r.To), Type: unix.RTN_PROHIBIT, Priority: r.Metric, Protocol: prohibitProtocol}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("adding the prohibit route of %s: %w", r.To, err)
		}
	}
	return unprohibit(stays)
}

// Prohibited says which of the plan's prohibit routes is missing; nil when none is.
func Prohibited(p *isolate.Plan) error {
	ours, err := ourProhibits()
	if err != nil {
		return err
	}
	have := map[netip.Prefix]bool{}
	for _, r := range ours {
		have[ipnet.Prefix(r.Dst)] = true
	}
	for _, r := range p.Routes {
		if r.Type == "prohibit" && !have[r.To] {
			return fmt.Errorf("the prohibit route of %s is missing: a dead tunnel would send in clear", r.To)
		}
	}
	return nil
}

// Unprohibit removes every prohibit route of ours.
func Unprohibit() error { return unprohibit(nil) }

func unprohibit(stays map[netip.Prefix]bool) error {
	ours, err := ourProhibits()
	if err != nil {
		return err
	}
	for _, r := range ours {
		if stays[ipnet.Prefix(r.Dst)] {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing the prohibit route of %s: %w", r.Dst, err)
		}
	}
	return nil
}

// ourRoutes are the routes with our mark, by the device.
func ourRoutes() ([]netlink.Route, error) {
	return listRoutes(&netlink.Route{Protocol: protocol}, netlink.RT_FILTER_PROTOCOL)
}

// ourProhibits are the routes that refuse and have our metric.
func ourProhibits() ([]netlink.Route, error) {
	all, err := listRoutes(&netlink.Route{Type: unix.RTN_PROHIBIT}, netlink.RT_FILTER_TYPE)
	return slices.DeleteFunc(all, func(r netlink.Route) bool { return r.Priority != isolate.ProhibitMetric }), err
}

func listRoutes(like *netlink.Route, by uint64) ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RouteListFiltered(family, like, by)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		all = append(all, list...)
	}
	return all, nil
}

func addresses(l netlink.Link) (map[netip.Addr]bool, error) {
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of %q: %w", l.Attrs().Name, err)
	}
	have := map[netip.Addr]bool{}
	for _, a := range list {
		have[ipnet.Prefix(a.IPNet).Addr()] = true
	}
	return have, nil
}
