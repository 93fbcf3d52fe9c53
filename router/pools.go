package router

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/router/host"
)

// PoolError says that a pool is in use on this machine already.
type PoolError struct {
	Pool   netip.Prefix
	Reason string
}

func (e *PoolError) Error() string {
	return fmt.Sprintf("pool %s cannot be used on this machine: %s. Choose another with --pool, or use it all the same "+
		"with --accept-overlap", e.Pool, e.Reason)
}

// CheckPools refuses pools that this machine already uses: one of its addresses lies inside, or a route leads to the pool
// or a part of it. A route that covers more than a pool is only warned of, because the pool's own routes are narrower
// and win; the default route is not worth a word. What weft itself left from a former run does not count.
func CheckPools(ctx context.Context, h Host, pools []netip.Prefix) (warnings []string, err error) {
	have, err := h.Snapshot(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("check pools: %w", err)
	}
	for _, pool := range pools {
		pool = pool.Masked()
		returning := slices.ContainsFunc(have.Routes, func(r host.Route) bool {
			return r.Ours && r.Kind == host.Unreachable && r.Dst == pool
		})
		for _, a := range have.Addresses {
			if !pool.Contains(a.Prefix.Addr()) || isOurs(a.Link) || a.Link == "lo" && returning {
				continue
			}
			return nil, &PoolError{pool, fmt.Sprintf("the address %s of %s lies inside it", a.Prefix.Addr(), a.Link)}
		}
		for _, r := range have.Routes {
			if r.Ours || isOurs(r.Link) || r.Link == "lo" && returning || !r.Dst.Overlaps(pool) || r.Dst.Bits() == 0 {
				continue
			}
			if r.Dst.Bits() >= pool.Bits() {
				return nil, &PoolError{pool, fmt.Sprintf("the route %q leads there", r)}
			}
			warnings = append(warnings, fmt.Sprintf("the route %q covers pool %s; weft's routes are narrower and win", r, pool))
		}
	}
	return warnings, nil
}

func isOurs(link string) bool {
	return strings.HasPrefix(link, host.DevicePrefix) || strings.HasPrefix(link, host.VethPrefix)
}
