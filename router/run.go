package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/router/host"
)

const (
	resync     = 30 * time.Second       // everything is read and compared at least so often
	poll       = time.Second            // how often the transports are asked about their links
	settle     = 50 * time.Millisecond  // a burst of events is answered once
	linger     = 3 * time.Second        // a tunnel that is left stays open to receive, beside two round trips
	transportD = 5 * time.Second        // a transport that does not answer holds up the others for no longer
	retryMin   = 500 * time.Millisecond // after an error; doubles
	retryMax   = resync
)

// ErrNotReady is what Attach answers before the router has been told the pools.
var ErrNotReady = errors.New("the node has no cluster yet. Try: weft init, or weft join")

// Router keeps the kernel equal to the newest Input.
//
// Run is the only goroutine that speaks to transports. mu is held for each change of the machine and guards what is
// grouped under it; Attach and Detach take it too, so that a pod never sees half of a change.
type Router struct {
	cfg Config
	log *slog.Logger

	kick chan struct{} // capacity 1: something is to be applied

	mu       sync.Mutex
	in       Input
	has      bool // an Input has come
	ready    bool // what protects is in place
	attached map[string]Pod

	drivers []*driverState // owned by Run, and by Down after it
	last    outcome        // owned by Run

	statusMu sync.Mutex // guards status and watchers
	status   Status
	watchers map[chan struct{}]struct{}
}

// driverState is one driver on this machine.
type driverState struct {
	Driver
	probed bool
	absent error // the probe's answer, or the error of the last Open or Apply
	t      Transport
	have   map[peer.ID]Tunnel
	left   map[peer.ID]time.Time // tunnels that are not wanted any more close then
	links  map[peer.ID]Link
}

// New checks the configuration. Nothing is changed before Run.
func New(cfg Config) (*Router, error) {
	if cfg.Host == nil {
		return nil, errors.New("make router: no host")
	}
	r := &Router{cfg: cfg, log: cfg.Log, kick: make(chan struct{}, 1), attached: make(map[string]Pod),
		watchers: make(map[chan struct{}]struct{}), status: Status{Reason: "no cluster yet"}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	for _, d := range cfg.Drivers {
		if d.Name == "" || d.Device == "" || d.Open == nil {
			return nil, fmt.Errorf("make router: driver %q lacks a name, a device or Open", d.Name)
		}
		r.drivers = append(r.drivers, &driverState{Driver: d, have: map[peer.ID]Tunnel{}, left: map[peer.ID]time.Time{}})
	}
	return r, nil
}

// Update replaces the input. It never blocks; Run applies the newest.
func (r *Router) Update(in Input) {
	r.mu.Lock()
	listed := make(map[string]bool, len(in.Pods))
	for _, p := range in.Pods {
		listed[p.id()] = true
	}
	for _, p := range r.in.Pods {
		if !listed[p.id()] { // the claim was given up
			delete(r.attached, p.id())
		}
	}
	r.in, r.has = in, true
	r.mu.Unlock()
	r.wake()
}

func (r *Router) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run applies inputs until ctx ends, again whenever somebody else changed the machine, and every 30 s. When it returns
// everything stays in the kernel as it is, so that traffic goes on without a daemon.
func (r *Router) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var events <-chan host.Event
	defer func() {
		cancel()
		for range events { // Watch has ended when its channel is closed
		}
	}()
	full, links := time.NewTicker(resync), time.NewTicker(poll)
	defer full.Stop()
	defer links.Stop()
	again := time.NewTimer(0) // an apply that is due later
	defer again.Stop()
	retry := retryMin
	choices := make(map[peer.ID]Choice)
	for {
		if events == nil {
			var err error
			if events, err = r.cfg.Host.Watch(ctx); err != nil && ctx.Err() == nil {
				events = nil
				r.log.Warn("outside changes are noticed by looking every 30 s only", "err", err)
			}
		}
		due := false
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
			due = true
		case <-full.C:
			due = true
		case <-again.C:
			due = true
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			r.log.Debug("network changed from outside", "what", e.What, "name", e.Name)
			again.Reset(settle)
			continue
		case <-links.C:
			due = r.pollLinks(ctx, choices)
		}
		if !due {
			continue
		}
		wait, err := r.applyAll(ctx, choices)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.log.Error("network state not applied", "err", err)
			again.Reset(retry)
			retry = min(2*retry, retryMax)
		default:
			retry = retryMin
			if wait > 0 {
				again.Reset(wait)
			}
		}
	}
}

func (r *Router) input() (Input, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.in, r.has
}

// podsLocked lists the claimed pods and those that were attached although the input does not list them yet.
func (r *Router) podsLocked() []Pod {
	pods := maps.Clone(r.attached)
	for _, p := range r.in.Pods {
		pods[p.id()] = p
	}
	out := make([]Pod, 0, len(pods))
	for _, id := range slices.Sorted(maps.Keys(pods)) {
		out = append(out, pods[id])
	}
	return out
}

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
	defer func() {
		r.last.failed = err
		r.publish(in, options, choices, r.last)
	}()
	now := time.Now()
	cands, links := r.decide(in, options, choices, now)

	if err := r.locked(func() error {
		p := makePlan(in, r.podsLocked(), options, cands, choices, links, noV6 == nil)
		return r.protect(ctx, p)
	}); err != nil {
		return 0, err
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
	r.readLinks(ctx)
	err = r.locked(func() error {
		p := makePlan(in, r.podsLocked(), options, cands, choices, links, noV6 == nil)
		return r.forward(ctx, p)
	})
	return wait, errors.Join(append(failed, err)...)
}

func (r *Router) locked(fn func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fn()
}

func members(in Input) map[peer.ID]bool {
	m := make(map[peer.ID]bool, len(in.Peers))
	for _, p := range in.Peers {
		m[p.Info.ID] = true
	}
	return m
}

// protect puts everything in place that refuses, and only then forwarding. The filter comes first, in one transaction.
func (r *Router) protect(ctx context.Context, p plan) error {
	if _, err := r.cfg.Host.Filter(ctx, p.filter); err != nil {
		return fmt.Errorf("put the guard in place: %w", err)
	}
	have, err := r.cfg.Host.Snapshot(ctx, p.sysctlKeys())
	if err != nil {
		return err
	}
	changes := p.protect(have)
	if have.Sysctls[keyForward6] == "0" {
		keep, err := r.keepAdvertisements(ctx, have)
		if err != nil {
			return err
		}
		changes = append(keep, changes...)
	}
	if err := r.remember(have, changes); err != nil {
		return err
	}
	if err := r.cfg.Host.Apply(ctx, changes); err != nil {
		return err
	}
	r.ready = true
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
	// Devices may have come since: their sysctls are part of what protects.
	if err := r.cfg.Host.Apply(ctx, p.protect(have)); err != nil {
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

// options lists the drivers in the order of preference, with what is known of this machine.
func (r *Router) options(ctx context.Context, in Input) []option {
	var out []option
	for _, d := range r.drivers {
		if !d.probed && d.Probe != nil {
			pctx, cancel := context.WithTimeout(ctx, transportD)
			err := d.Probe(pctx)
			cancel()
			// An answer that is neither yes nor no is asked for again the next time.
			d.probed, d.absent = err == nil || errors.Is(err, ErrUnsupported), err
		}
		o := option{Driver: d.Driver, absent: d.absent}
		if len(in.Transports) > 0 && !slices.Contains(in.Transports, d.Name) {
			o.absent = errors.New("not in --transport")
		}
		out = append(out, o)
	}
	if len(in.Transports) > 0 {
		rank := func(o option) int { return slices.Index(in.Transports, o.Name) }
		slices.SortStableFunc(out, func(a, b option) int { return rank(a) - rank(b) })
	}
	return out
}

// decide brings the choices up to date.
func (r *Router) decide(in Input, options []option, choices map[peer.ID]Choice, now time.Time) (map[peer.ID][]candidate,
	map[peer.ID]map[string]Link) {
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

// readLinks asks the transports, and reports whether an MTU changed, which routes follow.
func (r *Router) readLinks(ctx context.Context) (due bool) {
	for _, d := range r.drivers {
		if d.t == nil {
			continue
		}
		tctx, cancel := context.WithTimeout(ctx, transportD)
		list, err := d.t.Links(tctx)
		cancel()
		if err != nil && ctx.Err() == nil {
			r.log.Debug("transport does not report its links", "transport", d.Name, "err", err)
		}
		links := make(map[peer.ID]Link, len(list))
		for _, l := range list {
			due = due || d.links[l.Peer].MTU != l.MTU
			links[l.Peer] = l
		}
		d.links = links
	}
	return due
}

// pollLinks looks whether what the transports know changes a route.
func (r *Router) pollLinks(ctx context.Context, choices map[peer.ID]Choice) (due bool) {
	in, has := r.input()
	if !has {
		return false
	}
	due = r.readLinks(ctx)
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

// apply opens the transport if it is needed and gives it its tunnels. Tunnels of members that are not wanted any more
// stay for a moment, because the other side still sends; those of removed ones close at once. wait is when the next closes.
func (d *driverState) apply(ctx context.Context, want []Tunnel, members map[peer.ID]bool, now time.Time) (wait time.Duration,
	err error) {
	all := make(map[peer.ID]Tunnel, len(want))
	for _, t := range want {
		all[t.Peer] = t
		delete(d.left, t.Peer)
	}
	for id, t := range d.have {
		if _, wanted := all[id]; wanted || !members[id] {
			continue
		}
		if _, leaving := d.left[id]; !leaving {
			d.left[id] = now.Add(linger + 2*d.links[id].RTT)
		}
		if until := d.left[id].Sub(now); until > 0 {
			all[id] = t
			if wait == 0 || until < wait {
				wait = until
			}
		}
	}
	if d.t == nil {
		if len(all) == 0 {
			return 0, nil
		}
		if d.t, err = d.Open(ctx); err != nil {
			d.t, d.absent, d.probed = nil, err, false
			return 0, fmt.Errorf("open: %w", err)
		}
	}
	list := make([]Tunnel, 0, len(all))
	for _, t := range all {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b Tunnel) int { return a.Peer.Compare(b.Peer) })
	tctx, cancel := context.WithTimeout(ctx, transportD)
	defer cancel()
	if err := d.t.Apply(tctx, list); err != nil {
		return wait, err
	}
	d.have = all
	maps.DeleteFunc(d.left, func(id peer.ID, _ time.Time) bool { _, kept := all[id]; return !kept })
	return wait, nil
}

// Attach connects a namespace; again for the same one changes nothing, and a failure half way leaves nothing behind.
func (r *Router) Attach(ctx context.Context, req AttachRequest) (Attachment, error) {
	if req.IfName == "" {
		req.IfName = defaultIfName
	}
	if req.Name == "" {
		return Attachment{}, errors.New("attach: the container has no name")
	}
	if !req.V4.IsValid() && !req.V6.IsValid() {
		return Attachment{}, fmt.Errorf("attach %s: it has no address", req.Name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.has {
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, ErrNotReady)
	}
	for _, a := range []netip.Addr{req.V4, req.V6} {
		if a.IsValid() && !holds(r.in.Pools, a) {
			return Attachment{}, fmt.Errorf("attach %s: %s is in none of the cluster's pools", req.Name, a)
		}
	}
	pod := req.Pod
	noV6 := r.cfg.Host.IPv6()
	if noV6 != nil {
		if pod.V6 = (netip.Addr{}); !pod.V4.IsValid() {
			return Attachment{}, fmt.Errorf("attach %s: it has only an IPv6 address, and %w", req.Name, noV6)
		}
	}
	_, before := r.attached[pod.id()]
	r.attached[pod.id()] = pod
	v := host.Veth{ID: pod.id(), NetNS: req.NetNS, IfName: pod.IfName, V4: pod.V4, V6: pod.V6, MTU: PodMTU(r.in.UnderlayMTU),
		Routes: r.in.Pools}
	for _, a := range r.in.Hosts {
		if a.Is4() {
			v.Source4 = a
		} else {
			v.Source6 = a
		}
	}
	if err := r.attach(ctx, v, noV6 == nil); err != nil {
		if !before {
			delete(r.attached, pod.id())
			// The guard forgets the pod too; if not now, then with the next apply.
			if _, ferr := r.cfg.Host.Filter(ctx, guard(r.in, r.podsLocked())); ferr != nil {
				r.wake()
			}
		}
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, err)
	}
	out := Attachment{HostIf: host.VethName(pod.id()), IfName: pod.IfName, V4: pod.V4, V6: pod.V6, MTU: v.MTU}
	if pod.V4.IsValid() {
		out.Gateway4 = host.Gateway4
	}
	if pod.V6.IsValid() {
		out.Gateway6 = host.Gateway6
	}
	return out, nil
}

// attach comes after everything that can fail without a change: the guard learns the pod, then the pair is made.
func (r *Router) attach(ctx context.Context, v host.Veth, v6 bool) error {
	if !r.ready {
		p := makePlan(r.in, r.podsLocked(), nil, nil, nil, nil, v6)
		if err := r.protect(ctx, p); err != nil {
			return err
		}
	} else if _, err := r.cfg.Host.Filter(ctx, guard(r.in, r.podsLocked())); err != nil {
		return err
	}
	return r.cfg.Host.Plug(ctx, v)
}

// Detach removes the connection of a pod; that nothing is left of it is no error.
func (r *Router) Detach(ctx context.Context, name, ifName string) error {
	pod := Pod{Name: name, IfName: ifName}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.cfg.Host.Unplug(ctx, pod.id()); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	delete(r.attached, pod.id())
	r.in.Pods = slices.DeleteFunc(slices.Clone(r.in.Pods), func(p Pod) bool { return p.id() == pod.id() })
	if !r.has {
		return nil
	}
	if _, err := r.cfg.Host.Filter(ctx, guard(r.in, r.podsLocked())); err != nil {
		r.wake() // the veth is gone, so the entry admits nobody
	}
	return nil
}
