package sleeve

// A path may carry less than the smallest packet that IPv6 allows inside, with the overhead. Fragments of IP would not
// help: many firewalls and NATs drop them, and Linux cuts an IPv6 packet only where a router's word or the device tells it
// to. So such a packet is cut in two before it is sealed. Each half is a datagram like any other, and authentic by itself;
// both are sealed one after the other on one lane, so their counters tell which belong together.

// Limits of halves.
const (
	minInner   = 1280         // the smallest MTU inside
	maxWhole   = minInner / 2 // bytes that always travel in one datagram: what the search for the MTU has seen passing
	maxHalf    = 1024         // bytes of one half
	halvesKept = 4            // that wait for the other one, on each lane; a newer one takes the place of an old one
)

// halve is where a body of n bytes is cut.
func halve(n int) int { return (n + 1) / 2 }

// half is the meta of one half of what m describes. Only packets have a use for place and id; of all else, place keeps
// the kind.
func (m meta) half(kind uint8) meta {
	if m.kind&kindMask != kindPacket {
		return meta{kind: kind | flagOther, place: m.kind & kindMask}
	}
	m.kind |= kind
	return m
}

// whole is the meta of what m describes one half of; false: it cannot have been cut.
func (m meta) whole() (meta, bool) {
	if m.kind&flagOther == 0 {
		m.kind &^= kindMask
		return m, true
	}
	ok := m.kind&^kindMask == flagOther && (m.place == kindControl || m.place == kindProbe) && m.id == 0
	return meta{kind: m.place}, ok
}

// halves are those of one lane that wait for the other one; the lock of the lane guards them.
type halves [halvesKept]struct {
	first uint64 // counter of the first half
	kind  uint8  // of the one that is here; 0: none
	meta  meta   // of the whole
	tos   uint8  // of the datagram
	n     int
	b     [maxHalf]byte
}

// join keeps one half, or returns the whole, appended to dst, if the other one is here; otherwise body is nil. A mark of
// congestion on either is on the whole. why is dropHalf when another half was given up, reasons when all is well.
func (h *halves) join(counter uint64, m meta, tos uint8, b, dst []byte) (whole meta, mark uint8, body []byte, why reason) {
	whole, ok := m.whole()
	if !ok || len(b) > maxHalf {
		return meta{}, 0, nil, dropMalformed
	}
	kind, first := m.kind&kindMask, counter
	if kind == kindSecond {
		first--
	}
	s := &h[first>>1%halvesKept]
	if s.kind == 0 || s.first != first || s.kind == kind || s.meta != whole {
		if why = reasons; s.kind != 0 {
			why = dropHalf
		}
		s.first, s.kind, s.meta, s.tos, s.n = first, kind, whole, tos, copy(s.b[:], b)
		return meta{}, 0, nil, why
	}
	s.kind = 0
	if s.tos&ecnMask == ecnCE {
		tos = s.tos
	}
	if kind == kindSecond {
		return whole, tos, append(append(dst, s.b[:s.n]...), b...), reasons
	}
	return whole, tos, append(append(dst, b...), s.b[:s.n]...), reasons
}

// join keeps one half, or returns the whole if the other one is here; otherwise body is nil.
func (k *keys) join(h header, m meta, tos uint8, b, dst []byte) (whole meta, mark uint8, body []byte) {
	l := &k.recv[h.lane]
	l.Lock()
	defer l.Unlock()
	if l.halves == nil {
		l.halves = new(halves)
	}
	whole, mark, body, why := l.halves.join(h.counter, m, tos, b, dst)
	if why != reasons {
		k.owner.drops.add(why, 1)
	}
	return whole, mark, body
}

// sealHalves makes the two datagrams of a body on the control lane.
func (k *keys) sealHalves(m meta, body []byte) (first, second []byte, err error) {
	l := &k.send[controlLane]
	l.Lock()
	defer l.Unlock()
	n := halve(len(body))
	if first, err = k.sealLocked(l, nil, m.half(kindFirst), body[:n]); err != nil {
		return nil, nil, err
	}
	second, err = k.sealLocked(l, nil, m.half(kindSecond), body[n:])
	return first, second, err
}

// add seals a packet, in two halves if it must be, and adds it to the pack, which has room. The first metaSize bytes of b
// are room for m. The lane's lock is held.
func (o *outbound) add(lane *sendLane, m meta, b []byte, halved bool) bool {
	n := len(b) - metaSize
	if !halved {
		if !o.sealLocked(lane, m, b) {
			return false
		}
		o.pack.added(n+overhead, n)
		return true
	}
	at := halve(n)
	if !o.sealLocked(lane, m.half(kindFirst), b[:metaSize+at]) {
		return false
	}
	o.pack.added(at+overhead, at)
	if !o.sealLocked(lane, m.half(kindSecond), b[at:]) { // its meta is written over the end of what was just sealed
		return false
	}
	o.pack.added(n-at+overhead, n-at)
	return true
}
