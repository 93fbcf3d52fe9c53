package sleeve

import (
	"sync"
	"sync/atomic"
	"time"

	"weft/mesh/peer"
	"weft/mesh/sparse"
)

// In a large cluster most pairs have nothing to say to each other. A peer that sleeps keeps its place in every table, with
// key, endpoints and secrets, and has no session: it is sent no handshake and no probe. What wakes it:
//
//	asleep ── a packet from the TUN device, a control datagram, a handshake of the peer ──> awake
//	asleep ── a packet that the peer seals with keys from before, or one that it is to be passed ──> awake
//	awake  ── nothing of these for a while, see package sparse ──> asleep
//
// What woke it waits for the session, within the bounds of everything that waits for one. Both ends count the same packets
// and fall asleep within a second or two of each other; the keys of before are good for receiving until they expire.

// Sparse says whether peers may sleep.
type Sparse struct {
	On   bool
	Idle time.Duration // without a packet, until a peer sleeps; 0: sparse.IdleData
}

// nightwatch knows who sleeps.
type nightwatch struct {
	on     atomic.Bool // peers may sleep
	called atomic.Bool // who sleeps and who does not has changed

	mu   sync.Mutex // guards what follows; no other lock is taken under it
	book *sparse.Book
	last time.Time // when it went its round
}

const roundEvery = time.Second

// SetSparse says whether sessions are opened by traffic, and closed when there is none. Until told every peer has one.
func (e *Engine) SetSparse(s Sparse) {
	n, now := &e.night, time.Now()
	n.mu.Lock()
	n.book.Idle(s.Idle)
	n.book.Set(s.On, now)
	n.mu.Unlock()
	n.on.Store(s.On)
	n.called.Store(true)
	e.wake()
}

// roll tells the book who there is; the engine's lock is held.
func (e *Engine) roll(peers []Peer, now time.Time) {
	n := &e.night
	ids, pinned := make([]peer.ID, 0, len(e.peers)), []peer.ID(nil)
	for id := range e.peers {
		ids = append(ids, id)
	}
	for _, p := range peers {
		if p.Pinned {
			pinned = append(pinned, p.ID)
		}
	}
	n.mu.Lock()
	n.book.Members(ids)
	n.book.Pin(pinned, now)
	n.mu.Unlock()
	n.called.Store(true)
}

// rouse notes traffic with a peer for which there is no session, and wakes it if it sleeps. It may be called under the
// peer's lock.
func (e *Engine) rouse(id peer.ID, why sparse.Cause) {
	if e == nil || !e.night.on.Load() {
		return
	}
	n := &e.night
	n.mu.Lock()
	opened := n.book.Touch(id, why, time.Now())
	n.mu.Unlock()
	if opened {
		n.called.Store(true)
		e.wake()
	}
}

// watch goes the round when it is time to: it notes who had traffic, and sends to sleep and wakes who is due.
func (e *Engine) watch(all []*remote, now time.Time) {
	n := &e.night
	round := n.on.Load() && now.Sub(n.lastRound()) >= roundEvery
	if !n.called.Swap(false) && !round {
		return
	}
	if round {
		e.count(all)
	}
	open := make([]bool, len(all))
	n.mu.Lock()
	if round {
		n.last = now
		n.book.Sleep(now)
	}
	for i, r := range all {
		open[i] = n.book.Open(r.id)
	}
	n.mu.Unlock()
	for i, r := range all {
		r.mu.Lock()
		switch l := &r.link; {
		case open[i] && l.asleep:
			l.rouse(now)
		case !open[i] && !l.asleep && !r.closed:
			l.sleep()
			e.publish(r, now)
		}
		r.mu.Unlock()
	}
}

func (n *nightwatch) lastRound() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

// count tells the book what traffic there was since the last round.
func (e *Engine) count(all []*remote) {
	type use struct {
		id  peer.ID
		why sparse.Cause
		at  time.Time
	}
	var uses []use
	for _, r := range all {
		moved := r.rx.packets.Load() + r.tx.packets.Load() + r.carried.packets.Load()
		last := max(r.rx.last.Load(), r.tx.last.Load(), r.carried.last.Load())
		if last == r.counted.last {
			continue
		}
		u := use{r.id, sparse.Control, e.start.Add(time.Duration(last))}
		if moved != r.counted.moved {
			u.why = sparse.Data
		}
		r.counted.last, r.counted.moved = last, moved
		uses = append(uses, u)
		r.mu.Lock()
		via := r.link.paths.Active().Via[0]
		r.mu.Unlock()
		if !via.IsZero() { // whoever carries it is needed as long
			uses = append(uses, use{via, u.why, u.at})
		}
	}
	e.night.mu.Lock()
	defer e.night.mu.Unlock()
	for _, u := range uses {
		e.night.book.Touch(u.id, u.why, u.at)
	}
}

// counted is the traffic of a peer as of the last round; it belongs to tick.
type counted struct {
	moved uint64
	last  int64
}

// sleep ends the session; what the peer has sealed with its keys is still opened until they expire.
func (l *link) sleep() {
	l.abandon()
	l.retire(l.current)
	l.current = nil
	l.paths.Forget()
	l.tries, l.retryAt, l.since, l.force = 0, time.Time{}, time.Time{}, false
	l.volley, l.witness = volley{}, witness{}
	l.asleep = true
}

// helpers are relays that are to be woken: the peer does not answer without them, or has no address of its own. They are
// named once for each session.
func (l *link) helpers() []peer.ID {
	if l.asleep || l.helped || l.tries < 2 && l.paths.Len() > 0 {
		return nil
	}
	l.helped = true
	return l.peer.Relays
}

// rouse lets a session be opened, at once unless the peer has begun to.
func (l *link) rouse(now time.Time) {
	l.asleep, l.stale, l.helped = false, true, false
	l.tries, l.retryAt = 0, now
	if l.next != nil {
		l.retryAt = now.Add(retryMin)
	}
}
