package ipam

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/crypto/identity"
	"weft/ipam/ring"
	"weft/mesh/peer"
)

var linked6 = netip.MustParsePrefix("fd12:3456:789a::/96")

// cluster is a set of allocators over a network in memory that delays, loses, repeats and parts. It is used inside a
// synctest bubble.
type cluster struct {
	t     testing.TB
	u     *ring.Universe
	nodes []*node

	mu     sync.Mutex
	rand   *rand.Rand
	loss   float64 // of a call on its way there, and of an answer on its way back
	delay  time.Duration
	parted bool
}

// node is one machine: its disk and key stay, its allocator comes and goes.
type node struct {
	c      *cluster
	index  int
	name   string
	key    identity.Key
	disk   *memory
	side   int // of the partition
	strict bool
	joined atomic.Bool
	mute   atomic.Bool // a member without a vote
	roster *facts
	weaken Weakness

	mu    sync.Mutex // guards alloc
	alloc *Allocator // nil while the machine is down

	cancel  context.CancelFunc
	stopped chan struct{}
}

func newCluster(t testing.TB, members int, prefix string, atomBits int) *cluster {
	t.Helper()
	c := &cluster{t: t, rand: rand.New(rand.NewPCG(1, 2))}
	for i := range members {
		seed := make([]byte, ed25519.SeedSize)
		binary.BigEndian.PutUint64(seed, uint64(i+1))
		key, err := identity.ParseKey(seed)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{c: c, index: i, name: fmt.Sprintf("n%d", i+1), key: key, disk: newMemory()}
		n.joined.Store(true)
		n.roster = &facts{n: n, removals: make(map[peer.ID]Removal)}
		c.nodes = append(c.nodes, n)
	}
	u, err := ring.NewUniverse([32]byte{7}, c.nodes[0].key.ID(),
		[]ring.Pool{{Prefix: netip.MustParsePrefix(prefix), AtomBits: atomBits}})
	if err != nil {
		t.Fatal(err)
	}
	c.u = u
	return c
}

func (c *cluster) chance(p float64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.Float64() < p
}

func (c *cluster) intn(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.IntN(n)
}

func (c *cluster) latency() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.delay == 0 {
		return time.Millisecond
	}
	return time.Duration(c.rand.Int64N(int64(c.delay)))
}

// start starts all machines that are down and have joined.
func (c *cluster) start() {
	for _, n := range c.nodes {
		if n.joined.Load() && n.up() == nil {
			n.start()
		}
	}
}

func (c *cluster) stop() {
	for _, n := range c.nodes {
		n.stop()
	}
}

// gossip exchanges rings every second of the bubble's time, as the mesh does, until ctx ends.
func (c *cluster) gossip(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, n := range c.nodes {
			m := c.nodes[c.intn(len(c.nodes))]
			a, b := n.up(), m.up()
			if m == n || a == nil || b == nil || !c.reachable(n, m) || c.chance(c.loss) {
				continue
			}
			if n.roster.removed(m.key.ID()) || m.roster.removed(n.key.ID()) {
				continue
			}
			_ = n.roster.Merge(m.roster.Delta(nil))
			if !bytes.Equal(a.Digest(), b.Digest()) {
				if err := a.Merge(b.Snapshot()); err != nil && !errors.Is(err, ErrStopped) &&
					!errors.Is(err, errCrashed) && !errors.Is(err, errFull) {
					c.t.Errorf("%s merges the ring of %s: %v", n.name, m.name, err)
				}
			}
		}
	}
}

// gone reports whether anybody knows that a machine was removed.
func (c *cluster) gone(n *node) bool {
	return slices.ContainsFunc(c.nodes, func(m *node) bool { return m.roster.removed(n.key.ID()) })
}

func (c *cluster) reachable(n, m *node) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.parted || n.side == m.side
}

func (c *cluster) part(sides ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parted = sides != nil
	for i, s := range sides {
		c.nodes[i].side = s
	}
}

func (c *cluster) find(id peer.ID) *node {
	for _, n := range c.nodes {
		if n.key.ID() == id {
			return n
		}
	}
	return nil
}

func (n *node) up() *Allocator {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alloc
}

func (n *node) config() Config {
	return Config{
		Universe: n.c.u, Linked6: n.c.linked(), Signer: n.key, Network: n, Roster: n.roster, Weaken: n.weaken, Store: n.disk, Strict: n.strict,
		Log: slog.New(slog.NewTextHandler(testWriter{n}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Keys: func(id peer.ID) (ed25519.PublicKey, bool) {
			m := n.c.find(id)
			if m == nil || !m.joined.Load() {
				return nil, false
			}
			return m.key.Public(), true
		},
	}
}

type testWriter struct{ n *node }

func (w testWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		w.n.c.t.Logf("%s: %s", w.n.name, bytes.TrimSpace(b))
	}
	return len(b), nil
}

func (n *node) start() {
	n.c.t.Helper()
	n.disk.reboot()
	a, err := New(n.config())
	if err != nil {
		n.c.t.Fatalf("start %s: %v", n.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	n.mu.Lock()
	n.alloc, n.cancel, n.stopped = a, cancel, stopped
	n.mu.Unlock()
	n.disk.onCrash = cancel
	go func() {
		defer close(stopped)
		if err := a.Run(ctx); err != nil && !errors.Is(err, errCrashed) && !errors.Is(err, errFull) {
			n.c.t.Errorf("%s: run: %v", n.name, err)
		}
		n.mu.Lock()
		n.alloc = nil
		n.mu.Unlock()
	}()
}

func (n *node) stop() {
	if n.cancel != nil {
		n.cancel()
		<-n.stopped
	}
}

// Call carries a call to another machine's allocator.
func (n *node) Call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error) {
	c, m := n.c, n.c.find(to)
	lost := func() ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	travel := func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(c.latency()):
			return nil
		}
	}
	if travel() != nil || m == nil || !c.reachable(n, m) || c.chance(c.loss) {
		return lost()
	}
	a := m.up()
	if a == nil {
		return nil, errors.New("connection refused")
	}
	if c.chance(c.loss) { // said twice
		if _, err := a.HandleCall(ctx, n.key.ID(), method, bytes.Clone(req)); err != nil {
			return nil, err
		}
	}
	answer, err := a.HandleCall(ctx, n.key.ID(), method, bytes.Clone(req))
	if travel() != nil || !c.reachable(m, n) || c.chance(c.loss) {
		return lost()
	}
	return bytes.Clone(answer), err
}

func (n *node) Changed([]byte) {}

func (n *node) Peers() []peer.Info {
	var infos []peer.Info
	for _, m := range n.c.nodes {
		if m == n || !m.joined.Load() {
			continue
		}
		state := peer.Alive
		switch {
		case n.roster.removed(m.key.ID()):
			state = peer.Removed
		case m.up() == nil || !n.c.reachable(n, m):
			state = peer.Dead
		}
		infos = append(infos, peer.Info{
			ID: m.key.ID(), Name: m.name, State: state, JoinSeq: uint64(m.index),
			Ephemeral: m.mute.Load(),
		})
	}
	return infos
}

func (n *node) Voters() []peer.Voter {
	var voters []peer.Voter
	for _, m := range n.c.nodes {
		if m.joined.Load() && !m.mute.Load() {
			voters = append(voters, peer.Voter{ID: m.key.ID(), JoinSeq: uint64(m.index)})
		}
	}
	return voters
}

func (n *node) claim(container string, wait time.Duration) (Claim, error) {
	a := n.up()
	if a == nil {
		return Claim{}, ErrStopped
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return a.Claim(ctx, Request{Container: container, IfName: "eth0"})
}

func (n *node) mustClaim(container string) Claim {
	n.c.t.Helper()
	claim, err := n.claim(container, time.Minute)
	if err != nil {
		n.c.t.Fatalf("%s claims for %s: %v", n.name, container, err)
	}
	return claim
}

// check verifies, over what is on all disks and in all memories, that no address and no atom has two owners (I1), that
// rings are sound (I3, I8, I12), and that what a node gave it owns (I5).
func (c *cluster) check() {
	c.t.Helper()
	type owned struct {
		n      *node
		blocks []netip.Prefix
	}
	var all []owned
	var rings []*ring.Ring
	used := make(map[netip.Addr]string)
	for _, n := range c.nodes {
		st, err := load(n.disk.copy(), c.u, c.linked())
		if err != nil {
			c.t.Fatalf("disk of %s: %v", n.name, err)
		}
		r := st.ring
		if err := r.Check(); err != nil {
			c.t.Fatalf("ring of %s: %v", n.name, err)
		}
		for _, other := range rings {
			if err := r.CheckPeers(other); err != nil {
				c.t.Fatalf("ring of %s: %v", n.name, err)
			}
		}
		rings = append(rings, r)
		if c.gone(n) {
			continue // what it believes to own is somebody else's, or will be
		}
		mine := owned{n, r.Blocks(n.key.ID())}
		for _, o := range all {
			for _, p := range o.blocks {
				for _, q := range mine.blocks {
					if p.Overlaps(q) {
						c.t.Fatalf("%s owns %s and %s owns %s", o.n.name, p, n.name, q)
					}
				}
			}
		}
		all = append(all, mine)
		for _, claim := range st.claims {
			who := fmt.Sprintf("%s %s", n.name, claim.Container)
			addr := claim.Addr()
			if other, twice := used[addr]; twice {
				c.t.Fatalf("%s is used by %s and by %s", addr, other, who)
			}
			used[addr] = who
			if owner, _ := r.Owner(addr); owner != n.key.ID() {
				c.t.Fatalf("%s is used by %s, but %s owns it", addr, who, owner.Short())
			}
			if claim.V4.IsValid() && claim.V6 != netip.MustParseAddr(linkedOf(claim.V4)) {
				c.t.Fatalf("%s has the twin %s", claim.V4, claim.V6)
			}
		}
	}
}

// linked is the prefix of linked IPv6 addresses, where the pool has room for them.
func (c *cluster) linked() netip.Prefix {
	if c.u.Pools()[0].Prefix.Addr().Is6() {
		return netip.Prefix{}
	}
	return linked6
}

func linkedOf(v4 netip.Addr) string {
	b := v4.As4()
	return fmt.Sprintf("fd12:3456:789a::%x:%x", binary.BigEndian.Uint16(b[:2]), binary.BigEndian.Uint16(b[2:]))
}

// agree waits until all machines that are up have the same ring, with gossip running.
func (c *cluster) agree(within time.Duration) {
	c.t.Helper()
	for end := time.Now().Add(within); ; {
		same := true
		var first []byte
		for _, n := range c.nodes {
			if a := n.up(); a != nil {
				if first == nil {
					first = a.Digest()
				}
				same = same && bytes.Equal(first, a.Digest())
			}
		}
		if same {
			return
		}
		if time.Now().After(end) {
			c.t.Fatal("rings still differ")
		}
		<-time.After(100 * time.Millisecond)
	}
}
