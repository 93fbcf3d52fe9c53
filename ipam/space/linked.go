package space

import "net/netip"

// LinkedBits is the prefix length of a linked IPv6 prefix: an IPv4 address fits behind it.
const LinkedBits = 96

// Linked is the IPv6 twin of an IPv4 address: the prefix followed by the address. It is the zero Addr when there is no
// prefix.
func Linked(prefix netip.Prefix, v4 netip.Addr) netip.Addr {
	if !prefix.IsValid() || !v4.Is4() {
		return netip.Addr{}
	}
	b, tail := prefix.Addr().As16(), v4.As4()
	copy(b[LinkedBits/8:], tail[:])
	return netip.AddrFrom16(b)
}

// LinkedBlock is the IPv6 twin of an IPv4 block, 96 bits longer.
func LinkedBlock(prefix, v4 netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(Linked(prefix, v4.Addr()), LinkedBits+v4.Bits())
}

// Unlinked is the IPv4 twin of an IPv6 address; false where it has none.
func Unlinked(prefix netip.Prefix, v6 netip.Addr) (netip.Addr, bool) {
	if !prefix.IsValid() || !prefix.Contains(v6) {
		return netip.Addr{}, false
	}
	b := v6.As16()
	return netip.AddrFrom4([4]byte(b[LinkedBits/8:])), true
}
