package ring

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/mesh/peer"
)

// Takeover is what the coordinator of a completed view knows and the ring does not.
type Takeover struct {
	Number  uint64  // of the view
	Removed []Named // who is removed by it
	Forced  bool    // not all survivors have promised, or they are no quorum
	// May reports whether a member can be an heir: it has promised and can use a block.
	May func(peer.ID) bool
	// Remember says who of those that earlier views removed must not be forgotten: voters, whom quorums counted.
	Remember func(peer.ID) bool
	// Restamp writes anew what the removed members gave to others, too. That breaks the rules; it is here so that a test
	// can show how.
	Restamp bool
}

// TakeOver completes a view. It writes the record, with the names of all that the removed members wrote and that stays,
// and gives each block that one of them owns to an heir. Whom earlier views removed stands in a record of its own, the
// roll: no takeover rests on it, so that only the newest rolls are kept. The report's Added and Views are what to make
// durable and to send. Nothing of a survivor is written.
func (r *Ring) TakeOver(s Signer, t Takeover) (*Ring, Report, error) {
	removed := make(peer.Set)
	for _, n := range t.Removed {
		removed.Add(n.Node)
	}
	v, err := newView(r.u, s, viewDomain, View{
		number: t.Number, removed: t.Removed, forced: t.Forced, confirmed: r.writtenBy(removed),
	})
	if err != nil {
		return nil, Report{}, fmt.Errorf("take over: %w", err)
	}
	if newest := r.Number(); t.Number <= newest {
		return nil, Report{}, fmt.Errorf("take over: view %d is not newer than %d", t.Number, newest)
	}
	p := Proven{views: []*View{v}}
	if before := r.before(t); len(before) > 0 {
		roll, err := newView(r.u, s, viewDomain, View{number: t.Number, removed: t.Removed, forced: t.Forced, before: before})
		if err != nil {
			return nil, Report{}, fmt.Errorf("take over: %w", err)
		}
		p.views = append(p.views, roll)
	}
	so := &Ring{u: r.u, regs: slices.Clone(r.regs)} // as far as blocks have heirs: for who owns what, nothing else
	var failed error
	write := func(block netip.Prefix, from, heir peer.ID) {
		if removed.Has(heir) {
			failed = errors.New("take over: nobody is left who could have the blocks")
			return
		}
		g := newTakeover(r.u, s, block, v, from, heir)
		p.grants = append(p.grants, g)
		for i, end, _ := r.u.Range(block); i < end; i++ {
			so.regs[i] = g
		}
	}
	r.split(func(i, j int) bool { return r.owner(i) == r.owner(j) }, func(block netip.Prefix, i int) {
		if from := r.owner(i); removed.Has(from) {
			heir, ok := so.heir(block, func(id peer.ID) bool { return !removed.Has(id) && t.May(id) })
			if !ok {
				heir = s.ID()
			}
			write(block, from, heir)
		}
	})
	if t.Restamp {
		r.split(func(i, j int) bool { return r.regs[i] == r.regs[j] }, func(block netip.Prefix, i int) {
			if g := r.regs[i]; g != nil && removed.Has(g.grantor) && !removed.Has(g.owner) {
				write(block, g.grantor, g.owner)
			}
		})
	}
	next, _ := r.Merge(p)
	if failed == nil && len(next.Encode()) > MaxWire {
		failed = fmt.Errorf("take over: the ring would have %d bytes, at most %d", len(next.Encode()), MaxWire)
	}
	if failed != nil {
		return nil, Report{}, failed
	}
	return next, next.Since(r), nil
}

// Number is the highest view number that anything in the state has.
func (r *Ring) Number() uint64 {
	if len(r.views) == 0 {
		return 0 // no takeover without a record
	}
	return r.views[len(r.views)-1].number
}

// Removed is who was removed by views, as far as the records that are kept say it.
func (r *Ring) Removed() peer.Set {
	all := make(peer.Set)
	for _, v := range r.views {
		for _, n := range v.removed {
			all.Add(n.Node)
		}
		for _, id := range v.before {
			all.Add(id)
		}
	}
	return all
}

// before lists whom the next record remembers.
func (r *Ring) before(t Takeover) []peer.ID {
	all := slices.DeleteFunc(r.Removed().Sorted(), func(id peer.ID) bool {
		return !t.Remember(id) || slices.ContainsFunc(t.Removed, func(n Named) bool { return n.Node == id })
	})
	return all[:min(len(all), maxOld)]
}

// Names reports whether a kept record removes id.
func (r *Ring) Names(id peer.ID) bool {
	return slices.ContainsFunc(r.views, func(v *View) bool { return v.Names(id) })
}

// Recalls reports whether all records of views from a number on are still kept, so that whom none of them names was not
// removed by any.
func (r *Ring) Recalls(number uint64) bool {
	room := window
	for _, v := range slices.Backward(r.views) {
		if room -= len(v.raw); room <= 0 {
			return number > v.number
		}
	}
	return true
}

// writtenBy names what removed members wrote and is kept: grants, as far as the blocks of others rest on them, and all
// records, for a member that refuses their writer and did not know them could not keep what all others keep.
func (r *Ring) writtenBy(removed peer.Set) []ID {
	seen := make(map[ID]bool)
	var ids []ID
	var last *Grant
	for i, g := range r.regs {
		if g == last || removed.Has(r.owner(i)) {
			continue
		}
		for last = g; g != nil && !seen[g.id]; g = r.links[g.parent] {
			seen[g.id] = true
			if removed.Has(g.grantor) {
				ids = append(ids, g.id)
			}
		}
	}
	for _, v := range r.views {
		if removed.Has(v.writer) {
			ids = append(ids, v.id)
		}
	}
	return ids
}

// heir is who takes a block over so that everybody's blocks stay few: of those who may, the one that owns most of its
// buddy, else of the buddy of both, and so on up to the pool; then whoever owns most of all.
func (r *Ring) heir(block netip.Prefix, may func(peer.ID) bool) (peer.ID, bool) {
	from, to, _ := r.u.Range(block)
	start, end := r.u.poolBounds(from)
	for n := to - from; n < end-start; n *= 2 {
		buddy := start + ((from - start) ^ n)
		if id, ok := r.most(buddy, buddy+n, may); ok {
			return id, true
		}
		from = min(from, buddy)
	}
	return r.most(0, r.u.atoms, may)
}

// most is who of those who may owns most of the atoms [from, to).
func (r *Ring) most(from, to int, may func(peer.ID) bool) (best peer.ID, found bool) {
	owned := make(map[peer.ID]int)
	for i := from; i < to; i++ {
		if id := r.owner(i); owned[id] > 0 || may(id) {
			owned[id]++
		}
	}
	for id, n := range owned {
		if n > owned[best] || n == owned[best] && id.Compare(best) < 0 {
			best = id
		}
	}
	return best, len(owned) > 0
}
