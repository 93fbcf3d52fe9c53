package sleeve

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"weft/crypto/noise"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/sparse"
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
	foreign func(run []byte, size int, from netip.AddrPort) (taken bool)
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

	heardUDP atomic.Bool // a peer has answered a datagram
	night    nightwatch

	indexes    directory
	drops      drops
	gone       drops // of peers that are peers no more
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
	e.handshakes.limits = newLimits()
	e.handshakes.sieve.rung = make(chan struct{}, 1)
	e.controls = controls{e: e, deliver: c.Deliver, queue: make(chan control, controlQueue)}
	e.routes.Store(new(routes))
	e.local.Store(new(bart.Lite))
	e.members.Store(&members{})
	e.others.Store(new([]peer.ID))
	e.night.book = sparse.New(0)
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
	e.noteUDP(from)
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
