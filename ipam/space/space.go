package space

import (
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
	ErrAnycast  = errors.New("the first address of an IPv6 network means all of its routers and is not given to anybody")
	ErrCools    = errors.New("in a block that was another node's until a moment ago")
)

// Space is the set of addresses that a node owns, and which of them are taken. It is not safe for concurrent use.
type Space struct {
	coolFor  time.Duration
	pools    []ring.Pool
	six      bool           // the pools are IPv6
	reserved []number       // first and last address of each pool
	prefixes []netip.Prefix // own, ascending, disjoint
	late     []Late         // as they were set; only what lies in prefixes counts
	opened   time.Time      // late blocks up to here may be used
	blocks   []span         // of prefixes without late, ascending
	reserve  []span         // of late, used when blocks are full
	closed   []span         // of late, not used yet
	taken    []number       // in use or resting, ascending; some may be outside the blocks
	resting  []rest         // in the order of their ends
}

type rest struct {
	addr  number
	until time.Time
}

// Late is a block whose former owner may not have noticed yet that it is not its own any more: it is neither used nor
// lent before From, and used only when all other blocks are full.
type Late struct {
	Block netip.Prefix
	From  time.Time
}

// New makes a space without blocks in pools of one family. Released addresses rest for coolFor.
func New(pools []ring.Pool, coolFor time.Duration) *Space {
	s := &Space{coolFor: coolFor, pools: pools, six: len(pools) > 0 && pools[0].Prefix.Addr().Is6()}
	for _, p := range pools {
		if span := spanOf(p.Prefix); span.size() > 2 {
			s.reserved = append(s.reserved, span.first, span.last)
		}
	}
	return s
}

// SetBlocks says what the node owns: disjoint prefixes. Taken addresses stay taken, also where they are outside
// the blocks now.
func (s *Space) SetBlocks(blocks []netip.Prefix) {
	s.prefixes = slices.SortedFunc(slices.Values(blocks), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	s.sort()
}

// SetLate says which of the node's blocks, or parts of them, are late: disjoint prefixes. Wake opens them in time.
func (s *Space) SetLate(late []Late) {
	s.late = slices.SortedFunc(slices.Values(late), func(a, b Late) int { return a.Block.Addr().Compare(b.Block.Addr()) })
	s.sort()
}

// sort tells blocks from late ones.
func (s *Space) sort() {
	s.blocks, s.reserve, s.closed = s.blocks[:0], s.reserve[:0], s.closed[:0]
	for _, p := range s.prefixes {
		whole := spanOf(p)
		next, done := whole.first, false // where what is not looked at yet begins
		for _, l := range s.late {
			part := spanOf(l.Block)
			if !part.meets(whole) {
				continue
			}
			if part.first.less(whole.first) {
				part.first = whole.first
			}
			if whole.last.less(part.last) {
				part.last = whole.last
			}
			if next.less(part.first) {
				s.blocks = append(s.blocks, span{next, part.first.minusOne()})
			}
			if l.From.After(s.opened) {
				s.closed = append(s.closed, part)
			} else {
				s.reserve = append(s.reserve, part)
			}
			next, done = part.last.plus(1), part.last == whole.last
		}
		if !done {
			s.blocks = append(s.blocks, span{next, whole.last})
		}
	}
}

// Owns reports whether addr is in the node's blocks.
func (s *Space) Owns(addr netip.Addr) bool {
	return slices.ContainsFunc(s.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Lowest is the lowest address that may be taken; one of a late block only when there is no other.
func (s *Space) Lowest() (netip.Addr, bool) {
	if a, ok := s.lowest(s.blocks); ok {
		return a, true
	}
	return s.lowest(s.reserve)
}

func (s *Space) lowest(blocks []span) (netip.Addr, bool) {
	for _, b := range blocks {
		if s.isReserved(b.first) {
			b.first = b.first.plus(1)
		}
		if s.isReserved(b.last) {
			b.last = b.last.minusOne()
		}
		if b.last.less(b.first) {
			continue
		}
		// Taken addresses from here on are first, first+1, ... up to the gap that is looked for.
		run := s.taken[s.index(b.first):]
		n := sort.Search(len(run), func(i int) bool { return run[i] != b.first.plus(uint64(i)) })
		if n < b.size() {
			return b.first.plus(uint64(n)).addr(s.six), true
		}
	}
	return netip.Addr{}, false
}

// isReserved reports whether an address is given to nobody.
func (s *Space) isReserved(n number) bool { return slices.Contains(s.reserved, n) || s.anycast(n) }

// anycast reports whether an address is that of all routers of an IPv6 network. Networks are taken to be of 64 bits: what
// pods have are single addresses, but other software may take them for members of such networks.
func (s *Space) anycast(n number) bool { return s.six && n.lo == 0 }

// Check says whether addr may be taken by name: nil, or an error that wraps one of the above.
func (s *Space) Check(addr netip.Addr) error {
	if !s.Owns(addr) {
		return ErrOutside
	}
	a := numberOf(addr)
	switch {
	case slices.Contains(s.reserved, a):
		return ErrReserved
	case s.anycast(a):
		return ErrAnycast
	case s.isClosed(a):
		return ErrCools
	}
	if s.has(a) && !s.rests(a) {
		return ErrTaken
	}
	return nil
}

// isClosed reports whether an address lies in a late block that is not open yet.
func (s *Space) isClosed(n number) bool {
	return slices.ContainsFunc(s.closed, func(c span) bool { return c.holds(n) })
}

// Take marks an address of the pools' family as in use and ends its rest. It may lie anywhere: an address that is in use stays in use
// when its block goes.
func (s *Space) Take(addr netip.Addr) {
	a := numberOf(addr)
	if i := s.index(a); i == len(s.taken) || s.taken[i] != a {
		s.taken = slices.Insert(s.taken, i, a)
	}
	s.resting = slices.DeleteFunc(s.resting, func(r rest) bool { return r.addr == a })
}

// Release lets an address that is in use rest from now on.
func (s *Space) Release(addr netip.Addr, now time.Time) {
	if a := numberOf(addr); s.has(a) && !s.rests(a) {
		s.rest(a, now.Add(s.coolFor))
	}
}

// rest keeps the order of those that rest.
func (s *Space) rest(a number, until time.Time) {
	i := sort.Search(len(s.resting), func(i int) bool { return s.resting[i].until.After(until) })
	s.resting = slices.Insert(s.resting, i, rest{a, until})
}

// Drop makes an address free at once: for one that nobody ever used.
func (s *Space) Drop(addr netip.Addr) {
	a := numberOf(addr)
	if i := s.index(a); i < len(s.taken) && s.taken[i] == a {
		s.taken = slices.Delete(s.taken, i, i+1)
	}
	s.resting = slices.DeleteFunc(s.resting, func(r rest) bool { return r.addr == a })
}

// Rests reports whether addr was released and may not be given yet.
func (s *Space) Rests(addr netip.Addr) bool {
	return addr.IsValid() && addr.Is6() == s.six && s.rests(numberOf(addr))
}

// Wake frees the addresses that have rested by now, lists them, and opens late blocks whose time has come. An address of
// which held says that something still uses it rests for another holdFor; held may be nil.
func (s *Space) Wake(now time.Time, held func(netip.Addr) bool) []netip.Addr {
	var woken []netip.Addr
	for len(s.resting) > 0 && !s.resting[0].until.After(now) {
		first := s.resting[0]
		addr := first.addr.addr(s.six)
		if held != nil && held(addr) {
			s.resting = slices.Delete(s.resting, 0, 1)
			s.rest(first.addr, now.Add(holdFor))
			continue
		}
		woken = append(woken, addr)
		s.Drop(addr)
	}
	if next, ok := s.nextOpening(); ok && !next.After(now) {
		s.opened = now
		s.sort()
	}
	return woken
}

// holdFor is how long an address rests on that is still in use somewhere.
const holdFor = time.Second

// NextWake is when the next address has rested or the next late block opens; false when none does.
func (s *Space) NextWake() (time.Time, bool) {
	next, ok := s.nextOpening()
	if len(s.resting) > 0 && (!ok || s.resting[0].until.Before(next)) {
		next, ok = s.resting[0].until, true
	}
	return next, ok
}

// nextOpening is when the next of the node's late blocks opens.
func (s *Space) nextOpening() (next time.Time, ok bool) {
	if len(s.closed) == 0 {
		return next, false
	}
	for _, l := range s.late {
		if l.From.After(s.opened) && s.overlaps(l.Block) && (!ok || l.From.Before(next)) {
			next, ok = l.From, true
		}
	}
	return next, ok
}

func (s *Space) overlaps(p netip.Prefix) bool {
	return slices.ContainsFunc(s.prefixes, func(own netip.Prefix) bool { return own.Overlaps(p) })
}

// Count is how many addresses of the blocks are in use, and how many are free or resting; at most Many each. Late blocks
// that are not open yet are not counted.
func (s *Space) Count() (used, free int) { return s.count(slices.Concat(s.blocks, s.reserve)) }

func (s *Space) count(spans []span) (used, free int) {
	for _, b := range spans {
		used += s.after(b.last) - s.index(b.first)
		size := b.size()
		for _, r := range s.reserved {
			if b.holds(r) {
				size--
			}
		}
		if s.anycast(b.first) && !slices.Contains(s.reserved, b.first) {
			size--
		}
		free = min(free+size, Many)
	}
	for _, r := range s.resting {
		if slices.ContainsFunc(spans, func(b span) bool { return b.holds(r.addr) }) {
			used--
		}
	}
	return used, max(free-used, 0)
}

func (s *Space) has(a number) bool {
	_, ok := slices.BinarySearchFunc(s.taken, a, number.compare)
	return ok
}

func (s *Space) rests(a number) bool {
	return slices.ContainsFunc(s.resting, func(r rest) bool { return r.addr == a })
}

// index counts the taken addresses below a.
func (s *Space) index(a number) int {
	i, _ := slices.BinarySearchFunc(s.taken, a, number.compare)
	return i
}

// after counts the taken addresses up to a.
func (s *Space) after(a number) int {
	i, found := slices.BinarySearchFunc(s.taken, a, number.compare)
	if found {
		i++
	}
	return i
}
