package ring

import (
	"net/netip"
	"slices"

	"weft/mesh/peer"
)

// Run is an aligned block whose atoms have the same register.
type Run struct {
	Block   netip.Prefix
	View    uint64
	Seq     uint64
	Owner   peer.ID
	Grant   ID      // the last writing; zero for the initial value
	Grantor peer.ID // who wrote it; zero for the initial value
	From    peer.ID // the removed member whose block Grantor's view took over; zero for what its owner gave
}

// Runs lists the whole universe in the order of its atoms, as few blocks as possible. The caller does not change it.
func (r *Ring) Runs() []Run {
	r.runsOnce.Do(func() {
		r.split(func(i, j int) bool { return r.regs[i] == r.regs[j] }, func(block netip.Prefix, i int) {
			run := Run{Block: block, Owner: r.u.founder}
			if g := r.regs[i]; g != nil {
				run = Run{block, g.view, g.seq, g.owner, g.id, g.grantor, g.from}
			}
			r.runs = append(r.runs, run)
		})
	})
	return r.runs
}

// Blocks lists what owner has, as few aligned blocks as possible, in the order of the universe.
func (r *Ring) Blocks(owner peer.ID) []netip.Prefix {
	var blocks []netip.Prefix
	is := func(i int) bool { return r.owner(i) == owner }
	r.split(func(i, j int) bool { return is(i) == is(j) }, func(block netip.Prefix, i int) {
		if is(i) {
			blocks = append(blocks, block)
		}
	})
	return blocks
}

// Owners is Blocks of everybody who has any.
func (r *Ring) Owners() map[peer.ID][]netip.Prefix {
	owners := make(map[peer.ID][]netip.Prefix)
	r.split(func(i, j int) bool { return r.regs[i] == r.regs[j] || r.owner(i) == r.owner(j) },
		func(block netip.Prefix, i int) { owners[r.owner(i)] = append(owners[r.owner(i)], block) })
	return owners
}

// split cuts each pool where same says so between neighbours, and what is left into aligned blocks.
func (r *Ring) split(same func(i, j int) bool, emit func(block netip.Prefix, first int)) {
	for start := 0; start < r.u.atoms; {
		poolStart, poolEnd := r.u.poolBounds(start)
		end := start + 1
		for end < poolEnd && same(end-1, end) {
			end++
		}
		for start < end {
			n := poolEnd - poolStart
			if start > poolStart {
				n = lowBit(start - poolStart)
			}
			for n > end-start {
				n >>= 1
			}
			emit(r.u.Block(start, n), start)
			start += n
		}
	}
}

// Heirs lists who may take a block back, best first: the owners in its chain of grants, newest first, then whoever
// owns its buddy. Going back along the chain keeps chains short and blocks whole.
func (r *Ring) Heirs(block netip.Prefix) []peer.ID {
	from, to, ok := r.u.Range(block)
	if !ok {
		return nil
	}
	var heirs []peer.ID
	for g := r.regs[from]; g != nil; g = r.links[g.parent] {
		if !g.takeover() { // who coordinated a view never had the block
			heirs = append(heirs, g.grantor)
		}
	}
	start, end := r.u.poolBounds(from)
	if n := to - from; n < end-start {
		heirs = append(heirs, r.owner(start+((from-start)^n)))
	}
	self := r.owner(from)
	seen := peer.SetOf(self)
	return slices.DeleteFunc(heirs, func(id peer.ID) bool {
		if seen.Has(id) {
			return true
		}
		seen.Add(id)
		return false
	})
}

// lowBit is the largest power of two that divides n.
func lowBit(n int) int { return n & -n }
