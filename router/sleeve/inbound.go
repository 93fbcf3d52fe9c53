package sleeve

import (
	"net/netip"
	"slices"
	"time"

	"weft/crypto/noise"
	"weft/mesh/path"
	"weft/mesh/sparse"
)

// inbound is a worker: it reads one socket, opens, checks, joins segments and writes to the TUN device, each batch to
// its end. Nothing is kept between batches, so nothing waits.
type inbound struct {
	e    *Engine
	in   []byte
	one  []byte // vnet header and one packet that is written alone
	join *join
	tun  *tunnel   // of this batch
	out  []*queue  // of tun
	from path.Path // of this batch, or of what a relay brought in it
	conn *stream   // that is read; nil for a socket
	half []byte    // what was put together of two halves

	onward *outbound // for what is carried to others; nil until there is some
}

func newInbound(e *Engine) *inbound {
	return &inbound{
		e: e, in: make([]byte, maxPacket+1), one: make([]byte, vnetSize+maxPacket+1),
		join: newJoin(), half: make([]byte, 0, 2*maxHalf),
	}
}

// run reads until the socket is closed.
func (in *inbound) run(s *socket) {
	p := newPort(s)
	for {
		n, size, tos, from, err := p.get(in.in)
		if err != nil {
			if in.e.readFailed("UDP", err) {
				return
			}
			continue
		}
		if size <= 0 {
			size = n
		}
		in.from = path.Direct(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		in.batch(in.in[:n], size, tos, time.Now())
	}
}

// batch handles what came in one receive: datagrams of size bytes back to back, the last may be shorter. b is used up.
func (in *inbound) batch(b []byte, size int, tos uint8, now time.Time) {
	if t := in.e.tun.Load(); t != in.tun {
		in.device(t)
	}
	for len(b) > 0 {
		n := in.foreign(b, size)
		if n == 0 {
			n = min(size, len(b))
			in.datagram(b[:n:n], tos, now)
		}
		b = b[n:]
	}
	in.settle(now)
}

// foreign passes on the datagrams of WireGuard's with which b begins, together: a wake-up for each would cost more than what is
// in them. It answers with their length.
func (in *inbound) foreign(b []byte, size int) (n int) {
	if in.e.foreign == nil || !in.from.Direct() {
		return 0
	}
	for n < len(b) {
		next := b[n:min(n+size, len(b))]
		if !isForeign(next) { // ours begin with other bytes
			break
		}
		n += len(next)
	}
	if n > 0 && !in.e.foreign(b[:n:n], size, in.from.Endpoint) {
		for d := range slices.Chunk(b[:n], size) {
			in.e.drops.add(dropMalformed, 1)
			in.e.handshakes.saw(d, in.from)
		}
	}
	return n
}

// settle ends a batch: nothing waits for the next one.
func (in *inbound) settle(now time.Time) {
	in.flush()
	if in.onward != nil {
		in.onward.flush(in.e.at(now))
	}
}

// device takes another TUN device from now on.
func (in *inbound) device(t *tunnel) {
	in.tun, in.out = t, nil
	if t != nil {
		for _, f := range t.queues {
			in.out = append(in.out, newQueue(f))
		}
	}
}

// datagram handles one.
func (in *inbound) datagram(b []byte, tos uint8, now time.Time) {
	h, ok := parseHeader(b)
	if !ok {
		if noise.Type(b) != 0 {
			in.e.handshakes.offer(b, in.from, now)
			return
		}
		in.e.drops.add(dropMalformed, 1)
		in.e.handshakes.saw(b, in.from)
		return
	}
	entry, ok := in.e.indexes.find(h.index)
	if !ok || entry.keys == nil {
		in.e.drops.add(dropUnknownIndex, 1)
		in.e.handshakes.saw(b, in.from)
		return
	}
	r, k := entry.remote, entry.keys
	if now.Sub(k.created) >= keyLife {
		r.drops.add(dropExpired, 1)
		return
	}
	plain, newest, why := k.open(h, b)
	if why != reasons {
		r.drops.add(why, 1)
		in.e.handshakes.saw(b, in.from)
		return
	}
	if in.conn != nil {
		in.conn.last.Store(in.e.at(now))
	}
	m, body := parseMeta(plain), plain[metaSize:]
	if s := r.sending.Load(); s == nil || s.keys != k || newest && s.from != in.from {
		in.e.heard(r, k, in.from, newest, tests(m, body), now)
	}
	if kind := m.kind & kindMask; kind == kindFirst || kind == kindSecond {
		if m, tos, body = k.join(h, m, tos, body, in.half[:0]); body == nil {
			return
		}
	}
	if kind := m.kind & kindMask; (kind == kindPacket || kind == kindControl) && r.sending.Load() == nil {
		in.e.rouse(r.id, sparse.Data)
	}
	switch m.kind & kindMask {
	case kindPacket:
		in.packet(r, k, h.lane, m, body, tos, in.e.at(now))
	case kindControl:
		in.e.controls.offer(r.id, body)
		r.rx.last.Store(in.e.at(now))
	case kindProbe:
		in.e.probed(r, k, body, in.from)
	case kindEcho:
		in.e.echoed(r, body, in.from, now)
	case kindRelayed:
		in.relayed(r, m, plain, tos, now)
	default:
		r.drops.add(dropKind, 1)
	}
}

// tests reports whether a datagram says nothing of where the peer sends its packets.
func tests(m meta, body []byte) bool {
	switch m.kind & kindMask {
	case kindEcho:
		return true
	case kindFirst, kindSecond: // of what sort a probe is stands in one of its halves only
		return m.kind&flagOther != 0 && m.place == kindProbe
	case kindProbe:
		p, ok := parseProbe(body)
		return !ok || p.test()
	}
	return false
}

// open authenticates a datagram in place; the reason is reasons when all is well. newest says that no higher counter
// was seen on the lane.
func (k *keys) open(h header, b []byte) (plain []byte, newest bool, why reason) {
	l := &k.recv[h.lane]
	l.Lock()
	defer l.Unlock()
	if err := l.ready(k, h.lane); err != nil {
		return nil, false, dropUnauthentic
	}
	if l.window.Refuses(h.counter) {
		return nil, false, dropReplay // whoever it is from: a replay costs no opening
	}
	plain, err := l.opener.Open(b[headerSize:headerSize], h.counter, b[headerSize:], b[:headerSize])
	if err != nil {
		return nil, false, dropUnauthentic
	}
	top, started := l.window.Top()
	if !l.window.Accept(h.counter) {
		return nil, false, dropReplay
	}
	l.opened++
	return plain, !started || h.counter > top, reasons
}

// packet checks an inner packet and hands it to the kernel, alone or joined with its neighbours.
func (in *inbound) packet(r *remote, k *keys, lane uint8, m meta, b []byte, tos uint8, now int64) {
	if in.join.next(k, lane, m, b) {
		r.rx.count(1, len(b), now)
		return
	}
	in.flush()
	p, ok := parsePacket(b)
	if !ok {
		r.drops.add(dropMalformed, 1)
		return
	}
	if in.e.route(p.src) != r {
		r.drops.add(dropSource, 1)
		return
	}
	if !in.e.accepts(p.dst) {
		r.drops.add(dropDestination, 1)
		return
	}
	if tos&ecnMask == ecnCE && !p.congested() {
		r.drops.add(dropECN, 1)
		return
	}
	if in.tun == nil {
		r.drops.add(dropTUN, 1)
		return
	}
	r.rx.count(1, len(p.b), now)
	o := in.tun.offload
	if (m.kind&flagTCP != 0 && o.TSO || m.kind&flagUDP != 0 && o.USO) && o.Vnet && in.join.first(k, lane, m, p) {
		return
	}
	in.alone(r, lane, m, p)
}

// alone writes one packet.
func (in *inbound) alone(r *remote, lane uint8, m meta, p packet) {
	out := in.one[:vnetSize+len(p.b)]
	copy(out[vnetSize:], p.b)
	p.b = out[vnetSize:]
	v := vnet{}
	if m.kind&flagPartial != 0 {
		switch {
		case p.proto == 0:
			r.drops.add(dropMalformed, 1)
			return
		case in.tun.offload.Vnet:
			v = partial(&p)
			p.startChecksum()
		default:
			p.finishChecksum()
		}
	}
	if !in.tun.offload.Vnet {
		in.write(r, lane, out[vnetSize:])
		return
	}
	v.put(out)
	in.write(r, lane, out)
}

// flush writes what was joined.
func (in *inbound) flush() {
	if in.join.segs == 0 {
		return
	}
	r, lane := in.join.k.owner, in.join.lane
	in.write(r, lane, in.join.finish())
}

// write hands a packet to the kernel by the queue of its lane: the kernel then sends the flow's other direction through
// the same queue.
func (in *inbound) write(r *remote, lane uint8, b []byte) {
	queue := 0
	if lane != controlLane {
		queue = int(lane-1) % len(in.out)
	}
	if err := in.out[queue].put(b); err != nil {
		r.drops.add(dropTUN, 1)
	}
}
