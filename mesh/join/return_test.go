package join

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/peer"
)

// silence removes a member as an issuer does that has not heard it for too long: with an invitation for its key.
func (l *lab) silence(gone *node) {
	l.t.Helper()
	founder := l.nodes[0]
	d, _ := founder.roster.Delegation(founder.key.ID())
	inv := must(identity.Issuer{Key: founder.key, Delegation: d}.Invite(gone.key.Public(), identity.Terms{
		NotAfter: time.Now().Add(1000 * time.Hour), Uses: 1,
	}))
	for _, n := range l.nodes {
		n.gone[gone.key.ID()] = identity.Silence
		if err := n.roster.AddRaw(inv.Raw()); err != nil {
			l.t.Fatal(err)
		}
	}
}

// comeBack tries to return as a new node with the former key as proof.
func (l *lab) comeBack(key, former identity.Key, through ...string) (*Result, error) {
	var seeds []token.Seed
	for _, name := range through {
		seeds = append(seeds, token.SeedOf(l.node(name).at, l.node(name).key.ID()))
	}
	return Return(l.t.Context(), l.config("", key, "back"), former, identity.FingerprintOf(l.root.Public()), seeds)
}

// Who was removed for silence comes back once, as another node and without a token; asking again with the same new key is
// the same return.
func TestReturnAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 2)
		gone := l.node("n5")
		gone.down.Store(true)
		l.silence(gone)
		key := must(identity.NewKey())
		r, err := l.comeBack(key, gone.key, "n4", "n1")
		if err != nil {
			t.Fatal(err)
		}
		l.check(r, key)
		if r.Certificate.ID() == gone.key.ID() || r.Certificate.Ephemeral {
			t.Errorf("%+v", r.Certificate)
		}
		again, err := l.comeBack(key, gone.key, "n2")
		if err != nil || string(again.Certificate.Raw()) != string(r.Certificate.Raw()) {
			t.Errorf("asked again: %v", err)
		}
		_, err = l.comeBack(must(identity.NewKey()), gone.key, "n3")
		if Code(err) != CodeReturned || !strings.Contains(err.Error(), "as back") {
			t.Errorf("a second time: %v", err)
		}
	})
}

// Nobody comes back on the word of a key that was not removed for silence: not by hand, not stolen, not a member's, and not
// when the reason became another one where only some voters have heard of that.
func TestNobodyElseReturns(t *testing.T) {
	for name, c := range map[string]struct {
		why   identity.Reason
		heard int // so many of the voters
		words string
	}{
		"by hand":                      {identity.ByHand, 5, "removed from the cluster (by hand"},
		"stolen":                       {identity.Stolen, 5, "reported stolen"},
		"stolen, as most voters heard": {identity.Stolen, 3, "reported stolen"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, 6, 2)
				gone := l.node("n6")
				gone.down.Store(true)
				l.silence(gone)
				for _, n := range l.nodes[5-c.heard : 5] {
					n.gone[gone.key.ID()] = c.why
				}
				_, err := l.comeBack(must(identity.NewKey()), gone.key, "n1")
				if Code(err) != CodeRemoved || !strings.Contains(err.Error(), c.words) {
					t.Errorf("%v", err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 2)
		if _, err := l.comeBack(must(identity.NewKey()), l.node("n3").key, "n1"); Code(err) != CodeUnknown {
			t.Errorf("the key of a member: %v", err)
		}
		if _, err := l.comeBack(must(identity.NewKey()), must(identity.NewKey()), "n1"); Code(err) != CodeUnknown {
			t.Errorf("any key: %v", err)
		}
	})
}

// A voter that was removed does not count, whoever tells of it.
func TestRemovedVotersDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 2)
		text := l.invite(identity.Terms{}, "n1")
		for _, name := range []string{"n3", "n4", "n5"} {
			l.node(name).down.Store(true)
		}
		if _, err := l.join(text, "before"); Code(err) != CodeNoQuorum {
			t.Fatalf("two of five: %v", err)
		}
		founder := l.node("n1") // has heard of the removals, n2 has not
		for _, name := range []string{"n3", "n4", "n5"} {
			founder.gone[l.node(name).key.ID()] = identity.ByHand
		}
		if _, err := l.join(text, "after"); err != nil {
			t.Errorf("two of two: %v", err)
		}
	})
}

// Who was removed itself lets nobody in, and says so; another seed may.
func TestRemovedSponsorsAdmitNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 2)
		gone := l.node("n2")
		gone.gone[gone.key.ID()] = identity.ByHand
		if _, err := l.join(l.invite(identity.Terms{}, "n2"), "x"); Code(err) != CodeNoIssuer || !strings.Contains(err.Error(), "removed from the cluster itself") {
			t.Errorf("%v", err)
		}
		if _, err := l.join(l.invite(identity.Terms{}, "n2", "n1"), "y"); err != nil {
			t.Errorf("by way of another: %v", err)
		}
	})
}

// Promises that may have become members are told to whoever counts voters.
func TestJoiningIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 2)
		n := l.node("n2")
		voter, silent := peer.ID{1}, peer.ID{2}
		n.sponsor.ledger.mu.Lock()
		err := n.sponsor.ledger.set(voter, promise{joinSeq: 7, made: time.Now()})
		if err == nil {
			err = n.sponsor.ledger.set(silent, promise{joinSeq: 8, made: time.Now(), ephemeral: true})
		}
		n.sponsor.ledger.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if got := n.sponsor.Joining(); len(got) != 2 || got[0].ID != voter || got[0].JoinSeq != 7 || got[0].Ephemeral || !got[1].Ephemeral {
			t.Errorf("%v", got)
		}
		time.Sleep(PromiseLife + time.Second)
		if got := n.sponsor.Joining(); len(got) != 0 {
			t.Errorf("after its life: %v", got)
		}
	})
}
