package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ErrUnsupported is wrapped by errors that say what this machine lacks, and what would help.
var ErrUnsupported = errors.New("not supported on this machine")

// Protocol marks the routes and rules that are weft's, so that we never touch another's and can find ours again.
const Protocol = 0x57

// UnreachableMetric is the metric of the routes that stay when all others have gone: real routes of the same prefix win.
const UnreachableMetric = 0x7fff0000

// Prefixes of the names of weft's network devices.
const (
	DevicePrefix = "weft-" // one per transport
	VethPrefix   = "wf"    // the host's end of a pod's veth pair

	// GuestDevice is behind which clients from outside are: they are treated as pods, so it is named like theirs.
	GuestDevice = VethPrefix + "-clients"
)

// Link is a network device.
type Link struct {
	Name  string
	Index int
	Kind  string // "veth", "vxlan", "tun", ...; empty for hardware
	MTU   int
	Up    bool
	MAC   string // empty for devices without one
	VXLAN *VXLAN // set for kind "vxlan"

	RxBytes, TxBytes uint64 // read only

	PeerIndex int // of a veth's other end, in its namespace
}

// VXLAN holds what is special about a VXLAN device. It never learns: neighbours are given to it.
type VXLAN struct {
	VNI  int
	Port uint16
	IPv6 bool // of the underlay: a device has a socket of one family. Kernels do not tell it again
}

// Same compares what can be read back of a device.
func (v VXLAN) Same(w VXLAN) bool { return v.VNI == w.VNI && v.Port == w.Port }

// Address is an address on a device of the host.
type Address struct {
	Link   string
	Prefix netip.Prefix // the address itself with its length, not masked
	// Passive is an IPv6 address that nothing picks as a source unless a route names it (a deprecated one).
	Passive bool
}

// RouteKind says what a route does with a packet.
type RouteKind uint8

// The kinds of route that weft knows; Other is never ours.
const (
	Unicast RouteKind = iota
	Unreachable
	Other
)

// Route is a route of the main table.
type Route struct {
	Dst    netip.Prefix
	Kind   RouteKind
	Link   string     // of a unicast route
	Via    netip.Addr // next hop, taken as on-link; zero when the device needs none
	Src    netip.Addr // source of packets that the host sends itself; zero for the kernel's choice
	MTU    int        // 0: the device's
	Metric int        // 0 is the most wanted; an IPv6 route's 1024, the kernel's own default, reads as 0
	Ours   bool       // carries Protocol; changes always do
}

func (r Route) String() string {
	var b strings.Builder
	if r.Kind == Unreachable {
		b.WriteString("unreachable ")
	}
	b.WriteString(r.Dst.String())
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", r.Via)
	}
	if r.Link != "" {
		fmt.Fprintf(&b, " dev %s", r.Link)
	}
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Src)
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	return b.String()
}

// Rule is a policy routing rule for packets that arrive on one device.
type Rule struct {
	V6       bool
	Priority int
	IIf      string
	From     netip.Prefix // zero: any
	To       netip.Prefix // zero: any
	Drop     bool         // true: blackhole; false: look up the main table
	Ours     bool         // carries Protocol; changes always do
}

func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: iif %s", r.Priority, r.IIf)
	if r.V6 {
		b.WriteString(" inet6")
	}
	if r.From.IsValid() {
		fmt.Fprintf(&b, " from %s", r.From)
	}
	if r.To.IsValid() {
		fmt.Fprintf(&b, " to %s", r.To)
	}
	if r.Drop {
		return b.String() + " blackhole"
	}
	return b.String() + " lookup main"
}

// Compare orders rules as the kernel asks them, then by content.
func (r Rule) Compare(o Rule) int {
	return cmp.Or(cmp.Compare(r.Priority, o.Priority), cmp.Compare(r.String(), o.String()))
}

// Neighbour is a permanent entry of a device: the MAC of an address, or with Underlay set, the underlay address behind a
// MAC (an entry of the forwarding database of a VXLAN device).
type Neighbour struct {
	Link     string
	Addr     netip.Addr
	MAC      string
	Underlay bool // Addr is an underlay address
}

// Sysctl is one value under /proc/sys; the key is a path such as "net/ipv4/ip_forward".
type Sysctl struct {
	Key, Value string
}

// Snapshot is what the kernel holds now.
type Snapshot struct {
	Links     []Link
	Addresses []Address
	Routes    []Route // of the main table
	Rules     []Rule  // those that carry Protocol
	// Gates are those of weft's devices, each as its String has it; one that does not stand as it should has another text.
	Gates   map[string]string
	Sysctls map[string]string
}

// Link finds a device by name.
func (s *Snapshot) Link(name string) (Link, bool) {
	for _, l := range s.Links {
		if l.Name == name {
			return l, true
		}
	}
	return Link{}, false
}

// Interface is a device of the host that may carry packets to peers.
type Interface struct {
	Name  string
	MTU   int
	Addrs []netip.Prefix
}

// Op is what a change does.
type Op uint8

// The operations. Set creates what is missing and replaces what differs; Delete of something absent is no error.
const (
	Set Op = iota
	Delete
)

// Change is one step. Exactly one of the pointers is set.
type Change struct {
	Op        Op
	Link      *Link // Set: makes a vxlan or wireguard device if it is missing; brings the device up or down and sets its MTU when not 0
	Address   *Address
	Route     *Route // Set replaces the route of the same prefix and metric in one step
	Rule      *Rule
	Gate      *Gate // Set keeps it for a device that is not there yet
	Neighbour *Neighbour
	Sysctl    *Sysctl // Set only
}

func (c Change) String() string {
	op := "set "
	if c.Op == Delete {
		op = "delete "
	}
	switch {
	case c.Link != nil:
		return fmt.Sprintf("%slink %s mtu %d up %t", op, c.Link.Name, c.Link.MTU, c.Link.Up)
	case c.Address != nil:
		return fmt.Sprintf("%saddress %s dev %s", op, c.Address.Prefix, c.Address.Link)
	case c.Route != nil:
		return op + "route " + c.Route.String()
	case c.Rule != nil:
		return op + "rule " + c.Rule.String()
	case c.Gate != nil:
		return op + "gate " + c.Gate.String()
	case c.Neighbour != nil:
		return fmt.Sprintf("%sneighbour %s lladdr %s dev %s underlay %t", op, c.Neighbour.Addr, c.Neighbour.MAC,
			c.Neighbour.Link, c.Neighbour.Underlay)
	case c.Sysctl != nil:
		return op + c.Sysctl.Key + " = " + c.Sysctl.Value
	}
	return op + "nothing"
}

// Event says that something which weft depends on may have changed outside of it. It names no detail: the receiver reads
// the state anew.
type Event struct {
	What string // "link", "address", "route", "rule", "gate", "filter", GuardGone, or "lost" when events were missed
	Name string // of the link, where there is one
}

// GuardGone is the event that rules, a chain or all of weft's nftables table were deleted: it refuses less than it should.
const GuardGone = "guard"

// MaxSuperPacket bounds what a TUN device hands over at once, in bytes, so that its segments with their headers and seals
// still fit into one sending call of 65,507. At an MTU of 1420 that are 45 segments, for which the kernel's TCP, keeping room
// for headers, wants this much; at all but the smallest MTU it then makes no more of them than one call takes.
const MaxSuperPacket = 61_900

// Offload says what a TUN device lets the kernel leave undone.
type Offload struct {
	VnetHdr bool   // each packet carries a virtio-net header of 10 bytes
	TSO     bool   // TCP super-packets, both families
	USO     bool   // UDP super-packets, both families
	Reason  string // why something is off; empty when all are on
}
