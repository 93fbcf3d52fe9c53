package sleeve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"weft/crypto/noise"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router"
)

// Errors of Send.
var (
	ErrUnknownPeer = errors.New("unknown peer")
	ErrNoSession   = errors.New("no session with the peer yet")
	ErrTooLarge    = errors.New("control datagram too large")
	ErrNoSocket    = errors.New("no UDP socket for the peer's address family")
)

// Engine is the data plane of the sleeve. All methods may be called from any goroutine, before, during and after Run;
// the setters are idempotent and act on differences only.
//
// One worker reads each socket and each TUN queue and carries a packet to its end; it meets the rest of the engine in
// the atomic snapshots below. One goroutine steps the links when their time comes, one answers handshakes, one delivers
// control datagrams. Locks are taken in the order Engine, remote, directory or lane.
type Engine struct {
	log     *slog.Logger
	start   time.Time // of the engine's clock, which does not follow the wall clock
	foreign func(b []byte, from netip.AddrPort)
	dialer  func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

	node    atomic.Pointer[node]      // nil without an identity
	routes  atomic.Pointer[routes]    // who owns an inner address
	local   atomic.Pointer[bart.Lite] // accepted inner destinations
	sockets atomic.Pointer[sockets]
	tun     atomic.Pointer[tunnel] // nil without a device
	counter atomic.Uint64
	relays  atomic.Bool // others may send through this node
	members atomic.Pointer[members]
	version atomic.Uint64             // of who carries and which streams are open
	others  atomic.Pointer[[]peer.ID] // that carry for anybody, as far as is known
	streams streams

	indexes    directory
	drops      drops
	handshakes handshakes
	controls   controls
	kick       chan struct{} // a link has something to do

	mu       sync.RWMutex // guards what follows
	identity Identity
	peers    map[peer.ID]*remote
	keys     map[[noise.KeySize]byte]*remote
	tunnels  []router.Tunnel
	running  bool
	ended    bool
	ctx      context.Context // of Run
	workers  sync.WaitGroup
	dials    sync.WaitGroup // started by tick, which ends before they are waited for
}

type routes = bart.Table[*remote]

// tunnel is the TUN device; replaced, never changed.
type tunnel struct {
	queues  []*os.File
	offload Offload
}

// New checks the configuration. Nothing runs before Run.
func New(c Config) (*Engine, error) {
	e := &Engine{log: c.Log, foreign: c.Foreign, dialer: c.Dial, start: time.Now(), kick: make(chan struct{}, 1)}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.handshakes.e = e
	e.handshakes.queue, e.handshakes.proven = make(chan knock, handshakeQueue), make(chan knock, provenQueue)
	e.controls = controls{e: e, deliver: c.Deliver, queue: make(chan control, controlQueue)}
	e.routes.Store(new(routes))
	e.local.Store(new(bart.Lite))
	e.members.Store(&members{})
	e.others.Store(new([]peer.ID))
	return e, nil
}

// Run moves packets until ctx ends. It returns when everything that it started has ended and the sockets and queues
// are closed. An engine runs once.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	if e.running || e.ended {
		e.mu.Unlock()
		return errors.New("run sleeve: it has run before")
	}
	e.running, e.ctx = true, ctx
	e.startSockets(e.sockets.Load())
	e.startTUN(e.tun.Load())
	e.workers.Go(func() { e.tick(ctx) })
	e.workers.Go(func() { e.handshakes.run(ctx) })
	e.workers.Go(func() { e.controls.run(ctx) })
	e.mu.Unlock()

	<-ctx.Done()
	e.mu.Lock()
	e.running, e.ended = false, true
	e.closeSockets(e.sockets.Swap(nil))
	e.closeTUN(e.tun.Swap(nil))
	for _, r := range e.peers {
		r.close()
	}
	e.mu.Unlock()
	e.workers.Wait()
	e.dials.Wait()
	return nil
}

// startSockets and startTUN start the workers of new descriptors; the lock is held, so that none starts once Run waits.
func (e *Engine) startSockets(s *sockets) {
	if s == nil || !e.running {
		return
	}
	for _, sock := range []*socket{s.v4, s.v6} {
		if sock != nil {
			e.workers.Go(func() { newInbound(e).run(sock) })
		}
	}
}

func (e *Engine) startTUN(t *tunnel) {
	if t == nil || !e.running {
		return
	}
	for i, f := range t.queues {
		lane := uint8(1 + i%(lanes-1)) // lane 0 is the control lane
		e.workers.Go(func() { newOutbound(e, lane).run(f, t.offload) })
	}
}

func (e *Engine) closeSockets(s *sockets) {
	if s == nil {
		return
	}
	for _, sock := range []*socket{s.v4, s.v6} {
		if sock != nil {
			sock.conn.Close()
		}
	}
}

func (e *Engine) closeTUN(t *tunnel) {
	if t == nil {
		return
	}
	for _, f := range t.queues {
		_ = f.Close()
	}
}

// now is the engine's clock: nanoseconds since it was made, never zero.
func (e *Engine) now() int64 { return e.at(time.Now()) }

func (e *Engine) at(t time.Time) int64 { return int64(t.Sub(e.start)) | 1 }

// wake makes tick look at the links soon.
func (e *Engine) wake() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Bounds of the time between two looks at the links.
const (
	tickMin = 2 * time.Millisecond // however often they are kicked
	tickMax = time.Second          // so that traffic which begins is noticed
)

// tick steps the links when they want to be.
func (e *Engine) tick(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.kick:
			select { // kicks come in bursts
			case <-ctx.Done():
				return
			case <-time.After(tickMin):
			}
		}
		timer.Reset(e.step(time.Now()))
	}
}

// busyFor is how long after its last packet a peer counts as having traffic.
const busyFor = 3 * time.Second

// step steps every link and returns when to do so again.
func (e *Engine) step(now time.Time) time.Duration {
	e.mu.RLock()
	all := make([]*remote, 0, len(e.peers))
	for _, r := range e.peers {
		all = append(all, r)
	}
	e.mu.RUnlock()
	wait := tickMax
	var out []message
	for _, r := range all {
		last := max(r.rx.last.Load(), r.tx.last.Load(), r.carried.last.Load())
		busy := last != 0 && e.at(now)-last < int64(busyFor)
		var next time.Time
		out = out[:0]
		r.mu.Lock()
		if r.closed || r.link.node == nil {
			r.mu.Unlock()
			continue
		}
		out, next = r.link.step(now, busy, out)
		waiting := e.publish(r, now)
		up, _ := r.link.state(now)
		if t := e.reach(r, up, now); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
		r.mu.Unlock()
		e.send(r, out...)
		e.release(waiting)
		if !next.IsZero() {
			wait = min(wait, next.Sub(now))
		}
	}
	return max(wait, tickMin)
}

// publish shows the state of a link to the packet paths and returns the packets that waited for it; its lock is held.
func (e *Engine) publish(r *remote, now time.Time) []queued {
	e.noteCarrier(r, now)
	if !r.publish() {
		return nil
	}
	return r.waiting(e.at(now))
}

// release sends packets that waited for a session.
func (e *Engine) release(waiting []queued) {
	if len(waiting) == 0 {
		return
	}
	o := newOutbound(e, controlLane)
	for _, q := range waiting {
		n := copy(o.in[tunRoom:], q.b)
		o.packet(q.v, o.in, n, e.now())
	}
	o.flush(e.now())
}

// send sends what the link of a peer made.
func (e *Engine) send(r *remote, out ...message) {
	for _, m := range out {
		e.dispatch(r.id, m.to, m.b)
	}
}

// dispatch sends one datagram to a peer along a path.
func (e *Engine) dispatch(to peer.ID, p path.Path, b []byte) {
	if p.Direct() {
		e.datagram(p.Endpoint, b)
		return
	}
	h := e.hop(to, p)
	switch {
	case h == nil:
		e.drops.add(dropSend, 1)
	case h.stream != nil:
		e.drops.add(dropStream, h.stream.put(b, len(b)))
	default:
		s := h.relay.sending.Load()
		if s == nil || s.path.Relayed() {
			e.drops.add(dropSend, 1)
			return
		}
		sealed, err := s.keys.seal(nil, meta{kind: kindRelayed, place: h.leg}, slices.Concat(h.ids, b))
		if err != nil {
			e.drops.add(dropSend, 1)
			return
		}
		e.dispatch(h.relay.id, s.path, sealed)
	}
}

// datagram sends one datagram to an address.
func (e *Engine) datagram(to netip.AddrPort, b []byte) {
	sock := e.sockets.Load().to(to)
	if sock == nil {
		e.drops.add(dropSend, 1)
		return
	}
	if _, err := sock.conn.WriteToUDPAddrPort(b, to); err != nil && !tooBig(err) { // MTU probes may be
		e.drops.add(dropSend, 1)
	}
}

// heard tells a link of a datagram that changes something: keys that are new, or another address.
func (e *Engine) heard(r *remote, k *keys, from path.Path, newest, test bool, now time.Time) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.link.heard(k, from, newest, test, now)
	waiting := e.publish(r, now)
	r.mu.Unlock()
	e.release(waiting)
	e.wake()
}

func (e *Engine) probed(r *remote, k *keys, body []byte, from path.Path) {
	r.mu.Lock()
	out := r.link.probed(k, body, from, nil)
	r.mu.Unlock()
	e.send(r, out...)
}

func (e *Engine) echoed(r *remote, body []byte, from path.Path, now time.Time) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.link.lastHeard = now
	r.link.echoed(body, from, now)
	waiting := e.publish(r, now)
	r.mu.Unlock()
	e.release(waiting)
	e.wake()
}

// route is the peer that owns an inner address, or nil.
func (e *Engine) route(a netip.Addr) *remote {
	r, _ := e.routes.Load().Lookup(a)
	return r
}

// accepts reports whether an inner destination is here.
func (e *Engine) accepts(a netip.Addr) bool { return e.local.Load().Contains(a) }

func (e *Engine) byKey(key [noise.KeySize]byte) *remote {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.keys[key]
}

// readPause is how long a worker waits after an error of its descriptor, so that a lasting one costs nothing.
const readPause = 10 * time.Millisecond

// readFailed decides whether a worker ends.
func (e *Engine) readFailed(what string, err error) (end bool) {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return true
	}
	if errors.Is(err, io.EOF) || deviceGone(err) {
		e.log.Error("descriptor is dead", "what", what, "err", err)
		return true
	}
	e.log.Warn("cannot read", "what", what, "err", err)
	time.Sleep(readPause) //nolint:forbidigo // nothing tells when reading works again
	return false
}

// Send seals one control datagram for a peer, at most MaxControl bytes, and sends it at once. It never waits for a
// session: datagrams may be lost.
func (e *Engine) Send(to peer.ID, b []byte) error {
	if len(b) > MaxControl {
		return fmt.Errorf("send %d bytes to peer %s: %w", len(b), to.Short(), ErrTooLarge)
	}
	e.mu.RLock()
	r := e.peers[to]
	e.mu.RUnlock()
	if r == nil {
		return fmt.Errorf("send to peer %s: %w", to.Short(), ErrUnknownPeer)
	}
	s := r.sending.Load()
	if s == nil {
		return fmt.Errorf("send to peer %s: %w", to.Short(), ErrNoSession)
	}
	sealed, err := s.keys.seal(make([]byte, 0, overhead+len(b)), meta{kind: kindControl}, b)
	if err != nil {
		return fmt.Errorf("send to peer %s: %w", to.Short(), err)
	}
	if err := e.sealed(r, s, sealed); err != nil {
		r.drops.add(dropSend, 1)
		return fmt.Errorf("send to peer %s: %w", to.Short(), err)
	}
	r.tx.last.Store(e.now())
	return nil
}

// sealed sends one sealed datagram where the peer's packets go.
func (e *Engine) sealed(r *remote, s *sending, b []byte) error {
	if s.hop != nil {
		e.dispatch(r.id, s.path, b)
		return nil
	}
	sock := e.sockets.Load().to(s.to)
	if sock == nil {
		return ErrNoSocket
	}
	_, _, err := sock.conn.WriteMsgUDPAddrPort(b, nil, s.to)
	return err
}
