package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"weft/ipam/ring"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// mergeTimeout bounds Merge, which has no context.
const mergeTimeout = 10 * time.Second

// Digest is equal for equal rings; with Snapshot and Merge it is what the mesh replicates.
func (a *Allocator) Digest() []byte { return slices.Clone(a.current().Digest()) }

// Snapshot is the ring in wire form. The caller does not change it.
func (a *Allocator) Snapshot() []byte { return a.current().Encode() }

// Summary says what the ring has, in 2 KB at most, and Delta is what a ring with that summary may lack, in a form that Merge
// takes: nil for nothing.
func (a *Allocator) Summary() []byte { return a.current().Summary() }

// Delta is described at Summary. The caller does not change it.
func (a *Allocator) Delta(summary []byte) []byte { return a.current().Delta(summary) }

// Merge takes over what b has and the ring has not. It is total: the error tells of entries that were left out, because
// they are wrong or because a grantor's certificate has not arrived yet, and all others are taken over.
func (a *Allocator) Merge(b []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), mergeTimeout)
	defer cancel()
	rejected, err := a.merge(ctx, b, nil)
	return errors.Join(err, leftOut(rejected))
}

// merge returns once everything that is proven is durable. Everything that comes from others comes this way; except says
// of whom even that is taken which this node has promised to refuse.
func (a *Allocator) merge(ctx context.Context, b []byte, except func(peer.ID) bool) ([]ring.Rejection, error) {
	if len(b) == 0 { // a delta of nothing
		return nil, nil
	}
	a.mu.RLock()
	before, refusals := a.ring, a.refusals
	a.mu.RUnlock()
	batch, err := before.Decode(b)
	if err != nil {
		return nil, err
	}
	// Signatures are checked here, on the caller's time.
	proven := a.cfg.Universe.Prove(batch, a.judge(before, except))
	if next, report := before.Merge(proven); next != before {
		var failed error
		err = a.do(ctx, func() {
			if a.refusals != refusals { // a promise made meanwhile covers this, too
				proven = a.cfg.Universe.Prove(batch, a.judge(a.ring, except))
			}
			if a.refusals != refusals || a.ring != before || a.storeErr != nil {
				if failed = a.reloaded(); failed != nil {
					return
				}
				before = a.ring
				next, report = before.Merge(proven)
			}
			failed = a.absorb(before, next, report)
		})
		err = errors.Join(err, failed)
	}
	return proven.Rejected(), err
}

// leftOut is an error about entries, nil when there are none. That something is refused until a removal is complete is
// as it shall be.
func leftOut(rejected []ring.Rejection) error {
	rejected = slices.DeleteFunc(slices.Clone(rejected), func(r ring.Rejection) bool { return errors.Is(r.Err, ring.ErrRefused) })
	if len(rejected) == 0 {
		return nil
	}
	return fmt.Errorf("%d entries left out, the first one: %w", len(rejected), rejected[0].Err)
}

// reloaded makes sure that what this node believes is what is stored.
func (a *Allocator) reloaded() error {
	if a.storeErr != nil {
		return a.reload()
	}
	return nil
}

// absorb makes what came of merging what others wrote this node's.
func (a *Allocator) absorb(old, next *ring.Ring, report ring.Report) error {
	for _, c := range report.Conflicts {
		a.log.Error("a block was granted twice", "block", c.Lost.Block(), "peer", c.Lost.Grantor(), "to", c.Held.Owner(),
			"not", c.Lost.Owner())
	}
	if !report.Changed() {
		return nil
	}
	// This node knows all that it ever wrote, for it persists before it sends.
	if slices.ContainsFunc(report.Views, func(v *ring.View) bool { return v.Writer() == a.self }) && a.stopped == "" {
		reason := "this node completed a removal and does not know of it: its disk was set back or copied" + stoppedHint
		if err := a.write(next, report, putStopped(reason)); err != nil {
			return err
		}
		a.setStopped(reason)
		return nil
	}
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
	opens := a.cool(report)
	for id := range opens {
		ops = append(ops, putTaken(id))
	}
	for _, g := range report.Dropped {
		if a.cooling[g.ID()] {
			ops = append(ops, deleteTaken(g.ID()))
		}
	}
	if err := a.commit(ops...); err != nil {
		return err
	}
	for id := range opens {
		a.cooling[id] = true
	}
	for _, g := range report.Dropped {
		delete(a.cooling, g.ID())
	}
	a.publish(next, report, opens)
	return nil
}

// publish makes what is durable visible, then known.
func (a *Allocator) publish(next *ring.Ring, report ring.Report, opens map[ring.ID]time.Time) {
	a.mu.Lock()
	maps.Copy(a.opens, opens)
	for _, g := range report.Dropped {
		delete(a.opens, g.ID())
	}
	if len(report.Views) > 0 {
		a.refusals++
	}
	a.setRing(next)
	a.mu.Unlock()
	a.notify()
	a.cfg.Network.Changed(a.news(report))
}

// mostNews is how many grants are worth telling by themselves.
const mostNews = 4

// news is a change of this node's own making, for others to merge without asking. What came from others is passed on by
// whoever brought it.
func (a *Allocator) news(report ring.Report) []byte {
	own := func(g *ring.Grant) bool { return g.Grantor() == a.self }
	if len(report.Added) == 0 || len(report.Added) > mostNews || !slices.ContainsFunc(report.Added, own) {
		return nil
	}
	return a.ring.Proof(report.Added)
}

// cool says when own blocks that were taken over just now may be used. Of a member that nobody heard for long the
// addresses have rested like released ones.
func (a *Allocator) cool(report ring.Report) map[ring.ID]time.Time {
	opens := make(map[ring.ID]time.Time)
	for _, g := range report.Added {
		if g.From().IsZero() || g.Owner() != a.self {
			continue
		}
		wait := a.cfg.CoolTaken
		if slices.ContainsFunc(a.cfg.Roster.Removals(), func(r Removal) bool { return r.Node == g.From() && r.Silent }) {
			wait = min(wait, a.cfg.CoolFor)
		}
		opens[g.ID()] = a.now().Add(wait)
	}
	return opens
}

// late lists own blocks that were taken over, which cool and are used last; mu is held.
func (a *Allocator) late() []space.Late {
	var late []space.Late
	for _, run := range a.ring.Runs() {
		if from, taken := a.opens[run.Grant]; taken && run.Owner == a.self {
			late = append(late, space.Late{Block: run.Block, From: from})
		}
	}
	return late
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
	case methodPromise:
		return a.servePromise(ctx, from, req)
	case methodPush:
		return a.servePush(ctx, req)
	}
	return nil, fmt.Errorf("%s: not a call to the address allocator", method)
}

// isMember reports whether id is in the roster and not removed.
func (a *Allocator) isMember(id peer.ID) bool {
	if slices.ContainsFunc(a.cfg.Roster.Removals(), func(r Removal) bool { return r.Node == id }) {
		return false
	}
	return id != a.self && slices.ContainsFunc(a.cfg.Network.Peers(), func(p peer.Info) bool {
		return p.ID == id && p.State != peer.Removed
	})
}
