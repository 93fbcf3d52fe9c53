package mesh

import (
	"context"
	"fmt"
	"time"

	"weft/mesh/peer"
)

// receive takes datagrams until ctx ends. Nothing here blocks: every queue behind it drops when it is full.
func (m *Mesh) receive(ctx context.Context, t *transport) {
	const pause = 200 * time.Millisecond // while the carrier is gone
	for {
		from, b, err := m.packets.Receive(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.log.Debug("no datagrams", "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			continue
		}
		m.ingest(t, from, b)
	}
}

func (m *Mesh) ingest(t *transport, from peer.ID, b []byte) {
	if !m.roster.Member(from) || from == m.self {
		m.count.refused.Add(1)
		return
	}
	if len(b) == 0 || len(b) > MaxDatagram {
		m.count.malformed.Add(1)
		return
	}
	m.heard(from)
	m.datagram.Store(int64(time.Since(m.born)))
	switch b[0] {
	case datagramGossip:
		t.ingest(from, b[1:])
	case datagramDigest:
		_, digests, err := parseDigests(b[1:])
		if err != nil {
			m.count.malformed.Add(1)
			return
		}
		news, err := parseNews(b[1:])
		if err != nil {
			m.count.malformed.Add(1)
		}
		m.sync.receive(letter{from, digests, news})
	default:
		if h := m.calls.listener(b[0]); h != nil {
			h(from, b[1:])
			return
		}
		m.count.unknown.Add(1)
	}
}

// Listen gives every datagram of a kind, from members only, to h; kinds below FirstDatagram are the mesh's own. It is
// called before Run; h must not block, and owns the body.
func (m *Mesh) Listen(kind byte, h func(from peer.ID, body []byte)) {
	if kind < FirstDatagram {
		panic(fmt.Sprintf("mesh: datagrams of kind %d are its own", kind))
	}
	m.calls.mu.Lock()
	defer m.calls.mu.Unlock()
	m.calls.listeners[kind] = h
}

// Datagram sends one of a kind that the other end listens for. It may be lost.
func (m *Mesh) Datagram(to peer.ID, kind byte, body []byte) error {
	if 1+len(body) > MaxDatagram {
		return fmt.Errorf("send datagram of %d bytes, at most %d", len(body), MaxDatagram-1)
	}
	if !m.roster.Member(to) {
		return ErrNotMember
	}
	return m.packets.Send(to, append([]byte{kind}, body...))
}

// deaf reports whether datagrams do not come through now.
func (m *Mesh) deaf() bool {
	last := time.Duration(m.datagram.Load())
	return last == 0 || time.Since(m.born)-last > deafAfter
}

// send gives a datagram to the carrier; failing is the same as being lost.
func (m *Mesh) send(to peer.ID, kind byte, body []byte) {
	if 1+len(body) > MaxDatagram {
		m.count.dropped.Add(1)
		return
	}
	b := make([]byte, 0, 1+len(body))
	if err := m.packets.Send(to, append(append(b, kind), body...)); err != nil {
		m.count.sendFailed.Add(1)
		m.log.Debug("datagram not sent", "peer", to, "err", err)
	}
}
