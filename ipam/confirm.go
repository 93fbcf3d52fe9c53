package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
)

const (
	callTimeout  = 2 * time.Second // for one answer of one member
	parallel     = 8               // calls under way at once
	confirmFirst = 500 * time.Millisecond
	confirmLast  = 10 * time.Second
	announceLast = 10 * time.Minute

	stoppedHint = ". It gives no more addresses; make this machine a new node: weft join TOKEN"
)

// confirm tells all voters of this start and hears what they know, until each has answered. Each remembers durably which
// start it is, and its ring brings whatever this node has forgotten or missed. A quorum of answers confirms; the others
// are asked nevertheless, for each may be the one who knows that this node's disk was set back.
func (a *Allocator) confirm(ctx context.Context) {
	for pause := confirmFirst; ; {
		waits, enough := a.awaited(ctx)
		if ctx.Err() != nil || enough && len(waits) == 0 && !a.Novice() {
			return
		}
		a.forEach(ctx, waits, func(ctx context.Context, id peer.ID) {
			if a.sync(ctx, id) {
				a.awaited(ctx)
			}
		})
		limit := confirmLast
		if enough && !a.Novice() {
			limit = announceLast
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, limit)
	}
}

// forEach calls f for each member, a few at a time, each with the time of one call.
func (a *Allocator) forEach(ctx context.Context, ids []peer.ID, f func(ctx context.Context, id peer.ID)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, parallel)
	for _, id := range ids {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			f(ctx, id)
		})
	}
}

// awaited lists the voters that have not answered yet. Enough of them have when the others are a quorum, which confirms,
// or when nothing more can come of it.
func (a *Allocator) awaited(ctx context.Context) (waits []peer.ID, enough bool) {
	b := a.ballot()
	h := a.hearing(b)
	if h.over {
		return nil, true
	}
	// A quorum of all voters that any answer names is needed, for this node's own list may be old.
	enough = peer.Quorum(h.voters, h.answered) && a.do(ctx, a.confirmed) == nil
	// Where all who were there before are gone nobody is left to ask: who left has told others what it knew, and nobody was
	// removed without a quorum of those who knew.
	orphan := len(h.teachers) == 0 && b.fenced.Has(a.cfg.Universe.Founder())
	if h.novice && (orphan || peer.Quorum(h.teachers, h.taught)) && a.do(ctx, a.graduate) == nil {
		h = a.hearing(a.ballot())
	}
	return h.waits, enough
}

// hearing is who counts after a start and who has answered: all voters in this node's view and in those that came with
// answers.
type hearing struct {
	voters   []peer.Voter
	answered peer.Set
	waits    []peer.ID // voters that were not removed and have not answered
	over     bool      // nobody needs to answer any more

	novice   bool
	teachers []peer.Voter // of a novice
	taught   peer.Set     // those of them who have
}

func (a *Allocator) hearing(b ballot) hearing {
	h := hearing{voters: b.voters, novice: a.Novice()}
	a.mu.RLock()
	theirs := a.voters
	h.answered, h.over = maps.Clone(a.answered), a.phase == phaseStopped
	h.taught = maps.Clone(a.taught)
	// Who is removed is no witness, even if it answered before that was known.
	maps.DeleteFunc(h.answered, func(id peer.ID, _ struct{}) bool {
		_, removed := b.removed[id]
		return removed || a.refuses(id)
	})
	a.mu.RUnlock()
	counted := make(peer.Set)
	for _, v := range h.voters {
		counted.Add(v.ID)
	}
	for _, v := range theirs {
		if _, removed := b.removed[v.ID]; !removed && !counted.Has(v.ID) {
			counted.Add(v.ID)
			h.voters = append(h.voters, v)
		}
	}
	teachers := make(peer.Set)
	if h.novice {
		h.teachers = a.teachers(h.voters)
		for _, v := range h.teachers {
			teachers.Add(v.ID)
		}
	}
	for _, v := range h.voters {
		teaches := teachers.Has(v.ID) && !h.taught.Has(v.ID)
		if _, removed := b.removed[v.ID]; !removed && (teaches || !h.answered.Has(v.ID)) {
			h.waits = append(h.waits, v.ID)
		}
	}
	return h
}

// confirmed ends the doubt after a start.
func (a *Allocator) confirmed() {
	a.mu.Lock()
	was := a.phase
	if was == phaseStarting || was == phaseUnconfirmed {
		a.phase = phaseConfirmed
	}
	a.mu.Unlock()
	if was != phaseConfirmed {
		a.log.Info("confirmed by a quorum")
		a.notify()
	}
}

// doubt begins to serve without confirmation, unless that is not wanted.
func (a *Allocator) doubt() {
	if a.cfg.Strict || a.phase != phaseStarting {
		return
	}
	a.mu.Lock()
	a.phase = phaseUnconfirmed
	a.mu.Unlock()
	a.log.Warn("serving unconfirmed", "reason", a.Status().Reason)
	a.notify()
}

// serves reports whether addresses may be given.
func (a *Allocator) serves() bool { return a.phase == phaseConfirmed || a.phase == phaseUnconfirmed }

// sync tells one member of this start and learns what it knows; true when it has.
func (a *Allocator) sync(ctx context.Context, id peer.ID) bool {
	var req syncRequest
	novice := a.Novice()
	if err := a.do(ctx, func() {
		req = syncRequest{start: a.start, digest: a.ring.Digest()}
		if novice {
			req.starts = sumOf(a.again(a.self))
		}
	}); err != nil {
		return false
	}
	a.mu.RLock()
	doubts := a.phase != phaseConfirmed
	a.mu.RUnlock()
	if doubts {
		req.roster = a.cfg.Roster.Summary()
	}
	b, err := a.cfg.Network.Call(ctx, id, methodSync, req.encode())
	if err != nil {
		a.log.Debug("no answer to sync", "peer", id, "err", err)
		return false
	}
	answer, err := parseSyncAnswer(b)
	if err != nil {
		a.log.Warn("unreadable answer to sync", "peer", id, "err", err)
		return false
	}
	// The roster before the answer counts: it may say that others who have answered are no witnesses. Without that, a start could
	// be confirmed by voters who were removed, and do not know, together with one who does.
	if len(answer.roster) > 0 && !a.cfg.Weaken.has(WithoutSyncRoster) {
		if err := a.cfg.Roster.Merge(answer.roster); err != nil {
			a.log.Warn("answer to sync does not count: its roster cannot be taken over", "peer", id, "err", err)
			return false
		}
	}
	if answer.partial {
		a.log.Debug("answer to sync does not count: too much of the roster is missing here yet", "peer", id)
		return false
	}
	if answer.ring != nil {
		var except func(peer.ID) bool
		if a.cfg.Weaken.has(WithoutSyncRefusal) {
			except = everybody
		}
		rejected, err := a.merge(ctx, answer.ring, except)
		if err != nil {
			a.log.Warn("ring not merged", "peer", id, "err", err)
			return false
		}
		if err := leftOut(rejected); err != nil {
			a.log.Debug("part of a ring left out", "peer", id, "err", err)
		}
	}
	err = a.do(ctx, func() {
		if novice && len(answer.heard) > 0 {
			if err := a.hear(answer.heard); err != nil {
				a.log.Debug("starts not taken over", "peer", id, "err", err)
				answer.novice = true // this counts as an answer, but has taught nothing
			}
		}
		if before := answer.before; before.incarnation > req.start.incarnation || before.incarnation == req.start.incarnation &&
			before.number != req.start.number {
			a.stop(fmt.Sprintf("%s has heard of start %d of this node, and this is start %d: its disk was set back or copied",
				names(a.cfg.Network.Peers(), id), before.incarnation, req.start.incarnation))
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.answered.Add(id)
		if novice && !answer.novice {
			a.taught.Add(id)
		}
		for _, v := range answer.voters {
			if len(a.voters) < maxVoters && !slices.Contains(a.voters, v) {
				a.voters = append(a.voters, v)
			}
		}
	})
	a.notify()
	return err == nil
}

// stop ends all writing under this identity, for good: others have seen things written by it that it does not know, so
// what it believes to own may be somebody else's. Addresses that are in use stay in use.
func (a *Allocator) stop(cause string) {
	if a.phase == phaseStopped {
		return
	}
	reason := cause + stoppedHint
	if err := a.commit(putStopped(reason)); err != nil {
		a.log.Error("identity stopped, but not on disk", "err", err)
	}
	a.setStopped(reason)
}

func (a *Allocator) setStopped(reason string) {
	a.log.Error("identity stopped", "reason", reason)
	a.mu.Lock()
	a.phase, a.stopped = phaseStopped, reason
	a.mu.Unlock()
	a.notify()
}

var errNoWitness = errors.New("this node has left the cluster, or may not go on in it")

// serveSync answers a member that has started.
func (a *Allocator) serveSync(ctx context.Context, from peer.ID, b []byte) ([]byte, error) {
	req, err := parseSyncRequest(b)
	if err != nil {
		return nil, err
	}
	var answer syncAnswer
	var failed error
	err = a.do(ctx, func() {
		if a.refuses(from) {
			failed = fmt.Errorf("%s is being removed", from.Short())
			return
		}
		if a.phase == phaseLeft || a.phase == phaseStopped {
			// What it knows was told to others already, or is not all that it knew once: it is no witness.
			failed = errNoWitness
			return
		}
		answer.before = a.heard[from]
		newer := req.start.incarnation > answer.before.incarnation
		if newer {
			if failed = a.commit(putHeard(from, req.start)); failed != nil {
				return
			}
			a.mu.Lock()
			a.heard[from] = req.start
			a.mu.Unlock()
		}
		if !slices.Equal(a.ring.Digest(), req.digest) {
			answer.ring = a.ring.Encode()
		}
		if len(req.starts) > 0 {
			if all := a.again(from); !slices.Equal(sumOf(all), req.starts) {
				answer.heard = all
			}
			answer.novice = a.Novice()
		}
	})
	if err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	answer.voters = a.cfg.Network.Voters()
	answer.voters = answer.voters[:min(len(answer.voters), maxVoters)]
	if len(req.roster) > 0 {
		answer.roster = a.cfg.Roster.Delta(req.roster)
	}
	message := answer.encode()
	if len(message) > maxMessage && len(answer.heard) > 0 {
		answer.heard, answer.novice = nil, true
		message = answer.encode()
	}
	if len(answer.roster) > maxRosterPart || len(message) > maxMessage {
		answer.roster, answer.partial = nil, len(answer.roster) > 0
		message = answer.encode()
	}
	return message, nil
}
