package sleeve

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"weft/mesh/path"
)

// Limits of opening streams.
const (
	maxDials    = 32 // at a time
	dialTimeout = 5 * time.Second
	dialGap     = 250 * time.Millisecond // between the addresses of one peer: a firewall is silent, not fast
	dialMin     = 5 * time.Second        // between rounds of all of them, doubling
	dialMax     = time.Minute
	stuckFor    = time.Second            // without a way by UDP, before TCP is tried
	stuckMute   = 300 * time.Millisecond // the same where no peer has ever been heard by UDP
)

// dial is what a peer's stream needs to be opened; guarded by the peer's lock.
type dial struct {
	stuck time.Time // since when no way works; zero: one does
	next  time.Time
	tries int
	under []netip.AddrPort // that are being dialled
}

// reach dials a peer where it takes streams, if nothing else gets there: one address after the other, without waiting for the
// end of those before. It returns when to look again; zero: no need.
func (e *Engine) reach(r *remote, up bool, now time.Time) time.Time {
	l, d := &r.link, &r.dial
	if to := l.paths.Active(); up && to.Relayed() && e.streamed(to.Via[0]) {
		up = false // a stream to the peer itself is as good, and one to its relay is no reason to do without
	}
	if up || e.dialer == nil || len(l.peer.TCP) == 0 || len(l.peer.Secrets) == 0 {
		if up {
			d.next, d.tries = time.Time{}, 0
		}
		d.stuck = time.Time{}
		return time.Time{}
	}
	if d.stuck.IsZero() {
		d.stuck = now
	}
	patience := stuckFor
	if !e.heardUDP.Load() {
		patience = stuckMute
	}
	if due := later(d.stuck.Add(patience), d.next); now.Before(due) {
		return due
	}
	all := e.streams.likely(l.peer.TCP)
	to := all[d.tries%len(all)]
	d.next = now.Add(dialMin << min(d.tries/len(all), 5))
	if d.next = earlier(d.next, now.Add(dialMax)); (d.tries+1)%len(all) != 0 {
		d.next = now.Add(dialGap)
	}
	d.tries++
	if e.streams.find(to) == nil && !slices.Contains(d.under, to) && e.startDial(r, to) {
		d.under = append(d.under, to)
	}
	return d.next
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// likely orders addresses: where one port gets through a firewall others mostly do not.
func (s *streams) likely(all []netip.AddrPort) []netip.AddrPort {
	s.mu.RLock()
	port := s.port
	s.mu.RUnlock()
	ordered := slices.Clone(all)
	slices.SortStableFunc(ordered, func(a, b netip.AddrPort) int {
		switch good := a.Port() == port; {
		case good == (b.Port() == port):
			return 0
		case good:
			return -1
		}
		return 1
	})
	return ordered
}

// startDial opens a stream in the background.
func (e *Engine) startDial(r *remote, to netip.AddrPort) bool {
	e.streams.mu.Lock()
	room := e.streams.dials < maxDials
	if room {
		e.streams.dials++
	}
	e.streams.mu.Unlock()
	if !room {
		return false
	}
	e.dials.Go(func() {
		ctx, cancel := context.WithTimeout(e.ctx, dialTimeout)
		defer cancel()
		conn, err := e.dialer(ctx, to)
		e.streams.mu.Lock()
		e.streams.dials--
		if err == nil {
			e.streams.port = to.Port()
		}
		e.streams.mu.Unlock()
		r.mu.Lock()
		r.dial.under = slices.DeleteFunc(r.dial.under, func(a netip.AddrPort) bool { return a == to })
		needed := r.dial.stuck != time.Time{} && !r.closed
		r.mu.Unlock()
		switch {
		case err != nil:
			e.log.Debug("no stream to peer", "peer", r.id.Short(), "endpoint", to, "err", err)
		case !needed: // another way was faster
			conn.Close()
		case e.addStream(conn, to):
			e.log.Info("stream opened, as nothing else gets there", "peer", r.id.Short(), "endpoint", to)
		}
		e.wake()
	})
	return true
}

// noteUDP keeps that datagrams get through somewhere.
func (e *Engine) noteUDP(from path.Path) {
	if from.Direct() && !e.heardUDP.Load() {
		e.heardUDP.Store(true)
	}
}
