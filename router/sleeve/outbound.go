package sleeve

import (
	"errors"
	"os"
)

// Room before a packet that was read from the TUN device: for the vnet header, and for the meta of its first segment,
// which is written over that header.
const tunRoom = 16

// outbound is a worker: it reads one TUN queue, seals on one lane, and sends, each packet to its end. Packets of one size
// that wait in the queue together leave in one send; none waits for another to come.
type outbound struct {
	e    *Engine
	lane uint8
	id   uint16 // of the last super-packet

	in   []byte // tunRoom, then what was read
	port *port  // of the last send
	wrap wrap   // for those that others carry
	cut  cut
	pack pack
	flow flow
}

// pack are sealed datagrams that leave together: all of size bytes, the last may be shorter.
type pack struct {
	out   []byte // the datagrams, back to back
	r     *remote
	t     *traffic // that counts them
	s     *sending
	tos   uint8
	size  int
	count int
	bytes int // of the packets inside
	ended bool
}

// begin starts an empty one.
func (n *pack) begin(r *remote, t *traffic, s *sending, tos uint8, size int) {
	*n = pack{out: n.out[:0], r: r, t: t, s: s, tos: tos, size: size}
}

// takes reports whether one more datagram fits.
func (n *pack) takes(s *sending, tos uint8, size int) bool {
	return n.count > 0 && !n.ended && n.s == s && n.tos == tos && size <= n.size &&
		n.count < maxSegments && len(n.out)+size <= maxSend
}

// added counts a datagram that was appended to out.
func (n *pack) added(size, bytes int) {
	n.count++
	n.bytes += bytes
	n.ended = size < n.size
}

// room reports whether n more datagrams of full size fit.
func (n *pack) room(more int) bool {
	return n.count+more <= maxSegments && len(n.out)+more*n.size <= maxSend
}

func newOutbound(e *Engine, lane uint8) *outbound {
	o := &outbound{e: e, lane: lane, in: make([]byte, tunRoom+maxPacket+1)}
	o.pack.out = make([]byte, 0, maxSend+overhead)
	return o
}

// run reads until the file is closed.
func (o *outbound) run(f *os.File, offload Offload) {
	head := 0
	if offload.Vnet {
		head = vnetSize
	}
	q := newQueue(f)
	for {
		n, err := q.get(o.in[tunRoom-head:], o.pack.count == 0) // super-packets have left already
		if n == 0 && err == nil {                               // nothing waits
			o.flush(o.e.now())
			n, err = q.get(o.in[tunRoom-head:], true)
		}
		if err != nil {
			o.flush(o.e.now())
			if o.e.readFailed("TUN", err) {
				return
			}
			continue
		}
		if n <= head {
			continue
		}
		v := vnet{}
		if head > 0 {
			v = parseVnet(o.in[tunRoom-head:])
		}
		o.packet(v, o.in, n-head, o.e.now())
	}
}

// packet seals the packet of n bytes that stands in buf behind tunRoom bytes. buf is used up. What was sealed leaves with
// flush at the latest.
func (o *outbound) packet(v vnet, buf []byte, n int, now int64) {
	p, ok := parsePacket(buf[tunRoom : tunRoom+n])
	if !ok {
		o.e.drops.add(dropMalformed, 1)
		return
	}
	r := o.e.route(p.dst)
	if r == nil {
		o.e.drops.add(dropNoRoute, 1)
		return
	}
	s := r.sending.Load()
	if s == nil {
		if s = r.hold(v, p.b, now); s == nil {
			return
		}
	}
	o.transmit(r, s, v, buf, p, now)
}

// transmit seals p, whole or in segments, and sends it.
func (o *outbound) transmit(r *remote, s *sending, v vnet, buf []byte, p packet, now int64) {
	kind, size := uint8(kindPacket), len(p.b)-p.payload
	switch {
	case v.kind&^vnetECN == vnetTCP4 || v.kind&^vnetECN == vnetTCP6:
		kind, size = flagTCP|flagPartial, int(v.segment)
	case v.kind == vnetUDP:
		kind, size = flagUDP|flagPartial, int(v.segment)
	case v.kind != vnetNone:
		r.drops.add(dropMalformed, 1)
		return
	case v.flags&vnetNeedsSum != 0 && p.proto != 0 && int(v.sumStart) == p.l4 && int(v.sumInStart) == p.sumOffset():
		kind = flagPartial
	case v.flags&vnetNeedsSum != 0:
		if !v.complete(p.b) {
			r.drops.add(dropMalformed, 1)
			return
		}
	}
	if kind&(flagTCP|flagUDP) == 0 {
		if len(p.b)+overhead > maxSend {
			r.drops.add(dropTooBig, 1)
			return
		}
		size, tos, halved := len(p.b)+overhead, p.tos&ecnMask, s.halved && len(p.b) > maxWhole
		if halved {
			if size = halve(len(p.b)) + overhead; size > maxHalf+overhead {
				r.drops.add(dropTooBig, 1)
				return
			}
		}
		if !o.pack.takes(s, tos, size) || halved && (size != o.pack.size || !o.pack.room(2)) {
			o.flush(now)
			o.pack.begin(r, &r.tx, s, tos, size)
			o.flow.end()
		}
		m := meta{kind: kind}
		if kind&flagPartial == 0 {
			o.flow.end()
		} else if place := o.flow.add(p); place > 0 {
			if place == 1 {
				o.id++
			}
			m = meta{kind: flagUDP | flagPartial, place: uint8(place - 1), id: o.id}
		}
		o.seal(m, buf[tunRoom-metaSize:tunRoom+len(p.b)], halved)
		return
	}
	want := uint8(protoTCP)
	if kind&flagUDP != 0 {
		want = protoUDP
	}
	if p.proto != want || !o.cut.init(buf, tunRoom, p, size) {
		r.drops.add(dropMalformed, 1)
		return
	}
	o.segments(r, s, kind, p.tos, now)
}

// segments sends what is prepared in o.cut, as many segments at a time as one send takes.
func (o *outbound) segments(r *remote, s *sending, kind, tos uint8, now int64) {
	o.flush(now)
	size, each, halved := o.cut.headers+o.cut.size+overhead, 1, false
	if s.halved && size > maxWhole+overhead {
		size, each, halved = halve(size-overhead)+overhead, 2, true
	}
	if size > maxSend || halved && size > maxHalf+overhead {
		r.drops.add(dropTooBig, o.cut.count)
		return
	}
	o.id++
	lane := &s.keys.send[o.lane]
	for i := 0; i < o.cut.count; {
		n := o.cut.length(i)
		if halved { // both halves of a shorter one at the end are shorter: they leave apart
			size = halve(n) + overhead
		}
		o.pack.begin(r, &r.tx, s, tos&ecnMask, size)
		lane.Lock()
		for ; i < o.cut.count && o.pack.room(each) && !o.pack.ended && (!halved || o.cut.length(i) == n); i++ {
			// The receiver wants places to follow each other, not to be unique: beyond 255 they start again.
			if !o.add(lane, meta{kind: kind, place: uint8(i), id: o.id}, o.cut.segment(i), halved) {
				lane.Unlock()
				return
			}
		}
		lane.Unlock()
		o.flush(now)
	}
}

// seal adds one packet to the pack. The first metaSize bytes of b are room for m.
func (o *outbound) seal(m meta, b []byte, halved bool) {
	lane := &o.pack.s.keys.send[o.lane]
	lane.Lock()
	defer lane.Unlock()
	o.add(lane, m, b, halved)
}

func (o *outbound) sealLocked(lane *sendLane, m meta, b []byte) bool {
	n := &o.pack
	if err := lane.ready(n.s.keys, o.lane); err != nil {
		n.r.drops.add(dropNoSession, 1)
		return false
	}
	m.put(b)
	out, err := lane.append(n.s.keys, o.lane, n.out, b)
	if err != nil { // the link makes new keys
		n.r.drops.add(dropNoSession, 1)
		return false
	}
	n.out = out
	return true
}

// append appends one sealed datagram to out, which has room for its header; the lock is held.
func (l *sendLane) append(k *keys, lane uint8, out, plain []byte) ([]byte, error) {
	start := len(out)
	out = out[:start+headerSize]
	head := out[start:]
	header{lane: lane, index: k.far, counter: l.sealer.Next()}.put(head)
	sealed, err := l.sealer.Seal(out, plain, head)
	if err != nil {
		return out[:start], err
	}
	return sealed, nil
}

// flush sends the pack, if there is one.
func (o *outbound) flush(now int64) {
	n := &o.pack
	if n.count == 0 {
		return
	}
	count := n.count
	n.count = 0
	refused, err := o.emit(n.s, n.out, n.size, n.tos, now)
	if refused > 0 {
		why := dropSend
		switch {
		case tooBig(err), errors.Is(err, ErrTooLarge):
			why = dropTooBig
		case errors.Is(err, ErrNoSession):
			why = dropNoSession
		case errors.Is(err, errStreamFull):
			why = dropStream
		}
		n.r.drops.add(why, refused)
	}
	if refused < count {
		n.t.count(count-refused, n.bytes, now)
	}
}

// emit sends sealed datagrams of size bytes each, back to back, the last may be shorter, to where s says. It returns how
// many were refused, with the last error.
func (o *outbound) emit(s *sending, b []byte, size int, tos uint8, now int64) (refused int, err error) {
	if s.hop != nil {
		return o.indirect(s.hop, b, size, tos, now)
	}
	sock := o.e.sockets.Load().to(s.to)
	if sock == nil {
		return (len(b) + size - 1) / size, ErrNoSocket
	}
	if o.port == nil || o.port.sock != sock {
		o.port = newPort(sock)
	}
	return o.port.run(b, size, s.to, tos)
}
