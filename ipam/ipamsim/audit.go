package ipamsim

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/mesh/peer"
)

// audit checks the rules of the address ring on what has changed since it looked last:
//
//	I1   no two machines that are up and confirmed own the same atom in their own states; see former for who was removed
//	I2   what one machine knows gives each address to one owner
//	I3   no two different entries of one atom have the same view and seq
//	I4   the entry of an atom never goes back at a machine
//	I5   a given address lies in a block that its giver owned then, and what its user was told stays true after a crash
//	I8   every atom has an owner
//	I9   a disk can be read, whenever its machine died
//	I10  no grant, and under strict restart no address, between a start and its confirmation
//	I11  after a removal is complete nothing that the removed one wrote later is taken over
//	I12  blocks are aligned
//
// I6 and I7 are laws of the ring alone and tested there; that equal knowledge makes equal digests is part of I13, which
// Recover checks.
//
// A machine that is removed while it runs, against the rule that it must be stopped, and copies of a disk are outside of
// what I1 promises: such a machine is tainted until it starts anew, or for ever. Once a disk was copied or a removal was
// forced, two entries may be rivals by nobody's fault in the code, so I1 and I3 are not checked any more.
type audit struct {
	w       *World
	err     error
	holders []*Machine        // per atom: who was last seen to own it, confirmed
	entries map[place]written // every entry that ever was
	rivals  string            // why there may be rivals

	removing []*Machine     // voters whose removal is not complete in anybody's eyes
	complete peer.Set       // those for whom it is
	told     map[place]bool // entries that a member other than their writer had before the writer's removal was complete
}

// place is where an entry stands.
type place struct {
	atom      int
	view, seq uint64
}

type written struct{ owner, grantor peer.ID }

// entry is one atom in one machine's eyes.
type entry struct {
	view, seq uint64
	written
}

// view is one machine as the audit saw it last.
type view struct {
	atoms     []entry
	runs      []ring.Run
	claims    map[netip.Addr]string
	confirmed bool
	tainted   string // why I1 promises nothing about it
	forever   bool
	fresh     bool // nothing was seen since its start
	running   bool // it was looked at since its Run began
	removed   Reason
	began     time.Duration // its last start
	novice    bool          // it counts in no quorum of promises yet
	robbed    map[int]bool  // atoms that others gave away, after a removal by force took them for theirs
}

func (a *audit) init(w *World) {
	a.w = w
	a.holders = make([]*Machine, w.universe.Atoms())
	a.entries = make(map[place]written)
	a.complete, a.told = make(peer.Set), make(map[place]bool)
}

func (a *audit) fail(format string, args ...any) {
	if a.err == nil && !a.w.finished {
		a.err = fmt.Errorf(format, args...)
		a.w.logf("BROKEN: %v", a.err)
	}
}

// started looks at a machine that has read its disk.
func (a *audit) started(m *Machine) {
	v := &m.view
	// A thief need not follow any rule. A first start asks nobody: its join was the quorum, and a removal meanwhile was wrong.
	if !v.forever && v.removed != Stolen && (v.removed == 0 || len(m.lives) > 1) {
		v.tainted = ""
	}
	v.confirmed, v.claims, v.runs, v.fresh, v.running, v.began = false, nil, nil, true, false, a.w.Now()
	if v.forever {
		return
	}
	have := make(map[string]netip.Addr)
	for _, c := range m.now.alloc.Claims() {
		have[c.Container] = c.Addr()
	}
	for container, addr := range m.Told {
		if have[container] != addr && !a.robbed(m, addr) {
			a.fail("I5: %s told %s that it has %s; after a start it has %s", m, container, addr, have[container])
		}
	}
	// What the last transaction of its last life wrote is seen only now.
	v.confirmed = true
	a.see(m)
}

func (a *audit) stopped(m *Machine) { m.view.confirmed = false }

// removed is told of a removal before anybody knows of it.
func (a *audit) removed(m *Machine, reason Reason) {
	m.view.removed = reason
	if x, ok := a.w.everybody().member(m.key.id); ok && x.voter && reason != Left {
		a.removing = append(a.removing, m) // of who has no vote and no blocks nobody completes anything
	}
	if reason != Left && (m.now != nil || reason == Stolen || len(m.lives) == 0) {
		m.view.tainted = "removed while it may run"
	}
}

// copied is told that there are two lives of one disk.
func (a *audit) copied(m *Machine) {
	m.view.tainted, m.view.forever, m.view.atoms = "its disk is not the last one", true, nil
	a.rivals = "a disk was set back or copied"
}

// look sees all machines that say that they have changed.
func (a *audit) look() {
	if a.err != nil {
		return
	}
	for _, m := range a.w.machines {
		if m.now == nil {
			continue
		}
		select {
		case <-m.now.watch:
			a.see(m)
		default:
			if !m.view.running {
				a.see(m)
			}
		}
		m.view.running = true
	}
}

func (a *audit) see(m *Machine) {
	alloc, v := m.now.alloc, &m.view
	was := v.confirmed
	v.confirmed, v.novice = alloc.Status().Confirmed, alloc.Novice()
	a.seeClaims(m, alloc.Claims(), was || v.confirmed)
	runs := alloc.Runs()
	if len(v.runs) > 0 && len(runs) > 0 && &runs[0] == &v.runs[0] && was == v.confirmed {
		return
	}
	v.runs = runs
	a.seeRing(m, runs, was || v.confirmed)
	a.seeComplete(m)
}

// seeComplete notes whose removal is complete in a machine's eyes: it knows the view.
func (a *audit) seeComplete(m *Machine) {
	if len(a.removing) == 0 {
		return
	}
	fenced := m.fenced()
	a.removing = slices.DeleteFunc(a.removing, func(x *Machine) bool {
		if fenced.Has(x.key.id) {
			a.complete.Add(x.key.id)
		}
		return fenced.Has(x.key.id)
	})
}

// seeLate judges an entry whose writer may have been removed.
func (a *audit) seeLate(m *Machine, i int, at place, e entry) {
	switch {
	case e.grantor == m.key.id || m.view.removed != 0 || a.told[at]:
	case !a.complete.Has(e.grantor):
		a.told[at] = true
	case a.rivals == "" && m.view.tainted == "" && m.fenced().Has(e.grantor):
		a.fail("I11: %s takes atom %d from %s to %s in %d.%d, which nobody had before the removal was complete", m, i, a.name(e.grantor),
			a.name(e.owner), e.view, e.seq)
	}
}

// trusted reports whether I1 holds for a machine.
func trusted(m *Machine) bool { return m.now != nil && m.view.confirmed && m.view.tainted == "" }

// former reports whether a machine is the former owner of an atom that another one has, and that may be so: it came up again
// after it was removed and goes on in a part of the network where nobody has heard of that. The others have taken it for
// stopped after a silence, and what it had then, in an older view, is exactly what it may still believe to own.
func former(old, heir *Machine, atom int) bool {
	v := &old.view
	return v.removed != 0 && old.w.Now()-v.began >= old.w.setup.Silence &&
		v.atoms[atom].view < heir.view.atoms[atom].view && heir.fenced().Has(old.key.id)
}

func (a *audit) seeRing(m *Machine, runs []ring.Run, confirmed bool) {
	v, u := &m.view, a.w.universe
	first := v.atoms == nil
	if first {
		v.atoms = make([]entry, u.Atoms())
	}
	next := 0
	for _, r := range runs {
		from, to, ok := u.Range(r.Block)
		if !ok || from != next {
			a.fail("I8, I12: %s has the block %s after atom %d", m, r.Block, next)
			return
		}
		next = to
		e := entry{r.View, r.Seq, written{r.Owner, r.Grantor}}
		for i := from; i < to; i++ {
			old := v.atoms[i]
			if e != old {
				v.atoms[i] = e
				a.seeEntry(m, i, old, e, first, confirmed)
			}
			a.seeOwner(m, i, e)
		}
	}
	if next != u.Atoms() {
		a.fail("I8: %s knows owners of %d atoms", m, next)
	}
}

// seeEntry judges an entry that a machine did not have before.
func (a *audit) seeEntry(m *Machine, i int, old, e entry, first, confirmed bool) {
	if !first && (e.view < old.view || e.view == old.view && e.seq < old.seq) {
		a.fail("I4: at %s atom %d went back from %d.%d to %d.%d", m, i, old.view, old.seq, e.view, e.seq)
	}
	at := place{i, e.view, e.seq}
	if e.seq == 0 && e.view == 0 {
		return
	}
	if a.rivals != "" && old.owner == m.key.id && e.owner != m.key.id && e.grantor != m.key.id {
		if m.view.robbed == nil {
			m.view.robbed = make(map[int]bool)
		}
		m.view.robbed[i] = true
	}
	a.seeLate(m, i, at, e)
	known, ok := a.entries[at]
	switch {
	case !ok:
		a.entries[at] = e.written
		if e.grantor == m.key.id && !confirmed && m.view.tainted == "" && a.rivals == "" {
			a.fail("I10: %s granted atom %d before it was confirmed", m, i)
		}
	case known != e.written && a.rivals == "":
		a.fail("I3: atom %d has the number %d.%d twice: from %s to %s and from %s to %s", i, e.view, e.seq,
			a.name(known.grantor), a.name(known.owner), a.name(e.grantor), a.name(e.owner))
	}
}

// seeOwner judges who owns an atom in its own eyes.
func (a *audit) seeOwner(m *Machine, i int, e entry) {
	h := a.holders[i]
	switch {
	case e.owner != m.key.id:
		if h == m {
			a.holders[i] = nil
		}
	case !trusted(m):
	case h != nil && h != m && trusted(h) && h.view.atoms != nil && h.view.atoms[i].owner == h.key.id:
		switch {
		case former(m, h, i):
		case former(h, m, i):
			a.holders[i] = m
		case a.rivals == "":
			a.fail("I1: %s and %s both own atom %d (%s)", h, m, i, a.w.universe.Block(i, 1))
		}
	default:
		a.holders[i] = m
	}
}

func (a *audit) seeClaims(m *Machine, claims []ipam.Claim, confirmed bool) {
	v := &m.view
	now := make(map[netip.Addr]string, len(claims))
	for _, c := range claims {
		now[c.Addr()] = c.Container
		if _, old := v.claims[c.Addr()]; old || v.fresh || v.tainted != "" {
			continue
		}
		if a.w.setup.Strict && !confirmed {
			a.fail("I10: %s gave %s before it was confirmed", m, c.Addr())
		}
	}
	v.claims, v.fresh = now, false
}

// robbed reports whether a machine lost an address that it had given: a removal was forced without its answer, and it is told
// that somebody else has been given the block. It keeps to that, and gives the container another.
func (a *audit) robbed(m *Machine, addr netip.Addr) bool { return m.view.robbed[a.atom(addr)] }

// atom is the number of the atom that an address is in.
func (a *audit) atom(addr netip.Addr) int {
	i, _, _ := a.w.universe.Range(netip.PrefixFrom(addr, a.w.setup.AtomBits).Masked())
	return i
}

// gave judges an address at the moment when its user is told.
func (a *audit) gave(m *Machine, addr netip.Addr) {
	if m.view.tainted != "" {
		return
	}
	for _, r := range m.now.alloc.Runs() {
		if r.Block.Contains(addr) && r.Owner != m.key.id {
			a.fail("I5: %s gave %s, which is %s's", m, addr, a.name(r.Owner))
		}
	}
	if a.rivals != "" {
		return
	}
	atom := a.atom(addr)
	for _, o := range a.w.machines {
		if o != m && trusted(o) && trusted(m) {
			for container, other := range o.Told {
				if other == addr && !former(o, m, atom) && !former(m, o, atom) {
					a.fail("I5: %s gave %s, which %s of %s has", m, addr, container, o)
				}
			}
		}
	}
}

func (a *audit) name(id peer.ID) (name string) {
	a.w.locked(func() {
		name = id.Short()
		if all := a.w.byID[id]; len(all) > 0 {
			name = all[0].String()
		}
	})
	return name
}

func (a *audit) names(ids peer.Set) (all string) {
	for _, id := range ids.Sorted() {
		all += a.name(id) + " "
	}
	return strings.TrimSpace(all)
}

// logger writes an allocator's words where the World's go.
func (w *World) logger(m *Machine) *slog.Logger {
	if w.setup.Log == nil {
		return w.quiet
	}
	return slog.New(words{w: w, m: m})
}

type words struct {
	slog.Handler
	w *World
	m *Machine
}

func (words) Enabled(context.Context, slog.Level) bool { return true }

func (h words) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		value := a.Value.String()
		if id, ok := a.Value.Any().(peer.ID); ok {
			value = h.w.audit.name(id)
		}
		fmt.Fprintf(&b, " %s=%s", a.Key, value)
		return true
	})
	h.w.logf("%s:   %s%s", h.m, r.Message, b.String())
	return nil
}
