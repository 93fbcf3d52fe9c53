package join

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/circuit"
	"weft/mesh/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// lab is a cluster in memory, for use inside a synctest bubble. Members really speak the protocol: TLS with the joiner over
// pipes, encoded messages among each other.
type lab struct {
	t       *testing.T
	root    identity.Key
	cluster *identity.Cluster
	nodes   []*node // n1 is the founder
	began   time.Time

	served sync.WaitGroup
	mu     sync.Mutex
	hosts  map[netip.AddrPort]func(net.Conn) // who listens
	fault  func(at *node, step string) error // asked at each step of a member; an error is a crash there
}

// node is one member's machine: key, roster and promises survive a crash, the rest does not.
type node struct {
	lab    *lab
	name   string
	key    identity.Key
	at     netip.AddrPort
	roster *rosterFake
	disk   map[string][]byte
	ahead  time.Duration               // of its clock
	gone   map[peer.ID]identity.Reason // whom it knows as removed

	sponsor *Sponsor
	down    atomic.Bool
	deaf    bool // calls to it are lost
}

// newLab makes n voters; the first issuers of them hold delegations.
func newLab(t *testing.T, n, issuers int) *lab {
	t.Helper()
	l := &lab{t: t, root: must(identity.NewKey()), began: time.Now(), hosts: map[netip.AddrPort]func(net.Conn){}}
	t.Cleanup(l.served.Wait)
	founder := must(identity.NewKey())
	l.cluster = must(identity.NewCluster(l.root, identity.ClusterSpec{Founder: founder.ID(), Created: l.began}))
	items := [][]byte{
		must(identity.Found(l.root, founder, "n1", l.began.Add(-time.Hour))).Raw(),
		must(identity.Delegate(l.root, founder.Public(), l.began)).Raw(),
	}
	keys := []identity.Key{founder}
	for i := 2; i <= n; i++ {
		key := must(identity.NewKey())
		items = append(items, l.certify(key, fmt.Sprint("n", i), uint64(i-1), false).Raw())
		if i <= issuers {
			items = append(items, must(identity.Delegate(l.root, key.Public(), l.began)).Raw())
		}
		keys = append(keys, key)
	}
	for i, key := range keys {
		l.add(fmt.Sprint("n", i+1), key, items)
	}
	return l
}

// certify makes a member without the protocol.
func (l *lab) certify(key identity.Key, name string, seq uint64, ephemeral bool) *identity.Certificate {
	tok := must(identity.NewKey())
	by := identity.Issuer{Key: l.root}
	inv := must(by.Invite(tok.Public(), identity.Terms{NotAfter: l.began, Uses: 1, Ephemeral: ephemeral}))
	a := must(identity.Apply(identity.FingerprintOf(l.root.Public()), key, tok, name))
	return must(by.Certify(a, inv, seq, l.began.Add(-time.Hour))) // it has long been serving
}

func (l *lab) add(name string, key identity.Key, items [][]byte) *node {
	l.mu.Lock()
	n := &node{
		lab: l, name: name, key: key, disk: map[string][]byte{}, gone: map[peer.ID]identity.Reason{},
		at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(len(l.nodes) + 1)}), 6783),
	}
	l.mu.Unlock()
	n.roster = newRosterFake(n)
	if err := n.roster.AddRaw(items...); err != nil {
		l.t.Fatal(err)
	}
	n.start()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(l.nodes, n)
	return n
}

func (l *lab) node(name string) *node {
	for _, n := range l.nodes {
		if n.name == name {
			return n
		}
	}
	panic("no node " + name)
}

// step is where a crash can happen.
func (n *node) step(what string) error {
	n.lab.mu.Lock()
	fault := n.lab.fault
	n.lab.mu.Unlock()
	if fault == nil {
		return nil
	}
	if n.down.Load() {
		return errDown
	}
	err := fault(n, what)
	if err != nil && !errors.Is(err, errDiskFull) {
		n.down.Store(true)
	}
	return err
}

var errDiskFull = errors.New("the disk is full")

var errDown = errors.New("this machine is down")

// Load and Save are the disk.
func (n *node) Load(name string) ([]byte, error) { return n.disk[name], nil }

func (n *node) Save(name string, b []byte) error {
	if err := n.step("before save " + name); err != nil {
		return err
	}
	n.disk[name] = slices.Clone(b)
	return n.step("after save " + name)
}

// start is the machine's start: everything in memory is new.
func (n *node) start() {
	l := n.lab
	cfg := SponsorConfig{
		Key: n.key, Cluster: l.cluster, Roster: n.roster, Store: n, Call: n.call, Build: "test",
		Removed: func(id peer.ID) (identity.Reason, bool) { why, ok := n.gone[id]; return why, ok },
		Now:     func() time.Time { return time.Now().Add(n.ahead) },
		Records: func() []byte { return []byte("records") },
		Ring:    func() []byte { return make([]byte, maxFrame) },
		Log:     slog.New(slog.DiscardHandler),
	}
	if n.key.ID() == l.cluster.Founder {
		cfg.RootKey = func() identity.Key { return l.root }
	}
	n.sponsor = must(NewSponsor(cfg))
	n.down.Store(false)
	circuits := must(circuit.New(circuit.Config{
		Key: n.key, Root: l.root.Public(), Log: cfg.Log,
		Cert:      func() *identity.Certificate { c, _ := n.roster.Certificate(n.key.ID()); return c },
		Allowed:   func(peer.ID, *identity.Certificate) error { return nil },
		Endpoints: func(peer.ID) []netip.AddrPort { return nil },
	}))
	l.listen(n.at, circuits, func() bool { return !n.down.Load() }, n.sponsor)
}

// listen serves each connection by a server of its own, which ends with it.
func (l *lab) listen(at netip.AddrPort, c *circuit.Circuits, up func() bool, s *Sponsor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[at] = func(conn net.Conn) {
		if !up() {
			conn.Close()
			return
		}
		once := make(chan net.Conn, 1)
		last := &hooked{Conn: conn, closed: make(chan struct{})}
		once <- last
		_ = c.Serve(context.Background(), func(context.Context) (net.Conn, error) {
			select {
			case conn := <-once:
				return conn, nil
			case <-last.closed:
				return nil, net.ErrClosed
			}
		}, circuit.Handlers{Circuit: func(context.Context, *circuit.Conn) {}, Join: s.Serve})
	}
}

// hooked tells when it was closed.
type hooked struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (h *hooked) Close() error {
	h.once.Do(func() { close(h.closed) })
	return h.Conn.Close()
}

func (l *lab) dial(_ context.Context, to netip.AddrPort) (net.Conn, error) {
	l.mu.Lock()
	host := l.hosts[to]
	l.mu.Unlock()
	if host == nil {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	l.served.Go(func() { host(b) })
	return a, nil
}

// call is the mesh's RPC.
func (n *node) call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error) {
	if err := n.step("before call " + method); err != nil {
		return nil, err
	}
	n.lab.mu.Lock()
	nodes := slices.Clone(n.lab.nodes)
	n.lab.mu.Unlock()
	for _, m := range nodes {
		if m.key.ID() != to {
			continue
		}
		if m.down.Load() || m.deaf || n.down.Load() {
			<-ctx.Done() // silence, as from a dead machine
			return nil, ctx.Err()
		}
		ans, err := m.sponsor.Handlers()[method](ctx, n.key.ID(), slices.Clone(req))
		if m.down.Load() {
			return nil, errDown
		}
		if err := n.step("after call " + method); err != nil {
			return nil, err
		}
		return ans, err
	}
	return nil, errors.New("no such member")
}

// gossip makes the rosters of all members that are up equal.
func (l *lab) gossip() {
	l.t.Helper()
	for _, from := range l.nodes {
		for _, to := range l.nodes {
			if !from.down.Load() && !to.down.Load() {
				if err := to.roster.AddRaw(from.roster.Items()...); err != nil {
					l.t.Fatal(err)
				}
			}
		}
	}
}

// invite makes a token whose seeds are the named members, and tells the named ones (or everybody) of it.
func (l *lab) invite(terms identity.Terms, seeds ...string) string {
	l.t.Helper()
	var list []token.Seed
	for _, name := range seeds {
		n := l.node(name)
		list = append(list, token.SeedOf(n.at, n.key.ID()))
	}
	tok := must(token.New(identity.FingerprintOf(l.root.Public()), list...))
	if terms.NotAfter.IsZero() {
		terms.NotAfter = time.Now().Add(24 * time.Hour)
	}
	founder := l.nodes[0]
	d, _ := founder.roster.Delegation(founder.key.ID())
	inv := must(identity.Issuer{Key: founder.key, Delegation: d}.Invite(must(tok.Key()).Public(), terms))
	for _, n := range l.nodes {
		if err := n.roster.AddRaw(inv.Raw()); err != nil {
			l.t.Fatal(err)
		}
	}
	return tok.Format()
}

func (l *lab) config(text string, key identity.Key, name string) Config {
	return Config{Token: text, Key: key, Name: name, Build: "test", Dial: l.dial}
}

// join runs the joiner with a new key.
func (l *lab) join(text, name string) (*Result, error) {
	return Join(l.t.Context(), l.config(text, must(identity.NewKey()), name))
}

// check holds a result against what a new member may expect.
func (l *lab) check(r *Result, key identity.Key) {
	l.t.Helper()
	if r.Cluster.ID() != l.cluster.ID() {
		l.t.Error("another cluster")
	}
	if err := r.Certificate.Verify(l.root.Public()); err != nil {
		l.t.Error(err)
	}
	if r.Certificate.ID() != key.ID() {
		l.t.Error("somebody else's certificate")
	}
	if string(r.Records) != "records" || len(r.Ring) != maxFrame {
		l.t.Error("records or ring are not what the sponsor had")
	}
	fresh := newRosterFake(l.nodes[0])
	fresh.node = nil
	if err := fresh.AddRaw(r.Items...); err != nil {
		l.t.Error(err)
	}
	if _, ok := fresh.Certificate(key.ID()); !ok || len(fresh.Voters()) < 1 {
		l.t.Error("the roster lacks the new member")
	}
}

// knowers counts the members whose roster holds the certificate.
func (l *lab) knowers(id peer.ID) int {
	n := 0
	for _, m := range l.nodes {
		if _, ok := m.roster.Certificate(id); ok {
			n++
		}
	}
	return n
}

// rosterFake keeps signed items in memory, as durable as the node.
type rosterFake struct {
	node *node
	root ed25519.PublicKey

	mu    sync.Mutex
	items map[string]identity.Item
	certs map[peer.ID]*identity.Certificate
}

func newRosterFake(n *node) *rosterFake {
	return &rosterFake{
		node: n, root: n.lab.root.Public(), items: map[string]identity.Item{},
		certs: map[peer.ID]*identity.Certificate{},
	}
}

func (r *rosterFake) AddRaw(items ...[]byte) error {
	if r.node != nil {
		if err := r.node.step("before add"); err != nil {
			return err
		}
	}
	r.mu.Lock()
	for _, raw := range items {
		if _, known := r.items[string(raw)]; known {
			continue
		}
		it, err := identity.Parse(raw)
		if err == nil {
			err = it.Verify(r.root)
		}
		if err != nil {
			r.mu.Unlock()
			return err
		}
		if c, ok := it.(*identity.Certificate); ok {
			if old := r.certs[c.ID()]; old != nil && old.Compare(c) <= 0 {
				continue
			} else if old != nil {
				delete(r.items, string(old.Raw()))
			}
			r.certs[c.ID()] = c
		}
		r.items[string(raw)] = it
	}
	r.mu.Unlock()
	if r.node != nil {
		return r.node.step("after add")
	}
	return nil
}

func (r *rosterFake) all() []identity.Item {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.items))
}

func (r *rosterFake) Items() [][]byte {
	var raws [][]byte
	for _, it := range r.all() {
		raws = append(raws, it.Raw())
	}
	return raws
}

func (r *rosterFake) Certificate(id peer.ID) (*identity.Certificate, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.certs[id]
	return c, ok
}

func (r *rosterFake) forget(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.items, string(r.certs[id].Raw()))
	delete(r.certs, id)
}

func (r *rosterFake) gone(id peer.ID) bool {
	if r.node == nil {
		return false
	}
	_, gone := r.node.gone[id]
	return gone
}

func (r *rosterFake) Voters() []peer.Voter {
	var voters []peer.Voter
	for _, it := range r.all() {
		if c, ok := it.(*identity.Certificate); ok {
			if v, votes := c.Voter(); votes && !r.gone(v.ID) {
				voters = append(voters, v)
			}
		}
	}
	return voters
}

func (r *rosterFake) Delegation(id peer.ID) (*identity.Delegation, bool) {
	for _, it := range r.all() {
		if d, ok := it.(*identity.Delegation); ok && d.Issuer() == id && !r.Revoked(identity.KindDelegation, d.ID()) {
			return d, true
		}
	}
	return nil, false
}

func (r *rosterFake) Issuers() []peer.ID {
	ids := peer.Set{}
	for _, it := range r.all() {
		if d, ok := it.(*identity.Delegation); ok {
			if _, ok := r.Delegation(d.Issuer()); ok {
				ids.Add(d.Issuer())
			}
		}
	}
	return ids.Sorted()
}

func (r *rosterFake) Invitation(id identity.ItemID) (*identity.Invitation, bool) {
	for _, it := range r.all() {
		if inv, ok := it.(*identity.Invitation); ok && inv.ID() == id {
			return inv, true
		}
	}
	return nil, false
}

func (r *rosterFake) JoinedWith(id identity.ItemID) []peer.ID {
	users := peer.Set{}
	for _, it := range r.all() {
		if c, ok := it.(*identity.Certificate); ok && !c.Founder() && c.Invitation.ID() == id {
			users.Add(c.ID())
		}
	}
	return users.Sorted()
}

func (r *rosterFake) Revoked(of identity.Kind, id identity.ItemID) bool {
	for _, it := range r.all() {
		if rev, ok := it.(*identity.Revocation); ok && rev.Of == of && rev.Target == id {
			return true
		}
	}
	return false
}
