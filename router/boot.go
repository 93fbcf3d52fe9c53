package router

import (
	"context"
	"fmt"
)

// comment of the rules that refuse what would leave in clear: where they are, the guard stands.
const leakRule = "leak"

// Refuse puts what refuses in place for the time before a router runs, such as early in a boot: the pools' unreachable
// routes, and the guard. A guard that stands already is left alone, for it may know pods that in does not. It says
// whether it had to make one. Pools, NoMasquerade, HostAccessAll and Ports of in matter; the rest is not known yet.
func Refuse(ctx context.Context, h Host, in Input) (made bool, err error) {
	p := makePlan(in, nil, nil, nil, nil, nil, h.IPv6() == nil)
	have, err := h.Snapshot(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("refuse packets of the pools: %w", err)
	}
	if err := h.Apply(ctx, p.refuse(have)); err != nil {
		return false, fmt.Errorf("refuse packets of the pools: %w", err)
	}
	rules, err := h.Drops(ctx)
	if err != nil {
		return false, fmt.Errorf("look for the guard: %w", err)
	}
	if _, stands := rules[leakRule]; stands {
		return false, nil
	}
	if _, err := h.Filter(ctx, p.filter); err != nil {
		return false, fmt.Errorf("put the guard in place: %w", err)
	}
	return true, nil
}
