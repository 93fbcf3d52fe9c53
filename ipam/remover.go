package ipam

import (
	"cmp"
	"context"
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// A coordinator's part in a removal. See Reclaim for the whole.

const (
	rosterLook = 10 * time.Second // how often the roster is looked at without a call of RosterChanged
	rosterSoon = time.Second      // while a removal is not complete

	// turnTime is how long an issuer lets each more senior one that is alive go first, and promiseTime how long it leaves
	// another's proposal alone that it has promised.
	turnTime    = 10 * time.Second
	promiseTime = 15 * time.Second
	// leftTime is how long the blocks of a member that has left may take to arrive at their heirs by themselves.
	leftTime = time.Minute

	askFirstPause = 500 * time.Millisecond
	askLastPause  = 10 * time.Second
	backOffFirst  = time.Second
	backOffLast   = time.Minute
	jitterMost    = 50 * time.Millisecond
	joinTime      = 3 * time.Minute // after which a join is over, whatever a survivor says
	anyStart      = math.MaxUint64  // an incarnation that none is newer than
)

// remover leads this node's removals. Its goroutine uses it, and while a round asks those that hold the round's lock.
type remover struct {
	a *Allocator

	since    map[peer.ID]time.Time // when each removal that is not complete was first seen
	came     map[peer.ID]comeback
	holdOff  time.Time
	backOff  time.Duration
	plea     plea
	seen     uint64 // the highest number that anybody was heard to have promised
	promised struct {
		id ring.ID
		at time.Time
	}
}

// remove looks after removals until ctx ends.
func (a *Allocator) remove(ctx context.Context) {
	m := &remover{a: a, since: make(map[peer.ID]time.Time), came: make(map[peer.ID]comeback), backOff: backOffFirst}
	first := 1 + m.own(jitterMost) // not at once: by then it is clear whether the start was confirmed at once
	if a.wasRemoved() {
		first = 0
	}
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.roster:
		case <-timer.C:
		}
		a.lookedAtRoster()
		pause := rosterLook
		if a.wasRemoved() {
			_ = a.do(ctx, func() { _ = a.expel() }) // tried again at the next look
			timer.Reset(pause + m.own(jitterMost))
			continue
		}
		m.plead(ctx)
		if need := m.need(); len(need) > 0 {
			pause = rosterSoon
			if m.turn(need) {
				m.conduct(ctx, need)
			}
		}
		timer.Reset(pause + m.own(jitterMost))
	}
}

// lookedAtRoster takes back what RosterChanged has said until now.
func (a *Allocator) lookedAtRoster() {
	select {
	case <-a.roster:
	default:
	}
}

// need lists the removals that are not complete and have to be; nil when there is nothing to do. Members without a vote
// and without blocks go along with others only, unless this node or one that has told it has promised to refuse them: who has
// takes what they wrote only where a record confirms it, so one has to come.
func (m *remover) need() []Removal {
	b := m.a.ballot()
	silent := make(peer.Set)
	for _, p := range m.a.cfg.Network.Peers() {
		if _, gone := b.removed[p.ID]; gone && p.Ephemeral {
			silent.Add(p.ID)
		}
	}
	var need, along []Removal
	late := func(r Removal) bool { // what a member that left gave back should have been heard of
		since, known := m.since[r.Node]
		return known && m.a.now().Sub(since) >= leftTime
	}
	m.a.mu.RLock()
	for id, r := range b.removed {
		number, promised := m.a.refused[id]
		if !promised {
			number, promised = m.a.pledged[id]
		}
		switch {
		case id == m.a.self:
		case !b.fenced.Has(id), promised && !m.a.ring.Names(id) && m.a.ring.Recalls(number):
			need = append(need, r)
		case r.Left && len(m.a.blocks[id]) > 0:
			if late(r) {
				need = append(need, r)
			} else if _, known := m.since[id]; !known {
				m.since[id] = m.a.now()
			}
		case silent.Has(id) && !r.Left && !promised && !m.a.ring.Names(id):
			along = append(along, r)
		}
	}
	m.a.mu.RUnlock()
	now := m.a.now()
	needed := make(peer.Set, len(need))
	for _, r := range need {
		needed.Add(r.Node)
		if _, known := m.since[r.Node]; !known {
			m.since[r.Node] = now
		}
	}
	maps.DeleteFunc(m.since, func(id peer.ID, _ time.Time) bool {
		return !needed.Has(id) && !(b.removed[id].Left && m.a.ownsAny(id))
	})
	if len(need) == 0 {
		return nil
	}
	byNode := func(x, y Removal) int { return x.Node.Compare(y.Node) }
	slices.SortFunc(need, byNode)
	slices.SortFunc(along, byNode)
	need = slices.Concat(need, along)
	need = need[:min(len(need), ring.MaxNamed)] // the same ones each time
	slices.SortFunc(need, byNode)
	return need
}

// turn reports whether this node shall conduct the removal now.
func (m *remover) turn(need []Removal) bool {
	a := m.a
	a.mu.RLock()
	phase, promised := a.phase, a.promised
	forced := slices.ContainsFunc(need, func(r Removal) bool { return a.forced.Has(r.Node) })
	a.mu.RUnlock()
	issuers := a.cfg.Roster.Issuers()
	if !slices.Contains(issuers, a.self) || phase == phaseStopped || phase == phaseLeft {
		return false
	}
	now := m.a.now()
	if forced || a.cfg.Weaken.has(WithoutFence) {
		return true
	}
	if phase != phaseConfirmed || now.Before(m.holdOff) {
		return false
	}
	if !slices.ContainsFunc(need, func(r Removal) bool {
		wait := time.Duration(m.rank(issuers)) * turnTime
		since, waited := m.since[r.Node]
		return waited && now.Sub(since) >= wait
	}) {
		return false
	}
	if promised == nil || promised.Writer() == a.self || promised.Number() <= a.current().Number() ||
		!slices.Contains(issuers, promised.Writer()) {
		return true
	}
	if m.promised.id != promised.ID() {
		m.promised.id, m.promised.at = promised.ID(), now
	}
	return now.Sub(m.promised.at) >= promiseTime*time.Duration(1+m.rank(issuers))
}

// rank counts the issuers that are alive and more senior.
func (m *remover) rank(issuers []peer.ID) int {
	seq := make(map[peer.ID]uint64)
	for _, v := range m.a.cfg.Network.Voters() {
		seq[v.ID] = v.JoinSeq
	}
	n := 0
	for _, p := range m.a.cfg.Network.Peers() {
		if (p.State == peer.Alive || p.State == peer.Suspect) && slices.Contains(issuers, p.ID) &&
			cmp.Or(cmp.Compare(p.JoinSeq, seq[m.a.self]), p.ID.Compare(m.a.self)) < 0 {
			n++
		}
	}
	return n
}

// conduct makes one proposal and works on it until it is complete, beaten or overtaken by events.
func (m *remover) conduct(ctx context.Context, need []Removal) {
	named, forced, waiting := m.name(need)
	if waiting != "" {
		m.a.setHindrance(waiting, nil)
		return
	}
	r, err := m.propose(ctx, named, forced)
	if err != nil {
		m.a.log.Debug("no removal proposed", "err", err)
		return
	}
	m.a.log.Info("removal proposed", "view", r.p.Number(), "count", len(named))
	for pause := askFirstPause; ctx.Err() == nil; pause = min(2*pause, askLastPause) {
		waits := m.ask(ctx, r)
		// Who was removed while the others promised, and is not named, has neither promised nor is refused: it may come up again
		// and not know who is no witness.
		if !r.forced && m.unnamed(r) && !m.a.cfg.Weaken.has(WithoutRecount) {
			return
		}
		done, err := m.finish(ctx, r, waits)
		switch {
		case err != nil:
			m.a.log.Warn("removal not complete, will try again", "view", r.p.Number(), "err", err)
			m.hold()
			return
		case done:
			m.backOff = backOffFirst
			m.a.setHindrance("", nil)
			return
		case r.lost() || !m.a.leads(r.p):
			m.hold()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-m.a.roster:
		case <-time.After(pause + m.own(jitterMost)):
		}
		m.a.lookedAtRoster()
		if m.overtaken(r) {
			return
		}
	}
}

// hold lets others go first for a while, which differs from node to node, so that two do not meet again and again.
func (m *remover) hold() {
	m.holdOff = m.a.now().Add(m.backOff + m.own(m.backOff))
	m.backOff = min(2*m.backOff, backOffLast)
}

// own is a duration below most that is this node's.
func (m *remover) own(most time.Duration) time.Duration {
	return time.Duration(binary.BigEndian.Uint64(m.a.self[:8]) % uint64(most))
}

// overtaken reports whether others were removed since the proposal, or one of the named has come up again or may be named
// anew.
func (m *remover) overtaken(r *round) bool {
	if m.unnamed(r) {
		return true
	}
	if r.forced {
		return false
	}
	need := m.need()
	if m.a.anyForced(need) {
		return true
	}
	named, _, waiting := m.name(need)
	return waiting != "" || slices.ContainsFunc(named, func(n ring.Named) bool { return !slices.Contains(r.p.Removed(), n) })
}

// unnamed reports whether somebody was removed whom the proposal does not name.
func (m *remover) unnamed(r *round) bool {
	return slices.ContainsFunc(m.need(), func(x Removal) bool { return !r.p.Names(x.Node) })
}

// survivors lists the other members, voters or not.
func (a *Allocator) survivors() []peer.ID {
	var ids []peer.ID
	removed := make(peer.Set)
	for _, r := range a.cfg.Roster.Removals() {
		removed.Add(r.Node)
	}
	for _, p := range a.cfg.Network.Peers() {
		if p.State != peer.Removed && !removed.Has(p.ID) {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

func (a *Allocator) ownsAny(id peer.ID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.blocks[id]) > 0
}

// setHindrance says in status why a removal is not complete.
func (a *Allocator) setHindrance(problem string, waits []peer.ID) {
	a.mu.Lock()
	same := a.hindrance == problem && slices.Equal(a.waits, waits)
	a.hindrance, a.waits = problem, waits
	a.mu.Unlock()
	if !same {
		a.notify()
	}
}
