package mesh

import (
	"context"
	"time"

	"weft/mesh/peer"
)

// When parts of a network that was cut meet again, each part still tells what it thought of the other: that all of it is dead. Who
// hears that of a member of its own part believes it until the member has refuted it, a second or three. Nothing but lists of
// the living would show it, but those jump. So a death that is told while many are missing or some return is doubted for a while:
// the member counts as alive until then, and is dead only if nobody has refuted it.
const (
	doubtWithin  = 10 * time.Second // of a member's return, deaths are doubted
	doubtMissing = 4                // and so they are while more than one of so many is missing, and they are several
	doubtFor     = 5 * time.Second  // longer than refuting takes in a cluster of a thousand
)

// doubts reports whether a death that is told now is doubted. The lock is held.
func (m *Mesh) doubts(now time.Time) bool {
	if !m.returned.IsZero() && now.Sub(m.returned) < doubtWithin {
		return true
	}
	missing := len(m.life) - len(m.living)
	return m.living != nil && missing > 1 && doubtMissing*missing > len(m.life)
}

// believe turns doubted deaths into deaths when their time is over, until ctx ends.
func (m *Mesh) believe(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if next := m.settleDoubts(time.Now()); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.doubted:
		}
	}
}

// settleDoubts believes what was not refuted in time, and tells when to look again; zero: not before another doubt.
func (m *Mesh) settleDoubts(now time.Time) (next time.Time) {
	var dead []peer.ID
	m.mu.Lock()
	for id, l := range m.life {
		if l.doubted.IsZero() {
			continue
		}
		if due := l.doubted.Add(doubtFor); now.Before(due) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		dead = append(dead, id)
	}
	m.mu.Unlock()
	for _, id := range dead {
		m.takeRumour(id, false, now)
	}
	return next
}
