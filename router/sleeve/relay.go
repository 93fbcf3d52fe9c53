package sleeve

import (
	"sync/atomic"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/sparse"
)

// What is carried for one peer: enough for a gigabit's worth of bursts, not for a flood.
const (
	relayRate  = 32 << 20 // bytes a second
	relayBurst = 4 << 20  // at once

	refuseGap = 100 * time.Millisecond // between two refusals that one peer is told
)

// SetRelay says whether this node carries datagrams between two of its peers that cannot reach each other. It does not
// until told.
func (e *Engine) SetRelay(on bool) { e.relays.Store(on) }

// members are the peers by id; replaced, never changed.
type members map[peer.ID]*remote

// member is the peer of that name, or nil.
func (e *Engine) member(id peer.ID) *remote { return (*e.members.Load())[id] }

// carries reports whether a peer can be asked to carry for us.
func (e *Engine) carries(id peer.ID) bool {
	r := e.member(id)
	return r != nil && r.carrier.Load()
}

// streamed reports whether a peer is reached by a stream.
func (e *Engine) streamed(id peer.ID) bool {
	r := e.member(id)
	return r != nil && r.byStream.Load()
}

// noteCarrier keeps whether a peer can carry for us; its lock is held. A way to it that needs somebody else is none:
// else two could ask each other to carry to the other.
func (e *Engine) noteCarrier(r *remote, now time.Time) {
	l := &r.link
	to := l.paths.Active()
	can := !r.closed && l.current != nil && !to.IsZero() && !to.Relayed() && l.paths.Silence(now) < lostAfter
	if r.carrier.Load() != can || r.byStream.Load() != to.TCP {
		r.carrier.Store(can)
		r.byStream.Store(to.TCP)
		e.version.Add(1)
		e.wake()
	}
}

// hop is how datagrams leave when they do not go straight to the peer; it never changes.
type hop struct {
	relay  *remote // nil: by stream
	leg    uint8
	ids    []byte // before each datagram
	stream *stream
}

// hop resolves a path that needs others; nil: they are not there.
func (e *Engine) hop(to peer.ID, p path.Path) *hop {
	if e == nil {
		return nil
	}
	if p.TCP {
		if s := e.streams.find(p.Endpoint); s != nil {
			return &hop{stream: s}
		}
		return nil
	}
	r := e.member(p.Via[0])
	if r == nil {
		return nil
	}
	h := &hop{relay: r, leg: legUp, ids: append([]byte(nil), to[:]...)}
	if far := p.Via[1]; !far.IsZero() {
		h.leg, h.ids = legUpFar, append(h.ids, far[:]...)
	}
	return h
}

// stands reports whether what s was made of is there still.
func (e *Engine) stands(s *sending) bool {
	if s.hop.stream != nil {
		return e.streams.find(s.path.Endpoint) == s.hop.stream
	}
	return e.member(s.path.Via[0]) == s.hop.relay
}

// refuse drops what r wants carried, and tells it now and then, so that it looks for another way.
func (in *inbound) refuse(r *remote, why reason, code byte, to peer.ID, now time.Time) {
	r.drops.add(why, 1)
	at := in.e.at(now)
	last := r.refused.Load()
	if last != 0 && at-last < int64(refuseGap) || !r.refused.CompareAndSwap(last, at) {
		return
	}
	s := r.sending.Load()
	if s == nil || s.path.Relayed() {
		return
	}
	if b, err := s.keys.seal(nil, meta{kind: kindRelayed, place: legRefused}, append(to[:], code)); err == nil {
		in.e.dispatch(r.id, s.path, b)
	}
}

// refused is told by a relay that it does not carry to a peer. It can say so of its own ways only.
func (in *inbound) refused(relay *remote, body []byte, now time.Time) {
	if len(body) < peer.IDSize+1 || in.from.Relayed() {
		relay.drops.add(dropRelayLeg, 1)
		return
	}
	r := in.e.member(peer.ID(body))
	if r == nil {
		return
	}
	r.mu.Lock()
	r.link.paths.Refused(relay.id, refusal(body[peer.IDSize]), now)
	waiting := in.e.publish(r, now)
	r.mu.Unlock()
	in.e.release(waiting)
	in.e.wake()
}

// quota is a token bucket, kept as the time when it will be full again.
type quota struct{ full atomic.Int64 }

// take reports whether n bytes may pass.
func (q *quota) take(n int, now int64) bool {
	const unit = int64(time.Second)
	cost := int64(n) * unit / relayRate
	for {
		full := q.full.Load()
		next := max(full, now) + cost
		if next-now > relayBurst*unit/relayRate {
			return false
		}
		if q.full.CompareAndSwap(full, next) {
			return true
		}
	}
}

// relayed handles a datagram that r carries to us, or wants carried. plain has room for the meta before the body, which
// is used up.
func (in *inbound) relayed(r *remote, m meta, plain []byte, tos uint8, now time.Time) {
	if m.place == legRefused {
		in.refused(r, plain[metaSize:], now)
		return
	}
	head := relayHead(m.place)
	if head == 0 || len(plain) < metaSize+head || in.from.Relayed() {
		r.drops.add(dropRelayLeg, 1)
		return
	}
	first := peer.ID(plain[metaSize:])
	switch m.place {
	case legDown:
		in.carried(r, path.Through(r.id), plain[metaSize+head:], tos, now)
	case legDownFar:
		in.carried(r, path.Through(r.id, peer.ID(plain[metaSize+peer.IDSize:])), plain[metaSize+head:], tos, now)
	case legUp:
		copy(plain[metaSize:], r.id[:])
		in.carry(r, first, legDown, plain, tos, now)
	case legUpFar:
		next := peer.ID(plain[metaSize+peer.IDSize:])
		copy(plain[metaSize+peer.IDSize:], r.id[:])
		in.carry(r, next, legAcross, plain, tos, now)
	case legAcross:
		copy(plain[metaSize:], plain[metaSize+peer.IDSize:metaSize+head])
		copy(plain[metaSize+peer.IDSize:], r.id[:])
		in.carry(r, first, legDownFar, plain, tos, now)
	}
}

// carried takes out what a relay brought.
func (in *inbound) carried(r *remote, from path.Path, b []byte, tos uint8, now time.Time) {
	r.carried.count(1, len(b), in.e.at(now))
	outer := in.from
	in.from = from
	in.datagram(b, tos, now)
	in.from = outer
}

// carry passes a datagram of r on. Nobody can tell it to do so but a peer, to nobody but a peer, and no more goes out
// than came in.
func (in *inbound) carry(r *remote, to peer.ID, leg uint8, plain []byte, tos uint8, now time.Time) {
	e := in.e
	at := e.at(now)
	if !e.relays.Load() {
		in.refuse(r, dropRelayOff, refusedOff, to, now)
		return
	}
	if !r.quota.take(len(plain)+overhead, at) {
		r.drops.add(dropRelayLimit, 1)
		return
	}
	dst := e.member(to)
	if dst == nil || dst == r {
		in.refuse(r, dropRelayUnknown, refusedUnknown, to, now)
		return
	}
	s := dst.sending.Load()
	if s == nil && e.night.on.Load() { // it may sleep; who sends tries again
		e.rouse(to, sparse.Data)
		r.drops.add(dropRelayAway, 1)
		return
	}
	if s == nil || s.path.Relayed() {
		in.refuse(r, dropRelayAway, refusedAway, to, now)
		return
	}
	r.carried.last.Store(at)
	if in.onward == nil {
		in.onward = newOutbound(e, relayLane)
	}
	o, size := in.onward, len(plain)-metaSize+overhead
	if tos &= ecnMask; !o.pack.takes(s, tos, size) {
		o.flush(at)
		o.pack.begin(dst, &dst.carried, s, tos, size)
	}
	o.seal(meta{kind: kindRelayed, place: leg}, plain, false)
}
