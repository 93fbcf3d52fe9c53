package ipam

import (
	"cmp"
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
	withdrawTime = 200 * time.Millisecond
	claimTimeout = 30 * time.Second // for a Claim whose context has no deadline
	maxWaiting   = 1024             // claims that wait for an address, or to be looked at
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
	Network   string     // whose it is: the runtime's network; may be empty
	Aliases   string     // other names of the container, with spaces between; may be empty
	Inode     uint64     // of the network namespace; 0: not known
	MTU       int        // of the interface, as it was asked for; 0: nothing was
	MAC       string     // likewise
	Address   netip.Addr // a certain address, that of a pool or its linked IPv6; zero for the lowest free one
}

// Claim is an address that is in use, or kept for a container to come. It is durable: it outlives the daemon until it is
// released.
type Claim struct {
	V4        netip.Addr // zero when the cluster has native IPv6 pools
	V6        netip.Addr // linked or of a native pool; zero when the cluster has no IPv6
	Container string
	IfName    string
	NetNS     string
	Pod       string
	Network   string
	Aliases   string
	Inode     uint64
	MTU       int
	MAC       string
	Created   time.Time // wall clock, for people
}

// NoInterface stands for the interface of a claim that has none: somebody keeps the address by hand.
const NoInterface = "-"

// ByHand reports whether the claim is such a one. A container of its name gets the address when it asks for it.
func (c Claim) ByHand() bool { return c.IfName == NoInterface && c.NetNS == "" }

// Addr is the address that was taken from a pool; another one that the claim has follows from it.
func (c Claim) Addr() netip.Addr {
	if c.V4.IsValid() {
		return c.V4
	}
	return c.V6
}

// at is the claim with the address that was taken from a pool, and with what follows from it.
func (c Claim) at(addr netip.Addr, linked netip.Prefix) Claim {
	if addr.Is6() {
		c.V4, c.V6 = netip.Addr{}, addr
	} else {
		c.V4, c.V6 = addr, space.Linked(linked, addr)
	}
	return c
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
	a.desk.addClaim(w)
	err := a.do(ctx, a.serveDesk)
	if err == nil {
		select {
		case r := <-w.reply:
			return r.claim, r.err
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		// It may have been given at this very moment: then it is the caller's, who knows best what to do with it.
		if r, ok := a.withdraw(w); ok {
			return r.claim, r.err
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Claim{}, a.whyNot()
	}
	return Claim{}, fmt.Errorf("claim an address: %w", err)
}

// withdraw ends a claim that nobody waits for any more; ok is false when it was not answered before. A disk that hangs is
// not waited for.
func (a *Allocator) withdraw(w *waiter) (r reply, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), withdrawTime)
	defer cancel()
	_ = a.do(ctx, func() {
		a.waiting = slices.DeleteFunc(a.waiting, func(other *waiter) bool { return other == w })
	})
	select {
	case r = <-w.reply:
		return r, true
	default:
		return r, false
	}
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
	for _, s := range []string{req.Container, req.IfName, req.NetNS, req.Pod, req.Network, req.Aliases, req.MAC} {
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

// try serves a claim, as a part of what b makes durable; false when it must wait.
func (a *Allocator) try(w *waiter, b *batch) bool {
	if w.ctx.Err() != nil {
		return true // nobody reads the answer; what was not asked for any more is not given
	}
	name := claimName{w.req.Container, w.req.IfName}
	addr, known := a.byName[name]
	stray := known && !a.space.Owns(addr)
	if known && !stray {
		c := a.claims[addr].Claim
		if w.req.Address.IsValid() && w.req.Address != addr {
			w.answer(Claim{}, fmt.Errorf("%w: %s of %s has %s already", ErrTaken, w.req.IfName, w.req.Container, addr))
			return true
		}
		w.answer(a.renew(c, w.req))
		return true
	}
	if b.names[name] { // twice at the same time: the second one gets what the first one gets
		return false
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
	if stray { // its address is somebody else's by now
		_, after, err := a.renumber(name)
		if errors.Is(err, ErrNoAddress) && !a.hopeless(w) {
			return false
		}
		if err == nil {
			after, err = a.renew(after, w.req)
		}
		w.answer(after, err)
		return true
	}
	addr = w.req.Address
	former, reserved := a.claims[addr]
	switch {
	case !addr.IsValid():
		var ok bool
		if addr, ok = a.space.Lowest(); !ok {
			if a.hopeless(w) {
				w.answer(Claim{}, a.shortage())
				return true
			}
			return false
		}
	case reserved && former.ByHand() && former.Container == w.req.Container && a.space.Owns(addr):
		b.replace(former)
	case b.addrs[addr], a.lingers(addr): // somebody gets it just now, or still has it on an interface
		return false
	default:
		if err := a.space.Check(addr); err != nil {
			w.answer(Claim{}, a.refusal(addr, err))
			return true
		}
	}
	c := claim{Claim: Claim{
		Container: w.req.Container, IfName: w.req.IfName, NetNS: w.req.NetNS, Pod: w.req.Pod,
		Network: w.req.Network, Aliases: w.req.Aliases, Inode: w.req.Inode,
		MTU: w.req.MTU, MAC: w.req.MAC, Created: a.now().Round(0).UTC(),
	}.at(addr, a.cfg.Linked6)}
	a.mu.Lock()
	a.space.Take(addr) // so that the next of the batch gets another; nobody is told before it is durable
	a.mu.Unlock()
	b.add(c, w)
	return true
}

// lingers reports whether a released address may still be on an interface.
func (a *Allocator) lingers(addr netip.Addr) bool {
	return a.cfg.Lingers != nil && a.space.Rests(addr) && a.cfg.Lingers(addr)
}

// renew follows a container to another namespace: one that is started again keeps its name and addresses.
func (a *Allocator) renew(c Claim, req Request) (Claim, error) {
	now := c
	now.NetNS, now.Inode = req.NetNS, req.Inode
	now.Pod, now.Network = cmp.Or(req.Pod, c.Pod), cmp.Or(req.Network, c.Network)
	now.Aliases = cmp.Or(req.Aliases, c.Aliases)
	now.MTU, now.MAC = cmp.Or(req.MTU, c.MTU), cmp.Or(req.MAC, c.MAC)
	if now == c {
		return c, nil
	}
	if err := a.put(claim{Claim: now}); err != nil {
		return Claim{}, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return now, nil
}

// put makes a claim durable, then visible. The host's claim takes the place of a former one.
func (a *Allocator) put(c claim) error {
	addr := c.Addr()
	ops := []Op{putClaim(c), deleteRest(addr)}
	former, replaces := a.claims[a.host]
	replaces = replaces && c.host && former.Addr() != addr
	if replaces {
		ops = append(ops, deleteClaim(former), putRest(former.Addr()))
	}
	if err := a.commit(ops...); err != nil {
		return err
	}
	a.mu.Lock()
	if replaces {
		delete(a.claims, former.Addr())
		a.space.Release(former.Addr(), a.now())
	}
	a.space.Take(addr)
	a.claims[addr] = c
	if c.host {
		a.host = addr
	} else {
		a.byName[claimName{c.Container, c.IfName}] = addr
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
	c := claim{host: true, Claim: Claim{Created: a.now().Round(0).UTC()}.at(addr, a.cfg.Linked6)}
	if err := a.put(c); err == nil {
		a.log.Info("host address", "address", addr)
	}
}

// Release gives back the claim of an interface, or all claims of a container when ifname is empty. It lists what it
// released; that there was nothing is no error. A released address rests before it is given again, and until it is on no
// interface any more (Config.Lingers).
func (a *Allocator) Release(ctx context.Context, container, ifname string) ([]Claim, error) {
	r := &release{container: container, ifname: ifname, done: make(chan struct{})}
	a.desk.addRelease(r)
	err := a.do(ctx, a.serveDesk)
	if err == nil {
		<-r.done
		err = r.err
	}
	if err != nil {
		return nil, fmt.Errorf("release an address: %w", err)
	}
	slices.SortFunc(r.released, compareClaims)
	return r.released, nil
}

// Settle looks again at what may have changed outside of the allocator: addresses that lingered.
func (a *Allocator) Settle(ctx context.Context) error { return a.do(ctx, func() {}) }

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

func compareClaims(a, b Claim) int { return a.Addr().Compare(b.Addr()) }
