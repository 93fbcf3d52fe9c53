package docker

import (
	"context"
	"net/netip"
)

// Node is what the plugin needs of the machine. Its methods are called from several goroutines; each ends soon after ctx
// does.
type Node interface {
	// Pools lists the pools of the cluster, of both families, those that new containers draw from first.
	Pools(ctx context.Context) ([]netip.Prefix, error)
	// Claim gives a name its addresses, the same ones each time. A valid addr asks for that one.
	Claim(ctx context.Context, name string, addr netip.Addr) (Lease, error)
	// Leases lists what Claim gave and Release did not take back.
	Leases(ctx context.Context) ([]Lease, error)
	// Release gives a name's addresses back; that it has none is no error.
	Release(ctx context.Context, name string) error
	// Connect makes a veth pair for the addresses of a name, both ends with that MAC. dockerd moves the one called
	// Cable.Link into the container.
	Connect(ctx context.Context, name, mac string) (Cable, error)
	// Disconnect removes the pair; that there is none is no error.
	Disconnect(ctx context.Context, name string) error
	// Connected reports whether the machine's end of the pair is there. It goes together with the container's namespace.
	Connected(ctx context.Context, name string) (bool, error)
	// Arrange makes the machine keep to an arrangement, in place of the one before, and tells those whom it concerns.
	Arrange(ctx context.Context, a Arrangement) error
}

// Lease is what a name was given.
type Lease struct {
	Name string
	V4   netip.Addr // zero when the cluster has IPv6 alone
	V6   netip.Addr // zero when the cluster has no IPv6
}

// first is the address that a lease goes by.
func (l Lease) first() netip.Addr {
	if l.V4.IsValid() {
		return l.V4
	}
	return l.V6
}

// Cable is a veth pair of which one end is to be moved.
type Cable struct {
	Link string
	V6   bool // this machine speaks IPv6
}

// Arrangement is who may talk to whom, as one value.
type Arrangement struct {
	// Networks are those with a name and the local addresses in them. Within one everybody reaches everybody; beyond it
	// nobody reaches anybody. An address that is in none belongs to the common network.
	Networks []Network
	// Internal addresses reach the pools only, not the world.
	Internal []netip.Addr
	// Siblings are the other addresses of the same container: it may send from them by the same interface.
	Siblings map[netip.Addr][]netip.Addr
	// Ports of the machine lead to a container.
	Ports []Port
}

// Network is a network with a name, which means the same on every machine.
type Network struct {
	Name    string
	Members []netip.Addr
}

// Port of the machine that leads to one of a container.
type Port struct {
	UDP       bool
	Host      netip.Addr // an address of the machine; zero: all of them
	HostPort  uint16
	Container netip.Addr
	Port      uint16
}
