package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// A survivor's part in a removal. See Reclaim for the whole.

// servePromise answers a coordinator. The promise is on disk before the answer leaves, and the answer carries all that
// this node knew when it promised: whatever of the removed comes later, it refuses.
func (a *Allocator) servePromise(ctx context.Context, from peer.ID, b []byte) ([]byte, error) {
	req, err := parsePromiseRequest(b)
	if err != nil {
		return nil, err
	}
	p, err := ring.ParseProposal(req.proposal)
	if err != nil {
		return nil, err
	}
	if p.Writer() != from {
		return nil, fmt.Errorf("a proposal of %s, not of the caller", p.Writer().Short())
	}
	if len(req.delta) > 0 {
		if err := a.cfg.Roster.Merge(req.delta); err != nil {
			a.log.Debug("part of a roster left out", "peer", from, "err", err)
		}
	}
	if p.Names(a.self) {
		return a.serveOwnRemoval(ctx, p)
	}
	err = p.Verify(a.cfg.Universe, a.judge(a.current(), nil))
	if errors.Is(err, ring.ErrUnknownSigner) {
		return a.unproven(), nil
	}
	if err != nil {
		return nil, err
	}
	var answer promiseAnswer
	var failed error
	if err := a.do(ctx, func() { answer, failed = a.promise(p, req.digest) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	if answer.verdict == verdictYes {
		// After the promise: a member that this node hears of later cannot have got anything of the removed by it.
		answer.joining = a.cfg.Roster.Joining()
		answer.roster = a.cfg.Roster.Delta(req.roster)
		if a.cfg.Weaken.has(WithoutClosure) {
			answer.joining, answer.roster = nil, nil
		}
		if len(answer.roster) > maxRosterPart {
			answer.roster, answer.partial = nil, true
		}
		answer.joining = answer.joining[:min(len(answer.joining), maxJoiners)]
	}
	return answer.encode(), nil
}

// promise decides and makes the decision durable. The same proposal gets the same answer as often as it comes, with what
// is known by then.
func (a *Allocator) promise(p *ring.Proposal, digest []byte) (promiseAnswer, error) {
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			return promiseAnswer{}, err
		}
	}
	answer := promiseAnswer{idle: a.phase == phaseStopped || a.phase == phaseLeft, novice: a.Novice()}
	if !bytes.Equal(digest, a.ring.Digest()) {
		answer.ring = a.ring.Encode()
	}
	again := a.promised != nil && a.promised.ID() == p.ID()
	if !again {
		if answer.higher, answer.newer = a.objections(p); answer.higher != nil || p.Number() <= a.ring.Number() {
			answer.verdict = verdictNumber
			return answer, nil
		}
		if len(answer.newer) > 0 {
			answer.verdict = verdictNewer
			return answer, nil
		}
		if err := a.keepPromise(p); err != nil {
			return promiseAnswer{}, err
		}
	}
	return answer, nil
}

// objections are what keeps this node from promising: a proposal that it has promised before, and starts of the removed
// that the coordinator does not know of.
func (a *Allocator) objections(p *ring.Proposal) (higher []byte, newer []ring.Named) {
	if a.promised != nil && a.promised.Number() >= p.Number() && !a.cfg.Weaken.has(WithoutNumbers) {
		higher = a.promised.Raw()
	}
	for _, n := range p.Removed() {
		if heard := a.heard[n.Node].incarnation; heard > n.Incarnation && !a.cfg.Weaken.has(WithoutIncarnation) {
			newer = append(newer, ring.Named{Node: n.Node, Incarnation: heard})
		}
	}
	return higher, newer
}

// keepPromise makes a promise durable, then effective. A lower proposal of this node's own is dropped by it.
func (a *Allocator) keepPromise(p *ring.Proposal) error {
	ops := []Op{putPromise(p)}
	refused := make(map[peer.ID]uint64)
	if a.cfg.Weaken.has(WithoutMemory) {
		for id := range a.refused {
			ops = append(ops, deleteRefused(id))
		}
	} else {
		maps.Copy(refused, a.refused)
	}
	for _, n := range p.Removed() {
		if _, already := refused[n.Node]; !already {
			refused[n.Node] = p.Number()
			ops = append(ops, putRefused(n.Node, p.Number()))
		}
	}
	if err := a.commit(ops...); err != nil {
		return err
	}
	a.mu.Lock()
	a.promised, a.refused = p, refused
	a.refusals++
	a.mu.Unlock()
	a.notify()
	return nil
}

// unproven asks the coordinator for what this node's roster lacks.
func (a *Allocator) unproven() []byte {
	return promiseAnswer{verdict: verdictUnproven, summary: a.cfg.Roster.Summary()}.encode()
}

// serveOwnRemoval stops for good when this node was removed, and says which start of it that was. It wants to have its
// removal in its own roster first: a coordinator may have been removed itself and not know, so that nobody else would ever
// hear why this node has stopped. What it has written it need not tell: a removed one is no witness.
func (a *Allocator) serveOwnRemoval(ctx context.Context, p *ring.Proposal) ([]byte, error) {
	judge := a.judge(a.current(), nil)
	judge.Removed = everybody // the others know more than a removed one
	if err := p.Verify(a.cfg.Universe, judge); err != nil {
		return nil, err
	}
	if !a.wasRemoved() {
		return a.unproven(), nil
	}
	answer := promiseAnswer{verdict: verdictStopped, idle: true}
	var failed error
	err := a.do(ctx, func() {
		if failed = a.expel(); failed == nil {
			answer.newer = []ring.Named{{Node: a.self, Incarnation: a.start.incarnation}}
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	return answer.encode(), nil
}

// removedReason is the sentence of a node that was removed.
const removedReason = "this node was removed from the cluster"

// expel ends all writing under this identity because it was removed, durably.
func (a *Allocator) expel() error {
	if a.removed || a.phase == phaseLeft {
		return nil
	}
	if err := a.commit(putStopped(removedReason), putRemoved()); err != nil {
		return err
	}
	a.mu.Lock()
	a.removed = true
	a.mu.Unlock()
	a.setStopped(removedReason)
	return nil
}

// wasRemoved reports whether the roster says that this node is no member any more.
func (a *Allocator) wasRemoved() bool {
	return slices.ContainsFunc(a.cfg.Roster.Removals(), func(r Removal) bool { return r.Node == a.self })
}
