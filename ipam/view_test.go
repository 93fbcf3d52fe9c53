package ipam

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// within waits for a condition in the bubble's time.
func (c *cluster) within(d time.Duration, what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			for _, n := range c.nodes {
				if a := n.up(); a != nil {
					c.t.Logf("%s: %+v", n.name, a.Status())
				}
			}
			c.t.Fatalf("not within %s: %s", d, what)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// settled lets everybody have a block and know of all others.
func (c *cluster) settled() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.mustClaim("first")
	}
	c.agree(time.Minute)
}

// cutOff makes a removal known to some machines; gossip tells the others.
func (c *cluster) cutOff(r Removal, to ...*node) {
	for _, n := range to {
		n.roster.add(r)
	}
}

func (n *node) id() peer.ID { return n.key.ID() }

// owns counts the addresses that a machine owns in its own eyes or in another's.
func (n *node) owns(whose *node) int { return addresses(n.up().Blocks()[whose.id()]) }

// routes counts the IPv4 blocks of all members.
func routes(n *node) (all int) {
	for _, blocks := range n.up().current().Owners() {
		all += len(blocks)
	}
	return all
}

func (c *cluster) reclaimed(by *node, gone ...*node) func() bool {
	return func() bool {
		return !slices.ContainsFunc(gone, func(x *node) bool { return by.owns(x) > 0 }) && len(by.up().Status().Reclaims) == 0
	}
}

func TestBlocksOfARemovedMemberAreTakenOver(t *testing.T) {
	simulate(t, sized(4, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n4 := c.nodes[0], c.nodes[3]
		had, before := n1.owns(n4), routes(n1)
		n4.stop()
		c.cutOff(Removal{Node: n4.id()}, n1)
		c.within(20*time.Second, "n4 owns nothing", c.reclaimed(n1, n4))
		c.agree(time.Minute)
		if had == 0 || !n1.up().Fenced().Has(n4.id()) {
			t.Errorf("it had %d addresses, fenced %v", had, n1.up().Fenced())
		}
		if got := routes(n1); got > before {
			t.Errorf("%d blocks, before there were %d", got, before)
		}
		// It comes back from its disk and does not know: nobody answers, and it is told.
		n4.start()
		c.within(time.Minute, "n4 waits", func() bool { return n4.up().Status().State != StateReady })
		if _, err := n4.claim("late", 15*time.Second); err == nil {
			t.Log("it serves unconfirmed from its own blocks")
		}
		c.cutOff(Removal{Node: n4.id()}, n4)
		c.within(time.Minute, "n4 knows", func() bool { return n4.up().Status().State == StateRemoved })
		if _, err := n4.claim("never", 15*time.Second); err == nil {
			t.Error("a removed member gives an address")
		}
		n4.stop()
		n4.roster.removals = map[peer.ID]Removal{} // the disk knows even if the roster is lost
		n4.start()
		if s := n4.up().Status(); s.State != StateRemoved || s.Reason != removedReason {
			t.Errorf("after a restart: %+v", s)
		}
	})
}

func TestReclaimWaitsForEverySurvivorAndNamesIt(t *testing.T) {
	simulate(t, sized(5, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n4, n5 := c.nodes[0], c.nodes[3], c.nodes[4]
		n5.mute.Store(true) // without a vote, but it must promise as well
		n4.stop()
		n5.stop()
		c.cutOff(Removal{Node: n4.id()}, n1)
		time.Sleep(5 * time.Minute)
		// Issuers take turns to lead while it waits.
		c.within(2*time.Minute, "n1 leads and names n5, and n2 names n1", func() bool {
			r1, r2 := n1.up().Status().Reclaims, c.nodes[1].up().Status().Reclaims
			return len(r1) == 1 && r1[0].Problem == "reclaim waits for n5" && slices.Equal(r1[0].WaitsFor, []peer.ID{n5.id()}) &&
				len(r2) == 1 && r2[0].Problem == "reclaim is led by n1"
		})
		if n1.owns(n4) == 0 {
			t.Error("n4's space was taken over without n5")
		}
		n5.start()
		c.within(time.Minute, "n4 owns nothing", c.reclaimed(n1, n4))
	})
}

func TestOneViewRemovesManyAndASilentSurvivorToo(t *testing.T) {
	simulate(t, sized(6, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1 := c.nodes[0]
		for _, n := range c.nodes[3:] {
			n.mute.Store(true)
			n.stop()
		}
		for i, n := range c.nodes[3:] {
			c.cutOff(Removal{Node: n.id(), Silent: true}, n1)
			if i == 0 {
				time.Sleep(30 * time.Second) // the round for the first waits for the others
			}
		}
		c.within(time.Minute, "their blocks are taken", c.reclaimed(n1, c.nodes[3:]...))
		if got := len(n1.up().current().Views()); got != 1 {
			t.Errorf("%d views", got)
		}
	})
}

// TestAGrantThatOnlyItsReceiverKnowsIsConfirmed: n4 lends to n2, nobody else hears of it, and n4 dies.
func TestAGrantThatOnlyItsReceiverKnowsIsConfirmed(t *testing.T) {
	simulate(t, sized(4, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n2, n4 := c.nodes[0], c.nodes[1], c.nodes[3]
		proof := lendBy(t, n4, n2)
		n4.stop()
		c.part(0, 1, 0, 0) // n2 has it, and cannot tell
		if err := n2.up().Merge(proof); err != nil {
			t.Fatal(err)
		}
		have := n2.owns(n2)
		c.cutOff(Removal{Node: n4.id()}, n1)
		time.Sleep(time.Minute)
		if n1.owns(n4) == 0 {
			t.Fatal("taken over without the promise of n2")
		}
		c.part()
		c.within(time.Minute, "n4 owns nothing", c.reclaimed(n1, n4))
		c.agree(time.Minute)
		if got := n2.owns(n2); got < have {
			t.Errorf("n2 has %d addresses, had %d", got, have)
		}
	})
}

// lendBy makes a machine lend a block, as an answer that is still on its way.
func lendBy(t *testing.T, from, to *node) []byte {
	t.Helper()
	var answer grantAnswer
	var err error
	if doErr := from.up().do(t.Context(), func() { answer, err = from.up().lend(to.id(), requestID{byte(time.Now().Second())}) }); doErr != nil {
		t.Fatal(doErr)
	}
	if err != nil || answer.ring == nil {
		t.Fatal(err, answer.reason)
	}
	return answer.ring
}

func TestALateGrantIsRefusedOnEveryWay(t *testing.T) {
	simulate(t, sized(4, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n2, n3, n4 := c.nodes[0], c.nodes[1], c.nodes[2], c.nodes[3]
		n4.stop()
		n4.start()
		c.within(time.Minute, "n4 is confirmed", func() bool { return n4.up().Status().State == StateReady })
		c.agree(time.Minute)
		c.part(0, 0, 1, 2)
		late := lendBy(t, n4, n2)
		n4.stop()
		c.cutOff(Removal{Node: n4.id()}, n1, n2)
		c.within(time.Minute, "n2 has promised", func() bool {
			r := n2.up().Status().Reclaims
			return len(r) == 1 && r[0].View > 0
		})
		had := n2.owns(n2)
		for name, way := range map[string]func() error{
			"gossip": func() error { return n2.up().Merge(late) },
			"push": func() error {
				if _, err := n2.up().HandleCall(t.Context(), n1.id(), methodPush, push{ring: late}.encode()); err == nil {
					return errors.New("confirmed as taken")
				}
				return nil
			},
			"after a restart": func() error {
				n2.stop()
				n2.start()
				return n2.up().Merge(late)
			},
		} {
			if err := way(); err != nil || n2.owns(n2) != had {
				t.Errorf("%s: taken (%v)", name, err)
			}
		}
		// A sync answer of somebody who has not promised brings it too.
		if err := n3.up().Merge(late); err != nil {
			t.Fatal(err)
		}
		c.part(0, 0, 0, 2)
		n2.up().sync(t.Context(), n3.id())
		if n2.owns(n2) != had {
			t.Error("sync: taken")
		}
		c.within(time.Minute, "n4 owns nothing", c.reclaimed(n1, n4))
		c.agree(time.Minute)
		// n3 knew of it and said so: now it is n2's.
		if n2.owns(n2) <= had {
			t.Error("a grant that a survivor knew was not confirmed")
		}
	})
}

func TestTwoCoordinatorsFinish(t *testing.T) {
	simulate(t, sized(5, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n2, n5 := c.nodes[0], c.nodes[1], c.nodes[4]
		n5.stop()
		c.part(0, 1, 0, 1, 2) // an issuer in each half
		c.cutOff(Removal{Node: n5.id()}, n1, n2)
		time.Sleep(time.Minute)
		if n1.up().current().Number() != 0 || n2.up().current().Number() != 0 {
			t.Fatal("complete without all survivors")
		}
		c.part()
		c.within(2*time.Minute, "n5 owns nothing", c.reclaimed(n1, n5))
		c.agree(time.Minute)
	})
}

func TestAnotherIssuerFinishesWhatADeadCoordinatorBegan(t *testing.T) {
	simulate(t, sized(5, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n2, n5 := c.nodes[0], c.nodes[1], c.nodes[4]
		n5.stop()
		c.part(0, 0, 0, 1, 2)
		c.cutOff(Removal{Node: n5.id()}, n1)
		time.Sleep(30 * time.Second) // n1 has some promises
		n1.stop()
		c.part()
		time.Sleep(2 * time.Minute)
		if s := n2.up().Status().Reclaims; len(s) != 1 || s[0].Leader != n2.id() || s[0].Problem != "reclaim waits for n1" {
			t.Fatalf("%+v", s)
		}
		n1.start()
		c.within(2*time.Minute, "n5 owns nothing", c.reclaimed(n2, n5))
		c.agree(time.Minute)
	})
}

func TestAMinorityReclaimsNothingWithoutForce(t *testing.T) {
	simulate(t, sized(5, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1 := c.nodes[0]
		dead := c.nodes[2:]
		for _, n := range dead {
			n.stop()
			c.cutOff(Removal{Node: n.id()}, n1)
		}
		time.Sleep(5 * time.Minute)
		s := n1.up().Status()
		if n1.owns(dead[0]) == 0 || len(s.Reclaims) != 3 || !strings.Contains(s.Reclaims[0].Problem, "no quorum") {
			t.Fatalf("%+v", s.Reclaims)
		}
		// Nor does a start count those who were removed as heard.
		n1.stop()
		n1.start()
		time.Sleep(time.Minute)
		if s := n1.up().Status(); s.State != StateUnconfirmed || !strings.Contains(s.Reason, "the removal is not complete of n3, n4, n5") {
			t.Fatalf("%+v", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := n1.up().Force(ctx, []peer.ID{dead[0].id(), dead[1].id(), dead[2].id()}); err != nil {
			t.Fatal(err)
		}
		if v := n1.up().current().Views(); len(v) != 1 || !v[0].Forced() {
			t.Errorf("%d views", len(v))
		}
		c.within(time.Minute, "n1 is confirmed", func() bool { return n1.up().Status().State == StateReady })
		if err := c.nodes[1].up().Force(ctx, []peer.ID{n1.id()}); !errors.Is(err, ErrNotRemoved) {
			t.Errorf("force on a member: %v", err)
		}
	})
}

func TestForceFinishesWithoutASilentSurvivor(t *testing.T) {
	simulate(t, sized(5, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n4, n5 := c.nodes[0], c.nodes[3], c.nodes[4]
		n4.stop()
		n5.stop()
		c.cutOff(Removal{Node: n4.id()}, n1)
		time.Sleep(30 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := n1.up().Force(ctx, []peer.ID{n4.id()}); err != nil {
			t.Fatal(err)
		}
		if n1.owns(n4) != 0 || n1.owns(n5) == 0 {
			t.Error("not exactly the forced one was reclaimed")
		}
		n5.start()
		c.agree(2 * time.Minute)
		// Everybody names it, whoever slept through it and whoever starts anew too.
		n1.stop()
		n1.start()
		c.agree(2 * time.Minute)
		for _, n := range []*node{n1, c.nodes[1], c.nodes[2], n5} {
			if f := n.up().ForcedRemovals(); len(f) != 1 || f[0] != (ForcedRemoval{n4.id(), n1.id(), f[0].View}) {
				t.Errorf("%s names %v", n.name, f)
			}
		}
	})
}

// TestAMemberThatCameUpAgainMustBeSilent plays rule R7: a survivor has heard a newer start than the coordinator.
func TestAMemberThatCameUpAgainMustBeSilent(t *testing.T) {
	simulate(t, sized(4, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		n1, n3, n4 := c.nodes[0], c.nodes[2], c.nodes[3]
		n4.stop()
		c.part(0, 0, 1, 1) // n4 comes up again in the other half
		c.cutOff(Removal{Node: n4.id(), Incarnation: n1.up().Incarnation(n4.id())}, n1)
		n4.start()
		time.Sleep(5 * time.Second)
		n4.stop()
		c.part()
		time.Sleep(time.Minute)
		var s []Reclaim
		for _, n := range c.nodes[:3] {
			s = append(s, n.up().Status().Reclaims...)
		}
		if n1.owns(n4) == 0 || !slices.ContainsFunc(s, func(r Reclaim) bool {
			return strings.Contains(r.Problem, "n4 came up again after it was removed")
		}) {
			t.Fatalf("%+v, n3 heard %v", s, n3.up().heard[n4.id()])
		}
		time.Sleep(14 * time.Minute)
		c.within(3*time.Minute, "n4 owns nothing", c.reclaimed(n1, n4))
	})
}

func TestAMemberThatLearnsOfItsRemovalStops(t *testing.T) {
	simulate(t, sized(4, "10.0.0.0/22", 28), func(_ *testing.T, c *cluster) {
		c.settled()
		n1, n4 := c.nodes[0], c.nodes[3]
		c.part(0, 0, 1, 1)
		c.cutOff(Removal{Node: n4.id()}, n1)
		n4.stop()
		n4.start()
		time.Sleep(5 * time.Second)
		c.part()
		c.within(time.Minute, "n4 has stopped", func() bool { return n4.up().Status().State == StateRemoved })
		c.within(time.Minute, "n4 owns nothing", c.reclaimed(n1, n4)) // without 15 minutes of silence
	})
}

// TestTheLastOneOutLeavesAStateThatStarts: all leave, one after the other, and the last one comes back first.
func TestTheLastOneOutLeavesAStateThatStarts(t *testing.T) {
	simulate(t, sized(3, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		c.settled()
		leave := func(n *node) error {
			for _, claim := range n.up().Claims() {
				if _, err := n.up().Release(t.Context(), claim.Container, ""); err != nil {
					t.Fatal(err)
				}
			}
			err := n.up().HandBack(t.Context())
			if err == nil {
				for _, m := range c.nodes {
					m.roster.add(Removal{Node: n.id(), Left: true})
				}
			}
			n.stop()
			return err
		}
		n1, n2, n3 := c.nodes[0], c.nodes[1], c.nodes[2]
		if err := errors.Join(leave(n1), leave(n2)); err != nil {
			t.Fatal(err)
		}
		if err := leave(n3); !errors.Is(err, ErrLastMember) {
			t.Fatalf("the last one: %v", err)
		}
		n3.start()
		c.within(time.Minute, "n3 serves", func() bool { return n3.up().Status().State == StateReady })
		n3.mustClaim("again")
		if got := n3.owns(n3); got != 1024 {
			t.Errorf("it owns %d addresses", got)
		}
	})
}

func TestTakenBlocksCoolAndAreUsedLast(t *testing.T) {
	simulate(t, sized(3, "10.0.0.0/26", 28), func(t *testing.T, c *cluster) {
		n1, n2, n3 := c.nodes[0], c.nodes[1], c.nodes[2]
		n2.mustClaim("first")
		c.agree(time.Minute)
		_ = n3 // a voter without a block
		n2.stop()
		c.cutOff(Removal{Node: n2.id()}, n1)
		c.within(time.Minute, "n2 owns nothing", c.reclaimed(n1, n2))
		taken := n1.up().current().Runs()
		i := slices.IndexFunc(taken, func(r ring.Run) bool { return !r.From.IsZero() })
		if i < 0 || taken[i].Owner != n1.id() {
			t.Fatalf("%+v", taken)
		}
		use := func() (all []netip.Addr) {
			for k := range 64 {
				claim, err := n1.claim(string(rune('a'+k)), 8*time.Second)
				if err != nil {
					return all
				}
				all = append(all, claim.V4)
			}
			return all
		}
		cool := use()
		if slices.ContainsFunc(cool, taken[i].Block.Contains) {
			t.Error("an address of a block that cools was given")
		}
		n1.stop() // the rest begins anew
		time.Sleep(50 * time.Minute)
		n1.start()
		time.Sleep(50 * time.Minute)
		if got := use(); len(got) != len(cool) {
			t.Errorf("%d addresses after a restart, had %d", len(got), len(cool))
		}
		time.Sleep(20 * time.Minute)
		if got := use(); !slices.ContainsFunc(got, taken[i].Block.Contains) || len(got) <= len(cool) {
			t.Errorf("%d addresses at last, there were %d", len(got), len(cool))
		}
		if st, err := load(n1.disk.copy(), c.u, linked6); err != nil || len(st.taken) != 0 {
			t.Errorf("the disk says that %d blocks cool, %v", len(st.taken), err)
		}
	})
}

func TestACoordinatorWhoseDiskWasSetBackStops(t *testing.T) {
	simulate(t, sized(3, "10.0.0.0/22", 28), func(_ *testing.T, c *cluster) {
		c.settled()
		n1, n3 := c.nodes[0], c.nodes[2]
		before := n1.disk.copy()
		n3.stop()
		c.cutOff(Removal{Node: n3.id()}, n1)
		c.within(time.Minute, "n3 owns nothing", c.reclaimed(n1, n3))
		c.agree(time.Minute)
		n1.stop()
		n1.disk.disk = before.disk
		n1.start()
		c.within(time.Minute, "n1 has stopped", func() bool { return strings.Contains(n1.up().Status().Reason, "set back") })
	})
}

// TestANumberIsPromisedOnce also shows that the test would notice: without the rule both get the promise.
func TestANumberIsPromisedOnce(t *testing.T) {
	for weaken, want := range map[Weakness]verdict{0: verdictNumber, WithoutNumbers: verdictYes} {
		simulate(t, func(t *testing.T) *cluster {
			c := newCluster(t, 4, "10.0.0.0/22", 28)
			c.nodes[2].weaken = weaken
			return c
		}, func(t *testing.T, c *cluster) {
			c.settled()
			n3 := c.nodes[2]
			c.cutOff(Removal{Node: c.nodes[3].id(), Incarnation: 1}, n3)
			var got verdict
			for _, from := range c.nodes[:2] {
				p, err := ring.Propose(c.u, from.key, 7, []ring.Named{{Node: c.nodes[3].id(), Incarnation: 1}})
				if err != nil {
					t.Fatal(err)
				}
				b, err := n3.up().HandleCall(t.Context(), from.id(), methodPromise, promiseRequest{proposal: p.Raw()}.encode())
				if err != nil {
					t.Fatal(err)
				}
				answer, err := parsePromiseAnswer(b)
				if err != nil {
					t.Fatal(err)
				}
				got = answer.verdict
			}
			if got != want {
				t.Errorf("weakened %d: the second one hears %d, want %d", weaken, got, want)
			}
		})
	}
}

// TestAJoinUnderWayHoldsAReclaim: a survivor has promised to admit somebody whom the coordinator cannot know. The join is
// over when the survivor names it no longer.
//
// No schedule breaks without this rule as long as joining keeps its own. Let J be admitted and the removal of X complete
// without a promise of J. A quorum wrote J's certificate down, and a quorum promised, so somebody, V, did both. V wrote after
// its promise, for who promises shows its roster, and J in it would have had to promise. By then V knew that X was removed,
// and takes no certificate from a removed sponsor, so J's sponsor S was not removed. So S promised too, and before it made the
// certificate, or its roster would have shown J. Hence the roster that J began with says that X was removed, and J asks X for
// nothing: it has nothing of X's that the view does not know. The rule makes a view safe without what other packages promise.
func TestAJoinUnderWayHoldsAReclaim(t *testing.T) {
	simulate(t, func(t *testing.T) *cluster { return newCluster(t, 4, "10.0.0.0/22", 28) }, func(t *testing.T, c *cluster) {
		c.settled()
		n1, n3, n4 := c.nodes[0], c.nodes[2], c.nodes[3]
		n3.roster.mu.Lock()
		n3.roster.joining = []peer.Info{{ID: peer.ID{7}, JoinSeq: 9}}
		n3.roster.mu.Unlock()
		n4.stop()
		c.cutOff(Removal{Node: n4.id()}, n1)
		time.Sleep(time.Minute)
		if n1.owns(n4) == 0 {
			t.Error("it does not wait for the join")
		}
		n3.roster.mu.Lock()
		n3.roster.joining = nil
		n3.roster.mu.Unlock()
		c.within(time.Minute, "n4 owns nothing", c.reclaimed(n1, n4))
	})
}

// TestAPleaForNothingIsNotHeard: a member says that it is bound to refuse members, one that a record names, one that was not
// removed and one whom nobody knows. No view comes of it, as often as it says so.
func TestAPleaForNothingIsNotHeard(t *testing.T) {
	simulate(t, func(t *testing.T) *cluster { return newCluster(t, 4, "10.0.0.0/22", 28) }, func(t *testing.T, c *cluster) {
		c.settled()
		n1, n2, n3, n4 := c.nodes[0], c.nodes[1], c.nodes[2], c.nodes[3]
		n4.stop()
		c.cutOff(Removal{Node: n4.id()}, n1)
		c.within(time.Minute, "n4 owns nothing", c.reclaimed(n1, n4))
		number := n1.up().current().Number()
		for range 3 {
			plea := push{refused: []peer.ID{n3.id(), n4.id(), {9}}}.encode()
			if _, err := n1.up().HandleCall(t.Context(), n2.id(), methodPush, plea); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		if now := n1.up().current().Number(); now != number {
			t.Errorf("view %d, was %d", now, number)
		}
	})
}

// TestAnAnswerToSyncBringsNoLateGrant: n3 has not promised and knows a grant of the removed n4 to n2, who has promised.
func TestAnAnswerToSyncBringsNoLateGrant(t *testing.T) {
	for _, weaken := range []Weakness{0, WithoutSyncRefusal, WithoutRefusal} {
		simulate(t, func(t *testing.T) *cluster {
			c := newCluster(t, 4, "10.0.0.0/22", 28)
			c.nodes[1].weaken = weaken
			return c
		}, func(t *testing.T, c *cluster) {
			c.settled()
			n1, n2, n3, n4 := c.nodes[0], c.nodes[1], c.nodes[2], c.nodes[3]
			c.part(0, 0, 1, 2)
			late := lendBy(t, n4, n2)
			n4.stop()
			c.cutOff(Removal{Node: n4.id()}, n1, n2)
			c.within(time.Minute, "n2 has promised", func() bool {
				r := n2.up().Status().Reclaims
				return len(r) == 1 && r[0].View > 0
			})
			if err := n3.up().Merge(late); err != nil {
				t.Fatal(err)
			}
			had := n2.owns(n2)
			c.part(0, 0, 0, 2)
			n2.up().sync(t.Context(), n3.id())
			if taken := n2.owns(n2) > had; taken != (weaken != 0) {
				t.Errorf("weakened %d: taken: %v", weaken, taken)
			}
		})
	}
}
