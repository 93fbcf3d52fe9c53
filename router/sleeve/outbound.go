package sleeve

import (
	"os"
)

// Room before a packet that was read from the TUN device: for the vnet header, and for the meta of its first segment,
// which is written over that header.
const tunRoom = 16

// outbound is a worker: it reads one TUN queue, seals on one lane, and sends, each packet to its end.
type outbound struct {
	e    *Engine
	lane uint8
	id   uint16 // of the last super-packet

	in  []byte // tunRoom, then what was read
	out []byte // sealed datagrams, back to back
	oob []byte
	cut cut
}

func newOutbound(e *Engine, lane uint8) *outbound {
	return &outbound{
		e: e, lane: lane,
		in: make([]byte, tunRoom+maxPacket+1), out: make([]byte, 0, maxSend+overhead), oob: make([]byte, sendOOB),
	}
}

// run reads until the file is closed.
func (o *outbound) run(f *os.File, offload Offload) {
	head := 0
	if offload.Vnet {
		head = vnetSize
	}
	for {
		n, err := f.Read(o.in[tunRoom-head:])
		if err != nil {
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

// packet carries the packet of n bytes that stands in buf behind tunRoom bytes. buf is used up.
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
		o.out = o.out[:0]
		if o.seal(r, s, meta{kind: kind}, buf[tunRoom-metaSize:tunRoom+len(p.b)]) {
			o.flush(r, s, p.tos, len(o.out), len(p.b), 1, now)
		}
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
	datagram := o.cut.headers + o.cut.size + overhead
	if datagram > maxSend {
		r.drops.add(dropTooBig, o.cut.count)
		return
	}
	batch := min(maxSegments, maxSend/datagram)
	o.id++
	lane := &s.keys.send[o.lane]
	for i := 0; i < o.cut.count; {
		o.out = o.out[:0]
		bytes, from := 0, i
		lane.Lock()
		for ; i < o.cut.count && i < from+batch; i++ {
			b := o.cut.segment(i)
			bytes += len(b) - metaSize
			// The receiver wants places to follow each other, not to be unique: beyond 255 they start again.
			if !o.sealLocked(r, s, lane, meta{kind: kind, place: uint8(i), id: o.id}, b) {
				lane.Unlock()
				return
			}
		}
		lane.Unlock()
		o.flush(r, s, tos, datagram, bytes, i-from, now)
	}
}

// seal appends one sealed datagram to o.out. The first metaSize bytes of b are room for m.
func (o *outbound) seal(r *remote, s *sending, m meta, b []byte) bool {
	lane := &s.keys.send[o.lane]
	lane.Lock()
	defer lane.Unlock()
	return o.sealLocked(r, s, lane, m, b)
}

func (o *outbound) sealLocked(r *remote, s *sending, lane *sendLane, m meta, b []byte) bool {
	if err := lane.ready(s.keys, o.lane); err != nil {
		r.drops.add(dropNoSession, 1)
		return false
	}
	m.put(b)
	start := len(o.out)
	o.out = o.out[:start+headerSize]
	head := o.out[start:]
	header{lane: o.lane, index: s.keys.far, counter: lane.sealer.Next()}.put(head)
	out, err := lane.sealer.Seal(o.out, b, head)
	if err != nil { // the link makes new keys
		o.out = o.out[:start]
		r.drops.add(dropNoSession, 1)
		return false
	}
	o.out = out
	return true
}

// flush sends the sealed datagrams in o.out, which carry count packets of bytes together.
func (o *outbound) flush(r *remote, s *sending, tos uint8, datagram, bytes, count int, now int64) {
	sock := o.e.sockets.Load().to(s.to)
	if sock == nil {
		r.drops.add(dropSend, count)
		return
	}
	refused, err := sock.send(o.out, datagram, s.to, tos&ecnMask, o.oob)
	if refused > 0 {
		why := dropSend
		if tooBig(err) {
			why = dropTooBig
		}
		r.drops.add(why, refused)
	}
	if refused < count {
		r.tx.count(count-refused, bytes, now)
	}
}
