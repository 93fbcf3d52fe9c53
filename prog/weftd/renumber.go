package weftd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/ipam"
	"weft/prog/control"
	"weft/router"
	"weft/router/host"
)

const (
	renumberAgain = 2 * time.Second  // after something did not work
	renumberTime  = 10 * time.Second // for one pod
)

// A pod whose address is in a block that is not this node's any more (the node was removed and came back under another
// identity, or served while nobody confirmed it) goes through this:
//
//	stray: in no guard's set and no route, so cut off    (podsOf, with the first push after the ring changed)
//	  |  a new address of this node's, durable in the same step that forgets the old one
//	  v
//	renumbered: the interface has the new address, guard and routes follow
//
// At every moment somebody is reached under one of the two at most: the old one is the new owner's from the first push on,
// and the new one belongs to nobody else.

// podsOf lists what the router is to connect. Strays keep their interface without an address; what is kept by hand has
// none.
func podsOf(claims, strays []ipam.Claim) []router.Pod {
	lost := make(map[netip.Addr]bool, len(strays))
	for _, c := range strays {
		lost[c.Addr()] = true
	}
	var pods []router.Pod
	for _, c := range claims {
		pod := router.Pod{Name: c.Container, IfName: c.IfName, V4: c.V4, V6: c.V6}
		switch {
		case c.ByHand():
			continue
		case lost[c.Addr()]:
			pod.V4, pod.V6 = netip.Addr{}, netip.Addr{}
		}
		pods = append(pods, pod)
	}
	return pods
}

// runRenumber gives strays new addresses until ctx ends. It begins with the pods that a former run left half way: their
// claim has an address that their interface has not.
func (n *node) runRenumber(ctx context.Context) error {
	changed := n.ring.Watch()
	again := time.NewTimer(0)
	defer again.Stop()
	unfinished := n.unplugged(ctx)
	said := make(map[control.Attached]string) // the last error of each pod, so that it is logged once
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again.C:
		}
		failed, starting := make(map[control.Attached]string), false
		for _, c := range n.ring.Strays() {
			at := control.Attached{Container: c.Container, Ifname: c.IfName}
			if err := n.renumber(ctx, c); err != nil {
				failed[at] = err.Error()
			}
			unfinished[at] = true
		}
		for at := range unfinished {
			if failed[at] != "" {
				continue
			}
			switch err := n.finish(ctx, at); {
			case err == nil:
				delete(unfinished, at)
			case errors.Is(err, router.ErrNotReady): // it is told the pools in a moment
				starting = true
			default:
				failed[at] = err.Error()
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		for at, why := range failed {
			if said[at] != why {
				n.log.Warn("pod has not its address yet, and is cut off until then", "container", at.Container, "err", why)
			}
		}
		if said = failed; len(failed) > 0 || starting {
			again.Reset(renumberAgain)
		}
	}
}

// unplugged lists the pods whose interface lacks something although their namespace is there.
func (n *node) unplugged(ctx context.Context) map[control.Attached]bool {
	all := make(map[control.Attached]bool)
	for _, c := range n.ring.Claims() {
		if !c.ByHand() && !lent(c) && sameNamespace(c) == nil && n.plugged(ctx, c) != nil {
			all[control.Attached{Container: c.Container, Ifname: c.IfName}] = true
		}
	}
	return all
}

func (n *node) plugged(ctx context.Context, c ipam.Claim) error {
	v6 := c.V6
	if n.host.IPv6() != nil {
		v6 = netip.Addr{}
	}
	return n.host.Plugged(ctx, host.Veth{ID: c.Container + "/" + c.IfName, NetNS: c.NetNS, IfName: c.IfName, V4: c.V4, V6: v6})
}

// renumber deals with the claim of one stray; finish with its interface. The pod is held meanwhile, so that no attach or
// detach of it comes in between.
func (n *node) renumber(ctx context.Context, c ipam.Claim) error {
	ctx, cancel := context.WithTimeout(ctx, renumberTime)
	defer cancel()
	release, err := n.holds.take(ctx, control.Attached{Container: c.Container, Ifname: c.IfName})
	if err != nil {
		return err
	}
	defer release()
	if !slices.Contains(n.ring.Strays(), c) {
		return nil // somebody else has seen to it, or it is the host's own and the ring sees to it
	}
	switch {
	case c.Container == "":
		return nil
	case c.ByHand():
		return n.renumberByHand(ctx, c)
	case c.NetNS == "" || lent(c):
		return fmt.Errorf("%s belongs to somebody else now, and only who made its interface can change it", c.Addr())
	}
	if err := sameNamespace(c); err != nil {
		if _, err := n.takeBack(ctx, c); err != nil {
			return err
		}
		n.log.Info("address released that had become somebody else's", "container", c.Container, "address", c.Addr(), "err", err)
		return nil
	}
	before, after, err := n.ring.Renumber(ctx, c.Container, c.IfName)
	if err != nil || before == after {
		return err
	}
	n.renumbered.Add(1)
	n.log.Warn("pod renumbered: its address had become somebody else's", "container", c.Container, "address", after.Addr(), "was", before.Addr())
	return nil
}

// finish brings the interface of a pod to what its claim says.
func (n *node) finish(ctx context.Context, at control.Attached) error {
	ctx, cancel := context.WithTimeout(ctx, renumberTime)
	defer cancel()
	release, err := n.holds.take(ctx, at)
	if err != nil {
		return err
	}
	defer release()
	c, ok := claimOf(n.ring.Claims(), at.Container, at.Ifname)
	if !ok || sameNamespace(c) != nil {
		return nil
	}
	_, err = n.router.Attach(ctx, router.AttachRequest{
		Pod:   router.Pod{Name: c.Container, IfName: c.IfName, V4: c.V4, V6: c.V6},
		NetNS: c.NetNS, MTU: c.MTU, MAC: c.MAC,
	})
	return err
}

// renumberByHand gives up an address that was kept for nobody yet: another one is not what was asked for.
func (n *node) renumberByHand(ctx context.Context, c ipam.Claim) error {
	if _, err := n.ring.Release(ctx, c.Container, c.IfName); err != nil {
		return err
	}
	n.log.Warn("address kept by hand has become somebody else's", "container", c.Container, "address", c.Addr())
	return nil
}
