package circuit

import (
	"context"
	"crypto/ed25519"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var day = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// cluster makes members under one root.
type cluster struct {
	root    identity.Key
	founder identity.Key
	next    uint64
}

func newCluster() *cluster {
	return &cluster{root: must(identity.NewKey()), founder: must(identity.NewKey())}
}

// member is a node key with its certificate.
type member struct {
	identity.Key
	cert *identity.Certificate
}

func (c *cluster) member(name string) member {
	key, token := must(identity.NewKey()), must(identity.NewKey())
	by := identity.Issuer{Key: c.founder, Delegation: must(identity.Delegate(c.root, c.founder.Public(), day))}
	inv := must(by.Invite(token.Public(), identity.Terms{NotAfter: day, Uses: 1}))
	a := must(identity.Apply(identity.FingerprintOf(c.root.Public()), key, token, name))
	c.next++
	return member{key, must(by.Certify(a, inv, c.next, day))}
}

// net is an underlay in memory: every endpoint is a queue of pipes.
type underlay struct {
	mu    sync.Mutex
	hosts map[netip.AddrPort]chan net.Conn
}

func newUnderlay() *underlay { return &underlay{hosts: map[netip.AddrPort]chan net.Conn{}} }

func (u *underlay) listen(at netip.AddrPort) Accept {
	u.mu.Lock()
	defer u.mu.Unlock()
	queue := make(chan net.Conn)
	u.hosts[at] = queue
	return func(ctx context.Context) (net.Conn, error) {
		select {
		case c := <-queue:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// open waits for ever where nobody listens, as a host behind a silent firewall.
func (u *underlay) open(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	u.mu.Lock()
	queue := u.hosts[to]
	u.mu.Unlock()
	a, b := net.Pipe()
	select {
	case queue <- b:
		return a, nil
	case <-ctx.Done():
		a.Close()
		b.Close()
		return nil, ctx.Err()
	}
}

func at(host byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, host}), 6783)
}

var quiet = slog.New(slog.DiscardHandler)

// node makes circuits of a member that can reach what book says.
func (u *underlay) node(t *testing.T, root ed25519.PublicKey, m member, book map[peer.ID][]netip.AddrPort, change ...func(*Config)) *Circuits {
	t.Helper()
	cfg := Config{
		Key:       m.Key,
		Root:      root,
		Cert:      func() *identity.Certificate { return m.cert },
		Allowed:   func(peer.ID, *identity.Certificate) error { return nil },
		Endpoints: func(id peer.ID) []netip.AddrPort { return book[id] },
		Open:      func(ctx context.Context, _ peer.ID, to netip.AddrPort) (net.Conn, error) { return u.open(ctx, to) },
		Log:       quiet,
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve runs until the test ends.
func serve(t *testing.T, c *Circuits, accept Accept, h Handlers) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx, accept, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func echo(_ context.Context, conn *Conn) { _, _ = io.Copy(conn, conn) }
