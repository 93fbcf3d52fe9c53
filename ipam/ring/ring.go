package ring

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"weft/mesh/peer"
)

// Ring is one state of the replicated map from atoms to owners. It never changes: Merge and Grant make a new one, so
// that it may be read from any goroutine.
type Ring struct {
	u     *Universe
	regs  []*Grant      // per atom the newest grant; nil is the initial value (0, 0, founder)
	links map[ID]*Grant // the grants in regs and the ones that they rest on
	order []*Grant      // links by position
	views []*View       // records that takeovers rest on, and the newest ones; ascending

	wireOnce sync.Once // guards the two below
	wire     []byte
	digest   []byte

	runsOnce sync.Once // guards the one below
	runs     []Run

	summaryOnce sync.Once // guards the one below
	summary     []byte
}

// New is the initial state: the founder owns everything.
func New(u *Universe) *Ring {
	return &Ring{u: u, regs: make([]*Grant, u.atoms)}
}

// Universe is what the ring divides.
func (r *Ring) Universe() *Universe { return r.u }

// Has reports whether a grant is part of the state. A nil ring has none.
func (r *Ring) Has(id ID) bool {
	if r == nil {
		return false
	}
	_, ok := r.links[id]
	return ok
}

// hasView reports whether a view record is part of the state.
func (r *Ring) hasView(id ID) bool {
	return r != nil && slices.ContainsFunc(r.views, func(v *View) bool { return v.id == id })
}

// confirms reports whether a view record of the state says that something stays written.
func (r *Ring) confirms(id ID) bool {
	return r != nil && slices.ContainsFunc(r.views, func(v *View) bool { return v.confirms(id) })
}

// Len counts the grants that the state consists of.
func (r *Ring) Len() int { return len(r.links) }

// Links yields the grants that the state consists of, in no order.
func (r *Ring) Links(yield func(*Grant) bool) {
	for _, g := range r.links {
		if !yield(g) {
			return
		}
	}
}

// Views lists the view records that are kept, oldest first. The caller does not change them.
func (r *Ring) Views() []*View { return r.views }

// Owner is who owns an address; false outside the pools.
func (r *Ring) Owner(addr netip.Addr) (peer.ID, bool) {
	i, ok := r.u.atomOf(addr)
	if !ok {
		return peer.ID{}, false
	}
	return r.owner(i), true
}

func (r *Ring) owner(i int) peer.ID {
	if g := r.regs[i]; g != nil {
		return g.owner
	}
	return r.u.founder
}

// Report says what a merge did.
type Report struct {
	Added   []*Grant // grants that became part of the state
	Dropped []*Grant // grants that no register rests on any more
	// Won lists grants that were newer than a register before the merge, ones among them that others of the same batch
	// have superseded too.
	Won []*Grant
	// Conflicts are pairs of different grants of one atom with the same view and seq: somebody wrote twice.
	Conflicts []Conflict
	Views     []*View // view records that were added
	OldViews  []*View // view records that were dropped: newer ones say all that matters
}

// Changed reports whether the merge made another state.
func (p Report) Changed() bool {
	return len(p.Added)+len(p.Dropped)+len(p.Views)+len(p.OldViews) > 0
}

// Conflict is a pair of grants that cannot both be honest. The first one holds.
type Conflict struct{ Held, Lost *Grant }

// Merge is the least state that holds everything that r and p hold: per atom the greater register, and all view
// records. It returns r itself when p brings nothing.
func (r *Ring) Merge(p Proven) (*Ring, Report) {
	var report Report
	fresh := slices.DeleteFunc(slices.Clone(p.grants), func(g *Grant) bool { return r.Has(g.id) })
	freshViews := slices.DeleteFunc(slices.Clone(p.views), func(v *View) bool { return r.hasView(v.id) })
	if len(fresh) == 0 && len(freshViews) == 0 {
		return r, report
	}
	next := &Ring{u: r.u, regs: slices.Clone(r.regs)}
	for _, g := range fresh {
		from, to, _ := r.u.Range(g.block)
		won := false
		var last *Grant // one report per pair, not per atom
		for i := from; i < to; i++ {
			old := next.regs[i]
			c := compare(g, old)
			if old != nil && old != last && c != 0 && old.view == g.view && old.seq == g.seq {
				last = old
				if c > 0 {
					report.Conflicts = append(report.Conflicts, Conflict{Held: g, Lost: old})
				} else {
					report.Conflicts = append(report.Conflicts, Conflict{Held: old, Lost: g})
				}
			}
			if c > 0 {
				next.regs[i] = g
				won = true
			}
		}
		if won {
			report.Won = append(report.Won, g)
		}
	}
	known := func(id ID) *Grant { return r.links[id] }
	if len(fresh) > 0 {
		proven := make(map[ID]*Grant, len(p.grants))
		for _, g := range p.grants {
			proven[g.id] = g
		}
		known = func(id ID) *Grant {
			if g := r.links[id]; g != nil {
				return g
			}
			return proven[id]
		}
	}
	next.collect(known)
	next.collectViews(slices.Concat(r.views, freshViews))
	change := next.Since(r)
	report.Added, report.Dropped, report.Views, report.OldViews = change.Added, change.Dropped, change.Views, change.OldViews
	if !report.Changed() {
		return r, report
	}
	next.order = next.orderFrom(r.order, change.Added)
	return next, report
}

// orderFrom is the links by position, from those of an older state and what was added since, which are sorted: small
// changes of a large state are many.
func (r *Ring) orderFrom(old, added []*Grant) []*Grant {
	order := make([]*Grant, 0, len(r.links))
	for _, g := range old {
		if r.links[g.id] == nil {
			continue // dropped
		}
		for len(added) > 0 && byPosition(added[0], g) < 0 {
			order, added = append(order, added[0]), added[1:]
		}
		order = append(order, g)
	}
	return append(order, added...)
}

// Since is what must be stored to come from an older state to r: a Report without Won and Conflicts.
func (r *Ring) Since(old *Ring) Report {
	var report Report
	for id, g := range r.links {
		if !old.Has(id) {
			report.Added = append(report.Added, g)
		}
	}
	for id, g := range old.links {
		if !r.Has(id) {
			report.Dropped = append(report.Dropped, g)
		}
	}
	slices.SortFunc(report.Added, byPosition)
	slices.SortFunc(report.Dropped, byPosition)
	report.Views = slices.DeleteFunc(slices.Clone(r.views), func(v *View) bool { return old.hasView(v.id) })
	report.OldViews = slices.DeleteFunc(slices.Clone(old.views), func(v *View) bool { return r.hasView(v.id) })
	return report
}

// collectViews keeps the records that takeovers in use rest on and the newest ones of all.
func (r *Ring) collectViews(all []*View) {
	needed := make(map[ID]bool)
	for _, g := range r.links {
		if g.takeover() {
			needed[g.record] = true
		}
	}
	slices.SortFunc(all, compareViews)
	r.views = keepViews(all, needed)
}

// collect keeps the grants in the registers and the ones that they rest on.
func (r *Ring) collect(known func(ID) *Grant) {
	r.links = make(map[ID]*Grant)
	var last *Grant
	for _, g := range r.regs {
		if g == last {
			continue
		}
		last = g
		for g != nil && !r.Has(g.id) {
			r.links[g.id] = g
			g = known(g.parent)
		}
	}
}

// Grant hands a block of the signer's to another owner: the report's Added are the grants to make durable and to send,
// normally one. A block whose parts came to the signer in different ways takes one grant for each part.
func (r *Ring) Grant(s Signer, block netip.Prefix, owner peer.ID) (*Ring, Report, error) {
	from, to, ok := r.u.Range(block)
	if !ok {
		return nil, Report{}, fmt.Errorf("grant %s: not a block of this cluster", block)
	}
	self := s.ID()
	for i := from; i < to; i++ {
		if r.owner(i) != self {
			return nil, Report{}, fmt.Errorf("grant %s: %s owns a part of it", block, r.owner(i).Short())
		}
	}
	p := Proven{}
	for i := from; i < to; {
		root, depth := r.root(r.regs[i], self)
		if depth >= MaxDepth {
			return nil, Report{}, fmt.Errorf("grant %s: the chain of grants that led here is too long", block)
		}
		// The largest aligned block from here on whose atoms have the same root.
		n := to - from
		if i > from {
			n = lowBit(i - from)
		}
		for n > 1 && !r.sameRoot(i, n, root, self) {
			n >>= 1
		}
		var view, seq uint64
		for _, g := range r.regs[i : i+n] {
			if g != nil {
				view, seq = g.view, max(seq, g.seq)
			}
		}
		if seq >= MaxSeq {
			return nil, Report{}, fmt.Errorf("grant %s: no number is left to write", block)
		}
		p.grants = append(p.grants, newGrant(r.u, s, r.u.Block(i, n), view, seq+1, owner, root))
		i += n
	}
	next, report := r.Merge(p)
	return next, report, nil
}

// root is the oldest grant below g, or g, that made owner the owner in g's view, and the length of its chain. The zero
// ID is the founder's first right.
func (r *Ring) root(g *Grant, owner peer.ID) (root ID, depth int) {
	steps, at := 0, 0 // at: steps from g to the root
	for h := g; h != nil; h = r.links[h.parent] {
		if h.owner == owner {
			root, at = h.id, steps
		}
		steps++
	}
	if owner == r.u.founder && (g == nil || g.view == 0) {
		return ID{}, 0
	}
	return root, steps - at
}

func (r *Ring) sameRoot(i, n int, root ID, owner peer.ID) bool {
	var last *Grant
	for k, g := range r.regs[i : i+n] {
		if k > 0 && g == last {
			continue
		}
		last = g
		if id, _ := r.root(g, owner); id != root {
			return false
		}
	}
	return true
}

// Proof is the batch that proves some grants of the state to others, in wire form.
func (r *Ring) Proof(grants []*Grant) []byte {
	set := make(map[ID]*Grant)
	records := make(map[ID]bool)
	for _, g := range grants {
		for g != nil && set[g.id] == nil {
			set[g.id] = g
			records[g.record] = true
			g = r.links[g.parent]
		}
	}
	return encode(set, slices.DeleteFunc(slices.Clone(r.views), func(v *View) bool { return !records[v.id] }))
}

// Digest is 32 bytes that are equal for equal states, and for no others.
func (r *Ring) Digest() []byte {
	r.encodeOnce()
	return r.digest
}

// Encode is the state in wire form, equal for equal states. The caller does not change it.
func (r *Ring) Encode() []byte {
	r.encodeOnce()
	return r.wire
}

func (r *Ring) encodeOnce() {
	r.wireOnce.Do(func() {
		r.wire = encodeInOrder(r.order, r.views)
		sum := sha256.Sum256(r.wire)
		r.digest = sum[:]
	})
}
