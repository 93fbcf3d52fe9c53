package circuit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

func TestCircuitBetweenMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob := c.member("alice"), c.member("bob")
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}}
		type seen struct {
			id     peer.ID
			name   string
			kind   byte
			secret []byte
		}
		got := make(chan seen, 1)
		b := u.node(t, c.root.Public(), bob, nil)
		serve(t, b, u.listen(at(2)), Handlers{Circuit: func(ctx context.Context, conn *Conn) {
			secret := must(conn.Exporter("EXPORTER-test", nil, 32))
			got <- seen{conn.Peer, conn.Certificate.Name(), conn.Kind, secret}
			if conn.Dialed {
				t.Error("the server believes that it dialled")
			}
			echo(ctx, conn)
		}})
		conn, err := u.node(t, c.root.Public(), alice, book).Dial(t.Context(), bob.ID(), 'r')
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s := <-got
		if s.id != alice.ID() || s.name != "alice" || s.kind != 'r' || conn.Peer != bob.ID() || conn.Certificate.Name() != "bob" {
			t.Errorf("%+v, %v", s, conn.Peer)
		}
		if !bytes.Equal(s.secret, must(conn.Exporter("EXPORTER-test", nil, 32))) {
			t.Error("the ends export different values")
		}
		cs := conn.ConnectionState()
		if cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 || cs.DidResume || cs.NegotiatedProtocol != ALPN {
			t.Errorf("%+v", cs)
		}
		go func() { _, _ = conn.Write([]byte("hello")) }()
		b5 := make([]byte, 5)
		if _, err := io.ReadFull(conn, b5); err != nil || string(b5) != "hello" {
			t.Errorf("%q, %v", b5, err)
		}
	})
}

func TestDialRefusesWhoIsNotThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs, u := newCluster(), newCluster(), newUnderlay()
		alice, bob, carol := ours.member("alice"), ours.member("bob"), ours.member("carol")
		mallory := theirs.member("mallory")
		serve(t, u.node(t, ours.root.Public(), carol, nil), u.listen(at(3)), Handlers{Circuit: echo})
		serve(t, u.node(t, theirs.root.Public(), mallory, nil), u.listen(at(4)), Handlers{Circuit: echo})
		// Mallory shows Bob's certificate, but has not Bob's key.
		thief := must(New(Config{
			Key: mallory.Key, Root: ours.root.Public(), Log: quiet,
			Cert:      func() *identity.Certificate { return bob.cert },
			Allowed:   func(peer.ID, *identity.Certificate) error { return nil },
			Endpoints: func(peer.ID) []netip.AddrPort { return nil },
		}))
		serve(t, thief, u.listen(at(5)), Handlers{Circuit: echo})
		for name, c := range map[string]struct {
			host byte
			want error
		}{
			"another member":     {3, nil},
			"another cluster":    {4, identity.ErrRoot},
			"stolen certificate": {5, ErrNoProof},
		} {
			a := u.node(t, ours.root.Public(), alice, map[peer.ID][]netip.AddrPort{bob.ID(): {at(c.host)}})
			conn, err := a.Dial(t.Context(), bob.ID(), 0)
			if err == nil {
				conn.Close()
				t.Errorf("%s: accepted", name)
			} else if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := u.node(t, ours.root.Public(), alice, nil).Dial(t.Context(), bob.ID(), 0); err == nil {
			t.Error("a peer without endpoint was reached")
		}
	})
}

func TestServerRefusesWhoIsNoMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs, u := newCluster(), newCluster(), newUnderlay()
		alice, bob := ours.member("alice"), ours.member("bob")
		mallory := theirs.member("mallory")
		b := u.node(t, ours.root.Public(), bob, nil)
		serve(t, b, u.listen(at(2)), Handlers{Circuit: func(context.Context, *Conn) { t.Error("somebody came in") }})

		shown := func(k identity.Key, root ed25519.PublicKey, cert *identity.Certificate) []tls.Certificate {
			return []tls.Certificate{*must(present(k, root, cert))}
		}
		plain := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)},
			&x509.Certificate{SerialNumber: big.NewInt(1)}, mallory.Public(), mallory.Signer()))
		base := func(change func(*tls.Config)) *tls.Config {
			cfg := settings()
			cfg.NextProtos = []string{ALPN}
			change(cfg)
			return cfg
		}
		for name, cfg := range map[string]*tls.Config{
			"no certificate": base(func(*tls.Config) {}),
			"an ordinary certificate": base(func(c *tls.Config) {
				c.Certificates = []tls.Certificate{{Certificate: [][]byte{plain}, PrivateKey: mallory.Signer()}}
			}),
			"a certificate of another root": base(func(c *tls.Config) {
				c.Certificates = shown(mallory.Key, theirs.root.Public(), mallory.cert)
			}),
			"a certificate of another root that claims ours": base(func(c *tls.Config) {
				c.Certificates = shown(mallory.Key, ours.root.Public(), mallory.cert)
			}),
			"Alice's certificate under another key": base(func(c *tls.Config) {
				c.Certificates = shown(mallory.Key, ours.root.Public(), alice.cert)
			}),
			"Alice's key in X.509 and another in hand": base(func(c *tls.Config) {
				stolen := shown(alice.Key, ours.root.Public(), alice.cert)
				stolen[0].PrivateKey = mallory.Signer()
				c.Certificates = stolen
			}),
			"no protocol": base(func(c *tls.Config) {
				c.Certificates, c.NextProtos = shown(alice.Key, ours.root.Public(), alice.cert), nil
			}),
			"another protocol": base(func(c *tls.Config) {
				c.Certificates, c.NextProtos = shown(alice.Key, ours.root.Public(), alice.cert), []string{"h2"}
			}),
			"joining, where nobody may": base(func(c *tls.Config) { c.NextProtos = []string{ALPNJoin} }),
			"an old TLS": base(func(c *tls.Config) {
				c.Certificates = shown(alice.Key, ours.root.Public(), alice.cert)
				c.MinVersion, c.MaxVersion, c.CurvePreferences = tls.VersionTLS12, tls.VersionTLS12, nil
			}),
			"a key exchange that a quantum computer breaks": base(func(c *tls.Config) {
				c.Certificates = shown(alice.Key, ours.root.Public(), alice.cert)
				c.CurvePreferences = []tls.CurveID{tls.X25519}
			}),
			"the node's own certificate": base(func(c *tls.Config) {
				c.Certificates = shown(bob.Key, ours.root.Public(), bob.cert)
			}),
		} {
			raw := must(u.open(t.Context(), at(2)))
			conn := tls.Client(raw, cfg)
			err := conn.Handshake()
			answer := []byte{99}
			if err == nil {
				go func() { _, _ = conn.Write([]byte{0}) }() // the server may be gone already
				_, err = io.ReadFull(conn, answer)
			}
			if err == nil && verdict(answer[0]).err() == nil {
				t.Errorf("%s: came in", name)
			}
			raw.Close()
		}
	})
}

func TestDatesAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob := c.member("alice"), c.member("bob")
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}}
		// Bob shows a certificate that expired in 1999 and begins after it ended.
		b := u.node(t, c.root.Public(), bob, nil)
		leaf := must(x509.ParseCertificate(must(b.identify()).Certificate[0]))
		var proof []pkix.Extension
		for _, e := range leaf.Extensions {
			if e.Id.Equal(proofOID) {
				proof = append(proof, e)
			}
		}
		old := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC),
			NotAfter: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), ExtraExtensions: proof,
		}
		der := must(x509.CreateCertificate(rand.Reader, old, old, bob.Public(), bob.Signer()))
		b.shown = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: bob.Signer()}
		serve(t, b, u.listen(at(2)), Handlers{Circuit: echo})
		conn, err := u.node(t, c.root.Public(), alice, book).Dial(t.Context(), bob.ID(), 0)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	})
}

func TestRemovedNodesLearnIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob := c.member("alice"), c.member("bob")
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}, alice.ID(): {at(1)}}
		var why error
		b := u.node(t, c.root.Public(), bob, book, func(cfg *Config) {
			cfg.Allowed = func(peer.ID, *identity.Certificate) error { return why }
		})
		serve(t, b, u.listen(at(2)), Handlers{Circuit: func(context.Context, *Conn) { t.Error("came in") }})
		a := u.node(t, c.root.Public(), alice, book)
		serve(t, a, u.listen(at(1)), Handlers{Circuit: func(context.Context, *Conn) {}})
		why = ErrRemoved
		if _, err := a.Dial(t.Context(), bob.ID(), 0); !errors.Is(err, ErrRemoved) {
			t.Errorf("removed: %v", err)
		}
		if _, err := b.Dial(t.Context(), alice.ID(), 0); !errors.Is(err, ErrRemoved) {
			t.Errorf("dialling the removed one: %v", err)
		}
		why = errors.New("some secret reason")
		if _, err := a.Dial(t.Context(), bob.ID(), 0); !errors.Is(err, ErrRefused) || errors.Is(err, ErrRemoved) {
			t.Errorf("refused: %v", err)
		}
	})
}

// Who was removed is shown the signed word of an issuer about it, and believes no other.
func TestRemovedNodesAreShownWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob := c.member("alice"), c.member("bob")
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}}
		var shown *identity.Removal
		b := u.node(t, c.root.Public(), bob, nil, func(cfg *Config) {
			cfg.Allowed = func(peer.ID, *identity.Certificate) error { return &RemovedError{shown} }
		})
		serve(t, b, u.listen(at(2)), Handlers{Circuit: func(context.Context, *Conn) { t.Error("came in") }})
		a := u.node(t, c.root.Public(), alice, book)
		root := identity.Issuer{Key: c.root}

		shown = must(root.Remove(alice.ID(), identity.Silence, day))
		_, err := a.Dial(t.Context(), bob.ID(), 0)
		var why *RemovedError
		if !errors.As(err, &why) || !errors.Is(err, ErrRemoved) || why.Removal.Node != alice.ID() || why.Removal.Reason != identity.Silence {
			t.Errorf("removed: %v", err)
		}
		for name, forged := range map[string]*identity.Removal{
			"of another":    must(root.Remove(bob.ID(), identity.Silence, day)),
			"by a member":   must(identity.Issuer{Key: bob.Key}.Remove(alice.ID(), identity.Silence, day)),
			"by a stranger": must(identity.Issuer{Key: must(identity.NewKey())}.Remove(alice.ID(), identity.Silence, day)),
		} {
			shown = forged
			if _, err := a.Dial(t.Context(), bob.ID(), 0); errors.As(err, &why) || !errors.Is(err, ErrRemoved) {
				t.Errorf("a removal %s: %v", name, err)
			}
		}
	})
}

// Circuits that a peer has open end when it may not have them any more, those of others go on.
func TestCutClosesWhatIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob, carol := c.member("alice"), c.member("bob"), c.member("carol")
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}}
		var gone atomic.Bool
		b := u.node(t, c.root.Public(), bob, nil, func(cfg *Config) {
			cfg.Allowed = func(id peer.ID, _ *identity.Certificate) error {
				if gone.Load() && id == alice.ID() {
					return ErrRemoved
				}
				return nil
			}
		})
		serve(t, b, u.listen(at(2)), Handlers{Circuit: echo})
		dial := func(m member) *Conn {
			conn, err := u.node(t, c.root.Public(), m, book).Dial(t.Context(), bob.ID(), 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.NetConn().Close() })
			return conn
		}
		echoes := func(conn *Conn) error {
			if _, err := conn.Write([]byte{1}); err != nil {
				return err
			}
			_, err := io.ReadFull(conn, make([]byte, 1))
			return err
		}
		cut, kept := dial(alice), dial(carol)
		b.Cut()
		if err := errors.Join(echoes(cut), echoes(kept)); err != nil {
			t.Fatal(err)
		}
		gone.Store(true)
		b.Cut()
		if err := echoes(cut); err == nil {
			t.Error("the circuit of a removed peer lives on")
		}
		if err := echoes(kept); err != nil {
			t.Errorf("another's: %v", err)
		}
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.open) != 1 {
			t.Errorf("%d peers are noted", len(b.open))
		}
	})
}

func TestWithoutCertificateNothingIsServedOrDialled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob := c.member("alice"), c.member("bob")
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}}
		none := func(cfg *Config) { cfg.Cert = func() *identity.Certificate { return nil } }
		serve(t, u.node(t, c.root.Public(), bob, nil, none), u.listen(at(2)), Handlers{Circuit: echo})
		if _, err := u.node(t, c.root.Public(), alice, book, none).Dial(t.Context(), bob.ID(), 0); !errors.Is(err, ErrNotMember) {
			t.Errorf("dial: %v", err)
		}
		if _, err := u.node(t, c.root.Public(), alice, book).Dial(t.Context(), bob.ID(), 0); err == nil {
			t.Error("served")
		}
	})
}

func TestJoinersSeeTheRootAndNeedNoCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		bob := c.member("bob")
		serve(t, u.node(t, c.root.Public(), bob, nil), u.listen(at(2)), Handlers{
			Circuit: func(context.Context, *Conn) { t.Error("a joiner got a circuit") },
			Join: func(_ context.Context, conn *tls.Conn, _ netip.AddrPort, _ func() bool) {
				if len(conn.ConnectionState().PeerCertificates) != 0 {
					t.Error("a joiner showed a certificate")
				}
				if _, err := conn.Write([]byte("hi")); err != nil {
					t.Error(err)
				}
			},
		})
		raw := must(u.open(t.Context(), at(2)))
		defer raw.Close()
		conn, err := DialJoin(t.Context(), raw, func(root ed25519.PublicKey, cert *identity.Certificate) error {
			if !root.Equal(c.root.Public()) || cert.ID() != bob.ID() {
				t.Error("another root or node")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); err != nil || string(b) != "hi" {
			t.Errorf("%q, %v", b, err)
		}
		raw = must(u.open(t.Context(), at(2)))
		defer raw.Close()
		no := errors.New("not what my token says")
		if _, err := DialJoin(t.Context(), raw, func(ed25519.PublicKey, *identity.Certificate) error { return no }); !errors.Is(err, no) {
			t.Errorf("%v", err)
		}
	})
}

func TestServeEndsWithAllThatItStarted(t *testing.T) {
	c, u := newCluster(), newUnderlay()
	alice, bob := c.member("alice"), c.member("bob")
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	here := ln.Addr().(*net.TCPAddr).AddrPort()
	b := u.node(t, c.root.Public(), bob, nil)
	ctx, cancel := context.WithCancel(t.Context())
	served, ended := make(chan error, 1), make(chan struct{})
	go func() {
		served <- b.Serve(ctx, Listener(ln), Handlers{Circuit: func(_ context.Context, conn *Conn) {
			_, _ = io.Copy(io.Discard, conn)
			close(ended)
		}})
	}()
	a := u.node(t, c.root.Public(), alice, map[peer.ID][]netip.AddrPort{bob.ID(): {here}}, func(cfg *Config) { cfg.Open = nil })
	conn, err := a.Dial(t.Context(), bob.ID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("Serve returned before its handler")
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the circuit is still open")
	}
}

func TestNewRefusesHalfAConfig(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("made of nothing")
	}
	c := newCluster()
	if _, err := New(Config{Key: c.root, Root: c.root.Public()}); err == nil {
		t.Error("made without callbacks")
	}
}

func BenchmarkDial(b *testing.B) {
	c := newCluster()
	alice, bob := c.member("alice"), c.member("bob")
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	here := ln.Addr().(*net.TCPAddr).AddrPort()
	config := func(m member) Config {
		return Config{
			Key: m.Key, Root: c.root.Public(), Cert: func() *identity.Certificate { return m.cert }, Log: quiet,
			Allowed:   func(peer.ID, *identity.Certificate) error { return nil },
			Endpoints: func(peer.ID) []netip.AddrPort { return []netip.AddrPort{here} },
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- must(New(config(bob))).Serve(ctx, Listener(ln), Handlers{Circuit: echo}) }()
	a := must(New(config(alice)))
	for b.Loop() {
		conn, err := a.Dial(ctx, bob.ID(), 0)
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
