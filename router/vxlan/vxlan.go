// Package vxlan is the transport over the kernel's VXLAN: fast, and in clear. It is used only between two nodes whose
// operators both declared the subnets between them trusted. A device has a socket of one family, so there are two drivers:
// "vxlan" (device weft-vx) for IPv4 underlays and "vxlan6" (device weft-vx6) for IPv6 ones.
//
// One device carries the packets of all such peers. Nothing is learnt: each peer has one forwarding entry (its MAC, a hash
// of its node ID, to its underlay address) and permanent neighbours (the next hops of the routes to its blocks, and its own
// address, to its MAC). Two nftables chains hold what VXLAN itself does not check: datagrams are taken only from those
// peers' underlay addresses, and inside them a source must belong to the peer whose MAC they carry. The second chain hangs
// on prerouting, before fragments are put together, rather than on the device's ingress: it sees the same packets, and
// does not come and go with the device. Without such a peer there is no device.
//
// VXLAN has no session. A tunnel is up when echo requests that go through the device are answered (package pulse), the
// first of them as large as the tunnel takes.
//
// Which peers those are, and the routes, are the router's business.
package vxlan

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
	"weft/router/pulse"
)

const (
	// Name of the driver for IPv4 underlays, as peers and people see it.
	Name = "vxlan"
	// Name6 is that of the driver for IPv6 underlays.
	Name6 = "vxlan6"
	// Device is the name of the network device.
	Device = host.DevicePrefix + "vx"
	// Device6 is that for IPv6 underlays.
	Device6 = host.DevicePrefix + "vx6"
	// Port is the UDP port, the same on every node.
	Port = 6785
	// vni is the same in every cluster: the source checks tell them apart.
	vni = 0x77656
)

// Host is what the transport needs of the machine. *host.Host is the real one.
type Host interface {
	Link(ctx context.Context, name string) (host.Link, bool, error)
	Neighbours(ctx context.Context, link string) ([]host.Neighbour, error)
	Sent(ctx context.Context, link string) (map[string]time.Duration, error)
	Apply(ctx context.Context, changes []host.Change) error
	Filter(ctx context.Context, want host.Ruleset) (int, error)
	OpenEcho() (*host.Echoer, error)
}

var _ Host = (*host.Host)(nil)

// Directory tells with which addresses tunnels are tested.
type Directory interface {
	// Own is this machine's own IPv4 address in the overlay; zero while there is none.
	Own() netip.Addr
	// Address is a peer's own one; zero where it has told none.
	Address(id peer.ID) netip.Addr
	// Rest is after what time without traffic a tunnel is tested no more; 0: never.
	Rest() time.Duration
}

// variant is what makes one driver differ from the other.
type variant struct {
	name, device string
	owner        string // of this transport's part of the nftables table
	six          bool
}

// Driver describes the transport of the node self over IPv4.
func Driver(h Host, self peer.ID, d Directory, log *slog.Logger) router.Driver {
	return describe(h, self, d, log, variant{name: Name, device: Device, owner: "vx"})
}

// Driver6 describes it over IPv6.
func Driver6(h Host, self peer.ID, d Directory, log *slog.Logger) router.Driver {
	return describe(h, self, d, log, variant{name: Name6, device: Device6, owner: "vx6", six: true})
}

func describe(h Host, self peer.ID, d Directory, log *slog.Logger, v variant) router.Driver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return router.Driver{
		Name:      v.name,
		Device:    v.device,
		Overhead4: 50,
		Overhead6: 70,
		V4Only:    !v.six,
		V6Only:    v.six,
		Probe:     v.probe(),
		Open: func(context.Context) (router.Transport, error) {
			return &transport{
				variant: v, host: h, self: self, directory: d, log: log, tunnels: make(map[peer.ID]*tunnel),
				openEcho: func() (echoer, error) { return h.OpenEcho() },
			}, nil
		},
		NextHop: nextHop,
	}
}

func (v variant) probe() host.Probe {
	if !v.six {
		return host.ProbeVXLAN
	}
	return func(ctx context.Context) error {
		if err := host.ProbeIPv6(ctx); err != nil {
			return err
		}
		return host.ProbeVXLAN(ctx)
	}
}

// fits reports whether an underlay address is of the device's family.
func (v variant) fits(a netip.Addr) bool { return a.IsValid() && a.Is6() == v.six }

// MAC is the address of a node on the device.
func MAC(id peer.ID) net.HardwareAddr {
	sum := sha256.Sum256(append([]byte("weft vxlan mac\x00"), id[:]...))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02 // one station, locally given
	return mac
}

// nextHop names a peer on the device. For IPv4 that is the first address of its first block, which is nobody else's; for
// IPv6 the link-local address of its MAC.
func nextHop(t router.Tunnel) (hop router.NextHop) {
	for _, b := range t.Blocks {
		if b.Addr().Is4() && !hop.V4.IsValid() {
			hop.V4 = b.Masked().Addr()
		}
		if b.Addr().Is6() {
			m := MAC(t.Peer)
			hop.V6 = netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
		}
	}
	return hop
}

// transport keeps one device.
type transport struct {
	variant
	host      Host
	self      peer.ID
	directory Directory
	log       *slog.Logger
	openEcho  func() (echoer, error)

	mu      sync.Mutex // guards what follows
	tunnels map[peer.ID]*tunnel
	echo    echoer // nil until it is needed
	meter   pulse.Meter

	received uint64 // what the device had received as of the last look
}

var _ router.Transport = (*transport)(nil)

// Apply makes the filter first, then the device, then its entries.
func (t *transport) Apply(ctx context.Context, want []router.Tunnel) error {
	for _, w := range want {
		if !t.fits(w.Endpoint.Addr().Unmap()) {
			return fmt.Errorf("%s to %s: no underlay address of its family is known", t.name, w.Peer.Short())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(want) == 0 {
		return t.remove(ctx)
	}
	if _, err := t.host.Filter(ctx, t.rules(want)); err != nil {
		return err
	}
	if err := t.makeDevice(ctx); err != nil {
		return err
	}
	old := t.tunnels
	t.tunnels = make(map[peer.ID]*tunnel, len(want))
	for _, w := range want {
		u := old[w.Peer]
		if u == nil {
			u = &tunnel{}
		}
		u.Tunnel = w
		t.tunnels[w.Peer] = u
	}
	return t.sync(ctx)
}

// makeDevice makes the device, unless it is there as it should be.
func (t *transport) makeDevice(ctx context.Context) error {
	now, exists, err := t.host.Link(ctx, t.device)
	if err != nil {
		return err
	}
	mac, kind := MAC(t.self).String(), host.VXLAN{VNI: vni, Port: Port, IPv6: t.six}
	var changes []host.Change
	if exists && (now.VXLAN == nil || !now.VXLAN.Same(kind) || now.MAC != mac) {
		changes = append(changes, host.Change{Op: host.Delete, Link: &host.Link{Name: t.device}})
		exists = false
	}
	if !exists || !now.Up {
		changes = append(changes, host.Change{Link: &host.Link{Name: t.device, Up: true, MAC: mac, VXLAN: &kind}})
	}
	return t.host.Apply(ctx, changes)
}

// sync makes the device's entries those of the tunnels.
func (t *transport) sync(ctx context.Context) error {
	have, err := t.host.Neighbours(ctx, t.device)
	if err != nil {
		return err
	}
	for _, u := range t.tunnels {
		u.host = t.hostOf(u)
	}
	return t.host.Apply(ctx, diff(have, t.entries()))
}

// hostOf is the peer's own address, to test the tunnel with: one that it owns.
func (t *transport) hostOf(u *tunnel) netip.Addr {
	a := t.directory.Address(u.Peer)
	if !slices.ContainsFunc(u.Blocks, func(b netip.Prefix) bool { return b.Contains(a) }) {
		return netip.Addr{}
	}
	return a
}

// entries lists what the device must know.
func (t *transport) entries() []host.Neighbour {
	var out []host.Neighbour
	for _, u := range t.sorted() {
		mac := MAC(u.Peer).String()
		out = append(out, host.Neighbour{Link: t.device, Addr: u.Endpoint.Addr().Unmap(), MAC: mac, Underlay: true})
		hop := nextHop(u.Tunnel)
		for _, a := range []netip.Addr{hop.V4, hop.V6, u.host} {
			n := host.Neighbour{Link: t.device, Addr: a, MAC: mac}
			if a.IsValid() && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

func (t *transport) sorted() []*tunnel {
	out := make([]*tunnel, 0, len(t.tunnels))
	for _, u := range t.tunnels {
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b *tunnel) int { return a.Peer.Compare(b.Peer) })
	return out
}

func diff(have, want []host.Neighbour) (changes []host.Change) {
	for i, n := range want {
		if !slices.Contains(have, n) {
			changes = append(changes, host.Change{Neighbour: &want[i]})
		}
	}
	// A changed entry was replaced in one step; only what has no successor is deleted.
	replaced := func(n host.Neighbour) bool {
		return slices.ContainsFunc(want, func(w host.Neighbour) bool {
			return w.Underlay == n.Underlay && (n.Underlay && w.MAC == n.MAC || !n.Underlay && w.Addr == n.Addr)
		})
	}
	for i, n := range have {
		if !replaced(n) {
			changes = append(changes, host.Change{Op: host.Delete, Neighbour: &have[i]})
		}
	}
	return changes
}

// Close removes the device and, after it, the rules that guarded it.
func (t *transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.remove(context.Background())
}

func (t *transport) remove(ctx context.Context) error {
	clear(t.tunnels)
	var closed error
	if t.echo != nil {
		closed = t.echo.Close()
		t.echo = nil
	}
	_, exists, err := t.host.Link(ctx, t.device)
	if err == nil && exists {
		err = t.host.Apply(ctx, []host.Change{{Op: host.Delete, Link: &host.Link{Name: t.device}}})
	}
	if err != nil {
		return errors.Join(err, closed) // the rules stay as long as the device may
	}
	if _, err := t.host.Filter(ctx, host.Ruleset{Owner: t.owner}); err != nil {
		return errors.Join(fmt.Errorf("remove the rules of %s: %w", t.name, err), closed)
	}
	return closed
}
