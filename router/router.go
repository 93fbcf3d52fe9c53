package router

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"weft/mesh/peer"
	"weft/router/host"
)

// Host is what the router needs of the machine. *host.Host is the real one.
type Host interface {
	// IPv6 answers nil when the kernel speaks IPv6, else why not.
	IPv6() error
	// Snapshot reads the present state; sysctls are those asked for, absent ones are left out.
	Snapshot(ctx context.Context, sysctls []string) (*host.Snapshot, error)
	// Apply carries out the changes in order and stops at the first that fails.
	Apply(ctx context.Context, changes []host.Change) error
	// Filter makes one owner's part of the nftables table equal to want, and reports how many changes that took.
	Filter(ctx context.Context, want host.Ruleset) (int, error)
	// Drops reads the counters of all rules.
	Drops(ctx context.Context) (host.Drops, error)
	// RemoveFilter deletes the whole table.
	RemoveFilter(ctx context.Context) error
	// Plug connects a pod. Cut ends its traffic. Unplug removes connections by the names of the host's ends and returns when
	// they are gone; they may be gone already.
	Plug(ctx context.Context, v host.Veth) error
	Cut(ctx context.Context, id string, addrs ...netip.Addr) error
	Unplug(ctx context.Context, links ...string) error
	// Watch reports outside changes until ctx ends, then closes the channel.
	Watch(ctx context.Context) (<-chan host.Event, error)
}

var _ Host = (*host.Host)(nil)

// Config is what a router is made of. Only Host is needed.
type Config struct {
	Host    Host
	Drivers []Driver     // transports, best first
	Log     *slog.Logger // nil: discard
	// Undo is the file that keeps the former values of machine-wide sysctls, for Remove. Empty: they are not restored.
	Undo string
	// Buried is told, without delay, that Lingers may have turned false for an address. nil: nobody is told.
	Buried func()
}

// Input is the whole of what the router depends on, as one value. It is level-triggered: a new Input replaces the old.
// Its slices are the router's from then on and must not be changed.
type Input struct {
	Self   peer.ID
	Pools  []netip.Prefix // all pools of the cluster, both families, the linked IPv6 one included
	Blocks []netip.Prefix // ours
	Hosts  []netip.Addr   // the host's own addresses out of our blocks, at most one per family
	Pods   []Pod          // all claims of pods on this node
	// Siblings are, for an address of a pod, those of its other interfaces: it may send from them by this one, too.
	Siblings map[netip.Addr][]netip.Addr

	Underlay    []netip.Addr   // own addresses that peers may see
	UnderlayMTU int            // of the smallest underlay device; 0: 1500
	Trusted     []netip.Prefix // --trusted-subnets
	Peers       []Peer         // members that are not removed, without this node

	Transports    []string       // --transport: names in order of preference; empty: the drivers' own order
	NoMasquerade  []netip.Prefix // reached by pods under their own address
	HostAccessAll bool           // remote pods may reach any port of the host but weft's
	Ports         []uint16       // of weft itself, beside 6782 to 6785; pods reach none of them
}

// Peer is another member as the router needs it.
type Peer struct {
	Info     peer.Info
	Blocks   []netip.Prefix
	Endpoint netip.AddrPort // of the path in use; zero when only the peer can reach us
	NoDirect string         // why neither can open a way to a port of the other's kernel; empty: one can
}

// Pod is one attachment of a container.
type Pod struct {
	Name   string // of the container, unique on this node
	IfName string // in the container; empty: eth0
	// V4 and V6 are both zero for a pod that keeps its interface and is cut off: its address is not this node's any more.
	V4, V6 netip.Addr
	// Device is set for a guest, such as a client from outside: the device that others keep and behind which it is. The
	// guard treats it as a pod.
	Device string
}

// AttachRequest asks to connect a network namespace.
type AttachRequest struct {
	Pod
	NetNS string // path of the namespace
	MTU   int    // when less than what fits; 0: what fits
	MAC   string // of the pod's end; empty: made of the pod's name
}

// Attachment is what Attach made.
type Attachment struct {
	HostIf   string // name of the host's end
	IfName   string
	V4, V6   netip.Addr // zero for a family that this machine does not speak
	MTU      int
	Gateway4 netip.Addr
	Gateway6 netip.Addr
	MAC      string // of the pod's end
	HostMAC  string
}

// Status is what the router knows about itself.
type Status struct {
	Ready      bool     // guard, unreachable routes and sysctls are in place
	Reason     string   // why it is not, or what went wrong last
	Notes      []string // what works less than it could, and why
	Transports []TransportStatus
	Peers      []PeerStatus
	PodMTU     int
}

// TransportStatus is one driver on this machine.
type TransportStatus struct {
	Name      string
	Available bool
	Reason    string // why not, or what is known in its favour
}

// PeerStatus is how one peer is reached.
type PeerStatus struct {
	Peer      peer.ID
	Transport string // empty when there is none
	Encrypted bool
	Reason    string // why this transport
	Rejected  []Rejection
	MTU       int // of routes to the peer
	Link      Link
	Since     time.Time // of the choice
}

// Rejection says why a transport that stands before the chosen one is not used.
type Rejection struct {
	Transport string
	Reason    string
}
