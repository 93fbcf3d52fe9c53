// Package vxlan is the transport over the kernel's VXLAN: fast, and in clear. It is used only between two nodes whose
// operators both declared the subnets between them trusted.
//
// One device carries the packets of all such peers. Nothing is learnt: each peer has one forwarding entry (its MAC, a hash
// of its node ID, to its underlay address) and one permanent neighbour per family (the next hop of the routes to its
// blocks, to its MAC). Two nftables chains hold what VXLAN itself does not check: datagrams are taken only from those
// peers' underlay addresses, and inside them a source must belong to the peer whose MAC they carry. The second chain hangs
// on prerouting, before fragments are put together, rather than on the device's ingress: it sees the same packets, and
// does not come and go with the device. Without such a peer there is no device.
//
// Which peers those are, and the routes, are the router's business. The device runs over IPv4 underlays: a VXLAN device
// opens a socket of one family only.
package vxlan

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
)

const (
	// Name of the driver, as peers and people see it.
	Name = "vxlan"
	// Device is the name of the network device.
	Device = host.DevicePrefix + "vx"
	// Port is the UDP port, the same on every node.
	Port = 6785
	// vni is the same in every cluster: the source checks tell them apart.
	vni = 0x77656
	// owner of this transport's part of the nftables table.
	owner = "vx"
	// priorityIn is before fragments are put together.
	priorityIn = -450
	// priorityAdmit is after the router's own chain, which refuses pods.
	priorityAdmit = 10
)

// Host is what the transport needs of the machine. *host.Host is the real one.
type Host interface {
	Link(ctx context.Context, name string) (host.Link, bool, error)
	Neighbours(ctx context.Context, link string) ([]host.Neighbour, error)
	Apply(ctx context.Context, changes []host.Change) error
	Filter(ctx context.Context, want host.Ruleset) (int, error)
}

var _ Host = (*host.Host)(nil)

// Driver describes the transport of the node self.
func Driver(h Host, self peer.ID) router.Driver {
	return router.Driver{
		Name:      Name,
		Device:    Device,
		Overhead4: 50,
		Overhead6: 70,
		V4Only:    true,
		Probe:     host.ProbeVXLAN,
		Open: func(context.Context) (router.Transport, error) {
			return &transport{host: h, self: self, tunnels: make(map[peer.ID]router.Tunnel)}, nil
		},
		NextHop: nextHop,
	}
}

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

type transport struct {
	host Host
	self peer.ID

	mu      sync.Mutex // guards tunnels
	tunnels map[peer.ID]router.Tunnel
}

// Apply makes the filter first, then the device, then its entries.
func (t *transport) Apply(ctx context.Context, want []router.Tunnel) error {
	for _, w := range want {
		if a := w.Endpoint.Addr().Unmap(); !a.Is4() {
			return fmt.Errorf("vxlan to %s: no IPv4 address of it is known", w.Peer.Short())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(want) == 0 {
		return t.remove(ctx)
	}
	if _, err := t.host.Filter(ctx, rules(want)); err != nil {
		return err
	}
	if err := t.device(ctx); err != nil {
		return err
	}
	have, err := t.host.Neighbours(ctx, Device)
	if err != nil {
		return err
	}
	if err := t.host.Apply(ctx, diff(have, entries(want))); err != nil {
		return err
	}
	clear(t.tunnels)
	for _, w := range want {
		t.tunnels[w.Peer] = w
	}
	return nil
}

// device makes the device, unless it is there as it should be.
func (t *transport) device(ctx context.Context) error {
	now, exists, err := t.host.Link(ctx, Device)
	if err != nil {
		return err
	}
	mac := MAC(t.self).String()
	var changes []host.Change
	if exists && (now.VXLAN == nil || *now.VXLAN != host.VXLAN{VNI: vni, Port: Port} || now.MAC != mac) {
		changes = append(changes, host.Change{Op: host.Delete, Link: &host.Link{Name: Device}})
		exists = false
	}
	if !exists || !now.Up {
		changes = append(changes, host.Change{Link: &host.Link{
			Name: Device, Up: true, MAC: mac,
			VXLAN: &host.VXLAN{VNI: vni, Port: Port},
		}})
	}
	return t.host.Apply(ctx, changes)
}

// entries lists what the device must know.
func entries(want []router.Tunnel) []host.Neighbour {
	var out []host.Neighbour
	for _, w := range want {
		mac := MAC(w.Peer).String()
		out = append(out, host.Neighbour{Link: Device, Addr: w.Endpoint.Addr().Unmap(), MAC: mac, Underlay: true})
		hop := nextHop(w)
		for _, a := range []netip.Addr{hop.V4, hop.V6} {
			if a.IsValid() {
				out = append(out, host.Neighbour{Link: Device, Addr: a, MAC: mac})
			}
		}
	}
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

// rules hold both checks. Underlay addresses beside the endpoint are admitted, because the kernel of a peer with several
// chooses one by itself.
func rules(want []router.Tunnel) host.Ruleset {
	var from, src4, src6 []string
	for _, w := range want {
		for _, a := range append(slices.Clone(w.Sources), w.Endpoint.Addr()) {
			if a = a.Unmap(); a.Is4() && !slices.Contains(from, a.String()) {
				from = append(from, a.String())
			}
		}
		mac := MAC(w.Peer).String()
		for _, b := range w.Blocks {
			if b.Addr().Is4() {
				src4 = append(src4, mac+" . "+b.String())
			} else {
				src6 = append(src6, mac+" . "+b.String())
			}
		}
	}
	port := strconv.Itoa(Port)
	return host.Ruleset{
		Owner: owner,
		Sets: []host.FilterSet{
			{Name: "vx.from", Type: "ipv4_addr", Elements: from},
			{Name: "vx.src4", Type: "ether_addr . ipv4_addr", Interval: true, Elements: src4},
			{Name: "vx.src6", Type: "ether_addr . ipv6_addr", Interval: true, Elements: src6},
		},
		Chains: []host.Chain{
			{Name: "vx.admit", Hook: host.Input, Priority: priorityAdmit, Rules: []string{
				`udp dport ` + port + ` ip saddr != @vx.from counter drop comment "vxlan-stranger"`,
				`meta nfproto ipv6 udp dport ` + port + ` counter drop comment "vxlan-stranger"`,
			}},
			{Name: "vx.source", Hook: host.Prerouting, Priority: priorityIn, Rules: []string{
				`iifname "` + Device + `" ether saddr . ip saddr != @vx.src4 counter drop comment "vxlan-source"`,
				`iifname "` + Device + `" ether saddr . ip6 saddr != @vx.src6 counter drop comment "vxlan-source"`,
			}},
		},
	}
}

// Links reports each tunnel of the last Apply. VXLAN has no session: a link is up while the device is.
func (t *transport) Links(ctx context.Context) ([]router.Link, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.tunnels) == 0 {
		return nil, nil
	}
	now, exists, err := t.host.Link(ctx, Device)
	if err != nil {
		return nil, err
	}
	reason := ""
	if !exists || !now.Up {
		reason = "the device " + Device + " is missing or down"
	}
	out := make([]router.Link, 0, len(t.tunnels))
	for _, w := range t.tunnels {
		out = append(out, router.Link{Peer: w.Peer, Up: reason == "", Endpoint: w.Endpoint, KeyAge: -1, Reason: reason})
	}
	slices.SortFunc(out, func(a, b router.Link) int { return a.Peer.Compare(b.Peer) })
	return out, nil
}

// Close removes the device and, after it, the rules that guarded it.
func (t *transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.remove(context.Background())
}

func (t *transport) remove(ctx context.Context) error {
	clear(t.tunnels)
	if err := t.host.Apply(ctx, []host.Change{{Op: host.Delete, Link: &host.Link{Name: Device}}}); err != nil {
		return err // the rules stay as long as the device may
	}
	if _, err := t.host.Filter(ctx, host.Ruleset{Owner: owner}); err != nil {
		return errors.Join(errors.New("remove the rules of vxlan"), err)
	}
	return nil
}
