package ipam

import (
	"context"
	"fmt"
	"slices"

	"weft/mesh/peer"
)

// A disk that was copied makes two machines of one identity. A voter remembers the last start of each member that it has heard
// of, so either machine finds out when it talks to a voter that has heard of the other.

// Attest asks one voter that is alive, another one each time, whether this is still the last start of this identity that it
// has heard of. When it is not, the identity runs on another machine too, which was started later and is believed by now: then
// this one stops. A node that was confirmed has no other way to learn of it.
func (a *Allocator) Attest(ctx context.Context) {
	a.mu.RLock()
	serves := a.serves()
	a.mu.RUnlock()
	if !serves {
		return // it asks all anyway, or has nothing to say any more
	}
	b := a.ballot()
	var voters []peer.ID
	for _, p := range a.cfg.Network.Peers() {
		if p.State == peer.Alive && slices.ContainsFunc(b.voters, func(v peer.Voter) bool { return v.ID == p.ID }) {
			voters = append(voters, p.ID)
		}
	}
	if len(voters) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a.sync(ctx, voters[a.random()%uint64(len(voters))])
}

// Introduce tells a voter of this start before a tunnel leads to it, unless it has answered since the start or has joined after
// it. An error means that this identity must not have a tunnel any more: the voter has heard of another machine with it. A voter
// that does not answer is no reason to be without one.
func (a *Allocator) Introduce(ctx context.Context, to peer.ID) error {
	if err := a.do(ctx, func() {}); err != nil { // not before this start is on disk
		return err
	}
	a.mu.RLock()
	owed := a.elders.Has(to) && !a.answered.Has(to)
	a.mu.RUnlock()
	if owed {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		a.sync(ctx, to)
	}
	if why, stopped := a.Stopped(); stopped {
		return fmt.Errorf("identity stopped: %s", why)
	}
	return nil
}

// Stopped is why this identity must not be used any more, other than by its removal: its disk was set back or copied, so that
// others know more of what it wrote than it does itself.
func (a *Allocator) Stopped() (why string, stopped bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.stopped, a.phase == phaseStopped && !a.removed
}
