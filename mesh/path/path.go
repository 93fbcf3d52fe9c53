package path

import (
	"net/netip"

	"weft/mesh/peer"
)

// Limits of one pair.
const (
	MaxRelays = 4 // relays of a peer that are considered
	MaxHops   = 2 // relays on one path
	MaxPunch  = 8 // addresses of one Punch
)

// Path is one way to a peer. It is comparable; the zero value is no path.
type Path struct {
	Endpoint netip.AddrPort   // of the peer on the underlay; zero when relayed
	TCP      bool             // datagrams travel in a TLS stream with Endpoint
	Via      [MaxHops]peer.ID // who carries datagrams, the first one first; zero: nobody
}

// Direct is the path of plain datagrams to an address.
func Direct(to netip.AddrPort) Path { return Path{Endpoint: to} }

// Stream is the path through a TLS stream with an address.
func Stream(to netip.AddrPort) Path { return Path{Endpoint: to, TCP: true} }

// Through is the path by one or two relays.
func Through(first peer.ID, rest ...peer.ID) Path {
	p := Path{Via: [MaxHops]peer.ID{first}}
	copy(p.Via[1:], rest)
	return p
}

// Relayed reports whether others carry the datagrams.
func (p Path) Relayed() bool { return !p.Via[0].IsZero() }

// Direct reports whether plain datagrams go straight to the peer.
func (p Path) Direct() bool { return p.Endpoint.IsValid() && !p.TCP && !p.Relayed() }

// Overhead is by how many bytes an inner packet must be smaller than on a direct path: each relayed datagram is sealed
// once more, and says to whom it goes.
func (p Path) Overhead() int {
	switch {
	case !p.Via[1].IsZero():
		return relayed + 2*peer.IDSize
	case p.Relayed():
		return relayed + peer.IDSize
	}
	return 0
}

// relayed is the overhead of a sealed datagram.
const relayed = 32

// IsZero reports whether p is no path.
func (p Path) IsZero() bool { return p == Path{} }

// Relays are those that carry, the first one first.
func (p Path) Relays() []peer.ID {
	var ids []peer.ID
	for _, id := range p.Via {
		if !id.IsZero() {
			ids = append(ids, id)
		}
	}
	return ids
}

// String is the path for logs: the address, tcp and the address, or the relays.
func (p Path) String() string {
	switch {
	case !p.Via[1].IsZero():
		return "via " + p.Via[0].Short() + " and " + p.Via[1].Short()
	case p.Relayed():
		return "via " + p.Via[0].Short()
	case p.TCP:
		return "tcp " + p.Endpoint.String()
	case p.Endpoint.IsValid():
		return p.Endpoint.String()
	}
	return "none"
}

// State is what is known about a path. Numbers and names are only ever added: status shows them, the wire's control
// socket carries them.
type State uint8

// The states.
const (
	Untried State = iota // no probe was sent on it yet
	Probing              // probes are under way and none was answered yet
	Works                // answered lately
	Suspect              // two answers are missing, or packets of full size are lost
	Dead                 // nothing was answered for 5 s
	states
)

var stateNames = [states]string{"untried", "probing", "works", "suspect", "dead"}

// String is the name for status.
func (s State) String() string {
	if s >= states {
		return "unknown"
	}
	return stateNames[s]
}
