package router

import (
	"context"
	"net/netip"
	"time"

	"weft/mesh/peer"
	"weft/router/host"
)

// ErrUnsupported is what a probe answers when this machine lacks what a transport needs. The error that wraps it says
// what is missing and what would help.
var ErrUnsupported = host.ErrUnsupported

// Tunnel is the wanted state of one peer on one transport.
type Tunnel struct {
	Peer     peer.ID
	Endpoint netip.AddrPort // the peer's underlay address and weft port; zero when only the peer can reach us
	Sources  []netip.Addr   // underlay addresses that its packets may come from, for transports that cannot tell otherwise
	Blocks   []netip.Prefix // what the peer owns: where packets to it go, and the only sources accepted from it
	MTU      int            // largest inner packet, bytes
}

// Link is what a transport knows about one tunnel now.
type Link struct {
	Peer     peer.ID
	Up       bool           // the other end answered through this transport within the last 2 s: it bears that much silence
	Endpoint netip.AddrPort // where the peer is heard from; zero when others carry its packets
	Via      []peer.ID      // the peers that carry packets to it, the first one first; empty: none does
	TCP      bool           // packets travel in a TCP stream, since no datagrams pass
	MTU      int            // largest inner packet that passed, bytes; 0 when unknown
	RTT      time.Duration  // smoothed; 0 when unknown
	Loss     float64        // 0 to 1, of recent probes
	LastSeen time.Time      // last authenticated packet
	KeyAge   time.Duration  // of the session key; negative when there is no session or no key
	RxBytes  uint64         // since the transport was opened: inner bytes, or what the transport itself counts
	TxBytes  uint64
	Reason   string        // why it is not up, in words for status; empty when up
	Again    time.Duration // ask again so soon: what packets depend on may change; 0: when there is time
	Asleep   bool          // it is not up for want of traffic: the next packet tells whether the other end answers
}

// usable reports whether packets may be sent by it: one that sleeps is not known to work, and no reason to go elsewhere.
func (l Link) usable() bool { return l.Up || l.Asleep }

// Transport moves inner packets to peers through one network device. Routes decide which packets it gets.
type Transport interface {
	// Apply makes the tunnels exactly want; it may be repeated at any time and touches only what differs.
	Apply(ctx context.Context, want []Tunnel) error
	// Links reports each tunnel of the last Apply.
	Links(ctx context.Context) ([]Link, error)
	// Close removes what Apply made. The router calls it only to take the node off the network: a daemon that ends
	// leaves the tunnels as they are.
	Close() error
}

// Driver makes one kind of transport.
type Driver struct {
	Name      string // as peers and people see it
	Device    string // name of its network device
	Overhead4 int    // bytes added to an inner packet on an IPv4 underlay
	Overhead6 int    // and on an IPv6 underlay
	Sealed    bool   // encrypts by itself; others are used only between subnets that both sides trust
	Checks    bool   // drops by itself what is not from the peer's blocks to ours
	V4Only    bool   // its underlay must be IPv4
	V6Only    bool   // or IPv6
	OwnPort   bool   // has a port of its own, to which one of the two must find a way
	Persists  bool   // works on without the daemon: what a former run left of it is removed where nothing is wanted of it
	// Probe tries the real operation: nil, an error that wraps ErrUnsupported with the reason, or any other error for
	// "cannot tell".
	Probe func(context.Context) error
	// Open makes the transport; the device may already exist from a former run and is then taken over.
	Open func(context.Context) (Transport, error)
	// NextHop names the on-link gateways that routes to the tunnel's blocks need; nil for a device that needs none.
	NextHop func(Tunnel) NextHop
}

// NextHop is a gateway per family; zero where the tunnel has no block of that family.
type NextHop struct{ V4, V6 netip.Addr }
