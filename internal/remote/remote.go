// Package remote knows what counts as one address, where something is counted by address.
// It refuses to tell more of it: who that is, and what is counted, is for others.
package remote

import "net/netip"

// Network is what counts as one address: an IPv4 address, or the /64 that an IPv6 customer has to choose from. What
// has no address (a UNIX socket) is the zero Prefix.
func Network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero Prefix for the zero Addr
	return p
}
