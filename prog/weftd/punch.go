package weftd

import (
	"cmp"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router/sleeve"
)

// Two members whose packets take a detour try for a direct way, by sending to each other at the same moment, so that each
// one's NAT takes what comes for an answer. The detour itself carries the appointment:
//
//	A ── ask: A's addresses ──> B
//	A <── answer: B's addresses ── B, which sends its burst half a round trip later
//	A sends its burst at once
//
//	punch    version(1)  ask or answer(1)  nonce(8)  NAT(1)  number of addresses(1)  then each: IPv6 or mapped IPv4(16) port(2)
//
// Whether it worked is seen in the wire's statistics: the engine tries the addresses and takes the better way.
const (
	punchAsk    = 1
	punchAnswer = 2

	punchHead    = 12
	punchAddress = 18
)

// Timing of punching. Each pause is from one appointment to the next.
const (
	punchYield   = 700 * time.Millisecond // the member with the higher ID lets the other begin
	punchSecond  = time.Second
	punchThird   = 5 * time.Second
	punchBusy    = 30 * time.Second // while packets flow
	punchCalm    = 10 * time.Minute
	punchSpacing = 500 * time.Millisecond // between two of one peer: more are not heard
	punchAtOnce  = 8                      // of one peer, and one more each punchEach: a burst goes wherever it says
	punchEach    = 10 * time.Second
	punchQueue   = 128
	punchesAhead = 256 // bursts that wait for their moment
)

// punchMessage is what travels.
type punchMessage struct {
	from  peer.ID
	kind  byte
	nonce uint64
	nat   peer.NAT
	at    []netip.AddrPort
}

func (p punchMessage) append(b []byte) []byte {
	at := p.at[:min(len(p.at), path.MaxPunch)]
	b = append(b, datagramVersion, p.kind)
	b = binary.BigEndian.AppendUint64(b, p.nonce)
	b = append(b, byte(p.nat), byte(len(at)))
	for _, ap := range at {
		a := ap.Addr().As16()
		b = binary.BigEndian.AppendUint16(append(b, a[:]...), ap.Port())
	}
	return b
}

// parsePunch reads a message; false when it is none. A newer one may say more at its end.
func parsePunch(from peer.ID, b []byte) (punchMessage, bool) {
	if len(b) < punchHead || b[0] != datagramVersion || b[1] != punchAsk && b[1] != punchAnswer {
		return punchMessage{}, false
	}
	p := punchMessage{from: from, kind: b[1], nonce: binary.BigEndian.Uint64(b[2:]), nat: peer.NAT(b[10])}
	if p.nat > peer.NATHard {
		p.nat = peer.NATUnknown
	}
	count, rest := int(b[11]), b[punchHead:]
	if count > path.MaxPunch || len(rest) < count*punchAddress {
		return punchMessage{}, false
	}
	for range count {
		ap := netip.AddrPortFrom(netip.AddrFrom16([16]byte(rest)).Unmap(), binary.BigEndian.Uint16(rest[16:]))
		p.at = append(p.at, ap)
		rest = rest[punchAddress:]
	}
	return p, true
}

// puncher decides when to try for a direct way, and with whom. It is driven by one goroutine, which owns it.
type puncher struct {
	self  peer.ID
	pairs map[peer.ID]*punching
	spent map[peer.ID]time.Time // until when the asks of a member are paid for; no longer than punchAtOnce ahead
}

// punching is what is known of the attempts with one member.
type punching struct {
	next    time.Time // not before
	tries   int       // since something changed
	nonce   uint64    // of the ask under way; 0: none
	heard   time.Time // when the last ask was taken
	traffic uint64    // that had flowed at the last attempt
	mine    []netip.AddrPort
	theirs  []netip.AddrPort // as their record has them
}

// burst is a Punch whose time comes.
type burst struct {
	when time.Time
	to   peer.ID
	at   []netip.AddrPort
}

func newPuncher(self peer.ID) *puncher {
	return &puncher{self: self, pairs: map[peer.ID]*punching{}, spent: map[peer.ID]time.Time{}}
}

// allow reports whether one more ask of a member is taken: else one that lies could have all others send to whom it likes.
func (p *puncher) allow(id peer.ID, now time.Time) bool {
	until := p.spent[id]
	if until.Before(now) {
		until = now
	}
	if until = until.Add(punchEach); until.Sub(now) > punchAtOnce*punchEach {
		return false
	}
	p.spent[id] = until
	return true
}

// detour reports whether packets to a peer flow, and not directly.
func detour(s sleeve.PeerStats) bool { return s.Up && (len(s.Via) > 0 || s.TCP) }

// due lists the members to ask now. Those that are reached directly are forgotten.
func (p *puncher) due(now time.Time, nat peer.NAT, mine []netip.AddrPort, stats []sleeve.PeerStats, info func(peer.ID) (peer.Info, bool)) (ids []peer.ID) {
	seen := peer.Set{}
	for _, s := range stats {
		other, ok := info(s.ID)
		if !ok || !detour(s) {
			continue
		}
		seen.Add(s.ID)
		theirs := slices.Concat(other.Endpoints, other.Reflected)
		of := p.pairs[s.ID]
		if of == nil || !slices.Equal(of.mine, mine) || !slices.Equal(of.theirs, theirs) {
			nonce, heard := uint64(0), time.Time{}
			if of != nil {
				nonce, heard = of.nonce, of.heard
			}
			of = &punching{next: now, nonce: nonce, heard: heard, mine: slices.Clone(mine), theirs: theirs}
			if p.self.Compare(s.ID) > 0 {
				of.next = now.Add(punchYield)
			}
			p.pairs[s.ID] = of
		}
		if hopeless(nat, other.NAT) || now.Before(of.next) {
			continue
		}
		of.nonce = rand.Uint64() | 1
		of.pause(now, s.RxBytes+s.TxBytes)
		ids = append(ids, s.ID)
	}
	for id := range p.pairs {
		if !seen.Has(id) {
			delete(p.pairs, id)
		}
	}
	for id, until := range p.spent {
		if until.Before(now) {
			delete(p.spent, id)
		}
	}
	return ids
}

// hopeless reports whether no burst can make a way: each side's address is another for each that it sends to, so that
// neither can be told.
func hopeless(a, b peer.NAT) bool { return a == peer.NATHard && b == peer.NATHard }

// pause plans the next attempt.
func (of *punching) pause(now time.Time, traffic uint64) {
	of.tries++
	wait := punchCalm
	switch {
	case of.tries == 1:
		wait = punchSecond
	case of.tries == 2:
		wait = punchThird
	case traffic != of.traffic:
		wait = punchBusy
	}
	of.traffic = traffic
	of.next = now.Add(wait*3/4 + rand.N(wait/2))
}

// hear takes a message, and says what to answer and when to send the burst.
func (p *puncher) hear(now time.Time, m punchMessage, rtt time.Duration) (answer bool, b burst, ok bool) {
	of := p.pairs[m.from]
	if of == nil {
		if m.kind != punchAsk {
			return false, burst{}, false
		}
		of = &punching{next: now.Add(punchThird)}
		p.pairs[m.from] = of
	}
	switch m.kind {
	case punchAsk:
		if now.Sub(of.heard) < punchSpacing || !p.allow(m.from, now) {
			return false, burst{}, false
		}
		of.heard = now
		if of.tries < 2 && of.next.Before(now.Add(punchSecond)) {
			of.next = now.Add(punchSecond) // this one is under way
		}
		return true, burst{now.Add(rtt / 2), m.from, m.at}, true
	case punchAnswer:
		if of.nonce == 0 || m.nonce != of.nonce {
			return false, burst{}, false
		}
		of.nonce = 0
		return false, burst{now, m.from, m.at}, true
	}
	return false, burst{}, false
}

// tries are the attempts with a member since something changed.
func (p *puncher) tries(id peer.ID) int {
	if of := p.pairs[id]; of != nil {
		return of.tries
	}
	return 0
}

// hearPunch queues a message for runReach; a full queue loses it, as the network might.
func (n *node) hearPunch(from peer.ID, b []byte) {
	m, ok := parsePunch(from, b)
	if !ok {
		return
	}
	select {
	case n.punches <- m:
	default:
	}
}

// punchable are the addresses of a member that a burst may go to: nothing of our own, and nothing that no other machine
// can have.
func (n *node) punchable(at, own []netip.AddrPort) (all []netip.AddrPort) {
	for _, ap := range at {
		if dialable(ap, n.pools) && !slices.Contains(own, ap) && !slices.Contains(all, ap) {
			all = append(all, ap)
		}
	}
	return all
}

// sendPunch asks or answers.
func (n *node) sendPunch(to peer.ID, kind byte, nonce uint64, nat peer.NAT, mine []netip.AddrPort) {
	m := punchMessage{kind: kind, nonce: nonce, nat: nat, at: mine}
	if err := n.mesh.Datagram(to, datagramPunch, m.append(nil)); err != nil {
		n.log.Debug("no appointment made", "peer", to, "err", err)
	}
}

// send does the bursts whose time has come, and says when the next one is due; zero when none waits.
func (n *node) sendBursts(ctx context.Context, now time.Time, waiting []burst) (left []burst, next time.Time) {
	slices.SortStableFunc(waiting, func(a, b burst) int { return a.when.Compare(b.when) })
	for i, b := range waiting {
		if b.when.After(now) {
			return waiting[i:], b.when
		}
		n.log.Debug("burst for a direct way", "peer", b.to, "count", len(b.at))
		if err := n.link.Punch(ctx, b.to, b.at); err != nil && ctx.Err() == nil {
			n.log.Debug("burst not sent", "peer", b.to, "err", err)
		}
	}
	return nil, time.Time{}
}

// why says in words why packets to a member do not go directly.
func why(s sleeve.PeerStats, own peer.NAT, other peer.Info, tries int) string {
	switch {
	case s.TCP:
		return "no datagrams pass, so packets go in a TCP stream: UDP is blocked on the way"
	case len(s.Via) == 0:
		return ""
	case hopeless(own, other.NAT):
		return "hard NAT on both sides"
	case slices.ContainsFunc(s.Paths, func(p sleeve.PathStats) bool { return p.Endpoint.IsValid() && !p.TCP && p.State == path.Works }):
		return "a direct way works as well, and is taken when it is better for some seconds"
	case tries < 2:
		return "a direct way is being tried"
	case own == peer.NATHard:
		return "hard NAT here, and the other side lets in only whom it has called"
	case other.NAT == peer.NATHard:
		return "hard NAT on its side, and this side lets in only whom it has called"
	case own == peer.NATNone && other.NAT == peer.NATNone:
		return "no datagram passes directly; a firewall may be between"
	}
	return "no direct way was found: " + cmp.Or(natWord(own, "here"), natWord(other.NAT, "on its side"), "NAT or firewalls") +
		" lets no datagram in"
}

func natWord(n peer.NAT, where string) string {
	if n == peer.NATEasy {
		return "the NAT " + where
	}
	return ""
}
