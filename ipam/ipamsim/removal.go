package ipamsim

import (
	"slices"

	"weft/mesh/peer"
)

// Remove writes the removal of members into a machine's roster, from where it spreads. Whether they are really stopped
// is the caller's word.
func (w *World) Remove(at *Machine, reason Reason, victims ...*Machine) {
	r := at.roster
	for _, v := range victims {
		if r.removed(v.key.id) {
			continue
		}
		w.counts.Removals++
		w.audit.removed(v, reason)
		x := removal{id: v.key.id, reason: reason}
		if at.now != nil {
			x.incarnation = at.now.alloc.Incarnation(v.key.id)
		}
		r = r.without(x)
		w.logf("%s removes %s", at, v)
	}
	w.learn(at, r)
}

// Force lets a machine finish all removals without those who do not answer. From then on the same space may be given
// twice.
func (w *World) Force(at *Machine) {
	l := at.now
	if l == nil {
		return
	}
	var nodes []peer.ID
	fenced := at.fenced()
	for _, x := range at.roster.removals {
		if !fenced.Has(x.id) {
			nodes = append(nodes, x.id)
		}
	}
	if len(nodes) == 0 {
		return
	}
	w.logf("%s forces", at)
	w.audit.rivals = "a removal was forced"
	l.wg.Go(func() {
		err := l.alloc.Force(l.ctx, nodes)
		l.post("forced", at.index, 0, func() {
			if err != nil {
				w.logf("%s does not force: %v", at, err)
			}
		})
	})
}

// doRemoval plays a step of removing. Only an issuer removes, and none removes so many that the others could not go on.
func (w *World) doRemoval(s Step) {
	at := w.up(s.A, func(m *Machine) bool {
		x, ok := m.roster.member(m.key.id)
		return ok && x.issuer && !w.everybody().removed(m.key.id)
	})
	if at == nil {
		return
	}
	switch s.Verb {
	case DoRemove:
		if v := w.any(s.B); v.now == nil && w.canSpare(v) {
			w.Remove(at, ByHand, v)
		}
	case DoSteal:
		if v := w.any(s.B); v != at && w.canSpare(v) {
			w.Remove(at, Stolen, v)
		}
	case DoSilence:
		for _, v := range w.machines {
			if v != at && at.roster.knows(v) && (v.now == nil || !w.reaches(at, v)) && w.canSpare(v) {
				w.Remove(at, Silence, v)
			}
		}
	case DoForce:
		w.Force(at)
	}
}

// knows reports whether a machine is a member that was not removed.
func (r *roster) knows(m *Machine) bool {
	_, ok := r.member(m.key.id)
	return ok && !r.removed(m.key.id)
}

// everybody is all that anybody knows of the membership.
func (w *World) everybody() *roster {
	var all, last *roster // last: most have the same
	for _, m := range w.machines {
		if m.roster != last {
			all, last = union(all, m.roster), m.roster
		}
	}
	return all
}

// canSpare reports whether the cluster can go on without a machine for good: those who can still come back are a quorum
// of the voters that were not fenced yet, in everybody's eyes, and one of them can sign removals.
func (w *World) canSpare(m *Machine) bool {
	all := w.everybody()
	if !all.knows(m) {
		return false
	}
	quorums, ballots := w.quorums(all, m)
	return ballots > 0 && quorums == ballots
}

// viable reports whether those who can come back are enough to go on: a quorum in the eyes of one of them, who tells the
// others what makes it one.
func (w *World) viable() bool {
	quorums, _ := w.quorums(w.everybody(), nil)
	return quorums > 0
}

// quorums asks each of those who can come back, for they may not agree yet on whose removal is complete. Without an issuer
// among them nobody is asked. Who has joined and could not be told yet what those before it know may never be, so it does not
// count: where that matters people have to force a removal.
func (w *World) quorums(all *roster, without *Machine) (quorums, ballots int) {
	back := make(peer.Set)
	var fenced []peer.Set
	issuers := 0
	for _, m := range w.machines {
		if !m.member || m.retired || m.view.forever || !all.knows(m) || without != nil && m.key.id == without.key.id {
			continue
		}
		if m.leaving || m.now != nil && m.now.alloc.Leaving() { // it may have left, and only its word be missing
			continue
		}
		if m.now != nil && m.now.alloc.Novice() || m.now == nil && m.view.novice {
			continue
		}
		back.Add(m.key.id)
		if x, ok := all.member(m.key.id); ok && x.issuer {
			issuers++
		}
		if m.now != nil {
			fenced = append(fenced, m.fenced())
		}
	}
	switch {
	case issuers == 0:
		return 0, 0
	case len(fenced) == 0:
		fenced = []peer.Set{nil}
	}
	for _, f := range fenced {
		voters := slices.DeleteFunc(all.allVoters(), func(v peer.Voter) bool { return f.Has(v.ID) })
		if peer.Quorum(voters, back) {
			quorums++
		}
	}
	return quorums, len(fenced)
}
