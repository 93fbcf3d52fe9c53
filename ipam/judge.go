package ipam

import (
	"weft/ipam/ring"
	"weft/mesh/peer"
)

// judge is what this node knows about members when it judges what others wrote. From whoever it has promised to remove,
// or who was removed by a completed view, it takes nothing that it does not know already and that no view record
// confirms, on whatever way it comes; except says of whom it does.
func (a *Allocator) judge(known *ring.Ring, except func(peer.ID) bool) ring.Judge {
	removed := make(peer.Set)
	for _, r := range a.cfg.Roster.Removals() {
		removed.Add(r.Node)
	}
	refused := make(peer.Set)
	a.mu.RLock()
	for id := range a.refused {
		refused.Add(id)
	}
	a.mu.RUnlock()
	return ring.Judge{
		Verify:  a.verify,
		Issued:  a.cfg.Roster.Issued,
		Removed: removed.Has,
		Refuse: func(id peer.ID) bool {
			if a.cfg.Weaken.has(WithoutRefusal) || except != nil && except(id) {
				return false
			}
			return refused.Has(id) || known.Names(id)
		},
		Known: known,
	}
}

// everybody is an exception from every refusal.
func everybody(peer.ID) bool { return true }

// refuses reports whether a member is no member any more to this node; on Run's goroutine, or mu is held.
func (a *Allocator) refuses(id peer.ID) bool {
	_, promised := a.refused[id]
	return promised || a.ring.Names(id)
}

// ballot is who counts in a quorum and how removals stand.
type ballot struct {
	voters  []peer.Voter
	removed map[peer.ID]Removal // everybody who was removed
	fenced  peer.Set            // those of them whose removal is complete
}

// ballot counts the voters. One that was removed goes on counting, as one that does not answer, until its removal is
// complete: otherwise two halves of a cluster could remove each other and both go on.
func (a *Allocator) ballot() ballot {
	b := ballot{removed: make(map[peer.ID]Removal)}
	for _, r := range a.cfg.Roster.Removals() {
		b.removed[r.Node] = r
	}
	peers, voters := a.cfg.Network.Peers(), a.cfg.Network.Voters()
	b.fenced = a.fenced(b.removed, peers)
	counted := make(peer.Set, len(voters))
	count := func(v peer.Voter) {
		if !counted.Has(v.ID) && !b.fenced.Has(v.ID) {
			counted.Add(v.ID)
			b.voters = append(b.voters, v)
		}
	}
	for _, v := range voters {
		count(v)
	}
	for _, p := range peers {
		if _, gone := b.removed[p.ID]; gone && !p.Ephemeral {
			count(peer.Voter{ID: p.ID, JoinSeq: p.JoinSeq})
		}
	}
	return b
}

// fenced lists the removed members from whom nothing can come any more: a view has removed them, or they had no vote, and
// they own nothing; or they have left, which they say only when a quorum of the others knows all that they knew (HandBack).
func (a *Allocator) fenced(removed map[peer.ID]Removal, peers []peer.Info) peer.Set {
	fenced := make(peer.Set)
	if len(removed) == 0 {
		return fenced
	}
	silent := make(peer.Set)
	for _, p := range peers {
		if _, gone := removed[p.ID]; gone && p.Ephemeral {
			silent.Add(p.ID)
		}
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	done := a.ring.Removed()
	for id, r := range removed {
		if r.Left || (done.Has(id) || silent.Has(id)) && len(a.blocks[id]) == 0 {
			fenced.Add(id)
		}
	}
	return fenced
}

// Fenced is the set of removed members whose removal is complete: others have their blocks, and whatever else they write
// is refused. Until then a removed voter counts in every quorum as one that does not answer.
func (a *Allocator) Fenced() peer.Set { return a.ballot().fenced }
