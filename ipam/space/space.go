package space

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sort"
	"time"

	"weft/ipam/ring"
)

// Why an address cannot be taken.
var (
	ErrOutside  = errors.New("not in this node's blocks")
	ErrTaken    = errors.New("in use")
	ErrReserved = errors.New("the first and the last address of a pool are not given to anybody")
)

// Space is the set of addresses that a node owns, and which of them are taken. It is not safe for concurrent use.
type Space struct {
	coolFor  time.Duration
	pools    []ring.Pool
	reserved []uint32 // first and last address of each pool
	blocks   []span   // own, ascending, disjoint
	prefixes []netip.Prefix
	taken    []uint32 // in use or resting, ascending; some may be outside the blocks
	resting  []rest   // in the order of release, which is that of their ends
}

type span struct{ first, last uint32 }

func (s span) size() int { return int(s.last-s.first) + 1 }

type rest struct {
	addr  uint32
	until time.Time
}

// New makes a space without blocks in IPv4 pools. Released addresses rest for coolFor.
func New(pools []ring.Pool, coolFor time.Duration) *Space {
	s := &Space{coolFor: coolFor, pools: pools}
	for _, p := range pools {
		if span := spanOf(p.Prefix); span.size() > 2 {
			s.reserved = append(s.reserved, span.first, span.last)
		}
	}
	return s
}

// SetBlocks says what the node owns: disjoint IPv4 prefixes. Taken addresses stay taken, also where they are outside
// the blocks now.
func (s *Space) SetBlocks(blocks []netip.Prefix) {
	s.prefixes = slices.SortedFunc(slices.Values(blocks), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	s.blocks = s.blocks[:0]
	for _, p := range s.prefixes {
		s.blocks = append(s.blocks, spanOf(p))
	}
}

// Owns reports whether addr is in the node's blocks.
func (s *Space) Owns(addr netip.Addr) bool {
	return addr.Is4() && slices.ContainsFunc(s.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Lowest is the lowest address that may be taken.
func (s *Space) Lowest() (netip.Addr, bool) {
	for _, b := range s.blocks {
		if slices.Contains(s.reserved, b.first) {
			b.first++
		}
		if slices.Contains(s.reserved, b.last) {
			b.last--
		}
		if b.last < b.first {
			continue
		}
		// Taken addresses from here on are first, first+1, ... up to the gap that is looked for.
		run := s.taken[s.index(b.first):]
		n := sort.Search(len(run), func(i int) bool { return run[i] != b.first+uint32(i) })
		if n < b.size() {
			return addrOf(b.first + uint32(n)), true
		}
	}
	return netip.Addr{}, false
}

// Check says whether addr may be taken by name: nil, or an error that wraps one of the above.
func (s *Space) Check(addr netip.Addr) error {
	if !s.Owns(addr) {
		return ErrOutside
	}
	a := number(addr)
	if slices.Contains(s.reserved, a) {
		return ErrReserved
	}
	if s.has(a) && !s.rests(a) {
		return ErrTaken
	}
	return nil
}

// Take marks an IPv4 address as in use and ends its rest. It may lie anywhere: an address that is in use stays in use
// when its block goes.
func (s *Space) Take(addr netip.Addr) {
	a := number(addr)
	if i := s.index(a); i == len(s.taken) || s.taken[i] != a {
		s.taken = slices.Insert(s.taken, i, a)
	}
	s.resting = slices.DeleteFunc(s.resting, func(r rest) bool { return r.addr == a })
}

// Release lets an address that is in use rest from now on.
func (s *Space) Release(addr netip.Addr, now time.Time) {
	if a := number(addr); s.has(a) && !s.rests(a) {
		s.resting = append(s.resting, rest{a, now.Add(s.coolFor)})
	}
}

// Drop makes an address free at once: for one that nobody ever used.
func (s *Space) Drop(addr netip.Addr) {
	a := number(addr)
	if i := s.index(a); i < len(s.taken) && s.taken[i] == a {
		s.taken = slices.Delete(s.taken, i, i+1)
	}
	s.resting = slices.DeleteFunc(s.resting, func(r rest) bool { return r.addr == a })
}

// Wake frees the addresses that have rested by now, and lists them.
func (s *Space) Wake(now time.Time) []netip.Addr {
	var woken []netip.Addr
	for len(s.resting) > 0 && !s.resting[0].until.After(now) {
		addr := addrOf(s.resting[0].addr)
		woken = append(woken, addr)
		s.Drop(addr)
	}
	return woken
}

// NextWake is when the next address has rested; false when none does.
func (s *Space) NextWake() (time.Time, bool) {
	if len(s.resting) == 0 {
		return time.Time{}, false
	}
	return s.resting[0].until, true
}

// Count is how many addresses of the blocks are in use, and how many are free or resting.
func (s *Space) Count() (used, free int) {
	for _, b := range s.blocks {
		used += s.index64(uint64(b.last)+1) - s.index(b.first)
		free += b.size()
		for _, r := range s.reserved {
			if b.first <= r && r <= b.last {
				free--
			}
		}
	}
	for _, r := range s.resting {
		if s.Owns(addrOf(r.addr)) {
			used--
		}
	}
	return used, free - used
}

// Spare is the block to lend: the upper half of the block with the largest free upper half, so that both keep one
// aligned block; at the end a whole atom. Nothing in it is in use or rests, and at least keep other addresses of the
// node's stay free.
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
		for _, pool := range s.pools {
			if pool.Prefix.Overlaps(p) {
				atomBits = pool.AtomBits
			}
		}
		search(p)
	}
	if !best.IsValid() {
		return best, false
	}
	if _, free := s.Count(); free-spanOf(best).size() < keep {
		return netip.Prefix{}, false
	}
	return best, true
}

// unused reports whether no address of p is in use or rests.
func (s *Space) unused(p netip.Prefix) bool {
	span := spanOf(p)
	return s.index(span.first) == s.index64(uint64(span.last)+1)
}

func (s *Space) has(a uint32) bool {
	_, ok := slices.BinarySearch(s.taken, a)
	return ok
}

func (s *Space) rests(a uint32) bool {
	return slices.ContainsFunc(s.resting, func(r rest) bool { return r.addr == a })
}

// index counts the taken addresses below a.
func (s *Space) index(a uint32) int {
	i, _ := slices.BinarySearch(s.taken, a)
	return i
}

// index64 is index for a that may be one more than the highest address.
func (s *Space) index64(a uint64) int {
	if a > 0xffffffff {
		return len(s.taken)
	}
	return s.index(uint32(a))
}

// halve cuts a prefix in two.
func halve(p netip.Prefix) (lower, upper netip.Prefix) {
	lower = netip.PrefixFrom(p.Addr(), p.Bits()+1)
	return lower, netip.PrefixFrom(addrOf(number(p.Addr())|1<<(31-p.Bits())), p.Bits()+1)
}

func spanOf(p netip.Prefix) span {
	first := number(p.Masked().Addr())
	return span{first, first | uint32(1<<(32-p.Bits())-1)}
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addrOf(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
