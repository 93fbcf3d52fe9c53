package sleeve

import (
	"context"
	"time"

	"weft/mesh/sparse"
)

// wake makes tick look at the links soon.
func (e *Engine) wake() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Bounds of the time between two looks at the links.
const (
	tickMin = 2 * time.Millisecond // however often they are kicked
	tickMax = time.Second          // so that traffic which begins is noticed
)

// tick steps the links when they want to be.
func (e *Engine) tick(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.kick:
			select { // kicks come in bursts
			case <-ctx.Done():
				return
			case <-time.After(tickMin):
			}
		}
		timer.Reset(e.step(time.Now()))
	}
}

// busyFor is how long after its last packet a peer counts as having traffic.
const busyFor = 3 * time.Second

// step steps every link and returns when to do so again.
func (e *Engine) step(now time.Time) time.Duration {
	e.mu.RLock()
	all := make([]*remote, 0, len(e.peers))
	for _, r := range e.peers {
		all = append(all, r)
	}
	e.mu.RUnlock()
	e.watch(all, now)
	wait := tickMax
	var out []message
	for _, r := range all {
		last := max(r.rx.last.Load(), r.tx.last.Load(), r.carried.last.Load())
		busy := last != 0 && e.at(now)-last < int64(busyFor)
		var next time.Time
		out = out[:0]
		r.mu.Lock()
		if r.closed || r.link.node == nil {
			r.mu.Unlock()
			continue
		}
		out, next = r.link.step(now, busy, out)
		waiting := e.publish(r, now)
		r.expire(e.at(now))
		up, _ := r.link.state(now)
		if t := e.reach(r, up || r.link.asleep, now); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
		helpers := r.link.helpers()
		r.mu.Unlock()
		for _, id := range helpers {
			e.rouse(id, sparse.Control)
		}
		e.send(r, out...)
		e.release(waiting)
		if !next.IsZero() {
			wait = min(wait, next.Sub(now))
		}
	}
	return max(wait, tickMin)
}

// publish shows the state of a link to the packet paths and returns the packets that waited for it; its lock is held.
func (e *Engine) publish(r *remote, now time.Time) []queued {
	e.noteCarrier(r, now)
	if !r.publish() {
		return nil
	}
	return r.waiting(e.at(now))
}

// release sends packets that waited for a session.
func (e *Engine) release(waiting []queued) {
	if len(waiting) == 0 {
		return
	}
	o := newOutbound(e, controlLane)
	for _, q := range waiting {
		if q.control != nil {
			if s := q.control.sending.Load(); s == nil || e.control(q.control, s, q.b) != nil {
				q.control.drops.add(dropNoSession, 1)
			}
			continue
		}
		n := copy(o.in[tunRoom:], q.b)
		o.packet(q.v, o.in, n, e.now())
	}
	o.flush(e.now())
}
