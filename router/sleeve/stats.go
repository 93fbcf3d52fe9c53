package sleeve

import (
	"net/netip"
	"slices"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router"
)

// PeerStats is what the engine knows about one peer now.
type PeerStats struct {
	ID       peer.ID
	Up       bool           // a session is open and the last probe was answered, or is younger than 2 s
	Reason   string         // why it is not up; empty when up
	Asleep   bool           // it is not up, for want of traffic: the next packet opens a session
	Endpoint netip.AddrPort // where packets are sent; zero when unknown or relayed
	Via      []peer.ID      // who carries packets to it, the first one first; empty: nobody
	TCP      bool           // packets travel in a TCP stream
	Observed netip.AddrPort // where the peer hears us from, by its own word; zero when it did not say
	Paths    []PathStats    // all that are known, the one in use first
	Cipher   string         // of the session; empty without one
	RTT      time.Duration  // smoothed; 0 when unknown
	Loss     float64        // of recent probes, 0 to 1
	LastSeen time.Time      // last authenticated datagram; zero when there was none
	KeyAge   time.Duration  // of the sending key; negative without a session
	MTU      int            // largest inner packet that passed a padded probe; 0 when unknown

	RxBytes, TxBytes     uint64 // inner bytes, data only
	RxPackets, TxPackets uint64 // inner packets as they crossed the wire
	Handshakes           uint64 // completed

	Drops map[string]uint64 // by reason, only those that are not zero
}

// PathStats is one way to a peer.
type PathStats struct {
	Endpoint netip.AddrPort // zero when relayed
	Via      []peer.ID      // who carries packets on it, the first one first
	TCP      bool
	Active   bool          // packets to the peer go this way
	State    path.State    // "untried", "probing", "works", "suspect" or "dead" by its String
	RTT      time.Duration // smoothed; 0 when unknown
	Loss     float64       // of recent probes, 0 to 1
	MTU      int           // largest inner packet that passed a padded probe; 0 when unknown
	Reason   string        // why it is not used, in words; of the one in use, what is poor about it
}

// Stats is a snapshot of an engine.
type Stats struct {
	Peers []PeerStats       // sorted by ID
	Drops map[string]uint64 // that could not be blamed on a peer, by reason, only those that are not zero
	Gone  map[string]uint64 // that were blamed on peers which are peers no more, likewise: sums over all peers never go back
	Flood uint64            // datagrams a second that strangers send, while that is so many that the kernel drops most; else 0
}

// Link is the part of the snapshot that a router.Transport reports.
func (p *PeerStats) Link() router.Link {
	return router.Link{
		Peer: p.ID, Up: p.Up, Endpoint: p.Endpoint, MTU: p.MTU, RTT: p.RTT, Loss: p.Loss, LastSeen: p.LastSeen,
		KeyAge: p.KeyAge, RxBytes: p.RxBytes, TxBytes: p.TxBytes, Reason: p.Reason, Via: p.Via, TCP: p.TCP, Asleep: p.Asleep,
	}
}

// Stats reports what is known now.
func (e *Engine) Stats() Stats {
	now := time.Now()
	e.mu.RLock()
	all := make([]*remote, 0, len(e.peers))
	for _, r := range e.peers {
		all = append(all, r)
	}
	e.mu.RUnlock()
	e.countUnseen()
	s := Stats{Peers: make([]PeerStats, 0, len(all)), Drops: e.drops.snapshot(), Gone: e.gone.snapshot(), Flood: e.handshakes.sieve.rate.Load()}
	for _, r := range all {
		s.Peers = append(s.Peers, e.peerStats(r, now))
	}
	slices.SortFunc(s.Peers, func(a, b PeerStats) int { return a.ID.Compare(b.ID) })
	return s
}

func (e *Engine) peerStats(r *remote, now time.Time) PeerStats {
	p := PeerStats{
		ID: r.id, KeyAge: -1, Drops: r.drops.snapshot(),
		RxBytes: r.rx.bytes.Load(), RxPackets: r.rx.packets.Load(),
		TxBytes: r.tx.bytes.Load(), TxPackets: r.tx.packets.Load(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &r.link
	p.Up, p.Reason = l.state(now)
	p.Asleep = l.asleep
	if l.node == nil {
		p.Reason = "this node has no identity yet"
	}
	p.LastSeen, p.Handshakes, p.Observed = l.lastHeard, l.completed, l.observed
	for _, w := range l.paths.Report(now) {
		s := PathStats{
			Endpoint: w.Path.Endpoint, Via: w.Path.Relays(), TCP: w.Path.TCP, Active: w.Active, State: w.State,
			RTT: w.RTT, Loss: w.Loss, MTU: w.MTU, Reason: w.Reason,
		}
		if s.Active {
			p.Endpoint, p.Via, p.TCP, p.RTT, p.Loss, p.MTU = s.Endpoint, s.Via, s.TCP, s.RTT, s.Loss, s.MTU
		}
		p.Paths = append(p.Paths, s)
	}
	if at := r.rx.last.Load(); at != 0 {
		p.LastSeen = later(p.LastSeen, e.start.Add(time.Duration(at)))
	}
	if l.current != nil {
		p.KeyAge, p.Cipher = now.Sub(l.current.created), l.current.suite.String()
	}
	return p
}
