package weftd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"weft/crypto/identity"
	"weft/prog/control"
	"weft/prog/wire"
	"weft/router"
)

const (
	handBackTime = 10 * time.Second // for others to take our space; whoever leaves does not wait for the dead
	tellTime     = 5 * time.Second  // for others to hear that this node leaves
)

// Down stops the wire that a daemon left behind; false: there was none.
func Down(ctx context.Context, cfg Config) (bool, error) {
	state, err := openState(cfg.State)
	if err != nil {
		return false, explain(err)
	}
	stopped, err := stopWire(ctx, cfg, state)
	return stopped, explain(errors.Join(err, state.close()))
}

// Down stops daemon and wire. What protects stays in the kernel: while nobody looks nothing leaks.
func (d *daemon) Down(ctx context.Context) error {
	n, _ := d.current()
	if n != nil {
		d.stopAttached(ctx, n)
	}
	d.finish("weft down", func(ctx context.Context) error {
		if n == nil {
			return nil
		}
		_, err := stopWire(ctx, d.cfg, d.state)
		return errors.Join(err, n.router.Down(ctx))
	})
	return nil
}

// awaitSignal ends the daemon when the world outside ends its context, which is how signals come. A member without a vote
// leaves first, if it has no pods: machines that come and go do not come back, and nobody has to wait for their silence.
func (d *daemon) awaitSignal(ctx, outside context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-outside.Done():
	}
	if n, err := d.current(); err == nil && n.member.certificate.Ephemeral {
		if _, gone := n.removed(); !gone {
			left, err := d.Leave(ctx, control.LeaveRequest{})
			if err == nil {
				d.log.Info("left the cluster, as members without a vote do when they are stopped", "notes", left.Notes)
				return nil
			}
			d.log.Info("stops without leaving", "err", err)
		}
	}
	d.stop()
	return nil
}

// Leave hands back the node's space, tells the others and forgets the membership. What others do not answer in time is
// noted and holds up nothing: they find out by themselves. Once begun it goes on whether or not somebody waits for the
// answer: the membership would be forgotten here, and the others not told.
func (d *daemon) Leave(ctx context.Context, r control.LeaveRequest) (control.LeaveReply, error) {
	reply := control.LeaveReply{Version: control.Version, State: d.cfg.State}
	n, err := d.current()
	if err != nil && !r.Purge {
		return reply, err
	}
	ctx = context.WithoutCancel(ctx) // each step has a time of its own
	keep, stays := "", false
	if n != nil {
		if claims := n.ring.Claims(); len(claims) > 0 {
			return reply, &control.Error{
				Code: control.Conflict, Message: fmt.Sprintf("%d pods are still attached", len(claims)),
				Cause: claims[0].Container + " among them", Hint: "Detach them first: weft detach NETNS",
			}
		}
		last := len(n.remaining()) == 0
		switch {
		case last && r.Purge:
			reply.Notes = []string{"This was the only member: the cluster is no more."}
		case last:
			stays = true
			reply.Notes = []string{"This was the last member, so its state stays: weft up starts the cluster again from here; " +
				"weft leave --purge ends it."}
		default:
			reply.Notes = n.sayGoodbye(ctx)
		}
		if n.rootGoes() {
			keep = keptRoot(n.member.cluster)
			note := "This machine held the cluster's root key, which now is " + d.state.file(keep) +
				". Whoever has it as root.key can name issuers: put it on another member."
			if r.Purge {
				note = "This machine held the cluster's root key, and it goes too: nobody can name another issuer."
			}
			reply.Notes = append(reply.Notes, note)
		}
		d.stopAttached(ctx, n)
	}
	d.finish("weft leave", func(ctx context.Context) error {
		_, err := stopWire(ctx, d.cfg, d.state)
		if r.Purge {
			return errors.Join(err, d.purge(ctx))
		}
		if n != nil {
			err = errors.Join(err, n.router.Down(ctx))
		}
		if stays {
			return err
		}
		return errors.Join(err, d.state.forget(keep))
	})
	return reply, nil
}

// sayGoodbye hands back the space and tells the others; the notes say what did not work. Its own removal goes last: with it
// go its vote and its part in every agreement, and nobody speaks with it any more.
func (n *node) sayGoodbye(ctx context.Context) (notes []string) {
	if _, gone := n.removed(); gone {
		return nil
	}
	back, cancel := context.WithTimeout(ctx, handBackTime)
	defer cancel()
	handed := n.ring.HandBack(back)
	if err := handed; err != nil {
		notes = append(notes, "Addresses not handed back: "+err.Error()+".")
	}
	tell, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	if err := n.mesh.Leave(tell); err != nil {
		notes = append(notes, "The others were not told: "+err.Error()+".")
	}
	if handed != nil || len(n.ring.Blocks()[n.key.ID()]) > 0 {
		// Who still owns space may have given some of it away a moment ago: it cannot say that it had stopped before.
		return append(notes, "The node keeps its vote and its space until it is removed there: weft peer remove "+n.name+".")
	}
	removal, err := identity.Leave(n.member.certificate, n.key, time.Now())
	if err != nil {
		return append(notes, "The own vote was not given up: "+err.Error()+".")
	}
	last, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	if told, err := n.mesh.Tell(last, removal); err != nil || len(told) == 0 {
		notes = append(notes, "No member that is alive heard of it: each keeps waiting for this node until it is removed there: weft peer remove "+n.name+".")
	}
	return notes
}

// rootGoes reports whether the root key of a cluster that lives on is on this machine.
func (n *node) rootGoes() bool { return !n.root.IsZero() && len(n.remaining()) > 0 }

// stopAttached stops the wire through the attachment that there is; what that misses, stopWire finds.
func (d *daemon) stopAttached(ctx context.Context, n *node) {
	if err := n.link.stop(ctx); err != nil {
		d.log.Warn("wire not stopped, will try again", "err", err)
	}
}

// finish ends the daemon for good: after everything has stopped, last is done.
func (d *daemon) finish(why string, last func(context.Context) error) {
	d.mu.Lock()
	d.ending, d.farewell = why, last
	d.mu.Unlock()
	d.stop()
}

// purge leaves the machine as if weft had never been there. The folders go last, and only when they are empty.
func (d *daemon) purge(ctx context.Context) error {
	if dockerHere() {
		stopForward(ctx)
	}
	err := errors.Join(router.Remove(ctx, d.host, d.state.file(fileUndo)), d.state.purge())
	if dir := filepath.Dir(d.cfg.Socket); dir == filepath.Dir(DefaultSocket) {
		// The socket and its lock go when the door closes, which is later; then nobody needs the folder.
		d.purged = func() { _ = os.Remove(dir) }
	}
	return err
}

// stopWire stops the wire behind the state's socket; false: there was none.
func stopWire(ctx context.Context, cfg Config, state *stateDir) (bool, error) {
	o := wire.Options{Socket: state.file(fileWireSocket), Log: cfg.Log, Version: cfg.Build}
	// The lock is ours, so whoever displaces us is a daemon that is dead.
	for range wireDisplaced {
		c, err := wire.Ensure(ctx, o)
		if nobodyListens(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		err = errors.Join(c.Stop(ctx), c.Close())
		if !errors.Is(err, wire.ErrDisplaced) {
			return err == nil, err
		}
	}
	return false, fmt.Errorf("stop the wire: %w", wire.ErrDisplaced)
}
