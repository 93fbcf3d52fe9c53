package join

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/peer"
)

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
		"made by a newer weft": {CodeNewer, "newer", func(*lab) string { return "weft2abc" }},
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
			for _, name := range []string{"n1", "n3", "n4"} {
				l.node(name).down.Store(true)
			}
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
					if !n.down.Load() && !n.deaf && len(must(parsePromises(n.disk[storeName]))) != 0 {
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
			n.gone[key.ID()] = identity.ByHand
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
			n.gone[key.ID()] = identity.ByHand
		}
		if _, err := Join(t.Context(), l.config(l.invite(identity.Terms{}, "n2"), key, "back")); Code(err) != CodeRemoved {
			t.Errorf("known to the other voters only: %v", err)
		}
	})
}

// Whoever leaves has told others what it knows. A vote that it gives later would be known to nobody who counts.
func TestAMemberThatLeavesHasNoVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		l.node("n3").down.Store(true)
		leaver := l.node("n2")
		leaver.gone[leaver.key.ID()] = identity.Left
		key := must(identity.NewKey())
		// n1 alone is no quorum of three.
		if _, err := Join(t.Context(), l.config(l.invite(identity.Terms{}, "n1"), key, "new")); Code(err) != CodeNoQuorum {
			t.Errorf("%v, want %s", err, CodeNoQuorum)
		}
		if _, ok := leaver.roster.Certificate(key.ID()); ok {
			t.Error("it has taken a certificate")
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
					l.node(n).down.Store(true)
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
