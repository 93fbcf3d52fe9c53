package mesh

import (
	"math/rand/v2"
	"slices"

	"weft/mesh/peer"
)

// alive lists the members that rumour says are alive, without this node. The caller does not change the list. It is
// kept up as rumours come: to make it anew for each of them would be a cluster's worth of work for each node that joins.
func (m *Mesh) alive() []peer.ID {
	if m.roster.Removed(m.self) {
		return nil
	}
	return m.rumouredAlive()
}

// rumouredAlive is the same for one that was removed itself.
func (m *Mesh) rumouredAlive() []peer.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.living == nil {
		m.living = make([]peer.ID, 0, len(m.life))
		for id, l := range m.life {
			if l.alive && m.roster.Member(id) {
				m.living = append(m.living, id)
			}
		}
	}
	return m.living
}

// relist corrects the list after rumour has changed its mind about id, or id has become a member. It is called with the
// lock held. Whoever reads the old list may go on: what it holds is never overwritten.
func (m *Mesh) relist(id peer.ID) {
	if m.living == nil {
		return
	}
	l, at := m.life[id], slices.Index(m.living, id)
	switch belongs := l != nil && l.alive && m.roster.Member(id); {
	case belongs && at < 0:
		m.living = append(m.living, id)
	case !belongs && at >= 0:
		m.living = slices.Concat(m.living[:at], m.living[at+1:])
	}
}

// grown takes notice of what is new on the roster.
func (m *Mesh) grown(g growth) {
	m.partWithRemoved()
	m.mu.Lock()
	if g.removals {
		m.living = nil
	}
	for _, id := range g.members { // whom rumour has told of before
		m.relist(id)
	}
	m.mu.Unlock()
	for _, item := range g.own {
		m.sync.announce("roster", listOf(item))
	}
	m.Changed("roster")
}

// someAlive picks up to n of the living at random.
func (m *Mesh) someAlive(n int) []peer.ID {
	ids := m.alive()
	if len(ids) <= n {
		return slices.Clone(ids)
	}
	some := make([]peer.ID, 0, n)
	for len(some) < n {
		if id := ids[rand.IntN(len(ids))]; !slices.Contains(some, id) {
			some = append(some, id)
		}
	}
	return some
}
