package mesh

import (
	"math/rand/v2"
	"time"

	"weft/mesh/peer"
)

// Timing of reunions.
const (
	backFor       = 2 * time.Second      // heard from for so long and still called dead: the rumour is late
	reunionEvery  = 2 * time.Second      // exchanges of states then, with jitter;
	reunionMember = 2 * time.Millisecond // for each member at least, which keeps them below 130 kB/s in a large cluster
	reunionVain   = 6                    // exchanges in a row that told of nobody new: the others seem to be gone,
	reunionPatch  = 2                    // and after so many the next ones come later and later
	reunionWhole  = 2                    // as many are enough when nobody is missing
)

// reunion paces exchanges of states while members are heard from that rumour calls dead, as when the parts of a network
// that was cut meet again. Then each member is told of as many returns as there are members, through the little that
// gossip may send, and tells each of them to random others: most returns are known everywhere soon, but the last node to
// hear of the last one waits several times as long. One exchange with anybody brings all that it has missed.
//
// It is the same when hundreds join at once.
//
// A member that is heard and cannot be reached, as on a line that works in one direction, is no reason to go on: whoever
// learns of nobody new asks less and less often. The healer's loop owns it.
type reunion struct {
	timer *time.Timer
	armed bool // there will be a turn
	began bool
	alive int // at the last exchange
	vain  int // exchanges before the next one that told of nobody new
}

func newReunion() *reunion {
	r := &reunion{timer: time.NewTimer(time.Hour)}
	r.timer.Stop()
	return r
}

// wake makes sure that there is a turn soon.
func (r *reunion) wake() {
	if !r.armed {
		r.armed = true
		r.timer.Reset(backFor + rand.N(reunionEvery))
	}
}

// turn tells whether it is time for an exchange. Of the members so many are alive and so many are missing; so many of
// these are back, and waiting says that others may be so soon. Once somebody was back it goes on until exchanges tell of
// nobody new any more: the last that is missing need not be one that happens to be heard, and one who is suspected of
// what happened before will be missing yet.
func (r *reunion) turn(alive, missing, back int, waiting bool) bool {
	if alive > r.alive {
		r.vain = 0
	}
	over := reunionVain
	if missing == 0 {
		over = reunionWhole
	}
	if back == 0 && (!r.began || r.vain >= over) {
		r.began, r.vain, r.alive = false, 0, 0
		if r.armed = waiting; waiting {
			r.timer.Reset(jitter(reunionEvery))
		}
		return false
	}
	pause := max(reunionEvery, time.Duration(alive+missing)*reunionMember)
	r.timer.Reset(jitter(pause) << max(0, r.vain-reunionPatch))
	r.began, r.alive, r.vain = true, alive, min(r.vain+1, reunionVain)
	return true
}

// back lists the members that rumour calls dead and that have been heard from for a while since; waiting tells whether
// others were, for a shorter time. Nobody is to one that was removed itself.
func (m *Mesh) back() (ids []peer.ID, waiting bool) {
	if m.roster.Removed(m.self) {
		return nil, false
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, l := range m.life {
		switch {
		case l.alive || l.back.IsZero() || !m.roster.Member(id):
		case now.Sub(l.back) < backFor:
			waiting = true
		default:
			ids = append(ids, id)
		}
	}
	return ids, waiting
}
