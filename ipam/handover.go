package ipam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

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

// tellAll brings a member's ring and roster up to this node's.
func (a *Allocator) tellAll(ctx context.Context, id peer.ID) error {
	b, err := a.cfg.Network.Call(ctx, id, methodPush, push{ring: a.current().Encode()}.encode())
	if err != nil {
		return err
	}
	answer, err := parsePushAnswer(b)
	if err != nil {
		return err
	}
	delta := a.cfg.Roster.Delta(answer.summary)
	if len(delta) == 0 {
		return nil
	}
	_, err = a.cfg.Network.Call(ctx, id, methodPush, push{roster: delta}.encode())
	return err
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
