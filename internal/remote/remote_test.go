package remote

import (
	"net/netip"
	"testing"
)

func TestAddressesOfOneNetworkCountTogether(t *testing.T) {
	for _, pair := range [][2]string{
		{"2001:db8::1", "2001:db8::ffff:1"},
		{"192.0.2.1", "::ffff:192.0.2.1"},
		{"fe80::1%eth0", "fe80::2%eth1"},
	} {
		if a, b := Network(netip.MustParseAddr(pair[0])), Network(netip.MustParseAddr(pair[1])); a != b {
			t.Errorf("%v counts as %v and %v, want one", pair, a, b)
		}
	}
	if Network(netip.MustParseAddr("2001:db8::1")) == Network(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("two /64 count as one")
	}
	if Network(netip.Addr{}) != (netip.Prefix{}) {
		t.Error("no address is some network")
	}
}
