package mesh_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/mesh"
	"weft/mesh/peer"
)

// remove is what an issuer signs.
func (w *world) remove(n *node, why identity.Reason) *identity.Removal {
	w.t.Helper()
	r, err := identity.Issuer{Key: w.root}.Remove(n.id(), why, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// parted reports why one of nodes still takes gone for a member, or "".
func parted(nodes []*node, gone *node) string {
	for _, n := range nodes {
		info, _ := n.mesh.Peer(gone.id())
		_, recorded := n.mesh.Record(gone.id())
		switch {
		case info.State != peer.Removed:
			return n.name + " says " + info.State.String()
		case recorded:
			return n.name + " keeps its record"
		case slices.ContainsFunc(n.mesh.Roster().Voters(), func(v peer.Voter) bool { return v.ID == gone.id() }):
			return n.name + " lets it vote"
		}
	}
	return ""
}

// The removal of a live member is told to all who are alive in one round, and from then on nobody speaks with it, takes its
// records or counts its vote; once it knows, it tries nobody any more.
func TestRemovedMemberIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(5)
		w.settle(time.Minute)
		gone, rest := w.nodes[2], slices.Delete(slices.Clone(w.nodes), 2, 3)
		removal := w.remove(gone, identity.ByHand)
		began := time.Now()
		have, err := w.nodes[0].mesh.Tell(t.Context(), removal)
		if err != nil || len(have) != 3 {
			t.Fatalf("%d have it: %v", len(have), err)
		}
		took := w.within(time.Second, func() string { return parted(rest, gone) })
		t.Logf("told in %v, cut off %v later", time.Since(began)-took, took)

		if _, err := gone.mesh.Call(t.Context(), rest[0].id(), "echo", nil); err == nil {
			t.Error("it is answered still")
		}
		if _, err := rest[0].mesh.Call(t.Context(), gone.id(), "echo", nil); !errors.Is(err, mesh.ErrNotMember) {
			t.Errorf("it is asked still: %v", err)
		}
		// Where it knocks it is shown why.
		if err := gone.mesh.Roster().Add(removal); err != nil {
			t.Fatal(err)
		}
		if err := gone.mesh.Publish(func(r *mesh.Record) { r.MTU = 1234 }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if why := parted(rest, gone); why != "" {
			t.Error(why)
		}
		if why := w.settled(rest); why != "" {
			t.Error(why)
		}
		if n := rest[0].mesh.Stats().MembersKnown; n != 4 {
			t.Errorf("%d members", n)
		}
		// What the removed one says after that is not even counted as an attempt: it says nothing.
		before := rest[0].mesh.Stats().Refused
		time.Sleep(time.Minute)
		if after := rest[0].mesh.Stats().Refused; after != before {
			t.Errorf("%d messages came from it", after-before)
		}
	})
}

// A member that did not hear of it because it was away is told by the first one that it meets, also after a restart.
func TestRemovalReachesWhoWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(4)
		w.settle(time.Minute)
		away, gone := w.nodes[3], w.nodes[2]
		away.stop()
		gone.stop()
		if _, err := w.nodes[0].mesh.Tell(t.Context(), w.remove(gone, identity.Silence)); err != nil {
			t.Fatal(err)
		}
		w.within(5*time.Second, func() string { return parted(w.nodes[:2], gone) })
		away.start()
		w.within(time.Minute, func() string { return parted([]*node{w.nodes[0], w.nodes[1], away}, gone) })
		w.nodes[1].stop()
		w.nodes[1].start()
		if why := parted(w.nodes[1:2], gone); why != "" {
			t.Error("after a restart: " + why)
		}
	})
}

// A node that alone was shown its removal, by somebody who is gone, tells the others before it falls silent.
func TestRemovedMemberTellsOthersOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(5)
		w.settle(time.Minute)
		gone, rest := w.nodes[2], slices.Delete(slices.Clone(w.nodes), 2, 3)
		if err := gone.mesh.Roster().Add(w.remove(gone, identity.ByHand)); err != nil {
			t.Fatal(err)
		}
		took := w.within(time.Minute, func() string { return parted(rest, gone) })
		t.Logf("all others know after %v", took)
		time.Sleep(2 * time.Minute) // memberlist finds out by itself that nobody answers
		before := rest[0].mesh.Stats().Refused
		time.Sleep(time.Minute)
		if after := rest[0].mesh.Stats().Refused; after != before {
			t.Errorf("%d messages came from it after that", after-before)
		}
	})
}

// A certificate that nobody knows yet is not taken from its bearer once the issuer may issue no more, by removal or
// revocation; what is known stays, and so does what a member brings.
func TestCertificatesOfFormerIssuers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(2)
		w.settle(time.Minute)
		issuer := w.nodes[1]
		roster := w.nodes[0].mesh.Roster()
		delegation, err := identity.Delegate(w.root, issuer.key.Public(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		by := identity.Issuer{Key: issuer.key, Delegation: delegation}
		issue := func() *identity.Certificate {
			a, err := identity.Apply(identity.FingerprintOf(w.root.Public()), newKey(t), w.token, "")
			if err != nil {
				t.Fatal(err)
			}
			c, err := by.Certify(a, w.invite, 9, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		known, late := issue(), issue()
		if err := errors.Join(roster.Vouched(late), roster.Add(delegation, known)); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(roster.Issuers(), issuer.id()) {
			t.Fatal("it is no issuer")
		}
		if err := roster.Add(w.remove(issuer, identity.Stolen)); err != nil {
			t.Fatal(err)
		}
		if err := roster.Vouched(late); !errors.Is(err, mesh.ErrIssuer) {
			t.Errorf("a new certificate of a removed issuer: %v", err)
		}
		if err := roster.Vouched(known); err != nil || !roster.Member(known.ID()) {
			t.Errorf("a certificate from before: %v", err)
		}
		if slices.Contains(roster.Issuers(), issuer.id()) {
			t.Error("a removed member issues")
		}
		if err := roster.Add(late); err != nil || roster.Vouched(late) != nil {
			t.Errorf("brought by a member: %v", err)
		}

		second := newKey(t)
		if delegation, err = identity.Delegate(w.root, second.Public(), time.Now()); err != nil {
			t.Fatal(err)
		}
		by = identity.Issuer{Key: second, Delegation: delegation}
		revocation, err := identity.Issuer{Key: w.root}.Revoke(identity.KindDelegation, delegation.ID(), time.Now())
		if err := errors.Join(err, roster.Add(delegation, revocation)); err != nil {
			t.Fatal(err)
		}
		if err := roster.Vouched(issue()); !errors.Is(err, mesh.ErrIssuer) {
			t.Errorf("a new certificate under a revoked delegation: %v", err)
		}
	})
}

// The weightiest reason holds everywhere, in whatever order they came.
func TestReasonsOfOneRemovalAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(time.Minute)
		gone := newKey(t)
		ghost := &node{key: gone}
		for i, why := range []identity.Reason{identity.Silence, identity.Stolen, identity.ByHand} {
			if err := w.nodes[i].mesh.Roster().Add(w.remove(ghost, why)); err != nil {
				t.Fatal(err)
			}
		}
		w.within(time.Minute, func() string {
			for _, n := range w.nodes {
				if r, _ := n.mesh.Roster().Removal(gone.ID()); r.Reason != identity.Stolen {
					return n.name + " says " + r.Reason.String()
				}
				if !bytes.Equal(n.mesh.Roster().Digest(), w.nodes[0].mesh.Roster().Digest()) {
					return n.name + " differs"
				}
			}
			return ""
		})
	})
}
