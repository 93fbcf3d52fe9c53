package mesh

import "sync/atomic"

// counters are what the mesh counts; Stats reads them.
type counters struct {
	refused      atomic.Uint64
	dropped      atomic.Uint64
	unknown      atomic.Uint64
	malformed    atomic.Uint64
	sendFailed   atomic.Uint64
	refusedCalls atomic.Uint64
	panics       atomic.Uint64
	pulls        atomic.Uint64
	pullsFailed  atomic.Uint64
	news         atomic.Uint64
}

// Stats are counters since New.
type Stats struct {
	Refused       uint64 // datagrams and streams from or to others than members
	Dropped       uint64 // datagrams and streams that found a queue full, or were too long
	Unknown       uint64 // messages of kinds that this build does not know
	Malformed     uint64 // messages and items that could not be read or verified
	SendFailed    uint64 // datagrams that the carrier did not take
	RefusedCalls  uint64 // calls beyond the limits
	Panics        uint64 // of handlers
	Pulls         uint64 // of replicated state
	PullsFailed   uint64
	News          uint64 // pieces of news that changed something here
	MembersKnown  int    // certificates' nodes, this one included
	MembersAlive  int    // by rumour, this one included
	GossipHealth  int    // memberlist's own score: 0 is healthy
	UnknownItems  int    // of the roster, kept for newer builds
	RecordsStored int
}

// Stats reads the counters, and counts what the mesh knows.
func (m *Mesh) Stats() Stats {
	s := m.Counters()
	s.MembersKnown = m.roster.size(m.self)
	s.MembersAlive = 1 + len(m.alive())
	s.UnknownItems = m.roster.unknownItems()
	s.RecordsStored = m.records.len()
	m.mu.Lock()
	members := m.members
	m.mu.Unlock()
	if members != nil {
		s.GossipHealth = members.GetHealthScore()
	}
	return s
}

// Counters is the part of Stats that costs nothing: what is counted as it happens.
func (m *Mesh) Counters() Stats {
	c := &m.count
	return Stats{
		Refused:      c.refused.Load(),
		Dropped:      c.dropped.Load(),
		Unknown:      c.unknown.Load(),
		Malformed:    c.malformed.Load(),
		SendFailed:   c.sendFailed.Load(),
		RefusedCalls: c.refusedCalls.Load(),
		Panics:       c.panics.Load(),
		Pulls:        c.pulls.Load(),
		PullsFailed:  c.pullsFailed.Load(),
		News:         c.news.Load(),
	}
}
