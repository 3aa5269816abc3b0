// Package ipnet turns the networks of package net, which the kernel's interfaces speak, into those of net/netip and back.
// It refuses to guess: what is no network becomes the zero Prefix.
package ipnet

import (
	"net"
	"net/netip"
)

// Prefix is the network, with its address as it stands; the zero Prefix for nil and for a mask with holes.
func Prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}
	}
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits)
}

// Of is the network of the prefix, which is valid.
func Of(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
