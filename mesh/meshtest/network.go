// Package meshtest is a network in memory: datagrams and streams between NodeIDs with delay, loss and cuts, for tests of
// package mesh and of what stands on it, in testing/synctest or in real time. A Port is what one node sees of it; it is
// the mesh's Packets and Streams. There is no authentication, no address and no NAT.
package meshtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"weft/mesh/peer"
)

const (
	inboxSize  = 1024                   // datagrams that wait at a node; more are dropped
	retransmit = 200 * time.Millisecond // what a lost piece of a stream costs
	redial     = 500 * time.Millisecond // between attempts to open a stream
)

// Conditions of all paths.
type Conditions struct {
	Delay  time.Duration // one way
	Jitter time.Duration // added at random; datagrams overtake each other
	Loss   float64       // 0 to 1, of datagrams; streams are delayed instead
}

// Network connects ports.
type Network struct {
	ctx    context.Context
	cancel context.CancelFunc
	served sync.WaitGroup

	mu    sync.Mutex // guards all below
	rand  *rand.Rand
	cond  Conditions
	ports map[peer.ID]*Port
	cut   map[[2]peer.ID]struct{}
	stats Stats
}

// Stats are counters since New.
type Stats struct {
	Datagrams uint64 // sent
	Bytes     uint64 // in datagrams sent
	Lost      uint64 // by chance, cuts and full inboxes
	Dials     uint64 // of streams, answered or not
	Streams   uint64 // opened
}

// New makes a network without nodes. The seed decides what is lost.
func New(c Conditions, seed uint64) *Network {
	ctx, cancel := context.WithCancel(context.Background())
	return &Network{
		ctx:    ctx,
		cancel: cancel,
		rand:   rand.New(rand.NewPCG(seed, 0)),
		cond:   c,
		ports:  map[peer.ID]*Port{},
		cut:    map[[2]peer.ID]struct{}{},
	}
}

// Close ends every stream and waits for those who serve them.
func (n *Network) Close() {
	n.cancel()
	n.mu.Lock()
	var ports []*Port
	for _, p := range n.ports {
		ports = append(ports, p)
	}
	n.mu.Unlock()
	for _, p := range ports {
		p.Close()
	}
	n.served.Wait()
}

// Set changes the conditions of all paths.
func (n *Network) Set(c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cond = c
}

// Stats reads the counters.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// CutOneWay loses everything from one node to another.
func (n *Network) CutOneWay(from, to peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]peer.ID{from, to}] = struct{}{}
}

// Split loses everything between two groups.
func (n *Network) Split(a, b []peer.ID) {
	for _, x := range a {
		for _, y := range b {
			n.CutOneWay(x, y)
			n.CutOneWay(y, x)
		}
	}
}

// Mend ends all cuts.
func (n *Network) Mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// isCut is called with the lock held.
func (n *Network) isCut(from, to peer.ID) bool {
	_, ok := n.cut[[2]peer.ID{from, to}]
	return ok
}

// delay is called with the lock held.
func (n *Network) delay() time.Duration {
	d := n.cond.Delay
	if n.cond.Jitter > 0 {
		d += time.Duration(n.rand.Int64N(int64(n.cond.Jitter)))
	}
	return d
}

// lose is called with the lock held.
func (n *Network) lose() bool { return n.cond.Loss > 0 && n.rand.Float64() < n.cond.Loss }

// Serve is called for each stream that arrives, and owns it.
type Serve func(ctx context.Context, from peer.ID, kind byte, conn net.Conn)

// Port is a node's place in the network.
type Port struct {
	net    *Network
	id     peer.ID
	ctx    context.Context
	cancel context.CancelFunc
	inbox  chan datagram

	mu    sync.Mutex // guards all below
	serve Serve
	conns map[*Conn]struct{}
}

type datagram struct {
	from peer.ID
	b    []byte
}

// Port makes a node's place, instead of the one that it had.
func (n *Network) Port(id peer.ID) *Port {
	ctx, cancel := context.WithCancel(n.ctx)
	p := &Port{
		net:    n,
		id:     id,
		ctx:    ctx,
		cancel: cancel,
		inbox:  make(chan datagram, inboxSize),
		conns:  map[*Conn]struct{}{},
	}
	n.mu.Lock()
	old := n.ports[id]
	n.ports[id] = p
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return p
}

// Serve says who gets the streams that arrive. Before, they are refused.
func (p *Port) Serve(s Serve) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serve = s
}

// Close takes the node off the network: streams end, dials to it are refused, datagrams are lost.
func (p *Port) Close() {
	p.cancel()
	p.mu.Lock()
	open := make([]*Conn, 0, len(p.conns))
	for c := range p.conns {
		open = append(open, c)
	}
	p.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// Send loses the datagram or delivers a copy later.
func (p *Port) Send(to peer.ID, b []byte) error {
	if p.ctx.Err() != nil {
		return net.ErrClosed
	}
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.Datagrams++
	n.stats.Bytes += uint64(len(b))
	if n.isCut(p.id, to) || n.lose() {
		n.stats.Lost++
		return nil
	}
	d := datagram{p.id, append([]byte(nil), b...)}
	time.AfterFunc(n.delay(), func() { n.deliver(to, d) })
	return nil
}

func (n *Network) deliver(to peer.ID, d datagram) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.ports[to]
	if p == nil || p.ctx.Err() != nil {
		n.stats.Lost++
		return
	}
	select {
	case p.inbox <- d:
	default:
		n.stats.Lost++
	}
}

// Receive waits for a datagram.
func (p *Port) Receive(ctx context.Context) (peer.ID, []byte, error) {
	select {
	case d := <-p.inbox:
		return d.from, d.b, nil
	case <-ctx.Done():
		return peer.ID{}, nil, ctx.Err()
	case <-p.ctx.Done():
		return peer.ID{}, nil, net.ErrClosed
	}
}

// Dial opens a stream. While there is a cut it keeps trying, as TCP does.
func (p *Port) Dial(ctx context.Context, to peer.ID, kind byte) (net.Conn, error) {
	p.net.mu.Lock()
	p.net.stats.Dials++
	p.net.mu.Unlock()
	for {
		wait, err := p.attempt(to)
		if err != nil {
			return nil, err
		}
		reached := wait > 0
		if !reached {
			wait = redial
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-p.ctx.Done():
			t.Stop()
			return nil, net.ErrClosed
		}
		if reached {
			return p.open(to, kind)
		}
	}
}

// attempt answers the time of a round trip, 0 when there is a cut.
func (p *Port) attempt(to peer.ID) (time.Duration, error) {
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.isCut(p.id, to) || n.isCut(to, p.id) || n.lose() {
		return 0, nil
	}
	if q := n.ports[to]; q == nil || q.ctx.Err() != nil {
		return 0, fmt.Errorf("dial %s: connection refused", to.Short())
	}
	return max(1, n.delay()+n.delay()), nil
}

func (p *Port) open(to peer.ID, kind byte) (net.Conn, error) {
	n := p.net
	n.mu.Lock()
	q := n.ports[to]
	n.stats.Streams++
	n.mu.Unlock()
	if q == nil || q.ctx.Err() != nil {
		return nil, fmt.Errorf("dial %s: connection refused", to.Short())
	}
	q.mu.Lock()
	serve := q.serve
	q.mu.Unlock()
	if serve == nil {
		return nil, fmt.Errorf("dial %s: nobody serves streams there", to.Short())
	}
	near, far := newConns(p, q)
	if !p.keep(near) || !q.keep(far) {
		near.Close()
		far.Close()
		return nil, errors.New("connection reset")
	}
	n.served.Go(func() { serve(q.ctx, p.id, kind, far) })
	return near, nil
}

func (p *Port) keep(c *Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
	return p.ctx.Err() == nil
}

func (p *Port) forget(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}
