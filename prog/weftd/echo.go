package weftd

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"weft/mesh/lobby"
	"weft/mesh/peer"
	"weft/router/sleeve"
)

// A node behind a NAT that only one other member hears cannot tell whether its outside address is the same for all. So it
// asks that member for a second port, sends there from the weft port, and is told where that came from:
//
//	A ── ask ──────────────────────────────> R, which opens a port for two seconds
//	A <── port ───────────────────────────── R
//	A ── any packet of the wire's ──────────> that port
//	A <── where it came from ─────────────── R
//
// The same address as R's session sees: an easy NAT. Another one: a hard one.
//
//	echo     version(1)  step(1)  nonce(8)  and after the second step port(2), after the third address(16) port(2)
const (
	echoAsk  = 1
	echoPort = 2
	echoSeen = 3

	echoHead = 10
)

// Limits of echoes.
const (
	echoTime   = 2 * time.Second // that a port is open
	echoesOpen = 16
	echoesEach = 2 // for one member
	echoQueue  = 64
	echoAgain  = 10 * time.Second
	echoCalm   = 10 * time.Minute
	echoTries  = 3 // then it is left for echoCalm
)

type echoMessage struct {
	from  peer.ID
	step  byte
	nonce uint64
	at    netip.AddrPort // the port alone in the second step
}

func (e echoMessage) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, datagramVersion, e.step), e.nonce)
	if e.step == echoSeen {
		a := e.at.Addr().As16()
		b = append(b, a[:]...)
	}
	if e.step != echoAsk {
		b = binary.BigEndian.AppendUint16(b, e.at.Port())
	}
	return b
}

func parseEcho(from peer.ID, b []byte) (echoMessage, bool) {
	if len(b) < echoHead || b[0] != datagramVersion {
		return echoMessage{}, false
	}
	e := echoMessage{from: from, step: b[1], nonce: binary.BigEndian.Uint64(b[2:])}
	b = b[echoHead:]
	switch {
	case e.step == echoAsk:
	case e.step == echoPort && len(b) >= 2:
		e.at = netip.AddrPortFrom(netip.IPv6Unspecified(), binary.BigEndian.Uint16(b))
	case e.step == echoSeen && len(b) >= 18:
		e.at = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:]))
	default:
		return echoMessage{}, false
	}
	return e, true
}

// echoes is both halves of this node; it belongs to runReach, but for what is said otherwise.
type echoes struct {
	in   chan echoMessage      // from the mesh
	open *lobby.Lobby[peer.ID] // the ports that are open, by for whom
	life time.Duration         // of each
	wg   sync.WaitGroup        // of those

	of    peer.ID // who was asked
	at    netip.AddrPort
	seen  netip.AddrPort // where it hears us
	nonce uint64
	next  time.Time
	tries int
}

func newEchoes(life time.Duration) echoes {
	limits := lobby.Limits{All: echoesOpen, Each: echoesEach, Patience: life}
	return echoes{in: make(chan echoMessage, echoQueue), open: lobby.New[peer.ID](limits), life: life}
}

// takeEcho queues a message for runReach.
func (n *node) takeEcho(from peer.ID, b []byte) {
	e, ok := parseEcho(from, b)
	if !ok {
		return
	}
	select {
	case n.echoes.in <- e:
	default:
	}
}

// askEcho asks a peer for a second port when one alone hears this node at an address that is not its own.
func (n *node) askEcho(now time.Time, stats []sleeve.PeerStats) {
	e := &n.echoes
	if now.Before(e.next) || !n.reach.wondering() {
		return
	}
	own := n.ownAddresses()
	for _, s := range stats {
		if seen := sights([]sleeve.PeerStats{s}); len(seen) == 0 || isOwn(own, seen[0].at.Addr()) {
			continue
		}
		if info, ok := n.mesh.Peer(s.ID); !ok || !info.Dialable {
			continue
		}
		e.of, e.at, e.seen, e.nonce = s.ID, s.Endpoint, s.Observed, rand.Uint64()|1
		e.next = now.Add(echoAgain)
		if e.tries++; e.tries%echoTries == 0 {
			e.next = now.Add(echoCalm)
		}
		n.sendEcho(s.ID, echoMessage{step: echoAsk, nonce: e.nonce})
		return
	}
}

func (n *node) sendEcho(to peer.ID, m echoMessage) {
	if err := n.mesh.Datagram(to, datagramEcho, m.append(nil)); err != nil {
		n.log.Debug("echo not sent", "peer", to, "err", err)
	}
}

// hearEcho does what a message asks for.
func (n *node) hearEcho(ctx context.Context, m echoMessage) {
	e := &n.echoes
	switch {
	case m.step == echoAsk:
		e.answer(ctx, m, n.cfg.Listen.Addr(), n.sendEcho, n.log)
	case m.from != e.of || m.nonce != e.nonce:
	case m.step == echoPort:
		at := netip.AddrPortFrom(e.at.Addr(), m.at.Port())
		if err := n.link.Punch(ctx, m.from, []netip.AddrPort{at}); err != nil {
			n.log.Debug("burst not sent", "peer", m.from, "err", err)
		}
	case m.step == echoSeen:
		e.nonce = 0
		e.next = time.Now().Add(echoCalm)
		nat := peer.NATHard
		if m.at == netip.AddrPortFrom(e.seen.Addr().Unmap(), e.seen.Port()) {
			nat = peer.NATEasy
		}
		n.reach.test(nat)
	}
}

// answer opens a port for a member, and tells it where the first packet came from. What is beyond the limits is not answered:
// the member asks again.
func (e *echoes) answer(ctx context.Context, m echoMessage, at netip.Addr, send func(to peer.ID, m echoMessage), log *slog.Logger) {
	place := e.open.Enter(m.from, time.Now(), func() {})
	if place == nil {
		return
	}
	e.wg.Go(func() {
		defer e.open.Leave(place)
		ctx, cancel := context.WithTimeout(ctx, e.life)
		defer cancel()
		var lc net.ListenConfig
		pc, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(at, 0).String())
		if err != nil {
			log.Debug("no port for an echo", "peer", m.from, "err", err)
			return
		}
		conn := pc.(*net.UDPConn)
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		port := uint16(conn.LocalAddr().(*net.UDPAddr).Port)
		send(m.from, echoMessage{step: echoPort, nonce: m.nonce, at: netip.AddrPortFrom(netip.IPv6Unspecified(), port)})
		var buf [1]byte
		_, from, err := conn.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			return // nothing came: the way to that port is barred
		}
		send(m.from, echoMessage{step: echoSeen, nonce: m.nonce, at: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())})
	})
}
