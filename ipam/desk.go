package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// desk collects what comes while the disk is busy with what came before, so that one transaction serves it all: to make
// something durable takes as long for one claim as for a hundred.
type desk struct {
	mu       sync.Mutex // guards what follows
	claims   []*waiter
	releases []*release
}

// release is a Release under way.
type release struct {
	container, ifname string

	done     chan struct{} // closed when what follows is set
	released []Claim
	err      error
}

func (d *desk) addClaim(w *waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.claims = append(d.claims, w)
}

func (d *desk) addRelease(r *release) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.releases = append(d.releases, r)
}

// take empties the desk. What was put there before a call of do is served by that call, or by another before it.
func (d *desk) take() (claims []*waiter, releases []*release) {
	d.mu.Lock()
	defer d.mu.Unlock()
	claims, releases = d.claims, d.releases
	d.claims, d.releases = nil, nil
	return claims, releases
}

// serveDesk serves all that lies on the desk, in two transactions at most: what is released first.
func (a *Allocator) serveDesk() {
	claims, releases := a.desk.take()
	if len(claims)+len(releases) == 0 {
		return
	}
	for _, w := range claims {
		w.rounds = a.outcome.rounds
	}
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			for _, w := range claims {
				w.answer(Claim{}, fmt.Errorf("%w: %w", ErrNotReady, err))
			}
			for _, r := range releases {
				r.err = err
				close(r.done)
			}
			return
		}
	}
	a.releaseAll(releases)
	for _, w := range a.serve(claims) {
		if len(a.waiting) == maxWaiting {
			w.answer(Claim{}, fmt.Errorf("%w: %d claims wait already; %s", ErrNotReady, maxWaiting, a.sentence()))
			continue
		}
		a.waiting = append(a.waiting, w)
		a.poke()
	}
}

// tryWaiting serves the claims that wait, oldest first.
func (a *Allocator) tryWaiting() {
	if len(a.waiting) > 0 {
		a.waiting = a.serve(a.waiting)
	}
}

// serve answers claims, those with an address by one transaction, and returns those that must wait.
func (a *Allocator) serve(claims []*waiter) (wait []*waiter) {
	b := &batch{names: make(map[claimName]bool), addrs: make(map[netip.Addr]bool)}
	for _, w := range claims {
		if !a.try(w, b) {
			wait = append(wait, w)
		}
	}
	if len(b.claims) == 0 {
		return wait
	}
	if err := a.commit(b.ops...); err != nil {
		a.mu.Lock()
		for _, c := range b.claims {
			if _, used := a.claims[c.Addr()]; !used {
				a.space.Drop(c.Addr())
			}
		}
		a.mu.Unlock()
		for _, w := range b.waiters {
			w.answer(Claim{}, fmt.Errorf("%w: %w", ErrNotReady, err))
		}
		return wait
	}
	a.mu.Lock()
	for _, c := range b.former {
		delete(a.byName, c.name())
	}
	for _, c := range b.claims {
		a.space.Take(c.Addr()) // once more, for the store may have been read again since
		a.claims[c.Addr()] = c
		a.byName[c.name()] = c.Addr()
	}
	a.mu.Unlock()
	for i, w := range b.waiters {
		w.answer(b.claims[i].Claim, nil)
	}
	a.notify()
	return wait
}

// batch is what one transaction makes durable for several claims.
type batch struct {
	ops     []Op
	claims  []claim
	waiters []*waiter // by index of claims
	former  []claim   // that make room for another of the same address
	names   map[claimName]bool
	addrs   map[netip.Addr]bool
}

func (b *batch) add(c claim, w *waiter) {
	b.ops = append(b.ops, putClaim(c), deleteRest(c.Addr()))
	b.claims, b.waiters = append(b.claims, c), append(b.waiters, w)
	b.names[c.name()], b.addrs[c.Addr()] = true, true
}

func (b *batch) replace(c claim) { b.former = append(b.former, c) }

func (c claim) name() claimName { return claimName{c.Container, c.IfName} }

// releaseAll serves releases by one transaction.
func (a *Allocator) releaseAll(releases []*release) {
	var ops []Op
	given := make(map[netip.Addr]bool)
	for _, c := range a.claims {
		if c.host {
			continue
		}
		for _, r := range releases {
			if c.Container != r.container || r.ifname != "" && c.IfName != r.ifname {
				continue
			}
			r.released = append(r.released, c.Claim)
			if addr := c.Addr(); !given[addr] {
				given[addr] = true
				ops = append(ops, deleteClaim(c), putRest(addr))
			}
		}
	}
	var err error
	if len(ops) > 0 {
		err = a.commit(ops...)
	}
	if err == nil && len(ops) > 0 {
		a.mu.Lock()
		now := a.now()
		for addr := range given {
			delete(a.byName, a.claims[addr].name())
			delete(a.claims, addr)
			a.space.Release(addr, now)
		}
		a.mu.Unlock()
		a.notify()
	}
	for _, r := range releases {
		if r.err = err; err != nil {
			r.released = nil
		}
		close(r.done)
	}
}

// abandon answers all that lies on the desk when nobody will serve it any more.
func (a *Allocator) abandon() {
	claims, releases := a.desk.take()
	for _, w := range slices.Concat(a.waiting, claims) {
		w.answer(Claim{}, ErrStopped)
	}
	a.waiting = nil
	for _, r := range releases {
		r.err = ErrStopped
		close(r.done)
	}
}
