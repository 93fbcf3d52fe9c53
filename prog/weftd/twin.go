package weftd

import (
	"context"
	"time"
)

// A disk that was copied makes two machines of one identity, and one that was set back makes a node that has forgotten what it
// gave away. The ring finds out by what others have heard of this identity and stops it for good. From then on this machine is
// silent: two that speak with one voice would take each other's tunnels, and who reaches which of them would be a matter of
// chance.
//
//	serving ── the ring has stopped the identity ──> wire stopped ── all but the ring ended ──> silent
//	silent ── weft join TOKEN ──> a new node, which gives the pods addresses of its own
//
// Before that it has no tunnel to a voter that knows better: a voter is asked before a secret is agreed with it (pairs), and what
// the former machine has agreed opens no tunnel any more when the later one has agreed.
//
// Pods keep their interfaces, and reach each other on this machine. A daemon that starts in this state stays silent.

// attestEvery is how often another machine's start under this identity is looked for: a few hundred bytes to one voter.
const attestEvery = 3 * time.Second

// live runs all that speaks with others, until ctx ends or this identity is stopped.
func (n *node) live(ctx context.Context, tasks ...task) error {
	if n.hush(ctx) {
		return nil
	}
	ctx, quiet := context.WithCancel(ctx)
	defer quiet()
	return supervise(ctx, n.log, append(tasks, task{"twin", func(ctx context.Context) error {
		defer quiet()
		return n.watchTwin(ctx)
	}})...)
}

// watchTwin returns when ctx ends or the identity is stopped.
func (n *node) watchTwin(ctx context.Context) error {
	changed := n.ring.Watch()
	tick := time.NewTicker(attestEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
			n.ring.Attest(ctx)
		}
		if n.hush(ctx) {
			return nil
		}
	}
}

// hush stops the wire of an identity that must not be used any more; false: it may.
func (n *node) hush(ctx context.Context) bool {
	why, stopped := n.ring.Stopped()
	if !stopped {
		return false
	}
	n.log.Error("this machine is silent from now on", "reason", why)
	if err := n.link.stop(ctx); err != nil {
		n.log.Warn("wire not stopped, will try again", "err", err)
	}
	if _, err := stopWire(ctx, n.cfg, n.state); err != nil && ctx.Err() == nil {
		n.log.Warn("wire not stopped", "err", err)
	}
	return true
}

// over reports whether this identity is of no more use: it was removed, or stopped.
func (n *node) over() bool {
	_, gone := n.removed()
	_, stopped := n.ring.Stopped()
	return gone || stopped
}
