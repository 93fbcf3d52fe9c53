package ipam

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// round is one proposal and what became of it.
type round struct {
	p      *ring.Proposal
	forced bool
	began  time.Time

	mu       sync.Mutex // guards the rest
	promised peer.Set
	novices  peer.Set              // those of them that count in no quorum yet
	heirs    peer.Set              // those of them that can use blocks
	joining  map[peer.ID][]peer.ID // members-to-be that each knew when it promised and that may still become members
	beaten   bool
}

// propose makes this node's own promise, and so the proposal, durable.
func (m *remover) propose(ctx context.Context, named []ring.Named, forced bool) (*round, error) {
	a := m.a
	r := &round{
		forced: forced, began: a.now(), promised: peer.SetOf(a.self), heirs: peer.SetOf(a.self),
		novices: make(peer.Set), joining: make(map[peer.ID][]peer.ID),
	}
	var failed error
	err := a.do(ctx, func() {
		number := max(a.ring.Number(), m.seen)
		if a.promised != nil && !a.cfg.Weaken.has(WithoutNumbers) {
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
	r.settle(a.now(), a.cfg.Network.Peers())
	ask := r.toAsk(a.survivors(), a.self)
	survivors := peer.SetOf(ask...)
	for _, n := range r.p.Removed() {
		if n.Incarnation != anyStart {
			ask = append(ask, n.Node)
		}
	}
	a.setHindrance("", r.missing(a.survivors()))
	a.forEach(ctx, ask, func(ctx context.Context, id peer.ID) { m.askOne(ctx, r, id, survivors.Has(id)) })
	r.settle(a.now(), a.cfg.Network.Peers())
	// Survivors anew: the rosters that came with the promises may name more.
	waits = r.missing(a.survivors())
	a.setHindrance("", waits)
	return waits
}

// askOne asks one member and takes over what it knows, before its promise counts.
func (m *remover) askOne(ctx context.Context, r *round, id peer.ID, survivor bool) {
	a := m.a
	answer, err := m.question(ctx, r, id, nil)
	if err == nil && answer.verdict == verdictUnproven && answer.summary != nil {
		if delta := a.cfg.Roster.Delta(answer.summary); len(delta) > 0 {
			answer, err = m.question(ctx, r, id, delta)
		}
	}
	if err != nil {
		a.log.Debug("no answer to a removal", "peer", id, "err", err)
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
			// Whom it would have named is not known, so that a promise with it proves too little.
			a.log.Warn("answer to a removal does not count: its roster cannot be taken over", "peer", id, "err", err)
			return
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

// question is one question with its answer.
func (m *remover) question(ctx context.Context, r *round, id peer.ID, delta []byte) (promiseAnswer, error) {
	a := m.a
	req := promiseRequest{r.p.Raw(), a.current().Digest(), a.cfg.Roster.Summary(), delta}
	b, err := a.cfg.Network.Call(ctx, id, methodPromise, req.encode())
	if err != nil {
		return promiseAnswer{}, err
	}
	return parsePromiseAnswer(b)
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
	case r.open():
		a.setHindrance("reclaim waits for a join under way", nil)
		return false, nil
	case !weak.has(WithoutQuorum) && !peer.Quorum(b.voters, r.versed(a)):
		if peer.Quorum(b.voters, r.promised) {
			a.setHindrance("reclaim waits until members that joined lately have heard what those before them know; if these are lost: "+
				"weft peer remove --force", nil)
			return false, nil
		}
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
		if !a.stands(r.p) || !lends { // a higher one was promised meanwhile
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

// leads reports whether a proposal of this node's is the last one that it promised.
func (a *Allocator) leads(p *ring.Proposal) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.stands(p) && a.ring.Number() < p.Number()
}

// stands reports whether a proposal of this node's is the last one that it promised; on Run's goroutine, or mu is held.
func (a *Allocator) stands(p *ring.Proposal) bool {
	if a.cfg.Weaken.has(WithoutNumbers) && a.promised != nil {
		return a.promised.Number() <= p.Number()
	}
	return a.promised != nil && a.promised.ID() == p.ID()
}

// yes counts a promise.
func (r *round) yes(id peer.ID, answer promiseAnswer) {
	r.hear(id, answer.joining)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.promised.Add(id)
	if delete(r.novices, id); answer.novice {
		r.novices.Add(id)
	}
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
func (r *round) settle(now time.Time, peers []peer.Info) {
	members := make(peer.Set)
	for _, p := range peers {
		members.Add(p.ID)
	}
	late := now.Sub(r.began) > joinTime
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

// versed lists those who have promised and count in a quorum.
func (r *round) versed(a *Allocator) peer.Set {
	self := a.Novice()
	r.mu.Lock()
	defer r.mu.Unlock()
	all := maps.Clone(r.promised)
	maps.DeleteFunc(all, func(id peer.ID, _ struct{}) bool { return r.novices.Has(id) || self && id == a.self })
	return all
}

// toAsk lists the survivors that have to be asked: those that have not promised, those that know of a join, and those that
// may count by now.
func (r *round) toAsk(survivors []peer.ID, self peer.ID) []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(survivors), func(id peer.ID) bool {
		return id == self || r.promised.Has(id) && len(r.joining[id]) == 0 && !r.novices.Has(id)
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
