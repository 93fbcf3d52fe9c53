package weftd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/prog/wire"
	"weft/router"
)

const (
	wireTellTime  = 5 * time.Second // for the wire to take a setting
	wireRetryMin  = 50 * time.Millisecond
	wireRetryMax  = 5 * time.Second
	wireHealthy   = 10 * time.Second // a wire that lived this long is started again without delay
	wireDisplaced = 3                // times, then this daemon gives way
	wireStopTime  = 3 * time.Second
	wireLinksTime = time.Second
)

// wirelink keeps a wire running and told. What is wanted is kept here and pushed to every wire that it attaches to, so
// that the rest of the daemon never sees one wire die and another be born.
//
//	none -> attached -> told -> (wire dies) none -> ...
type wirelink struct {
	log      *slog.Logger
	options  wire.Options
	identity func(started bool) (wire.Identity, error)
	equip    func(ctx context.Context, c *wire.Client) error // gives the descriptors that this wire lacks

	telling sync.Mutex // held while a wire is told; guards what is wanted, nil while not yet known
	peers   []wire.Peer
	tunnels []router.Tunnel
	local   []netip.Prefix
	relay   *bool
	sparse  *wire.Sparse
	keys    map[[32]byte]peer.ID     // owners of sleeve keys, as the wire was told last
	blocks  map[netip.Prefix]peer.ID // owners of blocks, likewise
	liars   map[peer.ID]peer.ID      // members that were left out, and whose key they claim

	mu     sync.Mutex    // guards all below; never held while something waits
	client *wire.Client  // nil while there is none that was told
	turned chan struct{} // closed when client changes
	starts int           // how many wires were attached to
	over   bool          // stopped on purpose: no wire is started any more
	failed error         // why there is no client; nil while there is one
}

func newWirelink(log *slog.Logger, o wire.Options) *wirelink {
	return &wirelink{log: log, options: o, turned: make(chan struct{})}
}

// run attaches, equips and tells, again and again, until ctx ends.
func (l *wirelink) run(ctx context.Context) error {
	wait, displaced := wireRetryMin, 0
	for ctx.Err() == nil && !l.ended() {
		began := time.Now()
		err := l.serve(ctx)
		if ctx.Err() != nil || l.ended() {
			break
		}
		if errors.Is(err, wire.ErrDisplaced) {
			// Once it may be the last word of a daemon that was killed while it attached. Again and again it is one that
			// lives: two would tear the wire to and fro.
			if displaced++; displaced == wireDisplaced {
				return err
			}
		}
		l.log.Warn("wire lost", "err", err)
		l.mu.Lock()
		l.failed = err
		l.mu.Unlock()
		if time.Since(began) > wireHealthy {
			wait = wireRetryMin
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, wireRetryMax)
	}
	<-ctx.Done() // a wire that was stopped on purpose is not missed
	return nil   //nolint:nilerr // what ended the last wire is logged; this is how the task is told to end
}

// serve lives as long as one attachment to a wire. On the way out the wire is left running.
func (l *wirelink) serve(ctx context.Context) error {
	c, err := wire.Ensure(ctx, l.options)
	if err != nil {
		return err
	}
	defer c.Close()
	id, err := l.identity(c.Started())
	if err != nil {
		return err
	}
	tell, cancel := context.WithTimeout(ctx, 2*wireTellTime)
	defer cancel()
	if err := c.SetIdentity(tell, id); err != nil {
		return fmt.Errorf("tell wire its identity: %w", err)
	}
	if err := l.equip(tell, c); err != nil {
		return err
	}
	if err := l.adopt(tell, c); err != nil {
		return err
	}
	defer l.turn(nil)
	l.log.Info("wire attached", "started", c.Started(), "pid", c.Hello().PID)
	return l.attend(ctx, c)
}

// adopt pushes all that is wanted and makes c the client. A change that comes meanwhile waits, and then goes to c. What
// is not known yet is not pushed: a wire that was taken over keeps its sessions until the daemon knows better.
func (l *wirelink) adopt(ctx context.Context, c *wire.Client) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	var err error
	if l.local != nil {
		err = c.SetLocal(ctx, l.local)
	}
	if l.sparse != nil { // before the peers: see node.tellSparse
		err = errors.Join(err, tellSparse(ctx, c, *l.sparse))
	}
	if l.peers != nil {
		sessions := peer.Set{}
		for _, link := range c.Hello().Peers {
			if link.KeyAge >= 0 && !link.LastSeen.IsZero() {
				sessions.Add(link.Peer)
			}
		}
		err = errors.Join(err, l.tellPeers(ctx, c, func(p wire.Peer) bool { return sessions.Has(p.ID) }))
	}
	if l.tunnels != nil {
		err = errors.Join(err, l.tellTunnels(ctx, c))
	}
	if l.relay != nil {
		err = errors.Join(err, tellRelay(ctx, c, *l.relay))
	}
	if err != nil {
		return fmt.Errorf("tell wire what is wanted: %w", err)
	}
	l.turn(c)
	return nil
}

// turn makes c the client, or nobody.
func (l *wirelink) turn(c *wire.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client = c; c != nil {
		l.starts++
		l.failed = nil
	}
	close(l.turned)
	l.turned = make(chan struct{})
}

// current is the client, or nil; the channel closes when that is no longer so.
func (l *wirelink) current() (*wire.Client, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client, l.turned
}

// next waits for a client other than old.
func (l *wirelink) next(ctx context.Context, old *wire.Client) (*wire.Client, error) {
	for {
		c, turned := l.current()
		if c != nil && c != old {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-turned:
		}
	}
}

// tell keeps what keep stores and does it to the wire, if there is one; if not, the next one is told.
func (l *wirelink) tell(ctx context.Context, keep func(), do func(context.Context, *wire.Client) error) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	keep()
	c, _ := l.current()
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wireTellTime)
	defer cancel()
	err := do(ctx, c)
	if errors.Is(err, wire.ErrLost) {
		return nil
	}
	return err
}

// SetPeers makes the sessions' peers exactly these, the most senior first: see ownKeys.
func (l *wirelink) SetPeers(ctx context.Context, peers []wire.Peer) error {
	if peers == nil {
		peers = []wire.Peer{}
	}
	return l.tell(ctx, func() { l.peers = peers }, func(ctx context.Context, c *wire.Client) error {
		return l.tellPeers(ctx, c, func(p wire.Peer) bool { return l.keys[p.NoisePublic] == p.ID })
	})
}

// tellPeers settles who owns which key, and tells; telling is held.
func (l *wirelink) tellPeers(ctx context.Context, c *wire.Client, holds func(wire.Peer) bool) error {
	kept, liars := ownKeys(l.peers, holds)
	for id, owner := range liars {
		if l.liars[id] != owner {
			l.log.Warn("member left out: it claims the sleeve key of another", "peer", id, "owner", owner)
		}
	}
	if err := c.SetPeers(ctx, kept); err != nil {
		return err
	}
	l.liars, l.keys = liars, make(map[[32]byte]peer.ID, len(kept))
	for _, p := range kept {
		l.keys[p.NoisePublic] = p.ID
	}
	return nil
}

// SetTunnels makes the sleeve's tunnels exactly these: see ownBlocks.
func (l *wirelink) SetTunnels(ctx context.Context, tunnels []router.Tunnel) error {
	if tunnels == nil {
		tunnels = []router.Tunnel{}
	}
	return l.tell(ctx, func() { l.tunnels = tunnels }, l.tellTunnels)
}

// tellTunnels settles who owns which block, and tells; telling is held.
func (l *wirelink) tellTunnels(ctx context.Context, c *wire.Client) error {
	kept, owners := ownBlocks(l.tunnels, l.blocks)
	if err := c.SetTunnels(ctx, kept); err != nil {
		return err
	}
	l.blocks = owners
	return nil
}

// SetLocal says which inner destinations are ours.
func (l *wirelink) SetLocal(ctx context.Context, local []netip.Prefix) error {
	if local == nil {
		local = []netip.Prefix{}
	}
	l.log.Debug("tell wire", "what", "local", "count", len(local))
	return l.tell(ctx, func() { l.local = local },
		func(ctx context.Context, c *wire.Client) error { return c.SetLocal(ctx, local) })
}

// SetRelay says whether packets of others are carried.
func (l *wirelink) SetRelay(ctx context.Context, on bool) error {
	return l.tell(ctx, func() { l.relay = &on }, func(ctx context.Context, c *wire.Client) error { return tellRelay(ctx, c, on) })
}

// tellRelay bears a wire of an older weft, which carries nothing.
func tellRelay(ctx context.Context, c *wire.Client, on bool) error {
	if err := c.SetRelay(ctx, on); !errors.Is(err, wire.ErrUnsupported) {
		return err
	}
	return nil
}

// Punch sends a burst to addresses of a peer. A wire of an older weft cannot, and is replaced with the next upgrade.
func (l *wirelink) Punch(ctx context.Context, to peer.ID, at []netip.AddrPort) error {
	c, _ := l.current()
	if c == nil {
		return wire.ErrLost
	}
	ctx, cancel := context.WithTimeout(ctx, wireTellTime)
	defer cancel()
	return c.Punch(ctx, to, at)
}

// Links asks the wire what it knows about its peers; without a wire nothing is known.
func (l *wirelink) Links(ctx context.Context) ([]router.Link, error) {
	c, _ := l.current()
	if c == nil {
		return nil, wire.ErrLost
	}
	ctx, cancel := context.WithTimeout(ctx, wireLinksTime)
	defer cancel()
	return c.Links(ctx)
}

// stats asks for links and counters.
func (l *wirelink) stats(ctx context.Context) (wire.Stats, error) {
	c, _ := l.current()
	if c == nil {
		return wire.Stats{}, wire.ErrLost
	}
	ctx, cancel := context.WithTimeout(ctx, wireLinksTime)
	defer cancel()
	return c.Stats(ctx)
}

// Send passes a datagram to a peer's daemon. Without a wire it is lost, as datagrams may be.
func (l *wirelink) Send(to peer.ID, b []byte) error {
	c, _ := l.current()
	if c == nil {
		return wire.ErrLost
	}
	return c.Send(to, b)
}

// Receive waits for a datagram of a peer's daemon, through all wires that come and go.
func (l *wirelink) Receive(ctx context.Context) (peer.ID, []byte, error) {
	var c *wire.Client
	for {
		var err error
		if c, err = l.next(ctx, c); err != nil {
			return peer.ID{}, nil, err
		}
		from, b, err := c.Receive(ctx)
		if err == nil {
			return from, b, nil
		}
		if ctx.Err() != nil {
			return peer.ID{}, nil, ctx.Err()
		}
	}
}

// Accept waits for a TCP connection to the weft port.
func (l *wirelink) Accept(ctx context.Context) (net.Conn, error) {
	var c *wire.Client
	for {
		var err error
		if c, err = l.next(ctx, c); err != nil {
			return nil, err
		}
		conn, err := c.Accept(ctx)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// stop ends the wire, and no other is started: for `weft down` and `weft leave`. A daemon that stops for any other reason
// leaves it. Where none is attached just now there is nothing to stop here; the socket tells whether one runs.
func (l *wirelink) stop(ctx context.Context) error {
	l.mu.Lock()
	l.over = true
	c := l.client
	l.mu.Unlock()
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wireStopTime)
	defer cancel()
	return c.Stop(ctx)
}

// ended reports whether stop was called.
func (l *wirelink) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// trouble is why no wire is attached; nil when one is, or when it is too early to say.
func (l *wirelink) trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// attached counts the wires that there were.
func (l *wirelink) attached() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.starts
}
