package ipam

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net/netip"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// Signer is this node's identity key.
type Signer interface {
	ID() peer.ID
	Sign(domain string, msg []byte) []byte
}

// Network is what the allocator needs of the mesh. Its methods are called from several goroutines; Peers and Voters
// answer at once from memory.
type Network interface {
	// Call asks one member and waits for the answer; req and the answer are not kept by either side.
	Call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error)
	// Changed says that Digest has changed, so that others learn of it soon. It returns at once.
	Changed()
	// Peers lists the other members of the cluster, the dead and removed ones too.
	Peers() []peer.Info
	// Voters lists the members that count for a quorum, this node included if it is one.
	Voters() []peer.Voter
}

// Config is what an Allocator is made of. Fields without a comment on a default must be set.
type Config struct {
	Universe *ring.Universe
	Linked6  netip.Prefix // a /96: IPv6 addresses are this prefix followed by the IPv4 address; zero for IPv4 only
	Signer   Signer
	// Keys finds the public key of a member, removed members included: what they granted while they were members stays
	// granted.
	Keys    func(peer.ID) (ed25519.PublicKey, bool)
	Network Network
	Store   Store // owned by the allocator from New on; Run closes it
	Log     *slog.Logger

	Strict      bool          // serve nothing until confirmed, however long that takes
	ConfirmWait time.Duration // how long to ask for confirmation before serving unconfirmed; 0 means 10 s
	CoolFor     time.Duration // how long a released address rests; 0 means 60 s
}

const (
	defaultConfirmWait = 10 * time.Second
	defaultCoolFor     = 60 * time.Second
)
