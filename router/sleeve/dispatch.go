package sleeve

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/sparse"
)

// Send seals one control datagram for a peer, at most MaxControl bytes, and sends it at once. It never waits for a
// session: datagrams may be lost. For a peer that sleeps it is kept until there is one, as packets are.
func (e *Engine) Send(to peer.ID, b []byte) error {
	if len(b) > MaxControl {
		return fmt.Errorf("send %d bytes to peer %s: %w", len(b), to.Short(), ErrTooLarge)
	}
	e.mu.RLock()
	r := e.peers[to]
	e.mu.RUnlock()
	if r == nil {
		return fmt.Errorf("send to peer %s: %w", to.Short(), ErrUnknownPeer)
	}
	s := r.sending.Load()
	if s == nil && e.night.on.Load() {
		if s = r.keep(queued{b: b, control: r, at: e.now()}, sparse.Control); s == nil {
			return nil
		}
	}
	if s == nil {
		return fmt.Errorf("send to peer %s: %w", to.Short(), ErrNoSession)
	}
	if err := e.control(r, s, b); err != nil {
		return fmt.Errorf("send to peer %s: %w", to.Short(), err)
	}
	r.tx.last.Store(e.now())
	return nil
}

// control seals and sends one control datagram, in two halves if it must be.
func (e *Engine) control(r *remote, s *sending, b []byte) error {
	m := meta{kind: kindControl}
	if s.halved && len(b) > maxWhole {
		first, second, err := s.keys.sealHalves(m, b)
		if err != nil {
			return err
		}
		return errors.Join(e.sealed(r, s, first), e.sealed(r, s, second))
	}
	sealed, err := s.keys.seal(make([]byte, 0, overhead+len(b)), m, b)
	if err != nil {
		return err
	}
	return e.sealed(r, s, sealed)
}

// sealed sends one sealed datagram where the peer's packets go.
func (e *Engine) sealed(r *remote, s *sending, b []byte) error {
	if s.hop != nil {
		e.dispatch(r.id, s.path, b)
		return nil
	}
	err := ErrNoSocket
	if sock := e.sockets.Load().to(s.to); sock != nil {
		_, _, err = sock.conn.WriteMsgUDPAddrPort(b, nil, s.to)
	}
	if err != nil {
		r.drops.add(dropSend, 1)
	}
	return err
}

// send sends what the link of a peer made.
func (e *Engine) send(r *remote, out ...message) {
	for _, m := range out {
		e.dispatch(r.id, m.to, m.b)
	}
}

// dispatch sends one datagram to a peer along a path.
func (e *Engine) dispatch(to peer.ID, p path.Path, b []byte) {
	if p.Direct() {
		e.datagram(p.Endpoint, b)
		return
	}
	h := e.hop(to, p)
	switch {
	case h == nil:
		e.drops.add(dropSend, 1)
	case h.stream != nil:
		e.drops.add(dropStream, h.stream.put(b, len(b)))
	default:
		s := h.relay.sending.Load()
		if s == nil || s.path.Relayed() {
			e.drops.add(dropSend, 1)
			return
		}
		sealed, err := s.keys.seal(nil, meta{kind: kindRelayed, place: h.leg}, slices.Concat(h.ids, b))
		if err != nil {
			e.drops.add(dropSend, 1)
			return
		}
		e.dispatch(h.relay.id, s.path, sealed)
	}
}

// datagram sends one datagram to an address.
func (e *Engine) datagram(to netip.AddrPort, b []byte) {
	sock := e.sockets.Load().to(to)
	if sock == nil {
		e.drops.add(dropSend, 1)
		return
	}
	if _, err := sock.conn.WriteToUDPAddrPort(b, to); err != nil && !tooBig(err) { // MTU probes may be
		e.drops.add(dropSend, 1)
	}
}
