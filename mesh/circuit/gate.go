package circuit

import (
	"net"
	"net/netip"
	"sync"

	"weft/mesh/peer"
)

// gate counts what is under way, against the limits of the package.
type gate struct {
	mu         sync.Mutex
	handshakes int
	joins      int
	circuits   int
	sources    map[netip.Prefix]int // handshakes by source
	peers      map[peer.ID]int      // circuits by peer
	carried    int
	splices    map[peer.ID]int // streams carried, by who asked
}

func newGate() gate {
	return gate{sources: map[netip.Prefix]int{}, peers: map[peer.ID]int{}, splices: map[peer.ID]int{}}
}

// brought is where a stream comes from that a relay brings: nowhere, so that only the limit of all handshakes counts.
var brought netip.AddrPort

// enter takes a place for a handshake.
func (g *gate) enter(from netip.AddrPort) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := network(from)
	if g.handshakes >= MaxHandshakes || p.IsValid() && g.sources[p] >= MaxHandshakesSource {
		return false
	}
	g.handshakes++
	g.sources[p]++
	return true
}

func (g *gate) leave(from netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handshakes--
	release(g.sources, network(from))
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
