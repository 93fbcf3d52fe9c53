package weftd

import (
	"context"
	"sync/atomic"
	"time"

	"weft/ipam"
	"weft/prog/control"
	"weft/router/host"
)

// A runtime that is killed between making a pod and remembering it, or a machine that loses its power, leaves claims behind
// for namespaces that are no more, and no runtime asks for them to be collected. A claim is given up when for a while there
// was neither its interface on the host, which the kernel removes together with the namespace, nor its namespace at the path
// and under the number that it was claimed with. What has no path was claimed by somebody who keeps his own books.

const (
	defaultReclaimAfter = 10 * time.Minute
	reclaimLooks        = 20 // per grace time
)

// reclaimer is what is known about claims that may be leaks.
type reclaimer struct {
	missing  map[control.Attached]time.Time // since when; run owns it
	released atomic.Uint64
}

// reclaim works until ctx ends. A restart of the daemon begins the wait anew.
func (n *node) reclaim(ctx context.Context) error {
	tick := time.NewTicker(n.reclaimAfter() / reclaimLooks)
	defer tick.Stop()
	n.reclaimed.missing = make(map[control.Attached]time.Time)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			n.reclaimOnce(ctx, time.Now())
		}
	}
}

func (n *node) reclaimAfter() time.Duration {
	if n.cfg.ReclaimAfter > 0 {
		return n.cfg.ReclaimAfter
	}
	return defaultReclaimAfter
}

func (n *node) reclaimOnce(ctx context.Context, now time.Time) {
	missing := make(map[control.Attached]time.Time)
	for _, c := range n.ring.Claims() {
		a := control.Attached{Container: c.Container, Ifname: c.IfName}
		if n.present(ctx, c) {
			continue
		}
		since, known := n.reclaimed.missing[a]
		if !known {
			since = now
		}
		if now.Sub(since) < n.reclaimAfter() {
			missing[a] = since
			continue
		}
		if err := n.giveUp(ctx, a); err != nil {
			missing[a] = since
			n.log.Warn("claim of a namespace that is gone not released, will try again", "container", a.Container, "device", a.Ifname, "err", err)
		}
	}
	n.reclaimed.missing = missing
}

// giveUp looks once more, with everybody else kept off.
func (n *node) giveUp(ctx context.Context, a control.Attached) error {
	release, err := n.holds.take(ctx, a)
	if err != nil {
		return err
	}
	defer release()
	c, ok := claimOf(n.ring.Claims(), a.Container, a.Ifname)
	if !ok || n.present(ctx, c) {
		return nil
	}
	if _, err := n.takeBack(ctx, c); err != nil {
		return err
	}
	n.reclaimed.released.Add(1)
	n.log.Info("released the claim of a namespace that is gone", "container", c.Container, "device", c.IfName, "address", c.Addr())
	return nil
}

// present reports whether anything is left of what a claim was made for. Doubt is presence.
func (n *node) present(ctx context.Context, c ipam.Claim) bool {
	if c.NetNS == "" {
		return true
	}
	if id, err := namespaceID(c.NetNS); err == nil && (c.Inode == 0 || id.ino == c.Inode) {
		return true
	}
	_, there, err := n.host.Link(ctx, host.VethName(c.Container+"/"+c.IfName))
	return there || err != nil
}
