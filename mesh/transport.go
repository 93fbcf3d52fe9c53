package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// Limits of the gossip transport.
const (
	MaxDatagram = 1200 // bytes that Packets must carry

	gossipPort   = 6783             // of every synthetic address; never dialled
	gossipQueue  = 512              // datagrams waiting for memberlist; more are dropped and counted
	streamQueue  = 16               // streams waiting for memberlist
	streamsEach  = 4                // of one member: memberlist makes room for what the head of each announces, up to a million nodes
	streamLife   = 30 * time.Second // longer than any exchange of memberlist takes
	datagramHead = 1                // kind byte
	checksumHead = 5                // memberlist adds it beyond its own budget
)

var errStopped = errors.New("the mesh has stopped")

// gossipAddr is the address that memberlist sees of a member: a unique local IPv6 address made from the ID. It is
// constant for the life of the ID, because memberlist takes a new address of a live node for a conflict.
func gossipAddr(id peer.ID) netip.Addr {
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:], id[:15])
	return netip.AddrFrom16(a)
}

// gossipName is how memberlist is told to join a member: by name, at its synthetic address.
func gossipName(id peer.ID) string {
	return id.String() + "/" + netip.AddrPortFrom(gossipAddr(id), gossipPort).String()
}

type netAddr peer.ID

func (netAddr) Network() string { return "weft" }
func (a netAddr) String() string {
	return netip.AddrPortFrom(gossipAddr(peer.ID(a)), gossipPort).String()
}

// transport carries memberlist by NodeID: datagrams through Packets, streams through Streams. It presents a complete
// graph; what a path really looks like is the business of those two.
type transport struct {
	mesh    *Mesh
	ctx     context.Context // ends with the mesh; cuts dials short
	packets chan *memberlist.Packet
	streams chan net.Conn

	mu    sync.Mutex // guards all below
	conns map[*stream]struct{}
	each  map[peer.ID]int // streams that are served
	done  bool
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(ctx context.Context, m *Mesh) *transport {
	return &transport{
		mesh:    m,
		ctx:     ctx,
		packets: make(chan *memberlist.Packet, gossipQueue),
		streams: make(chan net.Conn, streamQueue),
		conns:   map[*stream]struct{}{},
		each:    map[peer.ID]int{},
	}
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return gossipAddr(t.mesh.self).AsSlice(), gossipPort, nil
}

// WriteToAddress answers nil even when sending failed: memberlist counts only certain error types against the peer and
// takes any other for a local mishap, so a peer that cannot be sent to would never be suspected. A lost datagram is
// what it understands.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	now := time.Now()
	id, err := peer.Parse(to.Name)
	if err != nil || !t.mesh.roster.Member(id) {
		t.mesh.count.refused.Add(1)
		return now, nil //nolint:nilerr // see above
	}
	t.mesh.send(id, datagramGossip, b)
	return now, nil
}

// DialAddressTimeout opens a stream of kind StreamGossip.
func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	id, err := peer.Parse(to.Name)
	if err != nil {
		return nil, err
	}
	if !t.mesh.roster.Member(id) {
		return nil, ErrNotMember
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := t.mesh.dial(ctx, id, StreamGossip)
	if err != nil {
		return nil, err
	}
	s := t.track(conn)
	if s == nil {
		return nil, errStopped
	}
	return s, nil
}

func (t *transport) WriteTo(_ []byte, addr string) (time.Time, error) {
	return time.Time{}, fmt.Errorf("send to %s: a node name is needed", addr)
}

func (t *transport) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: a node name is needed", addr)
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

// Shutdown closes every stream, so that nothing of memberlist waits for the network.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	t.done = true
	open := make([]*stream, 0, len(t.conns))
	for s := range t.conns {
		open = append(open, s)
	}
	t.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
	return nil
}

// ingest queues a datagram for memberlist, which keeps b.
func (t *transport) ingest(from peer.ID, b []byte) {
	select {
	case t.packets <- &memberlist.Packet{Buf: b, From: netAddr(from), Timestamp: time.Now()}:
	default:
		t.mesh.count.dropped.Add(1)
	}
}

// enter takes a place for a stream that a member opened, until leave is called; nil: it has enough.
func (t *transport) enter(from peer.ID) (leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.each[from] >= streamsEach {
		return nil
	}
	t.each[from]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.each[from]--; t.each[from] == 0 {
			delete(t.each, from)
		}
	}
}

// serve hands an accepted stream to memberlist and waits until it is closed.
func (t *transport) serve(ctx context.Context, from peer.ID, conn net.Conn) {
	leave := t.enter(from)
	if leave == nil {
		t.mesh.count.dropped.Add(1)
		return
	}
	defer leave()
	s := t.track(conn)
	if s == nil {
		return
	}
	defer s.Close()
	select {
	case t.streams <- s:
	default:
		t.mesh.count.dropped.Add(1)
		return
	}
	select {
	case <-s.closed:
	case <-ctx.Done():
	}
}

// track makes conn end with the transport, and after streamLife in any case: memberlist forgets to close a stream when
// writing its label failed. It answers nil, and closes conn, when the transport has ended.
func (t *transport) track(conn net.Conn) *stream {
	s := &stream{Conn: conn, transport: t, closed: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		conn.Close()
		return nil
	}
	t.conns[s] = struct{}{}
	conn.SetDeadline(time.Now().Add(streamLife))
	s.timer = time.AfterFunc(streamLife, func() { s.Close() })
	return s
}

type stream struct {
	net.Conn
	transport *transport
	timer     *time.Timer
	once      sync.Once
	closed    chan struct{}
}

func (s *stream) Close() error {
	var err error
	s.once.Do(func() {
		t := s.transport
		t.mu.Lock()
		delete(t.conns, s)
		t.mu.Unlock()
		s.timer.Stop()
		err = s.Conn.Close()
		close(s.closed)
	})
	return err
}

// memberlistConfig is the LAN preset with what was measured to matter: more retransmissions for joins in crowds, no
// compression (it cost more CPU than it saved), time for the dead to refute. Its keyring stays off: every hop is
// authenticated by pair. User broadcasts are not used: they lose bursts.
func (m *Mesh) memberlistConfig(t *transport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.self.String()
	c.Label = m.label
	c.Transport = t
	c.BindPort = gossipPort
	c.AdvertisePort = gossipPort
	c.RetransmitMult = 8
	c.GossipNodes = 6 // a partition of a hundred heals in half the time; costs nothing while there is nothing to tell
	c.EnableCompression = false
	c.GossipToTheDeadTime = 60 * time.Second
	c.DeadNodeReclaimTime = 30 * time.Second
	c.RequireNodeNames = true
	c.UDPBufferSize = MaxDatagram - datagramHead - checksumHead
	c.DNSConfigPath = ""
	c.Logger = gossipLogger(m.log)
	d := &delegate{m}
	c.Delegate, c.Events, c.Alive = d, d, d
	return c
}
