package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/router/host"
)

const (
	resync     = 30 * time.Second       // everything is read and compared at least so often
	poll       = 500 * time.Millisecond // how often the transports are asked about their links
	leisurely  = 10                     // looks out of turn take one part in so many of the time, at most
	leisure    = time.Second            // until pods that came and went are compared with the kernel
	linger     = 3 * time.Second        // a tunnel that is left stays open to receive, beside two round trips
	transportD = 5 * time.Second        // a transport that does not answer holds up the others for no longer
	forgive    = 2 * time.Second        // what a transport said of its links is good for so long, when it does not answer
	retryMin   = 500 * time.Millisecond // after an error; doubles
	retryMax   = resync
)

// ErrNotReady is what Attach answers before the router has been told the pools.
var ErrNotReady = errors.New("the node has no cluster yet. Try: weft init, or weft join")

// Router keeps the kernel equal to the newest Input.
//
// Run is the only goroutine that speaks to transports. Attach registers its pod under mu and then changes the guard, under
// machine, before it makes anything for that pod alone without either: so whoever plans for the whole machine at that time
// knows the pod. Detach does the same the other way round. machine is taken before mu.
type Router struct {
	cfg Config
	log *slog.Logger

	kick     chan struct{} // capacity 1: something is to be applied
	tidy     chan struct{} // capacity 1: as kick, when there is time
	dig      chan struct{} // capacity 1: links are to be deleted
	plugging chan struct{} // capacity 1: full while a pod's pair is made
	turns    *turns        // of the guard, for pods that come and go

	machine  sync.Mutex     // held for each change of the machine as a whole; guards what follows
	grounded []host.Address // our own addresses that were put in place with what protects

	mu       sync.Mutex // held for moments; guards what follows
	in       Input
	has      bool // an Input has come
	ready    bool // what protects is in place
	attached map[string]Pod

	registered, admitted uint64                   // how many attaches there were, and up to which the guard knows them
	busy                 map[string]chan struct{} // by pod: somebody is at work on its connection, until the channel is closed
	graves               map[string]*grave        // by the name of the link
	noV6                 error                    // why this machine does not speak IPv6
	asked                bool                     // whether it does
	swept                bool                     // the links of former runs have been looked at, and those without a pod are gone

	drivers []*driverState // owned by Run, and by Down after it
	looked  time.Duration  // what the last look out of turn took; owned by Run
	last    outcome        // owned by Run

	statusMu sync.Mutex // guards status and watchers
	status   Status
	watchers map[chan struct{}]struct{}
}

// New checks the configuration. Nothing is changed before Run.
func New(cfg Config) (*Router, error) {
	if cfg.Host == nil {
		return nil, errors.New("make router: no host")
	}
	r := &Router{
		cfg: cfg, log: cfg.Log, kick: make(chan struct{}, 1), tidy: make(chan struct{}, 1), dig: make(chan struct{}, 1),
		turns: newTurns(), plugging: make(chan struct{}, 1),
		attached: make(map[string]Pod), busy: make(map[string]chan struct{}), graves: make(map[string]*grave),
		watchers: make(map[chan struct{}]struct{}), status: Status{Reason: "no cluster yet"},
	}
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

// Update replaces the input. It never blocks; Run applies the newest. The first input of a run decides over what a former
// run left in the kernel, so it should already list the peers that are known from disk: those missing lose their routes.
func (r *Router) Update(in Input) {
	r.mu.Lock()
	listed := make(map[string]bool, len(in.Pods))
	for _, p := range in.Pods {
		listed[p.id()] = true
	}
	quiet := r.has && r.ready && samePurpose(in, r.in)
	for _, p := range r.in.Pods {
		if !listed[p.id()] { // the claim was given up
			delete(r.attached, p.id())
			quiet = quiet && r.graves[host.VethName(p.id())] != nil
		}
	}
	for _, p := range in.Pods {
		quiet = quiet && (p.Device == "" || slices.Contains(r.in.Pods, p)) // nobody attaches a guest
		if now, ok := r.attached[p.id()]; ok && now != p {
			r.attached[p.id()] = p
			quiet = false
		}
	}
	r.in, r.has = in, true
	r.mu.Unlock()
	if quiet { // pods that Attach and Detach have seen to, or are about to
		select {
		case r.tidy <- struct{}{}:
		default:
		}
		return
	}
	r.wake()
}

// samePurpose reports whether two inputs differ by no more than their pods.
func samePurpose(a, b Input) bool {
	a.Pods, b.Pods = nil, nil
	return reflect.DeepEqual(a, b)
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
	var others outside
	defer func() {
		cancel()
		others.end()
	}()
	var graves sync.WaitGroup
	defer graves.Wait()
	graves.Go(func() { r.runGraves(ctx) })
	full, links := time.NewTicker(resync), time.NewTicker(poll)
	defer full.Stop()
	defer links.Stop()
	again := time.NewTimer(0) // an apply that is due later
	defer again.Stop()
	var later, soon <-chan time.Time // for what has time, and for links that have none
	retry := retryMin
	choices := make(map[peer.ID]Choice)
	for {
		others.listen(ctx, r)
		if d := r.again(); soon == nil && d > 0 {
			soon = time.After(d)
		}
		var due bool
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
			due = true
		case <-full.C:
			due = true
		case <-again.C:
			due = true
		case <-later:
			due, later = true, nil
		case <-r.tidy:
			if later == nil {
				later = time.After(leisure)
			}
			continue
		case e, ok := <-others.events:
			again.Reset(others.due(time.Now()))
			if !ok { // what changes until somebody listens again is not told
				others.events = nil
				continue
			}
			r.log.Debug("network changed from outside", "what", e.What, "name", e.Name)
			if e.What == host.GuardGone {
				r.restore(ctx)
			}
			continue
		case <-links.C:
			due = r.pollLinks(ctx, choices, false)
		case <-soon:
			soon = nil
			began := time.Now()
			due = r.pollLinks(ctx, choices, true)
			r.looked = time.Since(began)
		}
		if !due {
			continue
		}
		others.first = time.Time{}
		wait, err := r.applyAll(ctx, choices)
		if !r.isSwept() { // also where a transport is broken: until then no address that was released is given again
			err = errors.Join(err, r.sweep(ctx))
		}
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

// restore puts the guard back without waiting for a burst of changes to end: while it is away pods' packets to the world
// carry their own addresses.
func (r *Router) restore(ctx context.Context) {
	if err := r.admit(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrNotReady) {
		r.log.Warn("guard not put back at once", "err", err) // the whole is applied in a moment, and says so if it fails
	}
}

// again is how soon some link is to be looked at out of turn; 0: none is.
func (r *Router) again() (soonest time.Duration) {
	for _, d := range r.drivers {
		if a := d.again(); a > 0 && (soonest == 0 || a < soonest) {
			soonest = a
		}
	}
	if soonest > 0 { // in a large cluster it takes its time
		soonest = max(soonest, leisurely*r.looked)
	}
	return soonest
}

// isSwept reports whether nothing is left to look for; before the first input there is nothing to compare with.
func (r *Router) isSwept() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.swept || !r.has
}

func (r *Router) input() (Input, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.in, r.has
}

// pods is podsLocked for who does not hold mu.
func (r *Router) pods() []Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.podsLocked()
}

// podsLocked lists the claimed pods and those that were attached although the input does not list them yet; not those that
// were detached although it still lists them.
func (r *Router) podsLocked() []Pod {
	pods := maps.Clone(r.attached)
	for _, p := range r.in.Pods {
		if len(r.graves) == 0 || r.graves[host.VethName(p.id())] == nil { // to name a link takes a hash
			pods[p.id()] = p
		}
	}
	out := make([]Pod, 0, len(pods))
	for _, id := range slices.Sorted(maps.Keys(pods)) {
		out = append(out, pods[id])
	}
	return out
}
