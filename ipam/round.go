package ipam

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
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
	seen     uint64 // the highest number that anybody was heard to have promised
	promised struct {
		id ring.ID
		at time.Time
	}
}

// comeback is a start of a removed member that survivors have told of.
type comeback struct {
	incarnation uint64
	since       time.Time // when it was first told of
	stopped     bool      // the member itself says that it has stopped since
}

// round is one proposal and what became of it.
type round struct {
	p      *ring.Proposal
	forced bool
	began  time.Time

	mu       sync.Mutex // guards the rest
	promised peer.Set
	heirs    peer.Set              // those of them that can use blocks
	joining  map[peer.ID][]peer.ID // members-to-be that each knew when it promised and that may still become members
	beaten   bool
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
		} else if need := m.need(); len(need) > 0 {
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
// and without blocks go along with others only.
func (m *remover) need() []Removal {
	b := m.a.ballot()
	peers := m.a.cfg.Network.Peers()
	silent := make(peer.Set)
	for _, p := range peers {
		if p.Ephemeral {
			silent.Add(p.ID)
		}
	}
	var need, along []Removal
	late := func(r Removal) bool { // what a member that left gave back should have been heard of
		since, known := m.since[r.Node]
		return known && time.Since(since) >= leftTime
	}
	m.a.mu.RLock()
	for id, r := range b.removed {
		switch _, promised := m.a.refused[id]; {
		case id == m.a.self:
		case !b.fenced.Has(id):
			need = append(need, r)
		case r.Left && len(m.a.blocks[id]) > 0:
			if late(r) {
				need = append(need, r)
			} else if _, known := m.since[id]; !known {
				m.since[id] = time.Now()
			}
		case silent.Has(id) && !r.Left && !promised && !m.a.ring.Names(id):
			along = append(along, r)
		}
	}
	m.a.mu.RUnlock()
	now := time.Now()
	for _, r := range need {
		if _, known := m.since[r.Node]; !known {
			m.since[r.Node] = now
		}
	}
	maps.DeleteFunc(m.since, func(id peer.ID, _ time.Time) bool {
		return b.fenced.Has(id) && !(b.removed[id].Left && m.a.ownsAny(id))
	})
	if len(need) == 0 {
		return nil
	}
	need = slices.Concat(need, along)
	need = need[:min(len(need), ring.MaxNamed)]
	slices.SortFunc(need, func(x, y Removal) int { return x.Node.Compare(y.Node) })
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
	now := time.Now()
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
	m.holdOff = time.Now().Add(m.backOff + m.own(m.backOff))
	m.backOff = min(2*m.backOff, backOffLast)
}

// own is a duration below most that is this node's.
func (m *remover) own(most time.Duration) time.Duration {
	return time.Duration(binary.BigEndian.Uint64(m.a.self[:8]) % uint64(most))
}

// overtaken reports whether others were removed since the proposal, or one of the named may be named anew.
func (m *remover) overtaken(r *round) bool {
	need := m.need()
	for _, x := range need {
		if !r.p.Names(x.Node) {
			return true
		}
	}
	if r.forced {
		return false
	}
	if m.a.anyForced(need) {
		return true
	}
	named, _, waiting := m.name(need)
	return waiting == "" && slices.ContainsFunc(named, func(n ring.Named) bool { return !slices.Contains(r.p.Removed(), n) })
}

// name says which starts of the removed a proposal covers. One that came up again after it was removed has to stop or to
// be silent first; waiting is a sentence about it. With force only those are named for whom it was asked.
func (m *remover) name(need []Removal) (named []ring.Named, forced bool, waiting string) {
	a := m.a
	peers := a.cfg.Network.Peers()
	forced = a.anyForced(need)
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, r := range need {
		if forced && !a.forced.Has(r.Node) {
			continue
		}
		n := ring.Named{Node: r.Node, Incarnation: a.heard[r.Node].incarnation}
		if r.Incarnation != 0 {
			m.note(n, false)
			n.Incarnation = r.Incarnation
		}
		if c, ok := m.came[r.Node]; ok && c.incarnation > n.Incarnation {
			if c.stopped || m.silent(peers, r.Node, c) {
				n.Incarnation = c.incarnation
			} else {
				waiting = fmt.Sprintf("%s came up again after it was removed: it must stop, or not be heard for %s",
					names(peers, r.Node), a.cfg.Silence)
			}
		}
		if forced || r.Left || r.Stolen {
			n.Incarnation = anyStart
		}
		named = append(named, n)
	}
	if forced {
		waiting = ""
	}
	return named, forced, waiting
}

// silent reports whether a removed member has not been heard of for long enough to believe that it is stopped.
func (m *remover) silent(peers []peer.Info, id peer.ID, c comeback) bool {
	since := c.since
	if i := slices.IndexFunc(peers, func(p peer.Info) bool { return p.ID == id }); i >= 0 && peers[i].LastSeen.After(since) {
		since = peers[i].LastSeen
	}
	return time.Since(since) >= m.a.cfg.Silence
}

// propose makes this node's own promise, and so the proposal, durable.
func (m *remover) propose(ctx context.Context, named []ring.Named, forced bool) (*round, error) {
	a := m.a
	r := &round{
		forced: forced, began: time.Now(), promised: peer.SetOf(a.self), heirs: peer.SetOf(a.self),
		joining: make(map[peer.ID][]peer.ID),
	}
	var failed error
	err := a.do(ctx, func() {
		number := max(a.ring.Number(), m.seen)
		if a.promised != nil {
			number = max(number, a.promised.Number())
		}
		if r.p, failed = ring.Propose(a.cfg.Universe, a.cfg.Signer, number+1, named); failed != nil {
			return
		}
		failed = a.keepPromise(r.p)
	})
	if err = cmp.Or(err, failed); err != nil {
		return nil, err
	}
	r.hear(a.self, a.cfg.Roster.Joining())
	return r, nil
}

// ask asks every survivor that has not promised, and those that know of joins under way. It lists who has not promised.
// The removed are told too, where they can be reached.
func (m *remover) ask(ctx context.Context, r *round) (waits []peer.ID) {
	a := m.a
	if a.cfg.Weaken.has(WithoutFence) {
		return nil
	}
	r.hear(a.self, a.cfg.Roster.Joining())
	r.settle(a.cfg.Network.Peers())
	ask := r.toAsk(a.survivors(), a.self)
	survivors := peer.SetOf(ask...)
	for _, n := range r.p.Removed() {
		if n.Incarnation != anyStart {
			ask = append(ask, n.Node)
		}
	}
	a.setHindrance("", r.missing(a.survivors()))
	a.forEach(ctx, ask, func(ctx context.Context, id peer.ID) { m.askOne(ctx, r, id, survivors.Has(id)) })
	r.settle(a.cfg.Network.Peers())
	// Survivors anew: the rosters that came with the promises may name more.
	waits = r.missing(a.survivors())
	a.setHindrance("", waits)
	return waits
}

// askOne asks one member and takes over what it knows, before its promise counts.
func (m *remover) askOne(ctx context.Context, r *round, id peer.ID, survivor bool) {
	a := m.a
	req := promiseRequest{r.p.Raw(), a.current().Digest(), a.cfg.Roster.Summary()}
	b, err := a.cfg.Network.Call(ctx, id, methodPromise, req.encode())
	if err != nil {
		a.log.Debug("no answer to a removal", "peer", id, "err", err)
		return
	}
	answer, err := parsePromiseAnswer(b)
	if err != nil {
		a.log.Warn("unreadable answer to a removal", "peer", id, "err", err)
		return
	}
	if answer.ring != nil && survivor {
		// It took this before it promised; who has promised takes nothing more. A removed one is no witness.
		if _, err := a.merge(ctx, answer.ring, r.p.Names); err != nil {
			a.log.Warn("ring not merged", "peer", id, "err", err)
			return
		}
	}
	if len(answer.roster) > 0 && survivor {
		if err := a.cfg.Roster.Merge(answer.roster); err != nil {
			a.log.Debug("part of a roster left out", "peer", id, "err", err)
		}
	}
	switch answer.verdict {
	case verdictYes:
		if survivor && !answer.partial {
			r.yes(id, answer)
		}
	case verdictNumber:
		m.beat(r, answer.higher)
	case verdictNewer, verdictStopped:
		m.comeBack(r, id, answer)
	case verdictUnproven, verdictUnknown:
	}
}

// beat gives way to a higher number. That somebody has promised one is believed only if an issuer signed it: otherwise
// any member could use the numbers up.
func (m *remover) beat(r *round, raw []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if raw == nil { // a complete view, which came with its ring
		r.beaten = m.a.current().Number() >= r.p.Number()
		return
	}
	p, err := ring.ParseProposal(raw)
	if err == nil {
		judge := m.a.judge(m.a.current(), nil)
		judge.Removed = everybody // that has to be known only to promise it
		err = p.Verify(m.a.cfg.Universe, judge)
	}
	if err != nil || p.Number() < r.p.Number() || p.ID() == r.p.ID() {
		return
	}
	m.seen = max(m.seen, p.Number())
	r.beaten = true
}

// comeBack notes starts of the removed that are newer than the proposal says.
func (m *remover) comeBack(r *round, from peer.ID, answer promiseAnswer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range answer.newer {
		own := answer.verdict == verdictStopped && n.Node == from
		if !r.p.Names(n.Node) || answer.verdict == verdictStopped && !own {
			continue
		}
		m.note(n, own)
		for _, named := range r.p.Removed() {
			r.beaten = r.beaten || !own && named.Node == n.Node && n.Incarnation > named.Incarnation
		}
	}
}

// note remembers a start of a removed member, and that it has stopped since.
func (m *remover) note(n ring.Named, stopped bool) {
	c := m.came[n.Node]
	if n.Incarnation > c.incarnation {
		c = comeback{incarnation: n.Incarnation, since: time.Now()}
	}
	c.stopped = c.stopped || stopped && n.Incarnation >= c.incarnation
	m.came[n.Node] = c
}

// finish completes the view if all conditions are met.
func (m *remover) finish(ctx context.Context, r *round, waits []peer.ID) (done bool, err error) {
	a := m.a
	if r.lost() {
		return false, nil
	}
	weak := a.cfg.Weaken
	b := a.ballot()
	switch {
	case r.forced, weak.has(WithoutFence):
	case len(waits) > 0 && (!weak.has(WithoutMinority) || 2*len(waits) >= 1+len(a.survivors())):
		return false, nil
	case r.open() && !weak.has(WithoutJoiners):
		a.setHindrance("reclaim waits for a join under way", nil)
		return false, nil
	case !weak.has(WithoutQuorum) && !peer.Quorum(b.voters, r.promised):
		a.setHindrance("those that are left are no quorum of the voters: weft peer remove --force finishes without", nil)
		return false, nil
	}
	ephemeral := make(peer.Set)
	for _, p := range a.cfg.Network.Peers() {
		if p.Ephemeral {
			ephemeral.Add(p.ID)
		}
	}
	t := ring.Takeover{
		Number: r.p.Number(), Removed: r.p.Removed(), Forced: r.forced, May: r.heirs.Has,
		Remember: func(id peer.ID) bool { return !ephemeral.Has(id) },
		Restamp:  weak.has(WithoutRestraint),
	}
	var report ring.Report
	var proof []byte
	var failed error
	if err := a.do(ctx, func() {
		if a.storeErr != nil {
			if failed = a.reload(); failed != nil {
				return
			}
		}
		lends := a.phase == phaseConfirmed || r.forced && a.phase != phaseStopped && a.phase != phaseLeft
		if a.promised == nil || a.promised.ID() != r.p.ID() || !lends { // a higher one was promised meanwhile
			r.lose()
			return
		}
		if a.phase == phaseStopped || a.phase == phaseLeft { // it has ended as a member meanwhile, and writes no more
			r.lose()
			return
		}
		var next *ring.Ring
		if next, report, failed = a.ring.TakeOver(a.cfg.Signer, t); failed != nil {
			return
		}
		if failed = a.write(next, report); failed == nil {
			proof = next.Proof(report.Added)
			a.forget(r.p)
		}
	}); err != nil {
		return false, err
	}
	if failed != nil || r.lost() {
		return false, failed
	}
	a.log.Info("removal complete", "view", r.p.Number(), "count", len(report.Added), "forced", r.forced)
	heirs := make(peer.Set)
	for _, g := range report.Added {
		if g.Owner() != a.self {
			heirs.Add(g.Owner())
		}
	}
	a.forEach(ctx, heirs.Sorted(), func(ctx context.Context, id peer.ID) {
		if _, err := a.cfg.Network.Call(ctx, id, methodPush, push{ring: proof}.encode()); err != nil {
			a.log.Debug("heir not told; gossip will", "peer", id, "err", err)
		}
	})
	return true, nil
}

// forget ends what force was asked for.
func (a *Allocator) forget(p *ring.Proposal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.forced, func(id peer.ID, _ struct{}) bool { return p.Names(id) })
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

// leads reports whether a proposal of this node's is the last one that it promised.
func (a *Allocator) leads(p *ring.Proposal) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.promised != nil && a.promised.ID() == p.ID() && a.ring.Number() < p.Number()
}

func (a *Allocator) ownsAny(id peer.ID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.blocks[id]) > 0
}

func (a *Allocator) anyForced(need []Removal) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.ContainsFunc(need, func(r Removal) bool { return a.forced.Has(r.Node) })
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

// yes counts a promise.
func (r *round) yes(id peer.ID, answer promiseAnswer) {
	r.hear(id, answer.joining)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.promised.Add(id)
	if !answer.idle {
		r.heirs.Add(id)
	}
}

// hear notes the joins under way that a survivor knew when it promised. When it is asked again, those of them that it
// names no longer are over.
func (r *round) hear(id peer.ID, joining []peer.Info) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, again := r.joining[id]
	open := []peer.ID{}
	for _, j := range joining {
		if !again || slices.Contains(before, j.ID) {
			open = append(open, j.ID)
		}
	}
	r.joining[id] = open
}

// settle closes the joins of those that are members by now, and those that take too long.
func (r *round) settle(peers []peer.Info) {
	members := make(peer.Set)
	for _, p := range peers {
		members.Add(p.ID)
	}
	late := time.Since(r.began) > joinTime
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, open := range r.joining {
		r.joining[id] = slices.DeleteFunc(open, func(j peer.ID) bool { return late || members.Has(j) })
	}
}

// open reports whether a join is under way whose joiner may have to promise.
func (r *round) open() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, open := range r.joining {
		if len(open) > 0 {
			return true
		}
	}
	return false
}

// toAsk lists the survivors that have to be asked: those that have not promised, and those that know of a join.
func (r *round) toAsk(survivors []peer.ID, self peer.ID) []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(survivors), func(id peer.ID) bool {
		return id == self || r.promised.Has(id) && len(r.joining[id]) == 0
	})
}

func (r *round) missing(survivors []peer.ID) []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(survivors), r.promised.Has)
}

func (r *round) lost() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beaten
}

func (r *round) lose() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.beaten = true
}
