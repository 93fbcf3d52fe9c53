package router

import (
	"context"
	"reflect"
	"slices"

	"weft/mesh/peer"
	"weft/router/host"
)

// Status is a snapshot.
func (r *Router) Status() Status {
	r.statusMu.Lock()
	defer r.statusMu.Unlock()
	s := r.status
	s.Notes, s.Transports, s.Peers = slices.Clone(s.Notes), slices.Clone(s.Transports), slices.Clone(s.Peers)
	return s
}

// Drops reads how many packets the guard dropped, by reason.
func (r *Router) Drops(ctx context.Context) (host.Drops, error) { return r.cfg.Host.Drops(ctx) }

// Watch returns a channel that gets a value after each change of Status, until ctx ends. It holds one value, so a reader
// that is behind has missed nothing but steps in between.
func (r *Router) Watch(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	r.statusMu.Lock()
	r.watchers[c] = struct{}{}
	r.statusMu.Unlock()
	context.AfterFunc(ctx, func() {
		r.statusMu.Lock()
		defer r.statusMu.Unlock()
		delete(r.watchers, c)
	})
	return c
}

// outcome is what the last apply left, for status; owned by Run.
type outcome struct {
	noV6   error
	failed error
	mtu    map[peer.ID]int
}

// publish makes the status of what Run knows now.
func (r *Router) publish(in Input, options []option, choices map[peer.ID]Choice, o outcome) {
	s := Status{PodMTU: PodMTU(in.UnderlayMTU)}
	r.mu.Lock()
	s.Ready = r.ready
	r.mu.Unlock()
	if o.failed != nil {
		s.Reason = o.failed.Error()
	} else if !s.Ready {
		s.Reason = "the guard is not in place yet"
	}
	if o.noV6 != nil {
		s.Notes = append(s.Notes, "IPv4 only: "+o.noV6.Error())
	}
	if in.UnderlayMTU > 0 && in.UnderlayMTU < MinMTU+Reserve {
		s.Notes = append(s.Notes, "the underlay's MTU is so small that packets between nodes are fragmented")
	}
	sealed := make(map[string]bool)
	for _, op := range options {
		t := TransportStatus{Name: op.Name, Available: op.absent == nil}
		if op.absent != nil {
			t.Reason = op.absent.Error()
		}
		s.Transports = append(s.Transports, t)
		sealed[op.Name] = op.Sealed
	}
	for _, p := range in.Peers {
		id := p.Info.ID
		c := choices[id]
		ps := PeerStatus{
			Peer: id, Transport: c.Transport, Encrypted: sealed[c.Transport], Reason: c.Reason, Rejected: c.Rejected,
			MTU: o.mtu[id], Since: c.Since,
		}
		for _, d := range r.drivers {
			if l, ok := d.links[id]; ok && d.Name == c.Transport {
				ps.Link = l
			}
		}
		s.Peers = append(s.Peers, ps)
	}
	slices.SortFunc(s.Peers, func(a, b PeerStatus) int { return a.Peer.Compare(b.Peer) })

	r.statusMu.Lock()
	defer r.statusMu.Unlock()
	if !changed(r.status, s) {
		r.status = s
		return
	}
	r.status = s
	for c := range r.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// changed ignores what moves all the time, so that a watcher wakes for news only.
func changed(a, b Status) bool {
	still := func(s Status) Status {
		s.Peers = slices.Clone(s.Peers)
		for i := range s.Peers {
			l := s.Peers[i].Link
			s.Peers[i].Link = Link{
				Peer: l.Peer, Up: l.Up, Endpoint: l.Endpoint, Via: l.Via, TCP: l.TCP, MTU: l.MTU, Reason: l.Reason, Asleep: l.Asleep,
			}
		}
		return s
	}
	return !reflect.DeepEqual(still(a), still(b))
}
