package mesh_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// world is a cluster on a network in memory.
type world struct {
	t       *testing.T
	net     *meshtest.Network
	root    identity.Key
	cluster *identity.Cluster
	invite  *identity.Invitation
	token   identity.Key
	nodes   []*node
	log     *slog.Logger
	deaf    atomic.Bool // datagrams are lost, streams are not
}

type node struct {
	world  *world
	key    identity.Key
	cert   *identity.Certificate
	name   string
	store  *memory
	items  [][]byte
	seeds  []peer.ID
	record mesh.Record

	mesh  *mesh.Mesh
	port  *meshtest.Port
	state *counter // a replica of the test
	stop  func()
}

var lan = meshtest.Conditions{Delay: 5 * time.Millisecond, Jitter: 2 * time.Millisecond}

func newKey(t testing.TB) identity.Key {
	t.Helper()
	k, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newWorld(t *testing.T, c meshtest.Conditions) *world {
	t.Helper()
	w := &world{t: t, net: meshtest.New(c, 1), root: newKey(t), token: newKey(t), log: slog.New(slog.DiscardHandler)}
	founder := newKey(t)
	var err error
	now := time.Now()
	if w.cluster, err = identity.NewCluster(w.root, identity.ClusterSpec{Founder: founder.ID(), Created: now}); err != nil {
		t.Fatal(err)
	}
	if w.invite, err = (identity.Issuer{Key: w.root}).Invite(w.token.Public(), identity.Terms{NotAfter: now.Add(time.Hour), Created: now}); err != nil {
		t.Fatal(err)
	}
	cert, err := identity.Found(w.root, founder, "n0", now)
	if err != nil {
		t.Fatal(err)
	}
	w.add(founder, cert)
	return w
}

func (w *world) add(key identity.Key, cert *identity.Certificate) *node {
	n := &node{world: w, key: key, cert: cert, name: fmt.Sprintf("n%d", len(w.nodes)), store: newMemory()}
	n.record = mesh.Record{
		Name:       n.name,
		Endpoints:  []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(len(w.nodes))}), 6783)},
		Noise:      [32]byte{1, byte(len(w.nodes))},
		Transports: []string{"sleeve"},
		MTU:        1500,
		Build:      "test",
	}
	w.nodes = append(w.nodes, n)
	return n
}

// certify makes a member's certificate.
func (w *world) certify(key identity.Key, seq uint64) *identity.Certificate {
	w.t.Helper()
	a, err := identity.Apply(identity.FingerprintOf(w.root.Public()), key, w.token, "")
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := identity.Issuer{Key: w.root}.Certify(a, w.invite, seq, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

// join makes a new member as a join would: the sponsor learns the certificate, the new node the sponsor's roster.
func (w *world) join(sponsor *node) {
	w.t.Helper()
	key := newKey(w.t)
	n := w.add(key, w.certify(key, uint64(len(w.nodes))))
	n.items = sponsor.mesh.Roster().Items()
	n.seeds = []peer.ID{sponsor.key.ID()}
	if err := sponsor.mesh.Roster().Add(n.cert); err != nil {
		w.t.Fatal(err)
	}
	n.start()
}

// form makes a running cluster; every node joins through the founder.
func (w *world) form(n int) {
	w.nodes[0].start()
	for range n - 1 {
		w.join(w.nodes[0])
	}
}

func (n *node) id() peer.ID { return n.key.ID() }

func (n *node) start() {
	n.world.t.Helper()
	n.port = n.world.net.Port(n.id())
	m, err := mesh.New(mesh.Config{
		Key: n.key, Cluster: n.world.cluster, Certificate: n.cert, Items: n.items, Seeds: n.seeds, Record: n.record,
		Packets: packets{n}, Streams: n.port, Store: n.store, Log: n.world.log.With("node", n.name),
	})
	if err != nil {
		n.world.t.Fatal(err)
	}
	n.mesh = m
	n.state = newCounter()
	m.Replicate("counter", n.state)
	m.Handle("echo", func(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
		return append([]byte(from.Short()+" "), req...), nil
	})
	n.port.Serve(m.ServeStream)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	n.stop = func() {
		n.stop = func() {}
		cancel()
		if err := <-done; err != nil {
			n.world.t.Error(err)
		}
		n.port.Close()
	}
}

// end stops everything; in synctest, a goroutine left behind fails the test.
func (w *world) end() {
	for _, n := range w.nodes {
		if n.stop != nil {
			n.stop()
		}
	}
	w.net.Close()
	time.Sleep(10 * time.Second) // a probe of memberlist that is under way ends by its own timer
}

func (w *world) ids(nodes []*node) []peer.ID {
	var ids []peer.ID
	for _, n := range nodes {
		ids = append(ids, n.id())
	}
	return ids
}

// settled reports why some of nodes do not see all of them alive with their newest record, or "".
func (w *world) settled(nodes []*node) string {
	for _, n := range nodes {
		for _, other := range nodes {
			if n == other {
				continue
			}
			info, ok := n.mesh.Peer(other.id())
			own, _ := other.mesh.Record(other.id())
			switch {
			case !ok:
				return fmt.Sprintf("%s does not know %s", n.name, other.name)
			case info.State != peer.Alive:
				return fmt.Sprintf("%s says %s is %s", n.name, other.name, info.State)
			case info.Epoch != own.Epoch:
				return fmt.Sprintf("%s has record %d of %s, not %d", n.name, info.Epoch, other.name, own.Epoch)
			}
		}
	}
	return ""
}

// within waits, in steps of fake time, until check answers "", and tells how long that took.
func (w *world) within(limit time.Duration, check func() string) time.Duration {
	w.t.Helper()
	start := time.Now()
	for {
		synctest.Wait()
		why := check()
		took := time.Since(start)
		if why == "" {
			return took
		}
		if took >= limit {
			w.t.Fatalf("after %v: %s", took, why)
		}
		time.Sleep(min(10*time.Millisecond+took/20, limit-took))
	}
}

func (w *world) settle(limit time.Duration) time.Duration {
	w.t.Helper()
	return w.within(limit, func() string { return w.settled(w.nodes) })
}

// packets loses all datagrams while the world is deaf.
type packets struct{ n *node }

func (p packets) Send(to peer.ID, b []byte) error {
	if p.n.world.deaf.Load() {
		return nil
	}
	return p.n.port.Send(to, b)
}

func (p packets) Receive(ctx context.Context) (peer.ID, []byte, error) { return p.n.port.Receive(ctx) }

// memory is a Store.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	fail   error
	saves  int
}

func newMemory() *memory { return &memory{values: map[string][]byte{}} }

func (m *memory) Load(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.values[name]), nil
}

func (m *memory) Save(name string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	m.saves++
	m.values[name] = bytes.Clone(b)
	return nil
}

func (m *memory) copy() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{values: maps.Clone(m.values)}
}

// counter is a Replica: a set of bytes strings of one byte.
type counter struct {
	mu  sync.Mutex
	set map[byte]bool
}

func newCounter() *counter { return &counter{set: map[byte]bool{}} }

func (c *counter) Snapshot() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.set))
}

// send gives a datagram to the network, which may lose it.
func send(t testing.TB, from *meshtest.Port, to peer.ID, b []byte) {
	t.Helper()
	if err := from.Send(to, b); err != nil {
		t.Fatal(err)
	}
}

func (c *counter) Digest() []byte { return c.Snapshot() }

func (c *counter) Merge(b []byte) error {
	c.add(b...)
	return nil
}

func (c *counter) add(values ...byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range values {
		c.set[v] = true
	}
}

func (c *counter) has(v byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.set[v]
}
