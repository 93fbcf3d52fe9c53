package ipam

import (
	"context"
	"errors"
	"fmt"
)

// Renumber gives an interface another address when its own has become somebody else's: one step, so that nobody ever
// reads both or none. Where the address is still this node's nothing changes.
func (a *Allocator) Renumber(ctx context.Context, container, ifname string) (before, after Claim, err error) {
	var failed error
	err = a.do(ctx, func() { before, after, failed = a.renumber(claimName{container, ifname}) })
	if err = errors.Join(err, failed); err != nil {
		return Claim{}, Claim{}, fmt.Errorf("renumber %s of %s: %w", ifname, container, err)
	}
	return before, after, nil
}

func (a *Allocator) renumber(name claimName) (before, after Claim, err error) {
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			return before, after, err
		}
	}
	addr, ok := a.byName[name]
	if !ok {
		return before, after, fmt.Errorf("%w: there is no such claim", ErrBadRequest)
	}
	old := a.claims[addr]
	if a.space.Owns(addr) {
		return old.Claim, old.Claim, nil
	}
	if !a.serves() {
		return before, after, fmt.Errorf("%w: %s", ErrNotReady, a.sentence())
	}
	next, ok := a.space.Lowest()
	if !ok {
		a.poke()
		return before, after, a.shortage()
	}
	now := claim{Claim: old.at(next, a.cfg.Linked6)}
	if err := a.commit(deleteClaim(old), putClaim(now), deleteRest(next)); err != nil {
		return before, after, err
	}
	a.mu.Lock()
	delete(a.claims, addr)
	a.space.Drop(addr)
	a.space.Take(next)
	a.claims[next], a.byName[name] = now, next
	a.mu.Unlock()
	a.notify()
	return old.Claim, now.Claim, nil
}
