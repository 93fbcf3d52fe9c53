package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"weft/mesh/peer"
)

// A voter that has joined is a novice: it has not heard which members started again before. Who has heard of such a start
// refuses to promise a view that takes that member for stopped since an earlier one (R7), and among any quorum of those who
// were there is one who has. With novices in it a quorum may have none: two of four confirm a start, one of them the oldest,
// then a fifth joins by the same two, and makes a quorum of three with the others.
//
// So a novice promises as every survivor has to, but counts in no quorum of promises until it knows better: a quorum of the
// voters that joined before it, of whom novices do not count, has told it of all starts. It goes on asking until then; as a
// rule that takes one round. Who joined later need not be heard: by a start before this node's join it was not confirmed, and
// one after it had to count this node. That one was removed since makes no difference to what it knew.

// Novice reports whether this node is such a voter. A founder never is.
func (a *Allocator) Novice() bool {
	a.mu.RLock()
	learns := a.learns
	a.mu.RUnlock()
	return learns && !a.cfg.Weaken.has(WithoutTeaching) && slices.ContainsFunc(a.cfg.Network.Voters(), a.isSelf)
}

func (a *Allocator) isSelf(v peer.Voter) bool { return v.ID == a.self }

// teachers lists the voters that joined before this node, or at the same time as far as anybody can tell.
func (a *Allocator) teachers(voters []peer.Voter) []peer.Voter {
	i := slices.IndexFunc(voters, a.isSelf)
	return slices.DeleteFunc(slices.Clone(voters), func(v peer.Voter) bool {
		return v.ID == a.self || i >= 0 && v.JoinSeq > voters[i].JoinSeq
	})
}

// graduate ends the time as a novice.
func (a *Allocator) graduate() {
	if a.commit(deleteNovice()) != nil {
		return // the next answer comes here again
	}
	a.mu.Lock()
	a.learns = false
	a.mu.Unlock()
}

// again lists the starts that a novice has to know of, which are all but first ones: by a first start nothing can come that
// its join did not bring. The asker's own are left out.
func (a *Allocator) again(asker peer.ID) []heard {
	all := a.starts()
	if asker != a.self {
		all = append(all, heard{a.self, a.start})
	}
	all = slices.DeleteFunc(all, func(h heard) bool { return h.start.incarnation <= 1 || h.node == asker })
	slices.SortFunc(all, func(x, y heard) int { return x.node.Compare(y.node) })
	return all[:min(len(all), maxHeard)]
}

// sumOf is equal for equal lists of starts.
func sumOf(all []heard) []byte {
	h := sha256.New()
	for _, s := range all {
		h.Write(binary.BigEndian.AppendUint64(s.node[:], s.start.incarnation))
	}
	return h.Sum(nil)[:sumSize]
}

const sumSize = 16
