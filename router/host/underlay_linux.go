package host

import (
	"context"
	"net/netip"
	"strings"
)

// Underlay lists the devices that are up and have an address that others can reach: not loopback, not link-local, not
// weft's own, and not inside any of the pools.
func (h *Host) Underlay(ctx context.Context, pools []netip.Prefix) ([]Interface, error) {
	s, err := h.Snapshot(ctx, nil)
	if err != nil {
		return nil, err
	}
	var out []Interface
	for _, l := range s.Links {
		if !l.Up || l.Name == "lo" || strings.HasPrefix(l.Name, DevicePrefix) ||
			strings.HasPrefix(l.Name, VethPrefix) && l.Kind == "veth" {
			continue
		}
		i := Interface{Name: l.Name, MTU: l.MTU}
		for _, a := range s.Addresses {
			if a.Link == l.Name && a.Prefix.Addr().IsGlobalUnicast() && !within(a.Prefix.Addr(), pools) {
				i.Addrs = append(i.Addrs, a.Prefix)
			}
		}
		if len(i.Addrs) > 0 {
			out = append(out, i)
		}
	}
	return out, nil
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
