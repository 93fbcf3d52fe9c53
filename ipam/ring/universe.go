package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/mesh/peer"
)

// Limits of the implementation.
const (
	MaxPools     = 16
	MaxPoolAtoms = 1 << maxPoolBits // of one pool

	maxPoolBits = 16
)

// Pool is one range of addresses and the size of its atoms, given as a prefix length.
type Pool struct {
	Prefix   netip.Prefix
	AtomBits int // 26 cuts a pool into blocks of 64 IPv4 addresses
}

// Universe is what the members of one cluster agree on by definition, because the cluster's ID covers it: which atoms
// there are, and that the founder owns all of them at first. It never changes.
type Universe struct {
	cluster [32]byte
	founder peer.ID
	pools   []Pool
	first   []int // index of each pool's first atom
	atoms   int
}

// NewUniverse cuts the pools of a cluster into atoms.
func NewUniverse(cluster [32]byte, founder peer.ID, pools []Pool) (*Universe, error) {
	if founder.IsZero() {
		return nil, errors.New("a cluster needs a founder")
	}
	if len(pools) == 0 || len(pools) > MaxPools {
		return nil, fmt.Errorf("%d pools, want 1 to %d", len(pools), MaxPools)
	}
	u := &Universe{cluster: cluster, founder: founder, pools: slices.Clone(pools)}
	for i, p := range u.pools {
		if !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || p.Prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("pool %s: not a prefix with its host bits zero", p.Prefix)
		}
		if p.AtomBits < p.Prefix.Bits() || p.AtomBits > p.Prefix.Addr().BitLen() {
			return nil, fmt.Errorf("pool %s: atoms of /%d do not fit", p.Prefix, p.AtomBits)
		}
		for _, q := range u.pools[:i] {
			if q.Prefix.Overlaps(p.Prefix) {
				return nil, fmt.Errorf("pools %s and %s overlap", q.Prefix, p.Prefix)
			}
		}
		if p.AtomBits-p.Prefix.Bits() > maxPoolBits {
			return nil, fmt.Errorf("pool %s: more than %d atoms of /%d", p.Prefix, MaxPoolAtoms, p.AtomBits)
		}
		u.first = append(u.first, u.atoms)
		u.atoms += 1 << (p.AtomBits - p.Prefix.Bits())
	}
	return u, nil
}

// Cluster is the ID that signatures are bound to.
func (u *Universe) Cluster() [32]byte { return u.cluster }

// Founder owns every atom that nobody granted.
func (u *Universe) Founder() peer.ID { return u.founder }

// Pools lists the ranges in the order of the cluster's definition. The caller does not change them.
func (u *Universe) Pools() []Pool { return u.pools }

// Atoms counts the atoms of all pools; they are numbered from 0.
func (u *Universe) Atoms() int { return u.atoms }

// Pool finds the pool that holds addr.
func (u *Universe) Pool(addr netip.Addr) (Pool, bool) {
	for _, p := range u.pools {
		if p.Prefix.Contains(addr) {
			return p, true
		}
	}
	return Pool{}, false
}

// Block is the aligned range of n atoms that starts at atom i. n is a power of two and divides i's offset in its pool.
func (u *Universe) Block(i, n int) netip.Prefix {
	k := len(u.first) - 1
	for u.first[k] > i {
		k--
	}
	p := u.pools[k]
	bits := p.AtomBits
	for ; n > 1; n >>= 1 {
		bits--
	}
	return netip.PrefixFrom(addOffset(p.Prefix.Addr(), p.AtomBits, uint64(i-u.first[k])), bits)
}

// Range lists the atoms of an aligned block as [from, to). It is false for what is no block: outside the pools, smaller
// than an atom, or with host bits.
func (u *Universe) Range(block netip.Prefix) (from, to int, ok bool) {
	if !block.IsValid() || block != block.Masked() {
		return 0, 0, false
	}
	for k, p := range u.pools {
		if block.Addr().BitLen() != p.Prefix.Addr().BitLen() || !p.Prefix.Contains(block.Addr()) ||
			block.Bits() < p.Prefix.Bits() || block.Bits() > p.AtomBits {
			continue
		}
		from = u.first[k] + int(offset(p.Prefix.Addr(), block.Addr(), p.AtomBits))
		return from, from + 1<<(p.AtomBits-block.Bits()), true
	}
	return 0, 0, false
}

// atomOf finds the atom that holds addr.
func (u *Universe) atomOf(addr netip.Addr) (int, bool) {
	p, ok := u.Pool(addr)
	if !ok {
		return 0, false
	}
	atom, err := addr.Prefix(p.AtomBits)
	if err != nil {
		return 0, false
	}
	from, _, ok := u.Range(atom)
	return from, ok
}

// poolBounds is the pool of atom i as [start, end).
func (u *Universe) poolBounds(i int) (start, end int) {
	end = u.atoms
	for _, first := range slices.Backward(u.first) {
		if first <= i {
			return first, end
		}
		end = first
	}
	return 0, end
}

// offset counts the blocks of /bits between two addresses; their distance is known to fit.
func offset(base, addr netip.Addr, bits int) uint64 {
	if addr.Is4() {
		a, b := addr.As4(), base.As4()
		return uint64(binary.BigEndian.Uint32(a[:])-binary.BigEndian.Uint32(b[:])) >> (32 - bits)
	}
	ahi, alo := halves(addr)
	bhi, blo := halves(base)
	lo := alo - blo
	hi := ahi - bhi
	if alo < blo {
		hi--
	}
	if bits <= 64 {
		return hi >> (64 - bits)
	}
	return hi<<(bits-64) | lo>>(128-bits)
}

// addOffset is the inverse of offset.
func addOffset(base netip.Addr, bits int, n uint64) netip.Addr {
	if base.Is4() {
		b := base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n<<(32-bits)))
		return netip.AddrFrom4(b)
	}
	hi, lo := halves(base)
	var addHi, addLo uint64
	if bits <= 64 {
		addHi = n << (64 - bits)
	} else {
		addHi, addLo = n>>(bits-64), n<<(128-bits)
	}
	sum := lo + addLo
	if sum < lo {
		hi++
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi+addHi)
	binary.BigEndian.PutUint64(b[8:], sum)
	return netip.AddrFrom16(b)
}

func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}
