package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Kinds of streams; append-only.
const (
	StreamGossip byte = 'g' // memberlist
	StreamCall   byte = 'r' // one request, one answer
)

// Kinds of datagrams; append-only.
const (
	datagramGossip byte = 1
	datagramDigest byte = 2

	FirstDatagram byte = 16 // those below are kept for the mesh; see Listen
)

// leaveTime is how long Leave waits for somebody to hear it.
const leaveTime = 5 * time.Second

// ErrNotMember is the answer to anything about an ID that no valid certificate names.
var ErrNotMember = errors.New("not a member of this cluster")

// Packets carries datagrams of up to MaxDatagram bytes between members. They may be lost, doubled or reordered; the
// sender's ID is authenticated.
type Packets interface {
	// Send does not block for long and does not keep b.
	Send(to peer.ID, b []byte) error
	// Receive waits for a datagram. The slice belongs to the caller.
	Receive(ctx context.Context) (from peer.ID, b []byte, err error)
}

// Streams opens mutually authenticated streams to members. At the other end the stream is given to ServeStream.
type Streams interface {
	Dial(ctx context.Context, to peer.ID, kind byte) (net.Conn, error)
}

// Store keeps a few named values over a restart.
type Store interface {
	// Load answers nil when nothing was saved under the name.
	Load(name string) ([]byte, error)
	// Save replaces the value. When it returns, the value survives a crash.
	Save(name string, b []byte) error
}

// Names of values in the Store.
const (
	storeRoster  = "roster"
	storeRecords = "records"
	storeSelf    = "self" // our own record; its epoch must never go backwards
)

// Config says who this node is and what carries its messages.
type Config struct {
	Key     identity.Key
	Cluster *identity.Cluster

	Certificate *identity.Certificate // of this node

	// Items and Records are what the node learnt when it joined. They are needed at the first start only; later the store
	// holds as much. What does not verify is left out.
	Items   [][]byte
	Records []byte

	// Record is what this node says about itself. ID and Epoch are set by the mesh. Publish changes it later.
	Record Record

	// Seeds are members that are asked first.
	Seeds []peer.ID

	Packets Packets
	Streams Streams
	Store   Store
	Log     *slog.Logger

	// Memo is shared by the nodes of a simulation; nil: every signature is verified here.
	Memo *Memo
}

// Mesh is this node's membership in a cluster. Its methods may be called from any goroutine, before, during and after Run
// unless they say otherwise.
type Mesh struct {
	self    peer.ID
	key     identity.Key
	label   string
	seeds   []peer.ID
	packets Packets
	streams Streams
	store   Store
	log     *slog.Logger

	roster  *Roster
	records *records
	sync    *syncer
	calls   *calls
	heal    *healer
	count   counters

	own ownRecord

	rumours  chan rumour   // for the log
	farewell chan struct{} // capacity 1: this node was removed
	doubted  chan struct{} // capacity 1: somebody is called dead and not believed to be

	born     time.Time
	datagram atomic.Int64 // when the last one came, nanoseconds since born; 0: none yet

	ending sync.RWMutex // held for reading by Leave: memberlist panics when it leaves after its shutdown

	mu       sync.Mutex // guards all below
	members  *memberlist.Memberlist
	gossip   *transport
	life     map[peer.ID]*life
	returned time.Time // when rumour last took back that a member is dead
	living   []peer.ID // who of them is alive and a member, see alive; nil: to be made
	parted   peer.Set  // the removed whose removal took effect here
	watchers []chan struct{}
}

// New checks the configuration, loads what the store holds and signs the first record. It starts nothing.
func New(c Config) (*Mesh, error) {
	switch {
	case c.Key.IsZero():
		return nil, errors.New("mesh: no node key")
	case c.Cluster == nil || c.Certificate == nil:
		return nil, errors.New("mesh: cluster and certificate are needed")
	case c.Certificate.ID() != c.Key.ID():
		return nil, fmt.Errorf("mesh: the certificate is of %s, this node is %s", c.Certificate.ID(), c.Key.ID())
	case c.Packets == nil || c.Streams == nil || c.Store == nil || c.Log == nil:
		return nil, errors.New("mesh: packets, streams, store and log are needed")
	}
	m := &Mesh{
		self:    c.Key.ID(),
		key:     c.Key,
		label:   clusterLabel(c.Cluster.ID()),
		seeds:   c.Seeds,
		packets: c.Packets,
		streams: c.Streams,
		store:   c.Store,
		log:     c.Log,
		calls:   newCalls(),
		rumours: make(chan rumour, rumourQueue),
		born:    time.Now(),
		life:    map[peer.ID]*life{},

		farewell: make(chan struct{}, 1), doubted: make(chan struct{}, 1),
	}
	m.sync = newSyncer(m)
	m.heal = newHealer(m)

	saved, err := c.Store.Load(storeRoster)
	if err != nil {
		return nil, fmt.Errorf("load roster: %w", err)
	}
	m.roster, err = newRoster(c.Cluster, c.Store, saved, c.Memo)
	if v := (*tlv.VersionError)(nil); errors.As(err, &v) {
		return nil, fmt.Errorf("load roster: %w", err)
	} else if err != nil {
		m.log.Warn("the saved roster is damaged; what is lost will be fetched again", "err", err)
	}
	if err := m.roster.Add(c.Certificate); err != nil {
		return nil, err
	}
	if err := m.roster.grow(c.Items, false); err != nil {
		m.log.Warn("not all of the roster was taken over", "err", err)
	}
	m.roster.changed = m.grown
	m.parted = peer.Set{}
	for _, r := range m.roster.Removals() { // what happened before this start is no news
		m.parted.Add(r.Node)
	}

	m.records = newRecords(m.self, m.roster.memberKey, m.roster.Removed, c.Memo)
	if saved, err = c.Store.Load(storeRecords); err != nil {
		return nil, fmt.Errorf("load records: %w", err)
	}
	for _, b := range [][]byte{saved, c.Records} {
		if _, err := m.records.merge(b); err != nil {
			m.log.Warn("not all records were taken over; they will be fetched again", "err", err)
		}
	}
	if saved, err = c.Store.Load(storeSelf); err != nil {
		return nil, fmt.Errorf("load own record: %w", err)
	}
	if err := m.startRecord(saved, c.Record); err != nil {
		return nil, err
	}

	m.Replicate("roster", m.roster)
	m.Replicate("records", recordsReplica{m})
	m.Handle(methodPull, m.sync.servePull)
	m.Handle(methodDigests, m.sync.serveDigests)
	m.Handle(methodItems, m.serveItems)
	return m, nil
}

// clusterLabel keeps clusters apart that meet by mistake; it protects nothing.
func clusterLabel(id [32]byte) string {
	return "weft-" + strconv.FormatUint(binary.BigEndian.Uint64(id[:]), 36)
}

// Self is this node's ID.
func (m *Mesh) Self() peer.ID { return m.self }

// Roster is who belongs to the cluster.
func (m *Mesh) Roster() *Roster { return m.roster }

// Run takes part in the cluster until ctx ends. It is called once.
func (m *Mesh) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	t := newTransport(ctx, m)
	members, err := memberlist.Create(m.memberlistConfig(t))
	if err != nil {
		cancel()
		return fmt.Errorf("start gossip: %w", err)
	}
	m.mu.Lock()
	m.members, m.gossip = members, t
	m.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { m.receive(ctx, t) })
	wg.Go(func() { m.sync.run(ctx) })
	wg.Go(func() { m.heal.run(ctx, members) })
	wg.Go(func() { m.keepRecords(ctx) })
	wg.Go(func() { m.logRumours(ctx) })
	wg.Go(func() { m.believe(ctx) })
	wg.Go(func() { m.bidFarewell(ctx) })
	<-ctx.Done()

	m.mu.Lock()
	m.members, m.gossip = nil, nil
	m.mu.Unlock()
	cancel()
	m.ending.Lock()
	err = members.Shutdown()
	m.ending.Unlock()
	wg.Wait()
	m.saveRecords()
	if err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// Leave tells the others that this node goes on purpose, so that nobody waits for a failure detector. Run goes on until
// its context ends.
func (m *Mesh) Leave(ctx context.Context) error {
	m.ending.RLock()
	defer m.ending.RUnlock()
	m.mu.Lock()
	members := m.members
	m.mu.Unlock()
	if members == nil {
		return errStopped
	}
	timeout := leaveTime
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	if timeout <= 0 {
		return context.DeadlineExceeded
	}
	if err := members.Leave(timeout); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

func (m *Mesh) dial(ctx context.Context, to peer.ID, kind byte) (net.Conn, error) {
	start := time.Now()
	conn, err := m.streams.Dial(ctx, to, kind)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			m.unanswered(to, start)
		}
		return nil, fmt.Errorf("dial %s: %w", to.Short(), err)
	}
	return conn, nil
}

// ServeStream serves a stream that a member opened to this node. It returns when the stream has ended, and closes it.
// The caller has authenticated from; the certificate that it showed is given to Roster().Add before, so that a member
// that is news to this node is not refused.
func (m *Mesh) ServeStream(ctx context.Context, from peer.ID, kind byte, conn net.Conn) {
	defer conn.Close()
	if !m.roster.Member(from) || from == m.self {
		m.count.refused.Add(1)
		return
	}
	m.heard(from)
	switch kind {
	case StreamGossip:
		m.mu.Lock()
		t := m.gossip
		m.mu.Unlock()
		if t != nil {
			t.serve(ctx, from, conn)
		}
	case StreamCall:
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		m.serveCall(ctx, from, conn)
	default:
		m.count.unknown.Add(1)
	}
}
