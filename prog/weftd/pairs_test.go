package weftd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/psk"
	"weft/mesh/circuit"
	"weft/mesh/peer"
)

// pairLab is members of a cluster whose circuits are real ones over pipes, so that a test may wait a day.
type pairLab struct {
	t       *testing.T
	root    identity.Key
	members []*pairMember
}

type pairMember struct {
	*pairs
	lab      *pairLab
	circuits *circuit.Circuits
	accept   chan net.Conn
	away     atomic.Bool       // nobody gets through
	deaf     atomic.Bool       // closes what comes in without an answer
	dials    atomic.Int32      // tried by this member
	told     chan []psk.Secret // what its wire was told, each time
}

func newPairLab(t *testing.T, n int) *pairLab {
	t.Helper()
	lab := &pairLab{t: t, root: must(identity.NewKey())(t)}
	tokenKey := must(identity.NewKey())(t)
	now := time.Now()
	issuer := identity.Issuer{Key: lab.root}
	inv := must(issuer.Invite(tokenKey.Public(), identity.Terms{NotAfter: now.Add(time.Hour), Created: now}))(t)
	quiet := slog.New(slog.DiscardHandler)
	for i := range n {
		key := must(identity.NewKey())(t)
		application := must(identity.Apply(identity.FingerprintOf(lab.root.Public()), key, tokenKey, ""))(t)
		cert := must(issuer.Certify(application, inv, uint64(i+1), now))(t)
		m := &pairMember{lab: lab, pairs: newPairs(quiet, key.ID()), accept: make(chan net.Conn), told: make(chan []psk.Secret, 1000)}
		m.circuits = must(circuit.New(circuit.Config{
			Key: key, Root: lab.root.Public(), Cert: func() *identity.Certificate { return cert },
			Allowed:   func(peer.ID, *identity.Certificate) error { return nil },
			Endpoints: func(peer.ID) []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")} },
			Open:      m.open, Log: quiet,
		}))(t)
		m.dial = m.circuits.Dial
		m.members = lab.infos
		m.tell = func(context.Context) error {
			for _, other := range lab.members {
				if other != m {
					m.told <- m.secrets(other.self)
				}
			}
			return nil
		}
		lab.members = append(lab.members, m)
	}
	return lab
}

func (l *pairLab) infos() (all []peer.Info) {
	for _, m := range l.members {
		all = append(all, peer.Info{ID: m.self, State: peer.Alive, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}})
	}
	return all
}

// open is the cable.
func (m *pairMember) open(ctx context.Context, to peer.ID, _ netip.AddrPort) (net.Conn, error) {
	m.dials.Add(1)
	i := slices.IndexFunc(m.lab.members, func(o *pairMember) bool { return o.self == to })
	other := m.lab.members[i]
	if other.away.Load() {
		return nil, errors.New("nobody there")
	}
	here, there := net.Pipe()
	select {
	case other.accept <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serveAll answers for every member, and with run lets each dial by itself, until the returned function is called.
func (l *pairLab) serveAll(run bool) (end func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	var wg sync.WaitGroup
	for _, m := range l.members {
		wg.Go(func() {
			_ = m.circuits.Serve(ctx, func(ctx context.Context) (net.Conn, error) {
				select {
				case c := <-m.accept:
					return c, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}, circuit.Handlers{Circuit: func(ctx context.Context, c *circuit.Conn) {
				if !m.deaf.Load() {
					_ = m.pairs.serve(ctx, c)
				}
			}})
		})
		if run {
			wg.Go(func() { _ = m.run(ctx) })
		}
	}
	return func() { cancel(); wg.Wait() }
}

// agreed is the secret that both have as their first.
func (l *pairLab) agreed(a, b *pairMember) (psk.Secret, bool) {
	one, other := a.secrets(b.self), b.secrets(a.self)
	if len(one) == 0 || len(other) == 0 || !one[0].Equal(other[0]) {
		return psk.Secret{}, false
	}
	return one[0], true
}

func TestPairsAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := newPairLab(t, 3)
		defer lab.serveAll(true)()
		time.Sleep(pairYield + time.Second)
		var all []psk.Secret
		for i, a := range lab.members {
			for _, b := range lab.members[:i] {
				s, ok := lab.agreed(a, b)
				if !ok {
					t.Fatal("a pair has not agreed")
				}
				if slices.ContainsFunc(all, s.Equal) {
					t.Error("two pairs have one secret")
				}
				all = append(all, s)
			}
		}
	})
}

// TestPairsAnswerIsReady: the answering side's wire has the secret before the dialler's has it, which begins handshakes.
func TestPairsAnswerIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := newPairLab(t, 2)
		defer lab.serveAll(false)()
		a, b := lab.members[0], lab.members[1]
		tell := a.tell
		a.tell = func(ctx context.Context) error {
			if len(b.told) == 0 {
				t.Error("the dialler's wire was told first")
			}
			return tell(ctx)
		}
		if err := a.agree(t.Context(), b.self); err != nil {
			t.Fatal(err)
		}
		if _, ok := lab.agreed(a, b); !ok || len(a.told) != 1 {
			t.Error("not agreed")
		}
	})
}

// TestPairsMeet: both dial at once. Whatever the order, they have a secret in common afterwards.
func TestPairsMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 10 {
			lab := newPairLab(t, 2)
			end := lab.serveAll(false)
			a, b := lab.members[0], lab.members[1]
			var wg sync.WaitGroup
			for _, m := range [][2]*pairMember{{a, b}, {b, a}} {
				wg.Go(func() {
					if err := m[0].agree(t.Context(), m[1].self); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			common := slices.ContainsFunc(a.secrets(b.self), func(s psk.Secret) bool {
				return slices.ContainsFunc(b.secrets(a.self), s.Equal)
			})
			if !common {
				t.Error("no secret in common")
			}
			end()
		}
	})
}

func TestPairsRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := newPairLab(t, 2)
		defer lab.serveAll(true)()
		a, b := lab.members[0], lab.members[1]
		time.Sleep(pairYield + time.Second)
		first, _ := lab.agreed(a, b)
		time.Sleep(pairLife - time.Minute)
		if s, _ := lab.agreed(a, b); !s.Equal(first) {
			t.Error("renewed too early")
		}
		time.Sleep(2*time.Minute + pairRenewYield)
		s, ok := lab.agreed(a, b)
		if !ok || s.Equal(first) {
			t.Error("not renewed")
		}
		if !slices.ContainsFunc(a.secrets(b.self), first.Equal) || !slices.ContainsFunc(b.secrets(a.self), first.Equal) {
			t.Error("the former secret is not kept for handshakes under way")
		}
	})
}

// TestPairsOneSideDies: it takes the question and does not answer. The dialler keeps what it had, and tries again ever
// more seldom, until something says that it is worth it.
func TestPairsOneSideDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := newPairLab(t, 2)
		a, b := lab.members[0], lab.members[1]
		b.deaf.Store(true)
		end := lab.serveAll(false)
		defer end()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.run(ctx) })
		defer wg.Wait()
		defer cancel()
		time.Sleep(10 * time.Minute)
		if len(a.secrets(b.self)) != 0 || len(a.told) != 0 {
			t.Error("a secret that the other end does not have")
		}
		if n := a.dials.Load(); n < 10 || n > 60 {
			t.Errorf("%d dials in 10 minutes", n)
		}
		b.deaf.Store(false)
		a.hurry(b.self)
		time.Sleep(6 * time.Second) // one that is under way ends within 5 s: TLS closing a pipe
		if _, ok := lab.agreed(a, b); !ok {
			t.Errorf("no hurry: %+v, %d dials", a.of[b.self], a.dials.Load())
		}
	})
}

// TestPairsForget: members that are gone are not dialled and not remembered.
func TestPairsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := newPairLab(t, 2)
		a, b := lab.members[0], lab.members[1]
		now := time.Now()
		if due := a.due(now.Add(time.Hour)); a.self.Compare(b.self) < 0 && !slices.Equal(due, []peer.ID{b.self}) {
			t.Errorf("due %v", due)
		}
		a.done(b.self, nil)
		a.members = func() []peer.Info { return []peer.Info{{ID: b.self, State: peer.Removed}} }
		if due := a.due(now.Add(time.Hour)); len(due) != 0 || len(a.of) != 0 {
			t.Errorf("due %v, known %v", due, a.of)
		}
	})
}
