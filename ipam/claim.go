package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/ipam/space"
)

// Limits of claims.
const (
	claimTimeout = 30 * time.Second // for a Claim whose context has no deadline
	maxWaiting   = 1024             // claims that wait for an address
)

// What a Claim can fail with; the error's text is a sentence for people with the cause.
var (
	ErrNoAddress  = errors.New("no free address")
	ErrNotReady   = errors.New("not ready to give addresses")
	ErrTaken      = errors.New("address is taken")
	ErrNotOurs    = errors.New("address is not this node's to give")
	ErrBadRequest = errors.New("bad request")
)

// Request asks for the addresses of one interface of one container.
type Request struct {
	Container string     // with IfName the name of the claim
	IfName    string     // inside the container
	NetNS     string     // path of its network namespace
	Pod       string     // namespace/name, for people; may be empty
	Address   netip.Addr // a certain address, IPv4 or its linked IPv6; zero for the lowest free one
}

// Claim is an address that is in use. It is durable: it outlives the daemon until it is released.
type Claim struct {
	V4        netip.Addr
	V6        netip.Addr // zero when the cluster has no IPv6
	Container string
	IfName    string
	NetNS     string
	Pod       string
	Created   time.Time // wall clock, for people
}

// waiter is a Claim under way.
type waiter struct {
	ctx    context.Context
	req    Request
	reply  chan reply // capacity 1
	rounds int        // of asking for space that had ended when it came
}

type reply struct {
	claim Claim
	err   error
}

func (w *waiter) answer(c Claim, err error) { w.reply <- reply{c, err} }

// Claim gives addresses to an interface; the claim is durable when it returns. The same container and interface get the
// same claim again. Where there is no address yet it waits until shortly before the deadline of ctx, 30 s when it has
// none, and says why there was none.
func (a *Allocator) Claim(ctx context.Context, req Request) (Claim, error) {
	if err := a.check(&req); err != nil {
		return Claim{}, err
	}
	ctx, cancel := withMargin(ctx)
	defer cancel()
	w := &waiter{ctx: ctx, req: req, reply: make(chan reply, 1)}
	err := a.do(ctx, func() {
		w.rounds = a.outcome.rounds
		if a.storeErr != nil {
			if err := a.reload(); err != nil {
				w.answer(Claim{}, fmt.Errorf("%w: %w", ErrNotReady, err))
				return
			}
		}
		if a.try(w) {
			return
		}
		if len(a.waiting) == maxWaiting {
			w.answer(Claim{}, fmt.Errorf("%w: %d claims wait already; %s", ErrNotReady, maxWaiting, a.sentence()))
			return
		}
		a.waiting = append(a.waiting, w)
		a.poke()
	})
	if err == nil {
		select {
		case r := <-w.reply:
			return r.claim, r.err
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Claim{}, a.whyNot()
	}
	return Claim{}, fmt.Errorf("claim an address: %w", err)
}

// withMargin ends a little earlier than ctx, so that the sentence still reaches the caller.
func withMargin(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, claimTimeout)
	}
	margin := min(250*time.Millisecond, time.Until(deadline)/10)
	return context.WithDeadline(ctx, deadline.Add(-margin))
}

// check refuses what can never succeed, and turns a linked IPv6 address into its twin.
func (a *Allocator) check(req *Request) error {
	if req.Container == "" || req.IfName == "" {
		return fmt.Errorf("%w: a claim needs a container and an interface", ErrBadRequest)
	}
	for _, s := range []string{req.Container, req.IfName, req.NetNS, req.Pod} {
		if len(s) > maxText {
			return fmt.Errorf("%w: a name of %d bytes, at most %d", ErrBadRequest, len(s), maxText)
		}
	}
	if !req.Address.IsValid() {
		return nil
	}
	asked := req.Address
	if v4, ok := space.Unlinked(a.cfg.Linked6, asked); ok {
		req.Address = v4
	}
	if _, ok := a.cfg.Universe.Pool(req.Address); !ok {
		return fmt.Errorf("%w: %s is in none of the cluster's pools", ErrNotOurs, asked)
	}
	return nil
}

// tryWaiting serves the claims that wait, oldest first.
func (a *Allocator) tryWaiting() {
	a.waiting = slices.DeleteFunc(a.waiting, a.try)
}

// try serves a claim; false when it must wait.
func (a *Allocator) try(w *waiter) bool {
	if w.ctx.Err() != nil {
		return true // nobody reads the answer; what was not asked for any more is not given
	}
	name := claimName{w.req.Container, w.req.IfName}
	if addr, ok := a.byName[name]; ok {
		c := a.claims[addr].Claim
		if w.req.Address.IsValid() && w.req.Address != addr {
			w.answer(Claim{}, fmt.Errorf("%w: %s of %s has %s already", ErrTaken, w.req.IfName, w.req.Container, addr))
			return true
		}
		w.answer(c, nil)
		return true
	}
	if a.phase == phaseStopped {
		w.answer(Claim{}, fmt.Errorf("%w: %s", ErrNotReady, a.stopped))
		return true
	}
	if a.phase == phaseLeft {
		w.answer(Claim{}, fmt.Errorf("%w: this node leaves the cluster", ErrNotReady))
		return true
	}
	if !a.serves() {
		return false
	}
	addr := w.req.Address
	if addr.IsValid() {
		if err := a.space.Check(addr); err != nil {
			w.answer(Claim{}, a.refusal(addr, err))
			return true
		}
	} else {
		var ok bool
		if addr, ok = a.space.Lowest(); !ok {
			if a.hopeless(w.rounds) {
				w.answer(Claim{}, a.shortage())
				return true
			}
			return false
		}
	}
	c := claim{Claim: Claim{
		V4: addr, V6: space.Linked(a.cfg.Linked6, addr),
		Container: w.req.Container, IfName: w.req.IfName, NetNS: w.req.NetNS, Pod: w.req.Pod,
		Created: time.Now().Round(0).UTC(),
	}}
	if err := a.put(c); err != nil {
		w.answer(Claim{}, fmt.Errorf("%w: %w", ErrNotReady, err))
		return true
	}
	w.answer(c.Claim, nil)
	return true
}

// put makes a claim durable, then visible. The host's claim takes the place of a former one.
func (a *Allocator) put(c claim) error {
	ops := []Op{putClaim(c), deleteRest(c.V4)}
	former, replaces := a.claims[a.host]
	replaces = replaces && c.host && former.V4 != c.V4
	if replaces {
		ops = append(ops, deleteClaim(former), putRest(former.V4))
	}
	if err := a.commit(ops...); err != nil {
		return err
	}
	a.mu.Lock()
	if replaces {
		delete(a.claims, former.V4)
		a.space.Release(former.V4, time.Now())
	}
	a.space.Take(c.V4)
	a.claims[c.V4] = c
	if c.host {
		a.host = c.V4
	} else {
		a.byName[claimName{c.Container, c.IfName}] = c.V4
	}
	a.mu.Unlock()
	a.notify()
	return nil
}

// refusal says why an address that was asked for by name is not given.
func (a *Allocator) refusal(addr netip.Addr, err error) error {
	switch c, used := a.claims[addr]; {
	case used && c.host:
		return fmt.Errorf("%w: %s is the host's own", ErrTaken, addr)
	case used:
		return fmt.Errorf("%w: %s belongs to %s of %s", ErrTaken, addr, c.IfName, c.Container)
	case errors.Is(err, space.ErrOutside):
		owner, _ := a.ring.Owner(addr)
		return fmt.Errorf("%w: %s lies in a block of %s. A node gives only addresses of its own blocks", ErrNotOurs, addr,
			names(a.cfg.Network.Peers(), owner))
	default:
		return fmt.Errorf("%w: %s: %w", ErrNotOurs, addr, err)
	}
}

// settleHost gives the host an address of its own as soon as there is one, and another one when its block has gone.
func (a *Allocator) settleHost() {
	if !a.serves() || a.host.IsValid() && a.space.Owns(a.host) {
		return
	}
	addr, ok := a.space.Lowest()
	if !ok {
		return
	}
	c := claim{host: true, Claim: Claim{V4: addr, V6: space.Linked(a.cfg.Linked6, addr), Created: time.Now().Round(0).UTC()}}
	if err := a.put(c); err == nil {
		a.log.Info("host address", "address", addr)
	}
}

// Release gives back the claim of an interface, or all claims of a container when ifname is empty. It lists what it
// released; that there was nothing is no error. A released address rests before it is given again.
func (a *Allocator) Release(ctx context.Context, container, ifname string) ([]Claim, error) {
	var released []Claim
	var failed error
	err := a.do(ctx, func() {
		if a.storeErr != nil {
			if failed = a.reload(); failed != nil {
				return
			}
		}
		var ops []Op
		for _, c := range a.claims {
			if !c.host && c.Container == container && (ifname == "" || c.IfName == ifname) {
				released = append(released, c.Claim)
				ops = append(ops, deleteClaim(c), putRest(c.V4))
			}
		}
		if len(released) == 0 {
			return
		}
		if failed = a.commit(ops...); failed != nil {
			released = nil
			return
		}
		a.mu.Lock()
		now := time.Now()
		for _, c := range released {
			delete(a.claims, c.V4)
			delete(a.byName, claimName{c.Container, c.IfName})
			a.space.Release(c.V4, now)
		}
		a.mu.Unlock()
		a.notify()
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("release an address: %w", err)
	}
	slices.SortFunc(released, compareClaims)
	return released, nil
}

// Claims lists the claims of containers in the order of their addresses.
func (a *Allocator) Claims() []Claim {
	a.mu.RLock()
	defer a.mu.RUnlock()
	claims := make([]Claim, 0, len(a.claims))
	for _, c := range a.claims {
		if !c.host {
			claims = append(claims, c.Claim)
		}
	}
	slices.SortFunc(claims, compareClaims)
	return claims
}

// HostAddress is the node's own address, false while it has none.
func (a *Allocator) HostAddress() (Claim, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	c, ok := a.claims[a.host]
	return c.Claim, ok
}

func compareClaims(a, b Claim) int { return a.V4.Compare(b.V4) }
