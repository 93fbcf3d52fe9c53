package ipamsim

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"weft/mesh/peer"
)

// promise is a voter's word that a joiner may become a member.
type promise struct {
	member member
	until  time.Duration
}

const (
	admitPause   = time.Second      // between the tries of a sponsor
	admitWait    = 10 * time.Second // after which it gives up
	promiseLasts = time.Minute
	joinsLast    = 1 << 62 // the seniority of who is not admitted yet
)

// admission is a join under way, at its sponsor.
//
//	asked --- a quorum has promised, with and without all joiners ---> agreed --- a quorum has written it down ---> admitted
//	  '--------------------- 10 s -------------------------------------> given up <-----------------'
type admission struct {
	w        *World
	sponsor  *Machine
	life     *life
	joiner   *Machine
	voter    bool
	began    time.Duration
	yes      peer.Set
	voters   map[peer.ID]peer.Voter
	joining  map[peer.ID]peer.Voter
	sequence uint64
	agreed   bool
	wrote    peer.Set
	done     bool
	then     func(ok bool)
}

// Join makes a new machine that asks a sponsor to become a member; then, which may be nil, is called at the end. The
// machine is started when it is one.
func (w *World) Join(sponsor *Machine, voter bool, then func(ok bool)) *Machine {
	m := w.newMachine(newKey(w.setup.Seed, len(w.machines)))
	if then == nil {
		then = func(bool) {}
	}
	if sponsor.now == nil || sponsor.roster.removed(sponsor.key.id) {
		m.retired = true
		then(false)
		return m
	}
	w.logf("%s asks %s to join", m, sponsor)
	a := &admission{
		w: w, sponsor: sponsor, life: sponsor.now, joiner: m, voter: voter, began: w.Now(), then: then,
		yes: peer.SetOf(sponsor.key.id), wrote: peer.SetOf(sponsor.key.id),
		voters: make(map[peer.ID]peer.Voter), joining: make(map[peer.ID]peer.Voter),
	}
	a.hear(sponsor)
	a.decide()
	a.round()
	return m
}

// hear takes over what a voter knows, its promise included.
func (a *admission) hear(m *Machine) {
	self := member{id: a.joiner.key.id, voter: a.voter}
	m.pending[self.id] = promise{self, a.w.Now() + promiseLasts}
	m.joinings()
	fenced := m.fenced()
	for _, v := range m.roster.allVoters() {
		if !fenced.Has(v.ID) { // a removed one counts until its removal is complete
			a.voters[v.ID] = v
		}
	}
	for _, x := range m.roster.members {
		a.sequence = max(a.sequence, x.seq)
	}
	for _, id := range keys(m.pending).Sorted() {
		switch p := m.pending[id]; {
		case p.until < a.w.Now():
			delete(m.pending, id)
		case p.member.voter:
			a.joining[id] = peer.Voter{ID: id, JoinSeq: joinsLast}
		}
	}
}

// fenced is whose removal is complete in a machine's eyes.
func (m *Machine) fenced() peer.Set {
	if m.now == nil {
		return nil
	}
	return m.now.alloc.Fenced()
}

func keys[V any](m map[peer.ID]V) peer.Set {
	s := make(peer.Set, len(m))
	for id := range m {
		s.Add(id)
	}
	return s
}

// round asks all voters that have not answered, and comes again.
func (a *admission) round() {
	w := a.w
	if a.done {
		return
	}
	if a.sponsor.now != a.life || w.Now()-a.began > admitWait || a.sponsor.roster.removed(a.sponsor.key.id) {
		a.end(false)
		return
	}
	said := a.yes
	if a.agreed {
		said = a.wrote
	}
	for _, id := range keys(a.voters).Sorted() {
		if to := w.oneOf(id); !said.Has(id) && to != nil && !a.sponsor.roster.removed(id) {
			a.ask(to)
		}
	}
	w.after(admitPause, a.round)
}

func (a *admission) ask(voter *Machine) {
	w, commit, r := a.w, a.agreed, a.sponsor.roster
	w.carry(a.sponsor, voter, "join", r.size(), func() {
		if a.done || voter.now == nil || !voter.member || voter.now.alloc.Leaving() || voter.roster.removed(a.sponsor.key.id) || voter.roster.removed(a.joiner.key.id) {
			return
		}
		if commit {
			w.learn(voter, r)
		} else {
			voter.pending[a.joiner.key.id] = promise{member{id: a.joiner.key.id, voter: a.voter}, w.Now() + promiseLasts}
			voter.joinings()
		}
		w.carry(voter, a.sponsor, "join answer", r.size(), func() {
			switch {
			case a.done || a.sponsor.now != a.life:
			case commit:
				a.wrote.Add(voter.key.id)
				a.decide()
			case !a.agreed:
				a.yes.Add(voter.key.id)
				a.hear(voter)
				w.learn(a.sponsor, voter.roster)
				a.decide()
			}
		})
	})
}

// decide goes on when a quorum has answered.
func (a *admission) decide() {
	if a.done {
		return
	}
	if !a.agreed {
		if !a.w.setup.Lone && !a.quorum(a.yes) {
			return
		}
		a.agreed = true
		seq := a.sequence + 1
		a.w.learn(a.sponsor, a.sponsor.roster.with(member{id: a.joiner.key.id, voter: a.voter, issuer: a.voter && seq <= 2, seq: seq}))
		delete(a.sponsor.pending, a.joiner.key.id)
		if !a.w.setup.Lone && !a.quorum(a.wrote) {
			a.round()
			return
		}
	}
	if a.w.setup.Lone || a.quorum(a.wrote) {
		a.welcome()
	}
}

// quorum is the joint rule: of the voters without all joiners, and with them, where this one says yes.
func (a *admission) quorum(yes peer.Set) bool {
	voters := slices.Collect(maps.Values(a.voters))
	if !peer.Quorum(voters, yes) {
		return false
	}
	all := maps.Clone(a.voters)
	maps.Copy(all, a.joining)
	with := maps.Clone(yes)
	with.Add(a.joiner.key.id)
	return peer.Quorum(slices.Collect(maps.Values(all)), with)
}

// welcome gives the joiner its certificate, the roster and the ring.
func (a *admission) welcome() {
	w, m := a.w, a.joiner
	r, snapshot := a.sponsor.roster, bytes.Clone(a.sponsor.now.alloc.Snapshot())
	a.end(true)
	w.counts.Joins++
	w.after(leastDelay, func() { // the joiner holds the line; a sponsor that dies here is asked again by it
		if m.member || m.retired {
			return
		}
		m.member = true
		w.locked(func() { m.roster = union(m.roster, r) })
		w.logf("%s is a member", m)
		w.Start(m)
		w.after(leastDelay, func() {
			if l := m.now; l != nil {
				l.wg.Go(func() { _ = l.alloc.Merge(snapshot) })
			}
		})
	})
}

func (a *admission) end(ok bool) {
	if a.done {
		return
	}
	a.done = true
	if !ok {
		a.w.logf("%s is not admitted", a.joiner)
		a.joiner.retired = true // though somebody may have its certificate
		if !a.agreed {
			for _, m := range a.w.machines {
				delete(m.pending, a.joiner.key.id)
				m.joinings()
			}
		}
	}
	a.then(ok)
}
