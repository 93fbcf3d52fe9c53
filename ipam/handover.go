package ipam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

const (
	handOverTries = 4
	handOverPause = 500 * time.Millisecond
)

// handOver tells the heirs and the other voters all that this node knows, and returns when every heir and a quorum of
// those voters has it on disk. A quorum that this node was part of may have decided something that nobody else in it is
// there to tell: so its vote goes only together with its knowledge.
func (a *Allocator) handOver(ctx context.Context, heirs []peer.ID) error {
	b := a.ballot()
	voter := slices.ContainsFunc(b.voters, func(v peer.Voter) bool { return v.ID == a.self })
	voters := slices.DeleteFunc(b.voters, func(v peer.Voter) bool { return v.ID == a.self })
	var mu sync.Mutex // guards have and last
	var last error
	have := make(peer.Set)
	lacking := func() (ids []peer.ID) {
		for _, id := range heirs {
			if !have.Has(id) {
				ids = append(ids, id)
			}
		}
		return ids
	}
	for try := range handOverTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(handOverPause):
			}
		}
		ask := lacking()
		for _, v := range voters {
			if _, removed := b.removed[v.ID]; !removed && voter && !have.Has(v.ID) && !slices.Contains(ask, v.ID) {
				ask = append(ask, v.ID)
			}
		}
		a.forEach(ctx, ask, func(ctx context.Context, id peer.ID) {
			err := a.tellAll(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				last = err
				return
			}
			have.Add(id)
		})
		if len(lacking()) == 0 && (!voter || peer.Quorum(voters, have)) {
			return nil
		}
	}
	peers := a.cfg.Network.Peers()
	if missing := lacking(); len(missing) > 0 {
		return fmt.Errorf("%s: what they got is not confirmed: %w", names(peers, missing...), last)
	}
	return errors.Join(fmt.Errorf("only %d of %d other voters have confirmed to know all that this node knows", len(have), len(voters)),
		last)
}

// tellAll brings a member's ring and roster up to this node's, and tells which starts of others this node has answered:
// whoever was confirmed by that answer must not be taken for stopped (R7).
func (a *Allocator) tellAll(ctx context.Context, id peer.ID) error {
	b, err := a.cfg.Network.Call(ctx, id, methodPush, push{ring: a.current().Encode()}.encode())
	if err != nil {
		return err
	}
	answer, err := parsePushAnswer(b)
	if err != nil {
		return err
	}
	if delta := a.cfg.Roster.Delta(answer.summary); len(delta) > 0 {
		if _, err := a.cfg.Network.Call(ctx, id, methodPush, push{roster: delta}.encode()); err != nil {
			return err
		}
	}
	if starts := a.starts(); len(starts) > 0 {
		_, err = a.cfg.Network.Call(ctx, id, methodPush, push{heard: starts}.encode())
	}
	return err
}

// starts lists the starts of members that this node has heard of, but for those whose removal is complete.
func (a *Allocator) starts() (all []heard) {
	fenced := a.Fenced()
	a.mu.RLock()
	defer a.mu.RUnlock()
	for id, s := range a.heard {
		if !fenced.Has(id) {
			all = append(all, heard{id, s})
		}
	}
	slices.SortFunc(all, func(x, y heard) int { return x.node.Compare(y.node) })
	return all[:min(len(all), maxHeard)]
}

// hear makes starts of others known to the disk, then to this node. It refuses one of a member whose removal it has promised
// without knowing of that start: a view may rest on the promise.
func (a *Allocator) hear(all []heard) error {
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			return err
		}
	}
	peers := a.cfg.Network.Peers()
	members := make(peer.Set)
	for _, p := range peers {
		members.Add(p.ID)
	}
	all = slices.DeleteFunc(slices.Clone(all), func(h heard) bool { return !members.Has(h.node) })
	for _, h := range all {
		if _, promised := a.refused[h.node]; promised && !a.ring.Names(h.node) && !a.covers(h) {
			return fmt.Errorf("%s has started again, and is being removed", names(peers, h.node))
		}
	}
	var ops []Op
	for _, h := range all {
		if h.start.incarnation > a.heard[h.node].incarnation {
			ops = append(ops, putHeard(h.node, h.start))
		}
	}
	if len(ops) == 0 {
		return nil
	}
	if err := a.commit(ops...); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range all {
		if h.start.incarnation > a.heard[h.node].incarnation {
			a.heard[h.node] = h.start
		}
	}
	return nil
}

// covers reports whether the last proposal that this node has promised names a start, or a later one.
func (a *Allocator) covers(h heard) bool {
	return a.promised != nil && slices.ContainsFunc(a.promised.Removed(), func(n ring.Named) bool {
		return n.Node == h.node && n.Incarnation >= h.start.incarnation
	})
}

// servePush takes what another member has, all of it or with an error.
func (a *Allocator) servePush(ctx context.Context, req []byte) ([]byte, error) {
	m, err := parsePush(req)
	if err != nil {
		return nil, err
	}
	if len(m.roster) > 0 {
		if err := a.cfg.Roster.Merge(m.roster); err != nil {
			return nil, err
		}
	}
	if len(m.heard) > 0 {
		var failed error
		if err := a.do(ctx, func() { failed = a.hear(m.heard) }); err != nil || failed != nil {
			return nil, errors.Join(err, failed)
		}
	}
	if len(m.refused) > 0 {
		if err := a.do(ctx, func() { a.pledge(m.refused) }); err != nil {
			return nil, err
		}
	}
	if m.ring != nil {
		rejected, err := a.merge(ctx, m.ring, nil)
		if err != nil {
			return nil, err
		}
		if len(rejected) > 0 {
			return nil, fmt.Errorf("%d entries left out, the first one: %w", len(rejected), rejected[0].Err)
		}
	}
	return pushAnswer{a.cfg.Roster.Summary()}.encode(), nil
}
