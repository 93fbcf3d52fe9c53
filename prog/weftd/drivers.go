package weftd

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
	"weft/mesh/sparse"
	"weft/router"
	"weft/router/host"
	"weft/router/sleeve"
	"weft/router/vxlan"
	"weft/router/wireguard"
)

// drivers lists the transports of this build, best first. A pair of nodes uses the first that both can and may use.
func (n *node) drivers() []router.Driver {
	key := wireguard.Key(n.wgKey.Bytes())
	list := []router.Driver{
		vxlan.Driver(n.host, n.key.ID(), n, n.log),
		vxlan.Driver6(n.host, n.key.ID(), n, n.log),
		wireguard.Driver(n.host, key, n, n.log),
	}
	if slices.Contains(n.cfg.Transports, wireguard.UserName) { // by choice only
		dev := wireguard.User(n.host, wireDevices{n.link}, wireguard.UserDevice)
		list = append(list, wireguard.UserDriver(n.host, dev, key, n.cfg.Listen.Port(), n, n.log))
	}
	return append(list, sleeve.Driver(n.link, host.ProbeTUN))
}

var (
	_ wireguard.Directory = (*node)(nil)
	_ vxlan.Directory     = (*node)(nil)
)

// Own is this machine's address that tunnels are tested from.
func (n *node) Own() netip.Addr {
	if c, ok := n.ring.HostAddress(); ok {
		return c.V4
	}
	return netip.Addr{}
}

// Rest is after what time without traffic tunnels are tested no more, as sessions of the sleeve are closed then.
func (n *node) Rest() time.Duration {
	if !n.isSparse() {
		return 0
	}
	return cmp.Or(n.cfg.SparseIdle, sparse.IdleData)
}

// Self is Own, or the IPv6 one of a machine that has no other.
func (n *node) Self() netip.Addr {
	c, ok := n.ring.HostAddress()
	switch {
	case !ok:
		return netip.Addr{}
	case c.V4.IsValid():
		return c.V4
	}
	return c.V6
}

// Remote is what WireGuard must know of a peer.
func (n *node) Remote(id peer.ID) (wireguard.Remote, bool) {
	info, ok := n.mesh.Peer(id)
	if !ok || info.WireGuard == [32]byte{} || info.State == peer.Removed {
		return wireguard.Remote{}, false
	}
	at := n.heardAt(id)
	r := wireguard.Remote{
		Public: wireguard.Key(info.WireGuard), Secrets: n.pairs.secrets(id), Reachable: at.IsValid(),
	}
	them, us := n.hiddenPair(info)
	r.Hidden, r.NATed = them, them || us
	r.Host = n.addressLike(n.Self(), id)
	return r, true
}

// Address is a peer's own IPv4 one, at which tunnels to it are tested.
func (n *node) Address(id peer.ID) netip.Addr { return n.addressLike(netip.IPv4Unspecified(), id) }

// addressLike is a peer's own address of the same family as ours.
func (n *node) addressLike(ours netip.Addr, id peer.ID) (own netip.Addr) {
	if rec, ok := n.mesh.Record(id); ok {
		for _, a := range rec.Hosts {
			if a.BitLen() == ours.BitLen() {
				own = a
			}
		}
	}
	return own
}

// probe is one question that weft doctor asks the machine.
type probe struct {
	name     string
	run      func(context.Context) error
	hint     string
	optional bool
}

func probes() []probe {
	return []probe{
		{name: "tun", run: host.ProbeTUN, hint: "Try: modprobe tun; in a container, pass /dev/net/tun"},
		{name: "nftables", run: host.ProbeFilter, hint: "Try: modprobe nf_tables"},
		{name: "veth", run: host.ProbeVeth, hint: "Try: modprobe veth"},
		{name: "wireguard", run: host.ProbeWireGuard, hint: "Try: modprobe wireguard; without it the sleeve carries", optional: true},
		{name: "vxlan", run: host.ProbeVXLAN, hint: "Try: modprobe vxlan", optional: true},
		{name: "ipv6", run: host.ProbeIPv6, hint: "Pods have IPv4 only until the kernel speaks IPv6", optional: true},
	}
}

func isUnsupported(err error) bool {
	return errors.Is(err, router.ErrUnsupported) || errors.Is(err, host.ErrUnsupported)
}
