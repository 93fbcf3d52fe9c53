package sleeve

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"weft/crypto/psk"
	"weft/mesh/peer"
)

// MaxControl is the largest control datagram that Send carries, bytes.
const MaxControl = 1200

// Identity is who this node is to its peers.
type Identity struct {
	ID           peer.ID
	NoisePrivate [32]byte // X25519
	Epoch        uint64   // of the Noise key, as in the node's signed record
	Cluster      [32]byte // prologue of every handshake: another cluster cannot complete one
	// Counter is the first value for the counter in handshake messages. Peers refuse values that they have seen, so
	// whoever sets it keeps on disk what was given, and gives one at least CounterSpan larger to the next engine.
	Counter uint64
}

// CounterSpan is how far apart the Identity.Counter of two engines with one key must be; no engine uses more values.
const CounterSpan = 1 << 32

// Peer is another node of the cluster. Without a secret or an endpoint no session is opened to it; with a secret and
// no endpoint it may still open one to us.
type Peer struct {
	ID          peer.ID
	NoisePublic [32]byte         // X25519
	Endpoints   []netip.AddrPort // candidates, best first
	// Relays are nodes that may carry datagrams to the peer, best first, at most path.MaxRelays are used. Which of them
	// do, and which is best, is measured.
	Relays []peer.ID
	// TCP are addresses where the peer accepts datagrams in a TLS stream (ALPN weft-data/1): tried while neither a
	// datagram nor a relay gets there.
	TCP     []netip.AddrPort
	Secrets []psk.Secret // newest first, at most MaxSecrets are used; none: those that are known stay
	Pinned  bool         // it never sleeps: one of the two carries for the other
}

// MaxSecrets is the number of pair secrets that a peer may have at a time: the new one and the one that it replaces.
const MaxSecrets = 2

// Offload says how the TUN queues were opened.
type Offload struct {
	Vnet bool // IFF_VNET_HDR: each packet stands behind a 10-byte virtio header
	TSO  bool // TUN_F_TSO4 and TUN_F_TSO6 are set: TCP super-packets may be read and written
	USO  bool // TUN_F_USO4 and TUN_F_USO6 are set: UDP super-packets too
}

// Config is what an Engine needs to start. The zero value is valid: an engine without identity that knows nobody.
type Config struct {
	// Deliver gets each control datagram; b belongs to it. It runs on a goroutine of its own: while it blocks, up to
	// 256 datagrams wait, then the oldest are dropped and counted.
	Deliver func(from peer.ID, b []byte)
	// Foreign gets the datagrams of WireGuard's that come to the port, those that came together in one run: size bytes each,
	// back to back, the last may be shorter. The run is lent until it returns, and the worker that reads the socket waits for
	// it. nil: they are dropped as malformed.
	// It answers whether anybody takes any: if not, they are held back as other floods are.
	Foreign func(run []byte, size int, from netip.AddrPort) (taken bool)
	// Dial opens a TLS stream (ALPN weft-data/1) to an address where a peer takes datagrams; nil: none is opened. Nothing
	// depends on who answers.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Log may be nil.
	Log *slog.Logger
}
