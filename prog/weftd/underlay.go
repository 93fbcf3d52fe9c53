package weftd

import (
	"context"
	"net/netip"
	"slices"

	"weft/router/host"
)

// underlay is where this machine is found by others.
type underlay struct {
	addrs []netip.Addr // global unicast, in the order of the interfaces, IPv4 first
	mtu   int          // the smallest of the devices that carry them, bytes; 0: there is none
}

// readUnderlay lists the machine's own addresses, without those of weft's devices, of containers' bridges, and those
// inside the pools: a path through the overlay to itself would be a loop.
func readUnderlay(ctx context.Context, h *host.Host, pools []netip.Prefix) (underlay, error) {
	interfaces, err := h.Underlay(ctx, pools)
	if err != nil {
		return underlay{}, err
	}
	var u underlay
	for _, i := range interfaces {
		for _, p := range i.Addrs {
			if a := p.Addr().Unmap(); !slices.Contains(u.addrs, a) {
				u.addrs = append(u.addrs, a)
			}
		}
		if u.mtu == 0 || i.MTU < u.mtu {
			u.mtu = i.MTU
		}
	}
	slices.SortStableFunc(u.addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return u, nil
}

func (n *node) readUnderlay(ctx context.Context) (underlay, error) {
	return readUnderlay(ctx, n.host, n.pools)
}

// noteUnderlay keeps the addresses for those who must tell this machine from others.
func (n *node) noteUnderlay(u underlay) {
	n.glue.linksMu.Lock()
	moved := n.glue.addrs != nil && !slices.Equal(n.glue.addrs, u.addrs)
	n.glue.addrs = u.addrs
	n.glue.linksMu.Unlock()
	if moved {
		n.reach.forget()
	}
}

// endpoints is what others are told: what the operator advertises, then what was found.
func (u underlay) endpoints(advertise []netip.AddrPort, port uint16) []netip.AddrPort {
	var all []netip.AddrPort
	add := func(ap netip.AddrPort) {
		if ap.Port() == 0 {
			ap = netip.AddrPortFrom(ap.Addr(), port)
		}
		if !slices.Contains(all, ap) {
			all = append(all, ap)
		}
	}
	for _, ap := range advertise {
		add(ap)
	}
	for _, a := range u.addrs {
		add(netip.AddrPortFrom(a, port))
	}
	return all
}
