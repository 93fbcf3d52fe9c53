package join

import (
	"testing"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

// Two joins that were both decided over the same voters have a voter in common, whoever else was joining; and each has a
// voter in common with every later quorum of the cluster that they make together.
func TestDecidedJoinsMeet(t *testing.T) {
	id := func(n int) peer.ID { return peer.ID{byte(n), 1} }
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 7).Draw(t, "voters")
		var voters []peer.Voter
		for i := range n {
			voters = append(voters, peer.Voter{ID: id(i), JoinSeq: uint64(i)})
		}
		joiners := rapid.IntRange(2, 4).Draw(t, "joiners")
		decided := func(joiner int) (*tally, peer.Set) {
			ta := newTally(voters, id(joiner), false)
			yes := peer.Set{}
			for i := range n {
				if rapid.Bool().Draw(t, "yes") {
					a := &promised{joinSeq: uint64(n)}
					for j := n; j < n+joiners; j++ {
						if j != joiner {
							a.joining = append(a.joining, peer.Voter{ID: id(j), JoinSeq: uint64(j)})
						}
					}
					ta.add(id(i), a)
					yes.Add(id(i))
				}
			}
			return ta, yes
		}
		one, yesOne := decided(n)
		two, yesTwo := decided(n + 1)
		if !one.decided() || !two.decided() {
			t.Skip("not decided")
		}
		meet := false
		for v := range yesOne {
			meet = meet || yesTwo.Has(v)
		}
		if !meet {
			t.Fatalf("%v and %v do not meet", yesOne, yesTwo)
		}
		// Whichever of the joins happened: a quorum of what is then the cluster has somebody who knows of the first.
		grown := append([]peer.Voter{}, voters...)
		for j := n; j < n+joiners; j++ {
			if j == n || rapid.Bool().Draw(t, "joined") {
				grown = append(grown, peer.Voter{ID: id(j), JoinSeq: uint64(j)})
			}
		}
		later := peer.Set{}
		for _, v := range grown {
			if rapid.Bool().Draw(t, "later") {
				later.Add(v.ID)
			}
		}
		if peer.Quorum(grown, later) {
			knows := later.Has(id(n))
			for v := range yesOne {
				knows = knows || later.Has(v)
			}
			if !knows {
				t.Fatalf("a quorum %v of %d knows nothing of the join promised by %v", later.Sorted(), len(grown), yesOne.Sorted())
			}
		}
	})
}

func TestTallyTells(t *testing.T) {
	voters := []peer.Voter{{ID: peer.ID{1}, JoinSeq: 0}, {ID: peer.ID{2}, JoinSeq: 1}, {ID: peer.ID{3}, JoinSeq: 2}}
	ta := newTally(voters, peer.ID{9}, false)
	ta.add(peer.ID{2}, &promised{joinSeq: 4})
	ta.refused[peer.ID{3}] = errBusy("")
	if ta.answered() != 2 || len(ta.missing()) != 1 || ta.missing()[0] != (peer.ID{1}) || ta.decided() || ta.crowded() {
		t.Errorf("%+v", ta)
	}
	ta.refused[peer.ID{1}] = refuse(CodeUsedUp, "used up", "", "")
	if e := ta.refusal(); e == nil || e.Code != CodeUsedUp {
		t.Errorf("%v", e)
	}
	many := &promised{joinSeq: 5}
	for i := range 9 {
		many.joining = append(many.joining, peer.Voter{ID: peer.ID{100, byte(i)}, JoinSeq: 9})
	}
	ta = newTally(voters, peer.ID{9}, false)
	for _, v := range voters {
		ta.add(v.ID, many)
	}
	if ta.decided() || !ta.crowded() || ta.joinSeq != 5 {
		t.Errorf("three voters and ten that join: %+v", ta)
	}
	quiet := newTally(voters, peer.ID{9}, true)
	quiet.add(peer.ID{1}, &promised{})
	quiet.add(peer.ID{2}, &promised{})
	if !quiet.decided() {
		t.Error("a node without a vote needs the voters only")
	}
}
