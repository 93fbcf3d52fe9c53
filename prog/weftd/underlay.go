package weftd

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// underlay is where this machine is found by others.
type underlay struct {
	addrs []netip.Addr // global unicast, in the order of the interfaces, IPv4 first
	mtu   int          // the smallest of the devices that carry them, bytes; 0: there is none
}

// readUnderlay lists the machine's own addresses, without those of weft's devices and those inside the pools: a path
// through the overlay to itself would be a loop.
func readUnderlay(pools []netip.Prefix) (underlay, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return underlay{}, fmt.Errorf("list interfaces: %w", err)
	}
	var u underlay
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || ours(i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return underlay{}, fmt.Errorf("list addresses of %s: %w", i.Name, err)
		}
		carries := false
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			addr := p.Addr().Unmap()
			inPool := slices.ContainsFunc(pools, func(p netip.Prefix) bool { return p.Contains(addr) })
			if !addr.IsGlobalUnicast() || inPool || slices.Contains(u.addrs, addr) {
				continue
			}
			u.addrs = append(u.addrs, addr)
			carries = true
		}
		if carries && (u.mtu == 0 || i.MTU < u.mtu) {
			u.mtu = i.MTU
		}
	}
	slices.SortStableFunc(u.addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return u, nil
}

// ours reports whether a device belongs to weft: a transport's, or the host's end of a pod's.
func ours(name string) bool {
	return strings.HasPrefix(name, "weft-") || strings.HasPrefix(name, "wf")
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
