package ipnet

import (
	"net"
	"net/netip"
	"testing"
)

func TestNetworksKeepTheirAddressAndFamily(t *testing.T) {
	for _, want := range []string{"192.0.2.7/24", "0.0.0.0/0", "10.99.0.1/32", "2001:db8::7/64", "::/0", "::ffff:192.0.2.7/128"} {
		p := netip.MustParsePrefix(want)
		if got := Prefix(Of(p)); got != p {
			t.Errorf("%s became %s", want, got)
		}
	}
	// Package net writes IPv4 in 16 bytes as well.
	if got := Prefix(&net.IPNet{IP: net.IPv4(192, 0, 2, 7), Mask: net.CIDRMask(24, 32)}); got != netip.MustParsePrefix("192.0.2.7/24") {
		t.Errorf("an address of 16 bytes became %s", got)
	}
	for name, n := range map[string]*net.IPNet{
		"nothing":           nil,
		"the zero network":  {},
		"a mask with holes": {IP: net.IPv4(192, 0, 2, 7), Mask: net.IPv4Mask(255, 0, 255, 0)},
	} {
		if got := Prefix(n); got.IsValid() {
			t.Errorf("%s became %s", name, got)
		}
	}
}
