package space

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// number is an address of either family, to count with. Those of one space are of one family.
type number struct{ hi, lo uint64 }

// Many is the most that this package counts up to: a block of IPv6 has more addresses than an int holds, and nobody needs to
// know how many more. It is the largest count that also JSON's readers know exactly.
const Many = 1 << 53

func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n number) addr(six bool) netip.Addr {
	if !six {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n number) compare(m number) int {
	return cmp.Or(cmp.Compare(n.hi, m.hi), cmp.Compare(n.lo, m.lo))
}

func (n number) less(m number) bool { return n.compare(m) < 0 }

// plus is n + d; beyond the last address it begins anew, as sums do.
func (n number) plus(d uint64) number {
	lo, carry := bits.Add64(n.lo, d, 0)
	return number{n.hi + carry, lo}
}

func (n number) minusOne() number {
	lo, borrow := bits.Sub64(n.lo, 1, 0)
	return number{n.hi - borrow, lo}
}

// span is a range of addresses, both ends included.
type span struct{ first, last number }

func spanOf(p netip.Prefix) span {
	first, host := numberOf(p.Masked().Addr()), p.Addr().BitLen()-p.Bits()
	last := first
	switch {
	case host > 64:
		last = number{first.hi | (1<<(host-64) - 1), ^uint64(0)}
	case host == 64:
		last.lo = ^uint64(0)
	default:
		last.lo |= 1<<host - 1
	}
	return span{first, last}
}

// size is how many addresses there are, at most Many.
func (s span) size() int {
	lo, borrow := bits.Sub64(s.last.lo, s.first.lo, 0)
	if hi, _ := bits.Sub64(s.last.hi, s.first.hi, borrow); hi > 0 || lo >= Many {
		return Many
	}
	return int(lo) + 1
}

func (s span) holds(n number) bool { return !n.less(s.first) && !s.last.less(n) }

func (s span) meets(t span) bool { return !t.last.less(s.first) && !s.last.less(t.first) }

// Size is how many addresses a prefix has, at most Many.
func Size(p netip.Prefix) int { return spanOf(p).size() }

// halve cuts a prefix in two.
func halve(p netip.Prefix) (lower, upper netip.Prefix) {
	half := p.Addr().BitLen() - p.Bits() - 1 // bits behind those of a half
	n := numberOf(p.Addr())
	if half >= 64 {
		n.hi |= 1 << (half - 64)
	} else {
		n.lo |= 1 << half
	}
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(n.addr(p.Addr().Is6()), p.Bits()+1)
}
