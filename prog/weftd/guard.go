package weftd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"weft/router"
	"weft/router/host"
)

// Guarded is what Guard found, and did.
type Guarded struct {
	Pools   []netip.Prefix // of the cluster that this machine is in; none: in no cluster, nothing to guard
	Running bool           // a daemon runs, and guards by itself
	Made    bool           // there was no guard before
}

// Guard refuses all packets of the pools from now on, by what the state directory alone says: a machine that boots has
// an empty kernel, and between its network and its daemon lie seconds in which anything may send. It starts nothing,
// changes no guard that stands, and needs the pools only, so it goes by a membership that the daemon would not.
func Guard(ctx context.Context, cfg Config) (Guarded, error) {
	g, err := guard(ctx, cfg)
	return g, explain(err)
}

func guard(ctx context.Context, cfg Config) (g Guarded, err error) {
	// Read before it is opened: where there is no state none is made.
	state := &stateDir{path: cfg.State}
	b, err := state.read(fileMembership)
	if errors.Is(err, errNoState) {
		return g, nil
	}
	if err != nil {
		return g, err
	}
	m, err := parseMembership(b)
	if err != nil {
		return g, fmt.Errorf("read %s: %w", state.file(fileMembership), err)
	}
	g.Pools = m.pools()
	// The lock, so that no daemon starts while its rules are replaced by these, which know no pod.
	state, err = openState(cfg.State)
	if inUse := new(stateInUseError); errors.As(err, &inUse) {
		g.Running = true
		return g, nil
	}
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, state.close()) }()
	h, err := host.Open("", cfg.Log)
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	g.Made, err = router.Refuse(ctx, h, router.Input{
		Pools: g.Pools, NoMasquerade: cfg.NoMasquerade, HostAccessAll: cfg.HostAccess, Ports: listenPorts(cfg),
	})
	return g, err
}
