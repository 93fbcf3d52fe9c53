package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/ipam/ring"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// keepFree is how many addresses a lender keeps free for itself, at least.
const keepFree = 8

// serveSpare tells how large a block could be lent now. Nothing is promised by it.
func (a *Allocator) serveSpare(b []byte) ([]byte, error) {
	req, err := parseSpareRequest(b)
	if err != nil {
		return nil, err
	}
	var answer spareAnswer
	a.mu.RLock()
	defer a.mu.RUnlock()
	block, reason := a.spare()
	switch {
	case reason == lackNothing:
		answer.size = uint64(space.Size(block))
	case !bytes.Equal(req.digest, a.ring.Digest()):
		answer.reason, answer.ring = reason, a.ring.Encode()
	default:
		answer.reason = reason
	}
	return answer.encode(), nil
}

// spare is the block to lend; on Run's goroutine, or mu is held.
func (a *Allocator) spare() (netip.Prefix, lack) {
	switch a.phase {
	case phaseStopped:
		return netip.Prefix{}, lackIdentity
	case phaseConfirmed:
	default:
		return netip.Prefix{}, lackConfirmed
	}
	block, ok := a.space.Spare(keepFree)
	if !ok {
		return netip.Prefix{}, lackSpace
	}
	return block, lackNothing
}

// serveGrant lends a block to a member.
func (a *Allocator) serveGrant(ctx context.Context, from peer.ID, b []byte) ([]byte, error) {
	req, err := parseGrantRequest(b)
	if err != nil {
		return nil, err
	}
	var answer grantAnswer
	var failed error
	if err := a.do(ctx, func() { answer, failed = a.lend(from, req.request) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return answer.encode(), nil
}

// lend writes a grant and makes it durable before anybody hears of it. A request that was answered before gets the same
// answer, for the first one may have been lost.
func (a *Allocator) lend(to peer.ID, request requestID) (grantAnswer, error) {
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			return grantAnswer{}, err
		}
	}
	if s, ok := a.served[to]; ok && s.request == request {
		var grants []*ring.Grant
		for g := range a.ring.Links {
			if slices.Contains(s.grants, g.ID()) {
				grants = append(grants, g)
			}
		}
		if len(grants) < len(s.grants) {
			return grantAnswer{ring: a.ring.Encode()}, nil // some of it has gone to others since
		}
		return grantAnswer{ring: a.ring.Proof(grants)}, nil
	}
	if a.refuses(to) {
		return grantAnswer{}, fmt.Errorf("%s is being removed", to.Short())
	}
	block, reason := a.spare()
	if reason != lackNothing {
		return grantAnswer{reason: reason}, nil
	}
	next, report, err := a.ring.Grant(a.cfg.Signer, block, to)
	if err != nil {
		return grantAnswer{}, err
	}
	s := served{request: request}
	for _, g := range report.Added {
		s.grants = append(s.grants, g.ID())
	}
	if len(next.Encode()) > ring.MaxWire || len(s.grants) > maxServed {
		return grantAnswer{reason: lackSpace}, nil // others could not read the ring any more
	}
	if a.cfg.Weaken.has(WithoutDisk) {
		a.publish(next, report, nil)
	} else if err := a.write(next, report, putServed(to, s)); err != nil {
		return grantAnswer{}, err
	}
	a.mu.Lock()
	a.served[to] = s
	a.mu.Unlock()
	a.log.Info("block lent", "block", block, "peer", to)
	return grantAnswer{ring: next.Proof(report.Added)}, nil
}

// ErrLastMember says that there is nobody to hand space back to: this node keeps it, and whoever comes back to the cluster
// gets it from here.
var ErrLastMember = errors.New("this is the last member")

// ErrInUse says that a node cannot hand back its space while containers have addresses of it.
var ErrInUse = errors.New("addresses are in use")

// HandBack gives all of this node's blocks to other members, each to the one that it came from where that is alive, and
// returns when each heir has it on disk and a quorum of the other voters has on disk whatever this node knows: then it may
// say that it has left, and quorums need not count it any more. The host's address goes too. Afterwards the node has
// nothing to give; it is for leaving the cluster. After an error it may be called again.
func (a *Allocator) HandBack(ctx context.Context) error {
	var heirs []peer.ID
	var failed error
	peers := a.cfg.Network.Peers()
	err := a.do(ctx, func() { heirs, failed = a.handBack(peers) })
	if err != nil {
		return fmt.Errorf("hand back space: %w", err)
	}
	if failed == nil {
		failed = a.handOver(ctx, heirs)
	}
	if failed == nil {
		// From here on it may say that it has left, so it must not come back as a voter, also when it dies before it says so.
		failed = a.do(ctx, func() { err = a.commit(putStopped(leftReason)) })
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		return fmt.Errorf("hand back space: %w", failed)
	}
	return nil
}

// Leaving reports whether this node hands back its space, or has: from then on it is no witness of anything new, as a voter
// in a join would be.
func (a *Allocator) Leaving() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.phase == phaseLeft || a.stopped == leftReason
}

// leftReason is the sentence of a node that has handed back its space.
const leftReason = "has handed back its space to leave"

func (a *Allocator) handBack(peers []peer.Info) (heirs []peer.ID, err error) {
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			return nil, err
		}
	}
	if a.phase == phaseLeft || a.stopped == leftReason {
		return a.heirs, nil
	}
	if a.phase != phaseConfirmed {
		return nil, fmt.Errorf("%w: %s", ErrNotReady, a.sentence())
	}
	if !slices.ContainsFunc(peers, func(p peer.Info) bool { return p.State != peer.Removed }) {
		return nil, ErrLastMember
	}
	if n := len(a.byName); n > 0 {
		return nil, fmt.Errorf("%w: by %d interfaces. Detach them first: weft ip list", ErrInUse, n)
	}
	old, next := a.ring, a.ring
	for _, block := range old.Blocks(a.self) {
		heir, ok := heirOf(next, block, peers)
		if !ok {
			return nil, fmt.Errorf("no member is alive that could take %s", block)
		}
		if !slices.Contains(heirs, heir) {
			heirs = append(heirs, heir)
		}
		if next, _, err = next.Grant(a.cfg.Signer, block, heir); err != nil {
			return nil, err
		}
	}
	report := next.Since(old)
	var ops []Op
	if c, ok := a.claims[a.host]; ok {
		ops = append(ops, deleteClaim(c))
	}
	if err := a.write(next, report, ops...); err != nil {
		return nil, err
	}
	a.mu.Lock()
	if a.host.IsValid() {
		delete(a.claims, a.host)
		a.space.Drop(a.host)
		a.host = netip.Addr{}
	}
	a.phase, a.heirs = phaseLeft, heirs
	a.mu.Unlock()
	a.notify()
	return heirs, nil
}

// heirOf is who takes a block back: of those that are alive the one that it came from, the owner of its buddy, or
// whoever owns most.
func heirOf(r *ring.Ring, block netip.Prefix, peers []peer.Info) (peer.ID, bool) {
	alive := make(peer.Set)
	for _, p := range peers {
		if p.State == peer.Alive {
			alive.Add(p.ID)
		}
	}
	for _, id := range r.Heirs(block) {
		if alive.Has(id) {
			return id, true
		}
	}
	var best peer.ID
	most := -1
	owners := r.Owners()
	for _, id := range alive.Sorted() {
		if n := addresses(owners[id]); n > most {
			best, most = id, n
		}
	}
	return best, most >= 0
}

// addresses counts what a member's blocks hold without their linked twins, at most space.Many.
func addresses(blocks []netip.Prefix) (n int) {
	for _, b := range untwinned(blocks) {
		n = min(n+space.Size(b), space.Many)
	}
	return n
}

// untwinned is a member's blocks without the linked ones: beside IPv4 blocks all of IPv6 are.
func untwinned(blocks []netip.Prefix) []netip.Prefix {
	if !slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Addr().Is4() }) {
		return blocks
	}
	return slices.DeleteFunc(slices.Clone(blocks), func(b netip.Prefix) bool { return b.Addr().Is6() })
}
