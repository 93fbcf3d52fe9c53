package ipam

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"weft/ipam/ring"
	"weft/ipam/space"
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
	// Call asks one member and waits for the answer; req and the answer are not kept by either side. A removed member may
	// be called too: where that is possible it learns that it was removed.
	Call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error)
	// Changed says that Digest has changed, so that others learn of it soon. News, where there is any, is all of the change
	// in a form that their Merge takes; it is not changed later. It returns at once.
	Changed(news []byte)
	// Peers lists the other members of the cluster, the dead and removed ones too. The list is shared: nobody changes it.
	Peers() []peer.Info
	// Voters lists the members that count for a quorum, this node included if it is one. It makes no difference whether
	// removed ones are among them.
	Voters() []peer.Voter
}

// Roster is what the allocator needs of the signed facts about membership. Its methods are called from several
// goroutines and answer at once from memory.
type Roster interface {
	// Removals lists everybody who was removed, this node too. It only grows.
	Removals() []Removal
	// Issuers lists the members that may admit and remove now, this node too if it is one.
	Issuers() []peer.ID
	// Issued reports whether id holds or once held the right to admit and remove, removed members included: what it wrote
	// while it had the right stays written.
	Issued(id peer.ID) bool
	// Joining lists the members-to-be that this node has promised to admit and whose certificates it has not seen; of each
	// only ID, JoinSeq and Ephemeral count.
	Joining() []peer.Info

	// Summary, Delta and Merge bring another node's facts here: Delta is at least a part of what a node with that summary
	// lacks, and Merge takes its good parts durably. An error of Merge says that something of it is still unknown here.
	Summary() []byte
	Delta(summary []byte) []byte
	Merge(delta []byte) error
}

// Removal is the signed end of a membership, as far as it matters here.
type Removal struct {
	Node   peer.ID
	Left   bool // the node says so itself, and had stopped before it said so
	Stolen bool // its disk is in the wrong hands: nobody waits for it to stop
	Silent bool // nobody heard it for long: its addresses have rested enough
	// Incarnation is the newest start of the node that whoever signed knew of; 0 when that is not said. A later one means
	// that the node came up again.
	Incarnation uint64
}

// Config is what an Allocator is made of. Fields without a comment on a default must be set.
type Config struct {
	Universe *ring.Universe
	Linked6  netip.Prefix // a /96: IPv6 addresses are this prefix followed by the IPv4 address; zero for one family only
	Signer   Signer
	// Keys finds the public key of a member, removed members included: what they granted while they were members stays
	// granted.
	Keys    func(peer.ID) (ed25519.PublicKey, bool)
	Network Network
	Roster  Roster
	Store   Store // owned by the allocator from New on; Run closes it
	Log     *slog.Logger

	Strict      bool          // serve nothing until confirmed, however long that takes
	ConfirmWait time.Duration // how long to ask for confirmation before serving unconfirmed; 0 means 10 s
	CoolFor     time.Duration // how long a released address rests; 0 means 60 s
	// Lingers reports whether an address that was released may still be on an interface: it rests until that has gone. It
	// answers at once. nil: none is.
	Lingers   func(netip.Addr) bool
	CoolTaken time.Duration // how long a block rests that was taken over from a removed member; 0 means 1 h
	Silence   time.Duration // how long a removed member that came up again must not be heard; 0 means 15 min

	Verify ring.Verifier // of signatures; nil means Ed25519 with Keys
	Random func() uint64 // for names of requests and starts; nil means the system's
	// Now is the clock, by which nothing but waits is measured: setting what it shows of the day changes nothing. nil means
	// time.Now.
	Now    func() time.Time
	Weaken Weakness // zero in every program; tests must find what each of these breaks
}

// checkPools refuses pools that this allocator cannot give from. A claim has one address of a pool, so that it is durable in
// one step and its blocks have one owner; two families of pools would need two.
func (cfg *Config) checkPools() error {
	pools := cfg.Universe.Pools()
	six := pools[0].Prefix.Addr().Is6()
	for _, p := range pools {
		if p.Prefix.Addr().Is6() != six {
			return fmt.Errorf("pools %s and %s: the pools of one cluster are IPv4 or IPv6; pods of IPv4 pools have linked IPv6 "+
				"addresses", pools[0].Prefix, p.Prefix)
		}
	}
	switch linked := cfg.Linked6; {
	case !linked.IsValid():
	case six:
		return fmt.Errorf("linked IPv6 prefix %s: pool %s is IPv6 itself", linked, pools[0].Prefix)
	case linked.Bits() != space.LinkedBits || !linked.Addr().Is6():
		return fmt.Errorf("linked IPv6 prefix %s: want a /%d", linked, space.LinkedBits)
	}
	return nil
}

const (
	defaultConfirmWait = 10 * time.Second
	defaultCoolFor     = 60 * time.Second
	defaultCoolTaken   = time.Hour
	defaultSilence     = 15 * time.Minute
)

// Weakness is a set of rules that an allocator does not follow.
type Weakness uint32

// The rules, by what goes without them. Zero follows all.
const (
	WithoutFence       Weakness = 1 << iota // blocks of removed members are taken over at once, and nobody is asked (R10)
	WithoutRefusal                          // what a removed member wrote is taken from others after the promise too (R9)
	WithoutSync                             // a start is confirmed at once (R4)
	WithoutIncarnation                      // promises do not look at what the removed member did since (R7)
	WithoutDisk                             // a grant is sent before it is durable (R1)
	WithoutQuorum                           // survivors need not be a quorum (R10)
	WithoutNumbers                          // a number is promised more than once (R6)
	WithoutMinority                         // promises of most survivors are enough (R10)
	WithoutClosure                          // the rosters of those who promise do not count (R10)
	WithoutMemory                           // the next promise forgets who was refused before (R9)
	WithoutSyncRefusal                      // answers to sync are taken without refusal (R9)
	WithoutSyncRoster                       // answers to sync bring no roster (R4)
	WithoutRecount                          // whoever is removed during a round need not be named (R10)
	WithoutTeaching                         // who has joined counts before it knows which starts others have heard of (R7, R10)
	WithoutRestraint                        // blocks that a removed member gave to survivors are written anew (R11)
)

// has reports whether a rule is not followed.
func (w Weakness) has(rule Weakness) bool { return w&rule != 0 }
