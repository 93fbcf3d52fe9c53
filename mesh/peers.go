package mesh

import (
	"context"
	"slices"
	"time"

	"weft/mesh/peer"
)

// life is what is known about a member's life.
type life struct {
	alive  bool      // by rumour
	since  time.Time // of the last change of alive
	heard  time.Time // last datagram or stream from it
	failed time.Time // last stream to it that could not be opened
	back   time.Time // first sign of life while rumour does not call it alive, or since a stream to it failed; see reunion

	doubted time.Time // since when rumour calls it dead, and it counts as alive nevertheless; zero: it is believed
}

// lifeOf is called with the lock held.
func (m *Mesh) lifeOf(id peer.ID) *life {
	l := m.life[id]
	if l == nil {
		l = &life{}
		m.life[id] = l
	}
	return l
}

// bury forgets the life of a member that was removed. One that rumour calls alive is forgotten when rumour calls it dead.
func (m *Mesh) bury(id peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.life[id]; l != nil && !l.alive {
		delete(m.life, id)
	}
}

// suspected is how long a failed stream casts doubt on a member that rumour calls alive and that is not heard from.
const suspected = 30 * time.Second

func (l *life) state() peer.State {
	switch {
	case l == nil || !l.alive:
		return peer.Dead
	case l.failed.After(l.heard) && time.Since(l.failed) < suspected:
		return peer.Suspect
	}
	return peer.Alive
}

// heard notes a sign of life.
func (m *Mesh) heard(id peer.ID) {
	m.mu.Lock()
	l := m.lifeOf(id)
	before := l.state()
	l.heard = time.Now()
	back := !l.alive && l.back.IsZero()
	if back {
		l.back = l.heard
	}
	after := l.state()
	m.mu.Unlock()
	if back {
		signal(m.heal.back)
	}
	if before != after {
		m.poke()
	}
}

// unanswered notes that a stream to a member could not be opened since then. A sign of life after that outweighs it.
func (m *Mesh) unanswered(id peer.ID, since time.Time) {
	if !m.roster.Member(id) { // it was removed meanwhile
		return
	}
	m.mu.Lock()
	l := m.lifeOf(id)
	before := l.state()
	if since.After(l.heard) && since.After(l.since) {
		l.failed = time.Now()
	}
	l.back = time.Time{}
	after := l.state()
	m.mu.Unlock()
	if before != after {
		m.poke()
	}
}

// rumour is a change of memberlist's opinion.
type rumour struct {
	peer  peer.ID
	alive bool
}

// rumourQueue is how many changes wait to be logged; more are not logged.
const rumourQueue = 256

// hearRumour takes memberlist's opinion. It is only ever a peer.State.
func (m *Mesh) hearRumour(name string, alive bool) {
	id, err := peer.Parse(name)
	if err != nil || id == m.self {
		return
	}
	m.takeRumour(id, alive, time.Time{})
}

// takeRumour is hearRumour for one that is known by its ID. Settled is when the doubt of a death was over; zero: it is told
// anew.
func (m *Mesh) takeRumour(id peer.ID, alive bool, settled time.Time) {
	known, now := m.roster.Member(id), time.Now()
	m.mu.Lock()
	l := m.lifeOf(id)
	switch {
	case alive:
		if !l.alive && !l.since.IsZero() {
			m.returned = now
		}
		l.doubted = time.Time{}
	case !settled.IsZero():
		if l.doubted.IsZero() || l.doubted.After(settled.Add(-doubtFor)) { // refuted meanwhile
			m.mu.Unlock()
			return
		}
		l.doubted = time.Time{}
	case known && l.alive && m.doubts(now):
		if l.doubted.IsZero() {
			l.doubted = now
		}
		m.mu.Unlock()
		signal(m.doubted)
		return
	}
	changed := l.alive != alive
	if l.alive = alive; changed {
		l.since, l.failed, l.back = now, time.Time{}, time.Time{}
	}
	if !known && !alive {
		delete(m.life, id)
	}
	if changed {
		m.relist(id)
	}
	m.mu.Unlock()
	if !changed || !known {
		return
	}
	select {
	case m.rumours <- rumour{id, alive}:
	default:
	}
	m.poke()
}

// logRumours writes the log outside memberlist's locks: a slow log must not look like a dead node.
func (m *Mesh) logRumours(ctx context.Context) {
	for {
		select {
		case r := <-m.rumours:
			m.log.Info("peer changed", "peer", r.peer, "alive", r.alive)
		case <-ctx.Done():
			return
		}
	}
}

// admitStranger lets a few names without certificate be alive.
func (m *Mesh) admitStranger(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life[id] != nil {
		return true
	}
	strangers := 0
	for id := range m.life {
		if !m.roster.Has(id) {
			strangers++
		}
	}
	return strangers < maxStrangers
}

// others lists the members without this node; nobody is left to one that was removed itself.
func (m *Mesh) others() []peer.ID {
	if m.roster.Removed(m.self) {
		return nil
	}
	return slices.DeleteFunc(m.roster.Members(), func(id peer.ID) bool { return id == m.self || m.roster.Removed(id) })
}

// missing lists the members that are not alive, without this node.
func (m *Mesh) missing() []peer.ID {
	members := m.others()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(members, func(id peer.ID) bool {
		l := m.life[id]
		return l != nil && l.alive
	})
}

// Peers lists every other node that is or was a member, in ascending order of their IDs.
func (m *Mesh) Peers() []peer.Info {
	members := m.roster.Members()
	infos := make([]peer.Info, 0, len(members))
	for _, id := range members {
		if info, ok := m.Peer(id); ok && id != m.self {
			infos = append(infos, info)
		}
	}
	return infos
}

// Peer merges what certificate, record and rumour say about a member. About this node itself it knows as much.
func (m *Mesh) Peer(id peer.ID) (peer.Info, bool) {
	c, ok := m.roster.Certificate(id)
	if !ok {
		return peer.Info{}, false
	}
	info := peer.Info{ID: id, Name: c.Name(), Ephemeral: c.Ephemeral, JoinSeq: c.JoinSeq}
	_, info.Issuer = m.roster.Delegation(id)
	if rec, ok := m.records.get(id); ok {
		rec = rec.clone()
		info.Known = true
		if rec.Name != "" {
			info.Name = rec.Name
		}
		info.Epoch = rec.Epoch
		info.Endpoints = rec.Endpoints
		info.Noise = rec.Noise
		info.WireGuard = rec.WireGuard
		info.Transports = rec.Transports
		info.Trusted = rec.Trusted
		info.MTU = rec.MTU
		info.Build = rec.Build
		info.Reflected = rec.Reflected
		info.NAT = rec.NAT
		info.Relays = rec.Abilities&AbilityRelay != 0
		info.Dialable = rec.Abilities&AbilityDialable != 0
		info.Homes = rec.Homes
		info.TCPPort = rec.TCPPort
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.life[id]
	info.State = l.state()
	if l != nil {
		info.LastSeen = l.heard
	}
	if id == m.self {
		info.State = peer.Alive
		info.LastSeen = time.Now()
	}
	if m.roster.Removed(id) {
		info.State = peer.Removed
	}
	return info, true
}

// Record is a member's newest record; of this node, the one in use.
func (m *Mesh) Record(id peer.ID) (Record, bool) {
	rec, ok := m.records.get(id)
	return rec.clone(), ok
}

// Introduced reports whether a member's record is known: what its sessions need stands there.
func (m *Mesh) Introduced(id peer.ID) bool {
	return m.records.has(id)
}

// Watch makes a channel that is filled when anything that Peers, Peer or the roster tell has changed. It has capacity 1:
// read what is, not what happened. It lasts as long as the Mesh, so a consumer asks once.
func (m *Mesh) Watch() <-chan struct{} {
	c := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers = append(m.watchers, c)
	return c
}

func (m *Mesh) poke() {
	m.mu.Lock()
	watchers := slices.Clip(m.watchers)
	m.mu.Unlock()
	for _, c := range watchers {
		signal(c)
	}
}
