package meshsim_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
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

const (
	// FailOver is how long a relay that died, or was cut off, is still sent to.
	FailOver = 2 * time.Second

	// sponsors take new nodes in.
	sponsors = 3

	// grace is how long after a node's start, or a change of the network, word of a death may still be about the time
	// before.
	grace = time.Minute
)

// Spec says what a world is like.
type Spec struct {
	NAT        float64 // share of the nodes that cannot be dialled, 0 to 1; the first three can
	Sparse     int     // above this number of nodes sessions are opened by traffic; 0: all are open
	NoRelay    bool    // two that cannot be dialled have no path
	Alone      bool    // every node verifies and keeps everything itself: the true memory and CPU, for small worlds
	Conditions meshtest.Conditions
	Seed       uint64 // of chance in the network; the order in which goroutines run is not part of it
}

// World is a cluster and its network, in the bubble of the test that made it.
type World struct {
	Spec  Spec
	Nodes []*Node

	natted int // of Nodes

	t       testing.TB
	net     *meshtest.Network
	rand    *rand.Rand
	root    identity.Key
	token   identity.Key
	issuer  identity.Issuer
	cluster *identity.Cluster
	invite  *identity.Invitation
	memo    *mesh.Memo

	ids    sync.Map // peer.ID -> *Node
	cuts   atomic.Pointer[outage]
	before atomic.Pointer[outage]
	relays atomic.Pointer[[]*Node] // all that can be dialled

	members atomic.Pointer[[]peer.ID]

	mu          sync.Mutex // guards all below
	err         error      // the first
	deaths      int
	falseDeaths int
	examples    []string // of false deaths
	lateDeaths  int      // told after the network was whole again, of members that were never cut off
}

// New makes a world whose founder runs.
func New(t testing.TB, s Spec) *World {
	t.Helper()
	w := &World{Spec: s, t: t, net: meshtest.New(s.Conditions, s.Seed), rand: rand.New(rand.NewPCG(s.Seed, 1))}
	if !s.Alone {
		w.memo = mesh.NewMemo()
	}
	w.cuts.Store(&outage{})
	w.before.Store(&outage{})
	w.root, w.token = w.newKey(), w.newKey()
	founder, now := w.newKey(), time.Now()
	var err error
	if w.cluster, err = identity.NewCluster(w.root, identity.ClusterSpec{Founder: founder.ID(), Created: now}); err != nil {
		t.Fatal(err)
	}
	delegation, err := identity.Delegate(w.root, founder.Public(), now)
	if err != nil {
		t.Fatal(err)
	}
	w.issuer = identity.Issuer{Key: founder, Delegation: delegation}
	terms := identity.Terms{NotAfter: now.Add(1000 * time.Hour), Created: now}
	if w.invite, err = w.issuer.Invite(w.token.Public(), terms); err != nil {
		t.Fatal(err)
	}
	cert, err := identity.Found(w.root, founder, "n0", now)
	if err != nil {
		t.Fatal(err)
	}
	n := w.add(founder, cert)
	n.items = [][]byte{delegation.Raw(), w.invite.Raw()}
	n.Start()
	return w
}

func (w *World) newKey() identity.Key {
	k, err := identity.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

func (w *World) add(key identity.Key, cert *identity.Certificate) *Node {
	n := &Node{
		ID: key.ID(), Index: len(w.Nodes), world: w, key: key, cert: cert,
		disk: &disk{values: map[string][]byte{}}, dialable: true,
	}
	w.Nodes = append(w.Nodes, n)
	if n.Index >= sponsors && float64(w.natted) < w.Spec.NAT*float64(len(w.Nodes)) {
		n.dialable = false
		w.natted++
	}
	w.ids.Store(n.ID, n)
	dialable := w.dialable()
	w.relays.Store(&dialable)
	ids := make([]peer.ID, len(w.Nodes))
	for i, n := range w.Nodes {
		ids[i] = n.ID
	}
	w.members.Store(&ids)
	if !n.dialable {
		chooseHomes(w.rand, n, dialable)
	}
	return n
}

func (w *World) dialable() []*Node {
	var all []*Node
	for _, n := range w.Nodes {
		if n.dialable {
			all = append(all, n)
		}
	}
	return all
}

func (w *World) byID(id peer.ID) *Node {
	n, _ := w.ids.Load(id)
	node, _ := n.(*Node)
	return node
}

// Join takes a new node in and starts it: a sponsor keeps its certificate and tells it what it knows.
func (w *World) Join() *Node {
	w.t.Helper()
	sponsor := w.Nodes[w.rand.IntN(min(sponsors, len(w.Nodes)))]
	if !sponsor.Up() {
		sponsor = w.Nodes[0]
	}
	return w.JoinAt(sponsor)
}

// JoinAt is Join with a sponsor of choice.
func (w *World) JoinAt(sponsor *Node) *Node {
	w.t.Helper()
	n := w.admit(sponsor)
	n.items, n.records = sponsor.Mesh().Roster().Items(), sponsor.Mesh().Snapshot("records")
	n.seeds = []peer.ID{sponsor.ID}
	n.Start()
	return n
}

// admit makes a member.
func (w *World) admit(sponsor *Node) *Node {
	w.t.Helper()
	key := w.newKey()
	name := fmt.Sprintf("n%d", len(w.Nodes))
	a, err := identity.Apply(identity.FingerprintOf(w.root.Public()), key, w.token, name)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := w.issuer.Certify(a, w.invite, uint64(len(w.Nodes)), time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	n := w.add(key, cert)
	if err := sponsor.Mesh().Roster().Add(cert); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// Storm lets nodes join, evenly over a time.
func (w *World) Storm(nodes int, over time.Duration) {
	w.t.Helper()
	for range nodes {
		w.Join()
		time.Sleep(over / time.Duration(nodes))
	}
	dialable := w.dialable()
	for _, n := range w.Nodes { // those that came first are not everybody's relays for ever
		if !n.dialable {
			chooseHomes(w.rand, n, dialable)
		}
	}
}

// Cut lets the network carry nothing from a to b where parted says so; nil mends it.
func (w *World) Cut(parted func(a, b *Node) bool) {
	w.before.Store(w.cuts.Load())
	w.cuts.Store(&outage{parted, time.Now()})
	w.net.Mend()
	if parted == nil {
		return
	}
	for _, a := range w.Nodes {
		for _, b := range w.Nodes {
			if a != b && parted(a, b) {
				w.net.CutOneWay(a.ID, b.ID)
			}
		}
	}
}

// End stops everything; in synctest a goroutine that is left behind fails the test.
func (w *World) End() {
	var stops sync.WaitGroup
	for _, n := range w.Nodes {
		stops.Go(n.Stop)
	}
	stops.Wait()
	w.net.Close()
	time.Sleep(15 * time.Second) // a probe of memberlist that is under way ends by its own timer
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		w.t.Error(w.err)
	}
}

func (w *World) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// told judges what a mesh says of another node's life.
func (w *World) told(by *Node, who peer.ID, alive bool) {
	n := w.byID(who)
	if alive || n == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaths++
	now := time.Now()
	settled := func(n *Node) bool { return n.Up() && now.Sub(time.Unix(0, n.upAt.Load())) > grace }
	cuts, before := w.cuts.Load(), w.before.Load()
	if n.Up() && cuts.parted == nil && before.parted != nil && !before.parted(n, by) && !before.parted(by, n) {
		w.lateDeaths++
	}
	if settled(n) && settled(by) && cuts.parted == nil && (cuts.since.IsZero() || now.Sub(cuts.since) > grace) {
		if w.falseDeaths++; len(w.examples) < 5 {
			w.examples = append(w.examples, fmt.Sprintf("n%d said that n%d was dead", by.Index, n.Index))
		}
	}
}

// Deaths counts what was told of deaths, and what of it was not true.
func (w *World) Deaths() (told, untrue int, examples []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deaths, w.falseDeaths, w.examples
}

// LateDeaths counts what was told of the deaths of members of the own part of a network after its parts met: what the others
// had thought of them.
func (w *World) LateDeaths() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lateDeaths
}

// Living lists the nodes that are up.
func (w *World) Living() []*Node {
	var all []*Node
	for _, n := range w.Nodes {
		if n.Up() {
			all = append(all, n)
		}
	}
	return all
}

// RosterAgreed says which of some nodes does not know the roster of the first, or "".
func RosterAgreed(nodes []*Node) string {
	return agreed(nodes, "roster", func(n *Node) []byte { return n.Mesh().Roster().Digest() })
}

// RecordsAgreed is the same for the records.
func RecordsAgreed(nodes []*Node) string {
	return agreed(nodes, "records", func(n *Node) []byte { return n.Mesh().Digest("records") })
}

func agreed(nodes []*Node, what string, digest func(*Node) []byte) string {
	want := digest(nodes[0])
	for _, n := range nodes[1:] {
		if !bytes.Equal(want, digest(n)) {
			return fmt.Sprintf("n%d and n%d have different %s", nodes[0].Index, n.Index, what)
		}
	}
	return ""
}

// MembershipAgreed says which of some nodes does not call all of them alive and all others dead, or "".
func MembershipAgreed(nodes []*Node) string {
	for _, n := range nodes {
		if s := n.Mesh().Stats(); s.MembersAlive != len(nodes) {
			return fmt.Sprintf("n%d sees %d of %d", n.Index, s.MembersAlive, len(nodes))
		}
	}
	return ""
}

// Agreed is all three.
func (w *World) Agreed() string {
	nodes := w.Living()
	for _, why := range []func([]*Node) string{RosterAgreed, RecordsAgreed, MembershipAgreed} {
		if s := why(nodes); s != "" {
			return s
		}
	}
	return ""
}

// Within waits until check answers "", at most for limit, and tells how long that took. What it answers at the limit is
// the second result.
func (w *World) Within(limit time.Duration, check func() string) (time.Duration, string) {
	start := time.Now()
	for {
		synctest.Wait()
		why := check()
		took := time.Since(start)
		if why == "" || took >= limit {
			return took, why
		}
		time.Sleep(min(50*time.Millisecond+took/20, limit-took))
	}
}

var _ slog.Handler = (*listener)(nil)
