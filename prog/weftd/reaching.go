package weftd

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
	"weft/router/sleeve"
)

// Timing of looking at the ways to others.
const (
	reachSoon = 200 * time.Millisecond // after a change
	reachRest = time.Second
	reachMany = 200 // members, with which it rests twice as long
	reachWake = 3 * time.Second
)

// runReach watches how this node is reached and how it reaches others: what it finds out goes into the record and to the
// wire, and where packets take a detour it makes appointments for a direct way. It returns when ctx ends.
func (n *node) runReach(ctx context.Context) error {
	defer n.echoes.wg.Wait()
	p := newPuncher(n.key.ID())
	var bursts []burst
	var awake time.Time // looks often until then
	var last []sleeve.PeerStats
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := time.Time{} // when to look at the wire next
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case m := <-n.punches:
			now := time.Now()
			nat, mine := n.reach.show(now).nat, n.candidates()
			answer, b, ok := p.hear(now, m, rttOf(last, m.from))
			if answer && !hopeless(nat, m.nat) {
				n.sendPunch(m.from, punchAnswer, m.nonce, nat, mine)
			}
			if b.at = n.punchable(slices.Concat(b.at, n.packetEndpoints(m.from)), mine); ok && len(b.at) > 0 && len(bursts) < punchesAhead {
				bursts = append(bursts, b)
			}
		case m := <-n.echoes.in:
			n.hearEcho(ctx, m)
		}
		now := time.Now()
		if !now.Before(look) {
			if stats, err := n.link.stats(ctx); err == nil {
				if ways(last) != ways(stats.Peers) && !n.isSparse() { // there sessions come and go all the time
					awake = now.Add(reachWake)
				}
				last = stats.Peers
				n.glue.flood.Store(stats.Flood)
				if n.lookAround(now, last) {
					awake = now.Add(reachWake)
				}
				nat, mine := n.reach.show(now).nat, n.candidates()
				for _, id := range p.due(now, nat, mine, last, n.mesh.Peer) {
					n.sendPunch(id, punchAsk, p.pairs[id].nonce, nat, mine)
				}
				n.noteWhy(p, last)
				n.askEcho(now, last)
			} else {
				n.glue.flood.Store(0) // whatever comes, nobody looks at it
			}
			switch {
			case now.Before(awake):
				look = now.Add(reachSoon)
			case len(last) > reachMany:
				look = now.Add(2 * reachRest)
			default:
				look = now.Add(reachRest)
			}
		}
		var next time.Time
		bursts, next = n.sendBursts(ctx, now, bursts)
		if next.IsZero() || look.Before(next) {
			next = look
		}
		timer.Reset(time.Until(next))
	}
}

// lookAround takes what the wire knows; it reports whether that was news, which others are then told.
func (n *node) lookAround(now time.Time, stats []sleeve.PeerStats) bool {
	if !n.reach.observe(now, n.key.ID(), stats, n.ownAddresses(), n.relays()) {
		return false
	}
	n.nudge()
	return true
}

// nudge has the glue look at everything soon.
func (n *node) nudge() {
	select {
	case n.glue.wake <- struct{}{}:
	default:
	}
}

// ownAddresses are those of this machine's underlay, as the glue has seen them last.
func (n *node) ownAddresses() []netip.Addr {
	n.glue.linksMu.Lock()
	defer n.glue.linksMu.Unlock()
	return n.glue.addrs
}

// candidates are all addresses at which this node may be heard.
func (n *node) candidates() []netip.AddrPort {
	own, _ := n.mesh.Peer(n.key.ID())
	all := slices.Clone(own.Endpoints)
	for _, ap := range n.reach.outside() {
		if !slices.Contains(all, ap) {
			all = append(all, ap)
		}
	}
	return all
}

// ways is how many peers are reached, and how.
func ways(stats []sleeve.PeerStats) (count struct{ known, up, relayed, tcp int }) {
	count.known = len(stats)
	for _, s := range stats {
		switch {
		case !s.Up:
		case s.TCP:
			count.tcp++
		case len(s.Via) > 0:
			count.relayed++
		default:
			count.up++
		}
	}
	return count
}

func rttOf(stats []sleeve.PeerStats, id peer.ID) time.Duration {
	for _, s := range stats {
		if s.ID == id {
			return s.RTT
		}
	}
	return 0
}

// noteWhy keeps for the status what each detour is good for.
func (n *node) noteWhy(p *puncher, stats []sleeve.PeerStats) {
	own, addrs := n.reach.show(time.Now()).nat, n.ownAddresses()
	reasons, masked := map[peer.ID]string{}, map[peer.ID]bool{}
	n.glue.linksMu.Lock()
	before := n.glue.masked
	n.glue.linksMu.Unlock()
	for _, s := range stats {
		for _, seen := range sights([]sleeve.PeerStats{s}) {
			masked[s.ID] = !isOwn(addrs, seen.at.Addr())
		}
		if was, ok := before[s.ID]; ok && s.Asleep {
			masked[s.ID] = was
		}
		if !detour(s) {
			continue
		}
		other, _ := n.mesh.Peer(s.ID)
		reasons[s.ID] = why(s, own, other, p.tries(s.ID))
	}
	n.glue.linksMu.Lock()
	defer n.glue.linksMu.Unlock()
	n.glue.detours, n.glue.masked = reasons, masked
}

// whyDetour says why packets to a member do not go directly. It is empty where packets go directly, or nowhere.
func (n *node) whyDetour(id peer.ID) string {
	n.glue.linksMu.Lock()
	defer n.glue.linksMu.Unlock()
	return n.glue.detours[id]
}

func isOwn(own []netip.Addr, a netip.Addr) bool { return slices.Contains(own, a.Unmap()) }
