package router

import (
	"context"
	"net/netip"

	"weft/router/host"
)

// SetSiblings changes that part of the input at once: when it returns the guard knows it, and the reverse path filter of
// veths that have siblings is off. One that was attached with them before keeps it off when it loses them; the guard holds.
func (r *Router) SetSiblings(ctx context.Context, siblings map[netip.Addr][]netip.Addr) error {
	r.mu.Lock()
	r.in.Siblings = siblings
	var keys []string
	for _, p := range r.podsLocked() {
		if len(siblings[p.V4]) > 0 {
			keys = append(keys, "net/ipv4/conf/"+host.VethName(p.id())+"/rp_filter")
		}
	}
	r.mu.Unlock()
	if err := r.admit(ctx); err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	have, err := r.cfg.Host.Snapshot(ctx, keys)
	if err != nil {
		return err
	}
	var changes []host.Change
	for _, key := range keys {
		if now, there := have.Sysctls[key]; there && now != "0" {
			changes = append(changes, host.Change{Sysctl: &host.Sysctl{Key: key, Value: "0"}})
		}
	}
	return r.cfg.Host.Apply(ctx, changes)
}
