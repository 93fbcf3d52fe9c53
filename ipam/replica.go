package ipam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// mergeTimeout bounds Merge, which has no context.
const mergeTimeout = 10 * time.Second

// Digest is equal for equal rings; with Snapshot and Merge it is what the mesh replicates.
func (a *Allocator) Digest() []byte { return slices.Clone(a.current().Digest()) }

// Snapshot is the ring in wire form. The caller does not change it.
func (a *Allocator) Snapshot() []byte { return a.current().Encode() }

// Merge takes over what b has and the ring has not. It is total: the error tells of entries that were left out, because
// they are wrong or because a grantor's certificate has not arrived yet, and all others are taken over.
func (a *Allocator) Merge(b []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), mergeTimeout)
	defer cancel()
	rejected, err := a.merge(ctx, b)
	return errors.Join(err, leftOut(rejected))
}

// merge returns once everything that is proven is durable.
func (a *Allocator) merge(ctx context.Context, b []byte) ([]ring.Rejection, error) {
	batch, err := ring.Decode(a.cfg.Universe, b)
	if err != nil {
		return nil, err
	}
	// Signatures are checked here, on the caller's time.
	before := a.current()
	proven := a.cfg.Universe.Prove(batch, before.Has, a.verify)
	if next, _ := before.Merge(proven); next != before {
		var failed error
		err = a.do(ctx, func() { failed = a.absorb(proven) })
		err = errors.Join(err, failed)
	}
	return proven.Rejected(), err
}

// leftOut is an error about entries, nil when there are none.
func leftOut(rejected []ring.Rejection) error {
	if len(rejected) == 0 {
		return nil
	}
	return fmt.Errorf("%d entries left out, the first one: %w", len(rejected), rejected[0].Err)
}

// absorb merges what others wrote.
func (a *Allocator) absorb(p ring.Proven) error {
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			return err
		}
	}
	old := a.ring
	next, report := old.Merge(p)
	for _, c := range report.Conflicts {
		a.log.Error("a block was granted twice", "block", c.Lost.Block(), "peer", c.Lost.Grantor(), "to", c.Held.Owner(),
			"not", c.Lost.Owner())
	}
	if !report.Changed() {
		return nil
	}
	// This node knows all that it ever granted, for it persists before it sends.
	if i := slices.IndexFunc(report.Won, func(g *ring.Grant) bool { return g.Grantor() == a.self }); i >= 0 && a.stopped == "" {
		reason := fmt.Sprintf("this node granted %s to %s and does not know of it: its disk was set back or copied",
			report.Won[i].Block(), names(a.cfg.Network.Peers(), report.Won[i].Owner())) + stoppedHint
		if err := a.write(next, report, putStopped(reason)); err != nil {
			return err
		}
		a.setStopped(reason)
		return nil
	}
	if err := a.write(next, report); err != nil {
		return err
	}
	for _, b := range old.Blocks(a.self) {
		if owner, _ := next.Owner(b.Addr()); owner != a.self {
			a.log.Error("a block of this node was granted by somebody else", "block", b, "peer", owner)
		}
	}
	a.poke() // somebody else may have space now
	return nil
}

// write makes a new ring durable together with more changes, then visible, then known.
func (a *Allocator) write(next *ring.Ring, report ring.Report, more ...Op) error {
	ops := slices.Clone(more)
	for _, g := range report.Added {
		ops = append(ops, putGrant(g))
	}
	for _, g := range report.Dropped {
		ops = append(ops, deleteGrant(g))
	}
	for _, v := range report.Views {
		ops = append(ops, putView(v))
	}
	for _, v := range report.OldViews {
		ops = append(ops, deleteView(v))
	}
	if err := a.commit(ops...); err != nil {
		return err
	}
	a.mu.Lock()
	a.setRing(next)
	a.mu.Unlock()
	a.notify()
	a.cfg.Network.Changed()
	return nil
}

// strays lists the claims outside this node's blocks; mu is held.
func (a *Allocator) strays() []Claim {
	var strays []Claim
	for addr, c := range a.claims {
		if !a.space.Owns(addr) {
			strays = append(strays, c.Claim)
		}
	}
	slices.SortFunc(strays, compareClaims)
	return strays
}

// HandleCall answers a call of another member.
func (a *Allocator) HandleCall(ctx context.Context, from peer.ID, method string, req []byte) ([]byte, error) {
	if !a.isMember(from) {
		return nil, fmt.Errorf("%s is no member of this cluster", from.Short())
	}
	switch method {
	case methodSync:
		return a.serveSync(ctx, from, req)
	case methodSpare:
		return a.serveSpare(req)
	case methodGrant:
		return a.serveGrant(ctx, from, req)
	case methodPush:
		b, err := parsePush(req)
		if err != nil {
			return nil, err
		}
		_, err = a.merge(ctx, b)
		return newMessage(), err
	}
	return nil, fmt.Errorf("%s: not a call to the address allocator", method)
}

// isMember reports whether id is in the roster and not removed.
func (a *Allocator) isMember(id peer.ID) bool {
	return id != a.self && slices.ContainsFunc(a.cfg.Network.Peers(), func(p peer.Info) bool {
		return p.ID == id && p.State != peer.Removed
	})
}
