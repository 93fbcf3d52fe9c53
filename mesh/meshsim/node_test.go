package meshsim_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weft/crypto/identity"
	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// Node is one machine.
type Node struct {
	ID    peer.ID
	Index int

	world    *World
	key      identity.Key
	cert     *identity.Certificate
	dialable bool
	homes    atomic.Pointer[[]*Node] // relays, of a node that cannot be dialled
	seeds    []peer.ID
	items    [][]byte // what its sponsor handed out
	records  []byte
	disk     *disk
	keys     uint64 // how many Noise keys it has had

	sessions sessions
	past     mesh.Stats // counters of former lives

	meter meter
	port  atomic.Pointer[meshtest.Port]
	mesh  atomic.Pointer[mesh.Mesh]

	up     atomic.Bool
	upAt   atomic.Int64 // nanoseconds since 1970, of the last start
	downAt atomic.Int64 // and of the last end

	stop context.CancelFunc
	done chan error
}

// Dialable reports whether others can open a path to the node.
func (n *Node) Dialable() bool { return n.dialable }

// Up reports whether the node runs.
func (n *Node) Up() bool { return n.up.Load() }

// Mesh is the node's membership, of its last life when it is down.
func (n *Node) Mesh() *mesh.Mesh { return n.mesh.Load() }

// Load is what the node has sent in all its lives.
func (n *Node) Load() Load { return n.meter.load() }

// knows reports whether the node could have a session with another: it needs that one's key.
func (n *Node) knows(id peer.ID) bool {
	m := n.mesh.Load()
	return m != nil && m.Introduced(id)
}

// record is what the node says about itself: as long as that of a real one with two networks and both address families.
func (n *Node) record() mesh.Record {
	i := byte(n.Index)
	v4 := netip.AddrFrom4([4]byte{192, 0, byte(n.Index >> 8), i})
	v6 := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(n.Index >> 8), 15: i})
	rec := mesh.Record{
		Name:       n.cert.Name(),
		Endpoints:  []netip.AddrPort{netip.AddrPortFrom(v4, 6783), netip.AddrPortFrom(v6, 6783)},
		NoiseEpoch: 1 + n.keys,
		Transports: []string{"wireguard", "vxlan", "sleeve"},
		MTU:        1500,
		Build:      "v0.1.0",
		Hosts:      []netip.Addr{v4, v6},
	}
	copy(rec.Noise[:], n.ID[:])
	copy(rec.WireGuard[:], n.ID[:])
	rec.Noise[31] = byte(n.keys)
	return rec
}

func (n *Node) config(memo *mesh.Memo) mesh.Config {
	return mesh.Config{
		Key: n.key, Cluster: n.world.cluster, Certificate: n.cert, Items: n.items, Records: n.records, Seeds: n.seeds,
		Record: n.record(), Packets: packets{n}, Streams: streams{n}, Store: n.disk,
		Log: slog.New(&listener{node: n}), Memo: memo,
	}
}

// Start lets the node live, with what its disk holds.
func (n *Node) Start() {
	w := n.world
	port := w.net.Port(n.ID)
	n.port.Store(port)
	m, err := mesh.New(n.config(w.memo))
	if err != nil {
		w.fail(err)
		return
	}
	n.items, n.records = nil, nil // on its disk now
	n.sessions.reset(w.Spec.Sparse)
	if old := n.mesh.Swap(m); old != nil {
		c := old.Counters()
		n.past.Pulls += c.Pulls
		n.past.PullsFailed += c.PullsFailed
		n.past.Dropped += c.Dropped
		n.past.News += c.News
	}
	port.Serve(m.ServeStream)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.done = cancel, make(chan error, 1)
	n.upAt.Store(time.Now().UnixNano())
	n.up.Store(true)
	go func() { n.done <- m.Run(ctx) }()
}

// Stop ends the node's life as a power cut does: nobody is told.
func (n *Node) Stop() {
	if !n.up.CompareAndSwap(true, false) {
		return
	}
	n.downAt.Store(time.Now().UnixNano())
	n.port.Load().Close()
	n.stop()
	if err := <-n.done; err != nil {
		n.world.fail(err)
	}
}

// Change makes the node say something new about itself.
func (n *Node) Change() {
	n.keys++
	if err := n.Mesh().Publish(func(r *mesh.Record) { r.NoiseEpoch = 1 + n.keys }); err != nil {
		n.world.fail(err)
	}
}

// listener hears in a mesh's log whom it calls dead, at the moment when it does.
type listener struct{ node *Node }

func (*listener) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (l *listener) WithAttrs([]slog.Attr) slog.Handler         { return l }
func (l *listener) WithGroup(string) slog.Handler              { return l }

func (l *listener) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "peer changed" {
		return nil
	}
	var who peer.ID
	alive := false
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "peer":
			who, _ = a.Value.Any().(peer.ID)
		case "alive":
			alive = a.Value.Bool()
		}
		return true
	})
	l.node.world.told(l.node, who, alive)
	return nil
}

var _ mesh.Appender = (*disk)(nil)

// disk is a mesh.Store that outlives the node.
type disk struct {
	mu      sync.Mutex // guards all below
	values  map[string][]byte
	saves   int
	written int // bytes
}

func (d *disk) Load(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.values[name]), nil
}

func (d *disk) Save(name string, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.saves++
	d.written += len(b)
	d.values[name] = b // the mesh makes it anew for each save
	return nil
}

func (d *disk) Append(name string, size int, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.values[name]) != size {
		return fmt.Errorf("%s has %d bytes, not %d", name, len(d.values[name]), size)
	}
	d.saves++
	d.written += len(b)
	d.values[name] = append(d.values[name], b...)
	return nil
}

func (d *disk) size() (saves, written, held int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := range maps.Values(d.values) {
		held += len(b)
	}
	return d.saves, d.written, held
}
