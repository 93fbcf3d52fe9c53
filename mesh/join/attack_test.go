package join

import (
	"crypto/ed25519"
	"crypto/tls"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/circuit"
	"weft/mesh/peer"
)

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

func TestBadRequestsGetAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 1, 1)
		tok := must(token.Parse(l.invite(identity.Terms{}, "n1")))
		stranger := must(identity.NewKey())
		foreign := must(identity.Apply(identity.Fingerprint{7}, stranger, must(tok.Key()), ""))
		for name, c := range map[string]struct {
			code string
			send func(conn *tls.Conn) error
		}{
			"another frame":   {CodeInvalid, func(c *tls.Conn) error { return writeFrame(c, frameEnd, nil) }},
			"no message":      {CodeInvalid, func(c *tls.Conn) error { return writeFrame(c, frameRequest, nil) }},
			"too long":        {CodeInvalid, func(c *tls.Conn) error { _, err := c.Write([]byte{0xff, 0, 0, 0, 1}); return err }},
			"of a newer weft": {CodeVersion, func(c *tls.Conn) error { return writeFrame(c, frameRequest, []byte{0x20}) }},
			"for another root": {CodeInvalid, func(c *tls.Conn) error {
				q := &request{application: foreign}
				must(0, q.sign(c.ConnectionState(), stranger, must(tok.Key())))
				return writeFrame(c, frameRequest, q.append(nil))
			}},
			"nothing at all": {CodeInvalid, func(*tls.Conn) error { return nil }},
		} {
			raw := must(l.dial(t.Context(), l.nodes[0].at))
			conn := must(circuit.DialJoin(t.Context(), raw, func(ed25519.PublicKey, *identity.Certificate) error { return nil }))
			began := time.Now()
			if err := c.send(conn); err != nil {
				t.Fatal(err)
			}
			kind, body, err := readFrame(conn, maxFrame)
			if err != nil || kind != frameRefusal {
				t.Errorf("%s: a frame of type %d, %v", name, kind, err)
				continue
			}
			if e := must(parseError(body)); e.Code != c.code {
				t.Errorf("%s: %v, want %s", name, e, c.code)
			}
			if took := time.Since(began); took > requestTimeout {
				t.Errorf("%s: answered after %v", name, took)
			}
			raw.Close()
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
