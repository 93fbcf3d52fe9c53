package circuit

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"weft/mesh/lobby"
	"weft/mesh/peer"
)

// gate counts what is under way, against the limits of the package. Handshakes that relays bring have rooms of their own: a
// relay is a member, but may bring whatever it likes.
type gate struct {
	handshakes *lobby.Lobby[netip.Prefix] // by where they come from
	brought    *lobby.Lobby[peer.ID]      // by relay

	mu       sync.Mutex // guards what follows
	joins    int
	circuits int
	peers    map[peer.ID]int // circuits by peer
	carried  int
	splices  map[peer.ID]int // streams carried, by who asked
}

func newGate() gate {
	return gate{
		handshakes: lobby.New[netip.Prefix](lobby.Limits{All: MaxHandshakes, Each: MaxHandshakesSource, Patience: handshakePatience}),
		brought:    lobby.New[peer.ID](lobby.Limits{All: MaxHandshakes, Each: MaxHandshakesRelay, Patience: handshakePatience}),
		peers:      map[peer.ID]int{}, splices: map[peer.ID]int{},
	}
}

// enter takes a place for a handshake, until leave is called. raw is closed if it must make room for another one.
func (g *gate) enter(from origin, raw io.Closer) (leave func(), ok bool) {
	if from.relay.IsZero() {
		return in(g.handshakes, network(from.at), raw)
	}
	return in(g.brought, from.relay, raw)
}

func in[P comparable](l *lobby.Lobby[P], from P, raw io.Closer) (leave func(), ok bool) {
	c := l.Enter(from, time.Now(), func() { _ = raw.Close() })
	if c == nil {
		return nil, false
	}
	return func() { l.Leave(c) }, true
}

// enterPeer takes a place for a circuit.
func (g *gate) enterPeer(id peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.circuits >= MaxCircuits || g.peers[id] >= MaxCircuitsPeer {
		return false
	}
	g.circuits++
	g.peers[id]++
	return true
}

func (g *gate) leavePeer(id peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.circuits--
	release(g.peers, id)
}

// enterSplice takes a place for a stream that is carried for a peer.
func (g *gate) enterSplice(id peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.carried >= MaxSplices || g.splices[id] >= MaxSplicesPeer {
		return false
	}
	g.carried++
	g.splices[id]++
	return true
}

func (g *gate) leaveSplice(id peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.carried--
	release(g.splices, id)
}

func (g *gate) enterJoin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.joins >= MaxJoins {
		return false
	}
	g.joins++
	return true
}

func (g *gate) leaveJoin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.joins--
}

func release[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}

// source is where a connection comes from; the zero value when it has no such address (a pipe).
func source(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// network is what one household of the Internet can come from: an IPv4 address, an IPv6 /64.
func network(from netip.AddrPort) netip.Prefix {
	bits := 32
	if from.Addr().Is6() {
		bits = 64
	}
	p, _ := from.Addr().Prefix(bits)
	return p
}
