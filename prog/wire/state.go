package wire

import (
	"net/netip"
	"time"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/sleeve"
)

// Identity is who this node is on the sleeve. It holds the short-lived Noise key only; the node's identity key stays
// in weftd. A new weftd that pushes the same Identity tears no session, so it keeps the Noise key across its restarts.
type Identity = sleeve.Identity

// Peer is the wanted state of one peer's session.
type Peer = sleeve.Peer

// Sparse says whether sessions are opened by traffic.
type Sparse = sleeve.Sparse

// TUN says which device's queues are handed to the wire, and how they were opened.
type TUN struct {
	Name    string
	Offload sleeve.Offload
}

// Held is what a wire has in its hands, so that a new weftd opens only what is missing.
type Held struct {
	UDP    []netip.AddrPort // local addresses of the sockets
	TCP    []netip.AddrPort // local addresses of the listeners
	TUN    TUN              // Name is empty when there is none
	Queues int              // of the TUN device
}

// Hello is how a wire introduces itself to the weftd that attaches.
type Hello struct {
	Version    string // the program's build
	PID        int
	Started    time.Time
	Generation uint64  // counts the changes of desired state since the wire started
	Identity   peer.ID // zero until told
	Held       Held
	Peers      []router.Link // what is known about each peer
}

// Datagram is a control datagram from one weftd to another.
type Datagram struct {
	Peer peer.ID // who sent it, or who is to get it
	Data []byte
}

// Stats is what the wire knows about itself and its peers.
type Stats struct {
	sleeve.Stats
	Counters Counters
}

// Counters are those of the process around the engine, since its start.
type Counters struct {
	Attached         uint64 // controllers that were let in
	Refused          uint64 // connections to the control socket that were not
	DatagramsDropped uint64 // received, but not fetched by a weftd in time
	DatagramsFailed  uint64 // from weftd, that the engine could not send
	AcceptedPassed   uint64 // TCP connections handed to weftd
	AcceptedClosed   uint64 // TCP connections closed because no weftd could take them
	Malformed        uint64 // control frames that could not be read
}
