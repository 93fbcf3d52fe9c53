package ipam

import (
	"fmt"
	"slices"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// comeback is a start of a removed member that survivors have told of.
type comeback struct {
	incarnation uint64
	since       time.Time // when it was first told of
	stopped     bool      // the member itself says that it has stopped since
}

// name says which starts of the removed a proposal covers. One that came up again after it was removed has to stop or to
// be silent first; waiting is a sentence about it. With force only those are named for whom it was asked.
func (m *remover) name(need []Removal) (named []ring.Named, forced bool, waiting string) {
	a := m.a
	peers := a.cfg.Network.Peers()
	forced = a.anyForced(need)
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, r := range need {
		if forced && !a.forced.Has(r.Node) {
			continue
		}
		n := ring.Named{Node: r.Node, Incarnation: a.heard[r.Node].incarnation}
		if r.Incarnation != 0 {
			m.note(n, false)
			n.Incarnation = r.Incarnation
		}
		if c, ok := m.came[r.Node]; ok && c.incarnation > n.Incarnation {
			if c.stopped || m.silent(peers, r.Node, c) {
				n.Incarnation = c.incarnation
			} else {
				waiting = fmt.Sprintf("%s came up again after it was removed: it must stop, or not be heard for %s",
					names(peers, r.Node), a.cfg.Silence)
			}
		}
		if forced || r.Left || r.Stolen {
			n.Incarnation = anyStart
		}
		named = append(named, n)
	}
	if forced {
		waiting = ""
	}
	return named, forced, waiting
}

// silent reports whether a removed member has not been heard of for long enough to believe that it is stopped.
func (m *remover) silent(peers []peer.Info, id peer.ID, c comeback) bool {
	since := c.since
	if i := slices.IndexFunc(peers, func(p peer.Info) bool { return p.ID == id }); i >= 0 && peers[i].LastSeen.After(since) {
		since = peers[i].LastSeen
	}
	return m.a.now().Sub(since) >= m.a.cfg.Silence
}

// comeBack notes starts of the removed that are newer than the proposal says.
func (m *remover) comeBack(r *round, from peer.ID, answer promiseAnswer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range answer.newer {
		own := answer.verdict == verdictStopped && n.Node == from
		if !r.p.Names(n.Node) || answer.verdict == verdictStopped && !own {
			continue
		}
		m.note(n, own)
		for _, named := range r.p.Removed() {
			r.beaten = r.beaten || !own && named.Node == n.Node && n.Incarnation > named.Incarnation
		}
	}
}

// note remembers a start of a removed member, and that it has stopped since.
func (m *remover) note(n ring.Named, stopped bool) {
	c := m.came[n.Node]
	if n.Incarnation > c.incarnation {
		c = comeback{incarnation: n.Incarnation, since: m.a.now()}
	}
	c.stopped = c.stopped || stopped && n.Incarnation >= c.incarnation
	m.came[n.Node] = c
}

func (a *Allocator) anyForced(need []Removal) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.ContainsFunc(need, func(r Removal) bool { return a.forced.Has(r.Node) })
}
