package join

import (
	"maps"
	"slices"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// tally counts the voters' answers to one question. It is a value without lock or clock.
//
// The question is decided when those who said yes are a quorum of the voters, both without the nodes that are joining
// now and with all of them: whichever of those joins turn out to have happened, any two quorums then meet in a node that
// knows this one. The joiner itself counts as a yes where it counts at all: it knows of its own join.
type tally struct {
	voters  map[peer.ID]peer.Voter
	joining map[peer.ID]peer.Voter // the joiner-to-be among them, if it will vote
	yes     peer.Set
	joinSeq uint64 // highest of the answers
	most    uint64 // that is believed of one
	refused map[peer.ID]*Error
	failed  map[peer.ID]error
}

func newTally(voters []peer.Voter, joiner peer.ID, ephemeral bool) *tally {
	t := &tally{
		voters:  map[peer.ID]peer.Voter{},
		joining: map[peer.ID]peer.Voter{},
		yes:     peer.SetOf(joiner),
		most:    maxSeq,
		refused: map[peer.ID]*Error{},
		failed:  map[peer.ID]error{},
	}
	for _, v := range voters {
		if v.ID != joiner {
			t.voters[v.ID] = v
		}
	}
	if !ephemeral {
		t.joining[joiner] = peer.Voter{ID: joiner, JoinSeq: 1<<64 - 1}
	}
	return t
}

// learn adds a voter that the one who counts did not know; it reports whether it was new.
func (t *tally) learn(c *identity.Certificate) bool {
	v, votes := c.Voter()
	if _, known := t.voters[v.ID]; known || !votes || t.yes.Has(v.ID) {
		return false
	}
	t.voters[v.ID] = v
	delete(t.joining, v.ID)
	return true
}

// add counts a yes.
func (t *tally) add(from peer.ID, a *promised) {
	t.yes.Add(from)
	if a.joinSeq <= t.most {
		t.joinSeq = max(t.joinSeq, a.joinSeq)
	}
	for _, v := range a.joining {
		if _, known := t.voters[v.ID]; !known && !t.yes.Has(v.ID) {
			t.joining[v.ID] = v
		}
	}
}

// decided applies the joint rule.
func (t *tally) decided() bool {
	voters := slices.Collect(maps.Values(t.voters))
	return peer.Quorum(voters, t.yes) && peer.Quorum(slices.AppendSeq(voters, maps.Values(t.joining)), t.yes)
}

// answered is the number of voters that said yes or no.
func (t *tally) answered() int {
	n := 0
	for id := range t.voters {
		if t.yes.Has(id) || t.refused[id] != nil {
			n++
		}
	}
	return n
}

// missing lists the voters that did not answer, most senior first.
func (t *tally) missing() []peer.ID {
	var ids []peer.ID
	for _, v := range slices.SortedFunc(maps.Values(t.voters), bySeniority) {
		if !t.yes.Has(v.ID) && t.refused[v.ID] == nil {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// crowded reports whether the voters alone would do, and only other joins under way stand against it.
func (t *tally) crowded() bool {
	return !t.decided() && peer.Quorum(slices.Collect(maps.Values(t.voters)), t.yes)
}

// refusal is the most telling no; nil when nobody said no.
func (t *tally) refusal() *Error {
	for _, code := range [...]string{CodeRemoved, CodeReturned, CodeRevoked, CodeUsedUp, CodeExpired, CodeBusy} {
		for _, e := range t.refused {
			if e.Code == code {
				return e
			}
		}
	}
	for _, e := range t.refused {
		return e
	}
	return nil
}

func bySeniority(a, b peer.Voter) int {
	if a.JoinSeq != b.JoinSeq {
		if a.JoinSeq < b.JoinSeq {
			return -1
		}
		return 1
	}
	return a.ID.Compare(b.ID)
}
