package join

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
)

func TestJoinThroughEachKindOfSponsor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 3)
		silent := must(identity.NewKey())
		items := append(l.nodes[0].roster.Items(), l.certify(silent, "e6", 9, true).Raw())
		l.add("e6", silent, items)
		l.gossip()
		for i, sponsor := range []string{"n1", "n3", "n5", "e6"} {
			key := must(identity.NewKey())
			r, err := Join(t.Context(), l.config(l.invite(identity.Terms{Uses: 1}, sponsor), key, "new"))
			if err != nil {
				t.Fatalf("through %s: %v", sponsor, err)
			}
			l.check(r, key)
			if r.Sponsor != l.node(sponsor).key.ID() || r.Endpoint != l.node(sponsor).at || r.Build != "test" {
				t.Errorf("through %s: %+v", sponsor, r)
			}
			if n := l.knowers(key.ID()); n < 4 {
				t.Errorf("through %s: %d members know of it", sponsor, n)
			}
			if seq := r.Certificate.JoinSeq; seq != uint64(5+i) {
				t.Errorf("through %s: join sequence %d", sponsor, seq)
			}
			if r.Certificate.Name() != "new" || r.Certificate.Ephemeral {
				t.Errorf("through %s: %+v", sponsor, r.Certificate)
			}
			l.gossip()
			for _, n := range l.nodes {
				if len(must(parsePromises(n.disk[storeName]))) != 0 {
					t.Errorf("through %s: %s still has a promise", sponsor, n.name)
				}
			}
			// The new member takes part from now on.
			l.add(fmt.Sprint("j", i), key, r.Items)
		}
	})
}

func TestEverySeedIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 3)
		text := l.invite(identity.Terms{Uses: 1}, "n2", "n3", "n4")
		l.node("n2").down.Store(true)
		l.node("n3").down.Store(true)
		r, err := l.join(text, "new")
		if err != nil {
			t.Fatal(err)
		}
		if r.Sponsor != l.node("n4").key.ID() {
			t.Error("another sponsor")
		}
	})
}

func TestConcurrentJoinsNeverUseATokenTwice(t *testing.T) {
	for name, c := range map[string]struct {
		uses    uint32
		joiners int
		seeds   []string
	}{
		"one use, two issuers":              {1, 2, []string{"n1", "n2"}},
		"one use, five through five":        {1, 5, []string{"n1", "n2", "n3", "n4", "n5"}},
		"two uses, six through three":       {2, 6, []string{"n1", "n2", "n3"}},
		"ten uses, ten through three":       {10, 10, []string{"n1", "n2", "n3"}},
		"any number, twelve through issuer": {0, 12, []string{"n2"}},
		"any number, twelve through five":   {0, 12, []string{"n1", "n2", "n3", "n4", "n5"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, 5, 3)
				text := l.invite(identity.Terms{Uses: c.uses}, c.seeds[0])
				tok := must(token.Parse(text))
				var mu sync.Mutex
				var in int
				var wg sync.WaitGroup
				for i := range c.joiners {
					seed := l.node(c.seeds[i%len(c.seeds)])
					tok := tok
					tok.Seeds = []token.Seed{token.SeedOf(seed.at, seed.key.ID())}
					wg.Go(func() {
						key := must(identity.NewKey())
						r, err := Join(t.Context(), l.config(tok.Format(), key, fmt.Sprint("j", i)))
						if err == nil { // it takes a while until it serves
							time.Sleep(2 * time.Second)
							l.add(fmt.Sprint("j", i), key, r.Items)
						}
						mu.Lock()
						defer mu.Unlock()
						if err == nil {
							in++
						} else if Code(err) != CodeUsedUp {
							t.Errorf("joiner %d: %v", i, err)
						}
					})
				}
				wg.Wait()
				want := c.joiners
				if c.uses > 0 {
					want = min(want, int(c.uses))
				}
				l.gossip()
				users := len(l.nodes[0].roster.JoinedWith(identity.InvitationID(must(tok.Key()).Public())))
				if in != want || users != want {
					t.Errorf("%d joined, %d by the roster, want %d", in, users, want)
				}
			})
		})
	}
}

func TestTheSameNodeMayAskAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 3)
		key := must(identity.NewKey())
		text := l.invite(identity.Terms{Uses: 1, NotAfter: time.Now().Add(time.Hour)}, "n2")
		first, err := Join(t.Context(), l.config(text, key, "new"))
		if err != nil {
			t.Fatal(err)
		}
		l.gossip()
		// The token has expired, is used up, and most of the cluster is down.
		time.Sleep(2 * time.Hour)
		for _, n := range l.nodes[2:] {
			n.down.Store(true)
		}
		again, err := Join(t.Context(), l.config(text, key, "new"))
		if err != nil {
			t.Fatal(err)
		}
		l.check(again, key)
		if !bytes.Equal(again.Certificate.Raw(), first.Certificate.Raw()) {
			t.Error("another certificate")
		}
		if n := len(l.nodes[0].roster.JoinedWith(first.Certificate.Invitation.ID())); n != 1 {
			t.Errorf("%d uses", n)
		}
	})
}

func TestAMemberThatCannotSaveDoesNotPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		text := l.invite(identity.Terms{Uses: 1}, "n1")
		full := func(names ...string) {
			l.fault = func(n *node, step string) error {
				for _, name := range names {
					if n.name == name && step == "before save "+storeName {
						return errDiskFull
					}
				}
				return nil
			}
		}
		full("n2", "n3")
		if _, err := l.join(text, "new"); Code(err) != CodeNoQuorum {
			t.Errorf("two disks full: %v", err)
		}
		full("n3")
		if _, err := l.join(text, "new"); err != nil {
			t.Errorf("one disk full: %v", err)
		}
	})
}

func TestFirstVotersBecomeIssuers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 1, 1)
		join := func(terms identity.Terms, seed, name string) *node {
			t.Helper()
			key := must(identity.NewKey())
			r, err := Join(t.Context(), l.config(l.invite(terms, seed), key, name))
			if err != nil {
				t.Fatal(err)
			}
			n := l.add(name, key, r.Items)
			l.gossip()
			return n
		}
		issues := func(n *node) bool { _, ok := l.nodes[0].roster.Delegation(n.key.ID()); return ok }
		if e := join(identity.Terms{Ephemeral: true}, "n1", "e1"); issues(e) {
			t.Error("an ephemeral member issues")
		}
		if n := join(identity.Terms{}, "n1", "n2"); !issues(n) {
			t.Error("the second voter does not issue")
		}
		// Through an issuer that has no root key: it asks the founder.
		if n := join(identity.Terms{}, "n2", "n3"); !issues(n) {
			t.Error("the third voter does not issue")
		}
		if n := join(identity.Terms{}, "n1", "n4"); issues(n) {
			t.Error("the fourth voter issues")
		}
		// Now the founder may die.
		text := l.invite(identity.Terms{}, "n4")
		l.node("n1").down.Store(true)
		if _, err := l.join(text, "n5"); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 2)
		text := l.invite(identity.Terms{}, "n2")
		l.node("n1").down.Store(true)
		r, err := l.join(text, "n4") // succeeds without a delegation
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := l.node("n2").roster.Delegation(r.Certificate.ID()); ok {
			t.Error("a delegation without the root")
		}
	})
}

func TestIssuerLearnsOfVotersFromVoters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// n2 believes that there are two members; there are five.
		l := newLab(t, 5, 3)
		text := l.invite(identity.Terms{}, "n2")
		for _, name := range []string{"n3", "n4", "n5"} {
			l.node("n2").roster.forget(l.node(name).key.ID())
			l.node(name).down.Store(true)
		}
		_, err := l.join(text, "new")
		if Code(err) != CodeNoQuorum || !strings.Contains(err.Error(), "2 of 5 answered, missing: n3, n4, n5") {
			t.Errorf("two of five: %v", err)
		}
		l.node("n4").down.Store(false)
		if _, err := l.join(text, "new"); err != nil {
			t.Errorf("three of five: %v", err)
		}
	})
}

func TestPromisesOutliveARestartAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		text := l.invite(identity.Terms{Uses: 1}, "n2")
		// The issuer dies with the promises of all in hand.
		l.fault = func(n *node, step string) error {
			if n.name == "n2" && step == "before add" {
				return errDown
			}
			return nil
		}
		if _, err := l.join(text, "unlucky"); err == nil {
			t.Fatal("joined")
		}
		l.fault = nil
		for _, n := range l.nodes {
			n.start()
			if p := must(parsePromises(n.disk[storeName])); len(p) != 1 {
				t.Errorf("%s has %d promises", n.name, len(p))
			}
		}
		if _, err := l.join(text, "other"); Code(err) != CodeBusy {
			t.Errorf("at once: %v", err)
		}
		time.Sleep(PromiseLife)
		if _, err := l.join(text, "other"); err != nil {
			t.Errorf("later: %v", err)
		}
	})
}

func TestJoinEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		text := l.invite(identity.Terms{}, "n2")
		l.node("n1").deaf, l.node("n3").deaf = true, true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := Join(ctx, l.config(text, must(identity.NewKey()), "x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
