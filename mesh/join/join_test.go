package join

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/circuit"
	"weft/mesh/peer"
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
		l.node("n2").up, l.node("n3").up = false, false
		r, err := l.join(text, "new")
		if err != nil {
			t.Fatal(err)
		}
		if r.Sponsor != l.node("n4").key.ID() {
			t.Error("another sponsor")
		}
	})
}

func TestRefusalsHaveTheirOwnSentences(t *testing.T) {
	revoke := func(l *lab, text string, at ...string) {
		tok := must(token.Parse(text))
		founder := l.nodes[0]
		d, _ := founder.roster.Delegation(founder.key.ID())
		rev := must(identity.Issuer{Key: founder.key, Delegation: d}.Revoke(identity.KindInvitation,
			identity.InvitationID(must(tok.Key()).Public()), time.Now()))
		for _, name := range at {
			must(0, l.node(name).roster.AddRaw(rev.Raw()))
		}
	}
	for name, c := range map[string]struct {
		code  string
		words string // somewhere in the error
		token func(l *lab) string
	}{
		"not a token": {CodeNotToken, "not a join token", func(*lab) string { return "10.0.0.7:6783" }},
		"truncated": {CodeTruncated, "cut off", func(l *lab) string {
			s := l.invite(identity.Terms{}, "n2")
			return s[:len(s)-9]
		}},
		"made by a newer weft": {CodeNewer, "newer", func(l *lab) string { return "weft2abc" }},
		"wrong": {CodeUnknown, "does not know", func(l *lab) string {
			n := l.node("n2")
			return must(token.New(identity.FingerprintOf(l.root.Public()), token.SeedOf(n.at, n.key.ID()))).Format()
		}},
		"expired": {CodeExpired, "valid until 2000", func(l *lab) string {
			s := l.invite(identity.Terms{NotAfter: time.Now().Add(time.Minute)}, "n2")
			time.Sleep(time.Minute)
			return s
		}},
		"expired by the clock of the other voters": {CodeExpired, "by the clock of n", func(l *lab) string {
			for _, n := range l.nodes[2:] {
				n.ahead = 2 * time.Hour
			}
			return l.invite(identity.Terms{NotAfter: time.Now().Add(time.Hour)}, "n2")
		}},
		"used up": {CodeUsedUp, "good for 1 node", func(l *lab) string {
			s := l.invite(identity.Terms{Uses: 1}, "n2")
			must(l.join(s, "first"))
			return s
		}},
		"revoked": {CodeRevoked, "revoked", func(l *lab) string {
			s := l.invite(identity.Terms{}, "n2")
			revoke(l, s, "n2")
			return s
		}},
		"revoked, and one voter alone has heard": {CodeRevoked, "revoked", func(l *lab) string {
			s := l.invite(identity.Terms{}, "n2")
			for _, n := range l.nodes[1:] {
				n.deaf = n.name == "n3" || n.name == "n4" // n2 needs n5 for its quorum
			}
			revoke(l, s, "n5")
			return s
		}},
		"of another cluster": {CodeForeign, "another cluster", func(l *lab) string {
			n := l.node("n2")
			return must(token.New(identity.Fingerprint{1}, token.SeedOf(n.at, n.key.ID()))).Format()
		}},
		"another member than the token says": {CodeImpostor, "not the member", func(l *lab) string {
			return must(token.New(identity.FingerprintOf(l.root.Public()),
				token.SeedOf(l.node("n2").at, l.node("n3").key.ID()))).Format()
		}},
		"unreachable seed": {CodeUnreachable, "192.0.2.99:6783", func(l *lab) string {
			return must(token.New(identity.FingerprintOf(l.root.Public()),
				token.SeedOf(netip.MustParseAddrPort("192.0.2.99:6783"), peer.ID{}))).Format()
		}},
		"no quorum": {CodeNoQuorum, "2 of 5 answered, missing: n1, n3, n4", func(l *lab) string {
			l.node("n1").up, l.node("n3").up, l.node("n4").up = false, false, false
			return l.invite(identity.Terms{}, "n2")
		}},
		"no issuer": {CodeNoIssuer, "tried n1, n2, n3", func(l *lab) string {
			l.node("n1").deaf, l.node("n2").deaf, l.node("n3").deaf = true, true, true
			return l.invite(identity.Terms{}, "n5")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, 5, 3)
				text := c.token(l)
				key := must(identity.NewKey())
				before := len(l.nodes[1].roster.Items())
				_, err := Join(t.Context(), l.config(text, key, "new"))
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("no sentence: %v", err)
				}
				if e.Code != c.code || !strings.Contains(e.Error(), c.words) || e.Hint == "" {
					t.Errorf("%s: %v. %s", e.Code, e, e.Hint)
				}
				if l.knowers(key.ID()) != 0 {
					t.Error("somebody knows the refused node")
				}
				if len(l.nodes[1].roster.Items()) > before+1 { // a revocation may have come
					t.Error("the roster grew")
				}
				synctest.Wait()
				for _, n := range l.nodes {
					if n.up && !n.deaf && len(must(parsePromises(n.disk[storeName]))) != 0 {
						t.Errorf("%s keeps a promise to a node that was refused", n.name)
					}
				}
			})
		})
	}
}

func TestRemovedNodesStayOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 3)
		key := must(identity.NewKey())
		for _, n := range l.nodes {
			n.gone.Add(key.ID())
		}
		_, err := Join(t.Context(), l.config(l.invite(identity.Terms{}, "n2"), key, "back"))
		if Code(err) != CodeRemoved {
			t.Errorf("with a good token: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 3)
		key := must(identity.NewKey())
		for _, n := range l.nodes[2:] { // the sponsor has not heard yet
			n.gone.Add(key.ID())
		}
		if _, err := Join(t.Context(), l.config(l.invite(identity.Terms{}, "n2"), key, "back")); Code(err) != CodeRemoved {
			t.Errorf("known to the other voters only: %v", err)
		}
	})
}

func TestQuorums(t *testing.T) {
	for name, c := range map[string]struct {
		members int
		down    []string
		seed    string
		code    string
		words   string
	}{
		"the founder alone":           {1, nil, "n1", "", ""},
		"two members":                 {2, nil, "n2", "", ""},
		"two members, founder down":   {2, []string{"n1"}, "n2", CodeNoQuorum, "1 of 2 answered, missing: n1"},
		"two members, the other down": {2, []string{"n2"}, "n1", "", ""},
		"three members, first down":   {3, []string{"n1"}, "n2", "", ""},
		"three members, second down":  {3, []string{"n2"}, "n3", "", ""},
		"three members, third down":   {3, []string{"n3"}, "n1", "", ""},
		"three members, two down":     {3, []string{"n1", "n2"}, "n3", CodeNoQuorum, "missing: n1, n2"},
		"four members, two juniors":   {4, []string{"n1", "n2"}, "n3", CodeNoQuorum, "missing: n1, n2"},
		"five members, founder down":  {5, []string{"n1"}, "n5", "", ""},
		"five members, two down":      {5, []string{"n1", "n2"}, "n4", "", ""},
		"five members, three down":    {5, []string{"n1", "n2", "n4"}, "n3", CodeNoQuorum, "2 of 5"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, c.members, 3)
				text := l.invite(identity.Terms{}, c.seed)
				for _, n := range c.down {
					l.node(n).up = false
				}
				key := must(identity.NewKey())
				began := time.Now()
				r, err := Join(t.Context(), l.config(text, key, "new"))
				if Code(err) != c.code || err != nil && c.code == "" {
					t.Fatalf("%v, want %q", err, c.code)
				}
				if err != nil {
					if !strings.Contains(err.Error(), c.words) {
						t.Errorf("%v, want %q", err, c.words)
					}
					if took := time.Since(began); took > 15*time.Second {
						t.Errorf("the refusal took %v", took)
					}
					return
				}
				l.check(r, key)
				if took := time.Since(began); took > 7*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
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
			n.up = false
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

func TestRequestsAreWorthlessOnAnotherSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		text := l.invite(identity.Terms{}, "n2")
		tok := must(token.Parse(text))
		key := must(identity.NewKey())
		session := func() (*request, func(q *request) error) {
			raw := must(l.dial(t.Context(), l.node("n2").at))
			conn, err := circuit.DialJoin(t.Context(), raw, func(ed25519.PublicKey, *identity.Certificate) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			q := &request{application: must(identity.Apply(tok.Root, key, must(tok.Key()), "new"))}
			if err := q.sign(conn.ConnectionState(), key, must(tok.Key())); err != nil {
				t.Fatal(err)
			}
			return q, func(q *request) error {
				defer raw.Close()
				if err := writeFrame(conn, frameRequest, q.append(nil)); err != nil {
					return err
				}
				kind, body, err := readFrame(conn, maxFrame)
				if err != nil {
					return err
				}
				if kind == frameRefusal {
					e, err := parseError(body)
					if err != nil {
						return err
					}
					return e
				}
				return nil
			}
		}
		captured, abandon := session()
		q, send := session()
		q.byNode, q.byToken = captured.byNode, captured.byToken
		if err := send(q); Code(err) != CodeInvalid {
			t.Errorf("replayed: %v", err)
		}
		q, send = session()
		q.byToken = q.byNode // the node key alone
		if err := send(q); Code(err) != CodeInvalid {
			t.Errorf("without the token's signature: %v", err)
		}
		q, send = session()
		q.byNode = q.byToken
		if err := send(q); Code(err) != CodeInvalid {
			t.Errorf("without the node's signature: %v", err)
		}
		if l.knowers(key.ID()) != 0 {
			t.Error("it joined nevertheless")
		}
		if err := abandon(captured); err != nil {
			t.Errorf("on its own session: %v", err)
		}
	})
}

func TestSomebodyInBetweenIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		text := l.invite(identity.Terms{}, "n2")
		victim := l.node("n2")
		cert, _ := victim.roster.Certificate(victim.key.ID())
		mallory := must(identity.NewKey())
		other := newLab(t, 1, 1).nodes[0]
		for name, c := range map[string]struct {
			root ed25519.PublicKey
			cert *identity.Certificate
			key  identity.Key
			code string
		}{
			"a cluster of its own":            {other.lab.root.Public(), must1(other.roster.Certificate(other.key.ID())), other.key, CodeForeign},
			"the seed's certificate":          {l.root.Public(), cert, mallory, CodeImpostor},
			"a certificate of another member": {l.root.Public(), must1(victim.roster.Certificate(l.node("n3").key.ID())), l.node("n3").key, CodeImpostor},
			"its own, claiming our root":      {l.root.Public(), must1(other.roster.Certificate(other.key.ID())), other.key, CodeImpostor},
		} {
			circuits := must(circuit.New(circuit.Config{
				Key: c.key, Root: c.root, Log: victim.sponsor.cfg.Log,
				Cert:      func() *identity.Certificate { return c.cert },
				Allowed:   func(peer.ID, *identity.Certificate) error { return nil },
				Endpoints: func(peer.ID) []netip.AddrPort { return nil },
			}))
			l.listen(victim.at, circuits, func() bool { return true }, victim.sponsor)
			if _, err := l.join(text, "new"); Code(err) != c.code {
				t.Errorf("%s: %v, want %s", name, err, c.code)
			}
		}
	})
}

func must1[T any](v T, ok bool) T {
	if !ok {
		panic("not there")
	}
	return v
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
		l.node("n1").up = false
		if _, err := l.join(text, "n5"); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 2)
		text := l.invite(identity.Terms{}, "n2")
		l.node("n1").up = false
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
			l.node(name).up = false
		}
		_, err := l.join(text, "new")
		if Code(err) != CodeNoQuorum || !strings.Contains(err.Error(), "2 of 5 answered, missing: n3, n4, n5") {
			t.Errorf("two of five: %v", err)
		}
		l.node("n4").up = true
		if _, err := l.join(text, "new"); err != nil {
			t.Errorf("three of five: %v", err)
		}
	})
}

func TestVotersListenToIssuersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 3)
		tok := must(token.Parse(l.invite(identity.Terms{Uses: 1}, "n1")))
		a := must(identity.Apply(tok.Root, must(identity.NewKey()), must(tok.Key()), "x"))
		inv, _ := l.nodes[0].roster.Invitation(a.Invitation())
		n3, n5 := l.node("n3"), l.node("n5")
		good := must1(n3.roster.Delegation(n3.key.ID()))
		ask := func(from *node, d *identity.Delegation) error {
			q := ask{forward: forward{a, inv}, delegation: d}
			b, err := l.nodes[0].sponsor.Handlers()[MethodAsk](t.Context(), from.key.ID(), q.append(nil))
			if err != nil {
				t.Fatal(err)
			}
			_, err = parseAnswer(b)
			return err
		}
		if err := ask(n5, good); Code(err) != CodeInvalid {
			t.Errorf("a member with somebody else's delegation: %v", err)
		}
		if err := ask(n5, must(identity.Delegate(n5.key, n5.key.Public(), time.Now()))); Code(err) != CodeInvalid {
			t.Errorf("a member with a delegation of its own making: %v", err)
		}
		if err := ask(n3, good); err != nil {
			t.Errorf("an issuer: %v", err)
		}
		rev := must(identity.Issuer{Key: l.root}.Revoke(identity.KindDelegation, good.ID(), time.Now()))
		must(0, l.nodes[0].roster.AddRaw(rev.Raw()))
		if err := ask(n3, good); Code(err) != CodeInvalid {
			t.Errorf("an issuer whose delegation was revoked: %v", err)
		}
		// And a certificate that such an issuer makes is not committed.
		cert := must(identity.Issuer{Key: n3.key, Delegation: good}.Certify(a, inv, 9, time.Now()))
		b := must(l.nodes[0].sponsor.Handlers()[MethodCommit](t.Context(), n3.key.ID(), (&issued{certificate: cert}).append(nil)))
		if _, err := parseAnswer(b); Code(err) != CodeInvalid {
			t.Errorf("its certificate: %v", err)
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

func TestCommitOfAForgottenIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// An issuer was stopped for longer than its promises live; meanwhile another node took the only use.
		l := newLab(t, 3, 3)
		text := l.invite(identity.Terms{Uses: 1}, "n2")
		tok := must(token.Parse(text))
		a := must(identity.Apply(tok.Root, must(identity.NewKey()), must(tok.Key()), "late"))
		inv := must1(l.nodes[0].roster.Invitation(a.Invitation()))
		n3 := l.node("n3")
		late := must(identity.Issuer{Key: n3.key, Delegation: must1(n3.roster.Delegation(n3.key.ID()))}.Certify(a, inv, 9, time.Now()))
		must(l.join(text, "first"))
		if err := l.node("n1").sponsor.commit(&issued{certificate: late}); Code(err) != CodeUsedUp {
			t.Errorf("%v", err)
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
