package ipam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Reclaim is what became of the blocks of a removed member so far.
//
// A removal cuts a member off at once; that is the mesh's part. Its addresses may be given to others only when no
// survivor will ever again learn of something that it wrote: a grant to a survivor may be on its way or known to one
// node only. So an issuer asks all survivors for a promise, and what each knows:
//
//	          somebody removed has blocks, a vote or a promise without a record, and it is this issuer's turn
//	resting ------------------------------------------> proposed: number and names, own promise on disk
//	   ^  ^                                                 |
//	   |  '--- wait --- a higher number was promised -------+<--------------------.
//	   |       wait --- one of the removed came up again ---+                     |
//	   |                a member was removed: begin again --+                     |
//	   |                                                    v                     | not all yet
//	   |                                        asking: every survivor promises,  |
//	   |                                        tells its ring and its roster ----'
//	   |                                                    | all have, they are a quorum, no join is open
//	   '--- complete: record and takeovers on disk, then sent to the heirs
//
//	a survivor:  nothing promised -> promised k -> promised k' > k -> ...      (on disk; refuses more and more, never less)
//
// What holds, and what the tests check:
//
//   - A number is promised once, and promised numbers grow. Completed views are ordered by their numbers.
//   - Whoever has promised takes nothing that the removed wrote, on any way, unless it knows it or a record confirms it.
//   - A view is complete only with the promises of all members that anybody who promised knows.
//   - Only blocks that a removed member owns after all that are written anew.
type Reclaim struct {
	Node      peer.ID
	Addresses int       // IPv4 addresses in its blocks
	View      uint64    // the number of the proposal that this node has promised or makes; 0 while there is none
	Leader    peer.ID   // whose proposal that is
	WaitsFor  []peer.ID // survivors that have not promised; known at the leader only
	Problem   string    // a sentence; empty while all goes well
	Forced    bool      // to be finished without those that do not answer
}

// Errors of Force.
var (
	ErrNotIssuer  = errors.New("this node may not remove members")
	ErrNotRemoved = errors.New("not removed")
)

// Force finishes the removal of members without waiting for survivors or for a quorum of them, and returns when that is
// done. What an absent survivor got from a removed member may then be given away twice; packets still reach one of the
// two only.
func (a *Allocator) Force(ctx context.Context, nodes []peer.ID) error {
	if !slices.Contains(a.cfg.Roster.Issuers(), a.self) {
		return ErrNotIssuer
	}
	b := a.ballot()
	for _, id := range nodes {
		if _, gone := b.removed[id]; !gone {
			return fmt.Errorf("%s: %w", names(a.cfg.Network.Peers(), id), ErrNotRemoved)
		}
	}
	a.mu.Lock()
	for _, id := range nodes {
		a.log.Warn("finish removal by force", "peer", id)
		a.forced.Add(id)
	}
	a.mu.Unlock()
	a.RosterChanged()
	tick := time.NewTicker(forceLook)
	defer tick.Stop()
	for {
		fenced := a.Fenced()
		if !slices.ContainsFunc(nodes, func(id peer.ID) bool { return !fenced.Has(id) }) {
			return nil
		}
		select {
		case <-tick.C:
		case <-a.stopping:
			return ErrStopped
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// forceLook is how often Force looks whether it is done.
const forceLook = 100 * time.Millisecond

// ForcedRemoval is a removal that was finished by force: what a survivor that was not heard got from the member may have
// been given away twice.
type ForcedRemoval struct {
	Node peer.ID
	By   peer.ID // the issuer
	View uint64
}

// ForcedRemovals lists, oldest first, the removals that were finished by force, as every member has them in its ring: for
// as long as the records are kept, which is longer than anybody will look for the cause of a trouble.
func (a *Allocator) ForcedRemovals() (all []ForcedRemoval) {
	listed := make(peer.Set)
	for _, v := range a.current().Views() {
		for _, n := range v.Removed() {
			if v.Forced() && !listed.Has(n.Node) {
				listed.Add(n.Node)
				all = append(all, ForcedRemoval{n.Node, v.Writer(), v.Number()})
			}
		}
	}
	return all
}

// RosterChanged tells the allocator to look at the roster soon. It returns at once.
func (a *Allocator) RosterChanged() {
	select {
	case a.roster <- struct{}{}:
	default:
	}
}

// Incarnation is the newest start of a member that this node knows of, for who signs a removal. Everybody has started once,
// and a member's first start is told to nobody: whoever has heard of none signs up to that one, and not beyond.
func (a *Allocator) Incarnation(id peer.ID) uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return max(1, a.heard[id].incarnation)
}

// Strays lists claims outside of this node's blocks: their addresses belong to somebody else now, and their pods have to
// be renumbered. Watch tells of changes.
func (a *Allocator) Strays() []Claim {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.strays()
}

// reclaims is the state of all removals that are not complete.
func (a *Allocator) reclaims(b ballot, peers []peer.Info) []Reclaim {
	var all []Reclaim
	a.mu.RLock()
	defer a.mu.RUnlock()
	for id := range b.removed {
		if id == a.self || b.fenced.Has(id) {
			continue
		}
		r := Reclaim{Node: id, Addresses: addresses(a.blocks[id]), Forced: a.forced.Has(id), Problem: a.hindrance}
		if p := a.promised; p != nil && p.Names(id) && p.Number() > a.ring.Number() {
			r.View, r.Leader = p.Number(), p.Writer()
			if r.Leader == a.self {
				r.WaitsFor = slices.Clone(a.waits)
			}
		}
		switch {
		case len(r.WaitsFor) > 0 && r.Problem == "":
			r.Problem = "reclaim waits for " + names(peers, r.WaitsFor...)
		case r.Leader != a.self && !r.Leader.IsZero():
			r.Problem = "reclaim is led by " + names(peers, r.Leader)
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(x, y Reclaim) int { return x.Node.Compare(y.Node) })
	return all
}
