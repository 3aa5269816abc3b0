package nft

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
)

// encode is the rule in the kernel's expressions, in the order of isolate.Rule.Text.
func encode(r isolate.Rule) []expr.Any {
	var e []expr.Any
	if r.InDevice != "" {
		e = append(e, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, compare(expr.CmpOpEq, deviceName(r.InDevice)))
	}
	for _, d := range r.NotIn {
		e = append(e, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, compare(expr.CmpOpNeq, deviceName(d)))
	}
	for _, d := range r.NotOut {
		e = append(e, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, compare(expr.CmpOpNeq, deviceName(d)))
	}
	e = append(e, address(r.From, 12, 8)...)
	e = append(e, address(r.To, 16, 24)...)
	if r.HopLimit != 0 {
		e = append(e, ipVersion(unix.NFPROTO_IPV6)...)
		e = append(e, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 7, Len: 1}, compare(expr.CmpOpEq, []byte{r.HopLimit}))
	}
	e = append(e, transport(r)...)
	if r.Replies {
		states := expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
		e = append(
			e,
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(states), Xor: make([]byte, 4)},
			compare(expr.CmpOpNeq, make([]byte, 4)),
		)
	}
	kind := expr.VerdictDrop
	if r.Accept {
		kind = expr.VerdictAccept
	}
	return append(e, &expr.Counter{}, &expr.Verdict{Kind: kind})
}

func transport(r isolate.Rule) []expr.Any {
	if r.Protocol == "" {
		return nil
	}
	e := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(expr.CmpOpEq, []byte{protocols[r.Protocol]})}
	if r.ICMPType != 0 {
		e = append(e, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, compare(expr.CmpOpEq, []byte{r.ICMPType}))
	}
	if r.Port != 0 {
		e = append(e, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, compare(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, r.Port)))
	}
	return e
}

// address matches a network at its offset in the header of IPv4 or IPv6.
func address(p netip.Prefix, offset4, offset6 uint32) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	version, offset := byte(unix.NFPROTO_IPV4), offset4
	if p.Addr().Is6() {
		version, offset = unix.NFPROTO_IPV6, offset6
	}
	size := uint32(p.Addr().BitLen() / 8)
	e := append(ipVersion(version), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
	if !p.IsSingleIP() {
		e = append(e, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)})
	}
	return append(e, compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()))
}

func ipVersion(v byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, compare(expr.CmpOpEq, []byte{v})}
}

func compare(op expr.CmpOp, data []byte) *expr.Cmp {
	return &expr.Cmp{Op: op, Register: 1, Data: data}
}

// deviceName is a name as the kernel compares it: whole, so vallum0 does not match vallum01.
func deviceName(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}
