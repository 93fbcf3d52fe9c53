package space

import (
	"net/netip"
	"slices"
)

// Spare is the block to lend: the upper half of the block with the largest free upper half, so that both keep one
// aligned block, or a second block that is about as large; at the end a whole atom. Nothing in it is in use or rests, and at
// least keep other addresses of the node's stay free.
func (s *Space) Spare(keep int) (netip.Prefix, bool) {
	var best netip.Prefix
	var atomBits int
	var search func(p netip.Prefix)
	search = func(p netip.Prefix) {
		bits := min(p.Bits()+1, atomBits)
		if best.IsValid() && bits >= best.Bits() || p.Bits() > atomBits {
			return // nothing in p is larger
		}
		if p.Bits() == atomBits {
			if s.unused(p) {
				best = p
			}
			return
		}
		lower, upper := halve(p)
		if s.unused(upper) {
			best = upper
			return
		}
		search(upper)
		search(lower)
	}
	// The highest first: pods are taken lowest first.
	for _, p := range slices.Backward(s.prefixes) {
		atomBits = s.atomBits(p)
		search(p)
	}
	if !best.IsValid() {
		return best, false
	}
	best = s.whole(best)
	// In a small pool half of it may be too much, and a quarter not.
	for s.freeWithout(best) < keep {
		if best.Bits() == s.atomBits(best) {
			return netip.Prefix{}, false
		}
		_, best = halve(best)
	}
	return best, true
}

// freeWithout is how many addresses stay free when p goes.
func (s *Space) freeWithout(p netip.Prefix) int {
	var rest []span
	gone := spanOf(p)
	for _, b := range slices.Concat(s.blocks, s.reserve) {
		if !b.meets(gone) {
			rest = append(rest, b)
			continue
		}
		if b.first.less(gone.first) {
			rest = append(rest, span{b.first, gone.first.minusOne()})
		}
		if gone.last.less(b.last) {
			rest = append(rest, span{gone.last.plus(1), b.last})
		}
	}
	_, free := s.count(rest)
	return free
}

// atomBits is the prefix length of an atom of the pool around p.
func (s *Space) atomBits(p netip.Prefix) (bits int) {
	for _, pool := range s.pools {
		if pool.Prefix.Overlaps(p) {
			bits = pool.AtomBits
		}
	}
	return bits
}

// whole is a block of the node's that is nearly as large as half and all free, in place of half of another: whoever got a
// second block, from a removed member say, has one again and so has the other. Where there is none it is half itself.
func (s *Space) whole(half netip.Prefix) netip.Prefix {
	best := half
	for _, p := range s.prefixes {
		if !p.Overlaps(half) && p.Bits() <= half.Bits()+1 && (best == half || p.Bits() < best.Bits()) && s.unused(p) {
			best = p
		}
	}
	return best
}

// unused reports whether no address of p is in use or rests, and no part of it is late and not open yet.
func (s *Space) unused(p netip.Prefix) bool {
	span := spanOf(p)
	for _, c := range s.closed {
		if c.meets(span) {
			return false
		}
	}
	return s.index(span.first) == s.after(span.last)
}
