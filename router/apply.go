package router

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"weft/mesh/peer"
	"weft/router/host"
)

// applyAll makes the machine equal to the input: first what protects, then tunnels, then routes into them. wait is when
// something is due by itself.
func (r *Router) applyAll(ctx context.Context, choices map[peer.ID]Choice) (wait time.Duration, err error) {
	in, has := r.input()
	if !has {
		return 0, nil
	}
	noV6 := r.cfg.Host.IPv6()
	options := r.options(ctx, in)
	r.last.noV6 = noV6
	r.mu.Lock()
	r.noV6, r.asked = noV6, true
	r.mu.Unlock()
	defer func() {
		r.last.failed = err
		r.publish(in, options, choices, r.last)
	}()
	now := time.Now()
	cands, links := r.decide(in, options, choices, now)

	if err := r.locked(func() error {
		p := makePlan(in, r.pods(), options, cands, choices, links, noV6 == nil)
		return r.protect(ctx, p)
	}); err != nil {
		return 0, errors.Join(err, r.expel(ctx, members(in)))
	}

	p := makePlan(in, nil, options, cands, choices, links, noV6 == nil)
	r.last.mtu = p.mtu
	var failed []error
	for _, d := range r.drivers {
		w, err := d.apply(ctx, p.tunnels[d.Name], members(in), now)
		if err != nil {
			// The choice falls to another transport; what this one should carry stays unreachable otherwise.
			failed = append(failed, fmt.Errorf("transport %s: %w", d.Name, err))
		}
		if w > 0 && (wait == 0 || w < wait) {
			wait = w
		}
	}
	r.readLinks(ctx, false)
	err = r.locked(func() error {
		p := makePlan(in, r.pods(), options, cands, choices, links, noV6 == nil)
		return r.forward(ctx, p)
	})
	return wait, errors.Join(append(failed, err)...)
}

func (r *Router) locked(fn func() error) error {
	r.machine.Lock()
	defer r.machine.Unlock()
	return fn()
}

// expel ends what there is of removed members where nothing else can be done: to open less needs no guard.
func (r *Router) expel(ctx context.Context, members map[peer.ID]bool) error {
	var failed []error
	for _, d := range r.drivers {
		if err := d.expel(ctx, members); err != nil {
			failed = append(failed, fmt.Errorf("transport %s: %w", d.Name, err))
		}
	}
	return errors.Join(failed...)
}

func members(in Input) map[peer.ID]bool {
	m := make(map[peer.ID]bool, len(in.Peers))
	for _, p := range in.Peers {
		m[p.Info.ID] = true
	}
	return m
}

// protect puts everything in place that refuses, and only then forwarding: the routes that refuse, the guard in one
// transaction, the host's addresses, the sysctls.
func (r *Router) protect(ctx context.Context, p plan) error {
	have, err := r.cfg.Host.Snapshot(ctx, p.sysctlKeys())
	if err != nil {
		return err
	}
	if err := r.cfg.Host.Apply(ctx, p.refuse(have)); err != nil {
		return err
	}
	if _, err := r.cfg.Host.Filter(ctx, p.filter); err != nil {
		return fmt.Errorf("put the guard in place: %w", err)
	}
	changes := p.ground(have)
	if have.Sysctls[keyForward6] == "0" {
		keep, err := r.keepAdvertisements(ctx, have)
		if err != nil {
			return err
		}
		changes = append(keep, changes...)
	}
	if err := r.remember(ctx, have, changes); err != nil {
		return err
	}
	if err := r.cfg.Host.Apply(ctx, changes); err != nil {
		return err
	}
	r.grounded = p.addresses
	r.mu.Lock()
	r.ready = true
	r.mu.Unlock()
	return nil
}

// keepAdvertisements lets interfaces that follow router advertisements do so still when the machine forwards: a host that
// gets its address and route that way would lose both otherwise.
func (r *Router) keepAdvertisements(ctx context.Context, have *host.Snapshot) ([]host.Change, error) {
	var keys []string
	for _, l := range have.Links {
		if l.Name != "lo" && !isOurs(l.Name) {
			keys = append(keys, "net/ipv6/conf/"+l.Name+"/accept_ra")
		}
	}
	now, err := r.cfg.Host.Snapshot(ctx, keys)
	if err != nil {
		return nil, err
	}
	var changes []host.Change
	for _, key := range keys {
		if now.Sysctls[key] == "1" {
			have.Sysctls[key] = "1"
			changes = append(changes, host.Change{Sysctl: &host.Sysctl{Key: key, Value: "2"}})
		}
	}
	return changes, nil
}

func (r *Router) forward(ctx context.Context, p plan) error {
	have, err := r.cfg.Host.Snapshot(ctx, p.sysctlKeys())
	if err != nil {
		return err
	}
	// Devices may have come since: their gates and sysctls are part of what protects.
	if err := r.cfg.Host.Apply(ctx, append(p.shut(have), p.ground(have)...)); err != nil {
		return err
	}
	changes, waiting := p.forward(have)
	for _, device := range waiting {
		r.log.Debug("routes wait for a device", "device", device)
	}
	if len(changes) > 0 {
		r.log.Debug("changing routes", "changes", len(changes))
	}
	return r.cfg.Host.Apply(ctx, changes)
}

// decide brings the choices up to date.
func (r *Router) decide(in Input, options []option, choices map[peer.ID]Choice, now time.Time) (map[peer.ID][]candidate,
	map[peer.ID]map[string]Link,
) {
	self := node{underlay: in.Underlay, trusted: in.Trusted}
	cands, links := make(map[peer.ID][]candidate), make(map[peer.ID]map[string]Link)
	for _, p := range in.Peers {
		id := p.Info.ID
		links[id] = make(map[string]Link)
		for _, d := range r.drivers {
			if l, ok := d.links[id]; ok {
				links[id][d.Name] = l
			}
		}
		in, out := candidates(self, options, p)
		was := choices[id]
		cands[id], choices[id] = in, choose(in, out, links[id], was, now)
		if is := choices[id]; is.Transport != was.Transport {
			r.log.Info("transport chosen", "peer", id.Short(), "transport", is.Transport, "reason", is.Reason)
		}
	}
	current := members(in)
	maps.DeleteFunc(choices, func(id peer.ID, _ Choice) bool { return !current[id] })
	return cands, links
}

// pollLinks looks whether what the transports know changes a route; soon leaves out those that have time.
func (r *Router) pollLinks(ctx context.Context, choices map[peer.ID]Choice, soon bool) (due bool) {
	in, has := r.input()
	if !has {
		return false
	}
	due = r.readLinks(ctx, soon)
	before := make(map[peer.ID]string, len(choices))
	for id, c := range choices {
		before[id] = c.Transport
	}
	options := r.options(ctx, in)
	r.decide(in, options, choices, time.Now())
	for id, c := range choices {
		due = due || before[id] != c.Transport
	}
	r.publish(in, options, choices, r.last)
	return due
}
