package router

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"weft/mesh/peer"
)

// driverState is one driver on this machine.
type driverState struct {
	Driver
	probed bool
	absent error // the probe's answer, or the error of the last Open or Apply
	swept  bool  // Apply succeeded since the start
	t      Transport
	have   map[peer.ID]Tunnel
	left   map[peer.ID]time.Time // tunnels that are not wanted any more close then
	links  map[peer.ID]Link
	heard  time.Time // when it told of them
}

// options lists the drivers in the order of preference, with what is known of this machine.
func (r *Router) options(ctx context.Context, in Input) []option {
	var out []option
	for _, d := range r.drivers {
		if !d.probed {
			d.probed, d.absent = true, nil
			if d.Probe != nil {
				pctx, cancel := context.WithTimeout(ctx, transportD)
				d.absent = d.Probe(pctx)
				cancel()
				// An answer that is neither yes nor no is asked for again the next time.
				d.probed = d.absent == nil || errors.Is(d.absent, ErrUnsupported)
			}
		}
		o := option{Driver: d.Driver, absent: d.absent}
		if len(in.Transports) > 0 && !slices.Contains(in.Transports, d.Name) {
			o.absent = errors.New("not in --transport")
		}
		out = append(out, o)
	}
	if len(in.Transports) > 0 {
		rank := func(o option) int { return slices.Index(in.Transports, o.Name) }
		slices.SortStableFunc(out, func(a, b option) int { return rank(a) - rank(b) })
	}
	return out
}

// again is how soon one of its links is to be looked at out of turn; 0: none is.
func (d *driverState) again() (soonest time.Duration) {
	for _, l := range d.links {
		if l.Again > 0 && (soonest == 0 || l.Again < soonest) {
			soonest = l.Again
		}
	}
	return soonest
}

// readLinks asks the transports, or only those that want it out of turn, and reports whether an MTU changed, which routes
// follow. One that does not answer is taken at its last word for a moment: it may be a call that was interrupted, or a
// process in exchange for the next, and to leave a transport for another costs every peer more than that.
func (r *Router) readLinks(ctx context.Context, soon bool) (due bool) {
	for _, d := range r.drivers {
		if d.t == nil || soon && d.again() == 0 {
			continue
		}
		tctx, cancel := context.WithTimeout(ctx, transportD)
		list, err := d.t.Links(tctx)
		cancel()
		if err != nil && ctx.Err() == nil {
			r.log.Debug("transport does not report its links", "transport", d.Name, "err", err)
		}
		if now := time.Now(); err == nil {
			d.heard = now
		} else if now.Sub(d.heard) < forgive {
			continue
		}
		links := make(map[peer.ID]Link, len(list))
		for _, l := range list {
			due = due || d.links[l.Peer].MTU != l.MTU
			links[l.Peer] = l
		}
		d.links = links
	}
	return due
}

// apply opens the transport if it is needed and gives it its tunnels. Tunnels of members that are not wanted any more
// stay for a moment, because the other side still sends; those of removed ones close at once. wait is when the next closes.
func (d *driverState) apply(ctx context.Context, want []Tunnel, members map[peer.ID]bool, now time.Time) (wait time.Duration,
	err error,
) {
	all := make(map[peer.ID]Tunnel, len(want))
	for _, t := range want {
		all[t.Peer] = t
		delete(d.left, t.Peer)
	}
	for id, t := range d.have {
		if _, wanted := all[id]; wanted || !members[id] {
			continue
		}
		if _, leaving := d.left[id]; !leaving {
			d.left[id] = now.Add(linger + 2*d.links[id].RTT)
		}
		if until := d.left[id].Sub(now); until > 0 {
			all[id] = t
			if wait == 0 || until < wait {
				wait = until
			}
		}
	}
	if d.t == nil {
		// A transport in clear, or one that needs nobody, is removed even if nothing is wanted of it now.
		if len(all) == 0 && (d.Sealed && !d.Persists || d.swept || d.absent != nil) {
			return 0, nil //nolint:nilerr // why it is absent was told, and nobody needs it
		}
		if d.t, err = d.Open(ctx); err != nil {
			d.t, d.absent, d.probed = nil, err, false
			return 0, fmt.Errorf("open: %w", err)
		}
	}
	return wait, d.tell(ctx, all)
}

// expel closes the tunnels of those who are members no more, and leaves all others as they are.
func (d *driverState) expel(ctx context.Context, members map[peer.ID]bool) error {
	if d.t == nil {
		return nil
	}
	all := maps.Clone(d.have)
	maps.DeleteFunc(all, func(id peer.ID, _ Tunnel) bool { return !members[id] })
	if len(all) == len(d.have) {
		return nil
	}
	return d.tell(ctx, all)
}

// tell makes the transport's tunnels these.
func (d *driverState) tell(ctx context.Context, all map[peer.ID]Tunnel) error {
	list := make([]Tunnel, 0, len(all))
	for _, t := range all {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b Tunnel) int { return a.Peer.Compare(b.Peer) })
	tctx, cancel := context.WithTimeout(ctx, transportD)
	defer cancel()
	if err := d.t.Apply(tctx, list); err != nil {
		return err
	}
	d.have, d.swept = all, true
	maps.DeleteFunc(d.left, func(id peer.ID, _ time.Time) bool { _, kept := all[id]; return !kept })
	return nil
}
