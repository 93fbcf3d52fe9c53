package ipamsim

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"weft/ipam"
	"weft/mesh/peer"
)

// member is a certificate, as far as ipam looks at it.
type member struct {
	id     peer.ID
	voter  bool
	issuer bool
	seq    uint64
}

// removal is the final cut-off of a member.
type removal struct {
	id          peer.ID
	reason      Reason
	incarnation uint64 // the newest start of it that the signer knew of
}

// Reason is why a member was removed.
type Reason uint8

// The reasons.
const (
	ByHand Reason = iota + 1
	Silence
	Stolen
	Left
)

// outweighs orders removals of one machine as certificates of them are ordered: every roster ends up with the same.
func (x removal) outweighs(y removal) bool {
	weight := map[Reason]int{Silence: 1, Left: 2, ByHand: 3, Stolen: 4}
	return cmp.Or(cmp.Compare(weight[x.reason], weight[y.reason]), cmp.Compare(y.incarnation, x.incarnation)) > 0
}

// roster is the grow-only set of members and removals. It never changes; nil is the empty one.
type roster struct {
	members  []member  // by ID
	removals []removal // by ID; of several the weightiest counts
	sum      uint64    // equal for equal rosters
}

func (r *roster) with(m member) *roster {
	return union(r, &roster{members: []member{m}})
}

func (r *roster) without(x removal) *roster {
	return union(r, &roster{removals: []removal{x}})
}

// union is a itself where b brings nothing.
func union(a, b *roster) *roster {
	switch {
	case a == b || b == nil:
		return a
	case a == nil:
		a = &roster{}
	case a.sum == b.sum:
		return a
	}
	u, news := &roster{members: slices.Clone(a.members), removals: slices.Clone(a.removals)}, a.sum == 0
	for _, m := range b.members {
		if i, ok := u.index(m.id); !ok {
			u.members, news = slices.Insert(u.members, i, m), true
		}
	}
	for _, x := range b.removals {
		switch i, ok := u.indexRemoval(x.id); {
		case !ok:
			u.removals, news = slices.Insert(u.removals, i, x), true
		case x.outweighs(u.removals[i]):
			u.removals[i], news = x, true
		}
	}
	if !news {
		return a
	}
	d := mix()
	for _, m := range u.members {
		d = mix(uint64(d), uint64Of(m.id))
	}
	for _, x := range u.removals {
		d = mix(uint64(d), uint64Of(x.id), uint64(x.reason), x.incarnation)
	}
	u.sum = uint64(d) | 1
	return u
}

func (r *roster) index(id peer.ID) (int, bool) {
	return slices.BinarySearchFunc(r.members, id, func(m member, id peer.ID) int { return m.id.Compare(id) })
}

func (r *roster) indexRemoval(id peer.ID) (int, bool) {
	return slices.BinarySearchFunc(r.removals, id, func(x removal, id peer.ID) int { return x.id.Compare(id) })
}

func (r *roster) member(id peer.ID) (member, bool) {
	if r == nil {
		return member{}, false
	}
	i, ok := r.index(id)
	if !ok {
		return member{}, false
	}
	return r.members[i], true
}

func (r *roster) removed(id peer.ID) bool {
	if r == nil {
		return false
	}
	_, ok := r.indexRemoval(id)
	return ok
}

// others lists the members that are not removed, without one of them.
func (r *roster) others(self peer.ID) []peer.ID {
	var ids []peer.ID
	for _, m := range r.members {
		if m.id != self && !r.removed(m.id) {
			ids = append(ids, m.id)
		}
	}
	return ids
}

// allVoters lists the members with a vote, the removed ones too.
func (r *roster) allVoters() []peer.Voter {
	var voters []peer.Voter
	for _, m := range r.members {
		if m.voter {
			voters = append(voters, peer.Voter{ID: m.id, JoinSeq: m.seq})
		}
	}
	return voters
}

// size is what a digest of it takes on the wire, about; what is missing is counted where it is handed over.
func (r *roster) size() int { return 32 }

// learn makes what another knows about membership known to m, and durable.
func (w *World) learn(m *Machine, r *roster) {
	next := union(m.roster, r)
	if next == m.roster {
		return
	}
	w.locked(func() { m.roster = next })
	w.learnt(m)
}

// learnt follows from a new roster.
func (w *World) learnt(m *Machine) {
	for id := range m.pending {
		if _, ok := m.roster.member(id); ok {
			delete(m.pending, id)
		}
	}
	m.joinings()
	w.after(0, func() { // an event of its own: more may be learnt in this one
		if m.now != nil {
			m.now.alloc.RosterChanged()
		}
	})
	w.hurry(m)
}

// joinings publishes the joins that m has promised to its allocator.
func (m *Machine) joinings() {
	if len(m.pending)+len(m.joining) == 0 {
		return
	}
	var joining []promise
	for _, id := range keys(m.pending).Sorted() {
		joining = append(joining, m.pending[id])
	}
	m.w.locked(func() { m.joining = joining })
}

var _ ipam.Roster = (*life)(nil)

func (l *life) roster() *roster {
	l.m.w.mu.Lock()
	defer l.m.w.mu.Unlock()
	return l.m.roster
}

// Removals lists everybody who was removed.
func (l *life) Removals() []ipam.Removal {
	var removals []ipam.Removal
	for _, x := range l.roster().removals {
		removals = append(removals, ipam.Removal{
			Node: x.id, Left: x.reason == Left, Stolen: x.reason == Stolen,
			Silent: x.reason == Silence, Incarnation: x.incarnation,
		})
	}
	return removals
}

// Issuers lists who may admit and remove now.
func (l *life) Issuers() []peer.ID {
	r := l.roster()
	var ids []peer.ID
	for _, m := range r.members {
		if m.issuer && !r.removed(m.id) {
			ids = append(ids, m.id)
		}
	}
	return ids
}

// Issued reports whether id ever could.
func (l *life) Issued(id peer.ID) bool {
	m, ok := l.roster().member(id)
	return ok && m.issuer
}

// Joining lists the members-to-be whose join this machine has promised.
func (l *life) Joining() []peer.Info {
	l.m.w.mu.Lock()
	defer l.m.w.mu.Unlock()
	var joining []peer.Info
	for _, p := range l.m.joining {
		if p.until > l.m.w.Now() {
			joining = append(joining, peer.Info{ID: p.member.id, JoinSeq: joinsLast, Ephemeral: !p.member.voter})
		}
	}
	return joining
}

// Summary stands for the whole roster: here its sum, under which the World finds it.
func (l *life) Summary() []byte {
	w, r := l.m.w, l.roster()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rosters[r.sum] = r
	return binary.BigEndian.AppendUint64(nil, r.sum)
}

// Delta is the whole roster where it differs.
func (l *life) Delta(summary []byte) []byte {
	if own := l.Summary(); !bytes.Equal(own, summary) {
		return own
	}
	return nil
}

// Merge takes over what a Delta brought.
func (l *life) Merge(delta []byte) error {
	if len(delta) != 8 {
		return nil
	}
	m, w := l.m, l.m.w
	w.mu.Lock()
	next := union(m.roster, w.rosters[binary.BigEndian.Uint64(delta)])
	changed := next != m.roster && m.now == l
	if changed && m.full > 0 {
		m.full--
		w.mu.Unlock()
		return errFull
	}
	if changed {
		m.roster = next
	}
	w.mu.Unlock()
	if changed {
		l.post("learnt", m.index, 0, func() { w.learnt(m) })
	}
	return nil
}
