package sleeve

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/crypto/seal"
	"weft/mesh/path"
	"weft/mesh/peer"
)

func FuzzFrame(f *testing.F) {
	f.Add(make([]byte, overhead))
	f.Add(append([]byte{0x2f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x30, 5, 1, 2}, make([]byte, 20)...))
	f.Add([]byte{0x20})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := parseHeader(b)
		if !ok {
			return
		}
		var again [headerSize]byte
		h.put(again[:])
		if !bytes.Equal(again[:], b[:headerSize]) {
			t.Errorf("%x reads as %+v, writes as %x", b[:headerSize], h, again)
		}
		m := parseMeta(b[headerSize:])
		m.put(again[:metaSize])
		if !bytes.Equal(again[:metaSize], b[headerSize:headerSize+metaSize]) {
			t.Errorf("meta %x reads as %+v", b[headerSize:headerSize+metaSize], m)
		}
		body := b[headerSize+metaSize:]
		if p, ok := parseProbe(body); ok && !bytes.Equal(p.append(nil), body[:probeSize]) {
			t.Errorf("probe %x reads as %+v", body, p)
		}
	})
}

// FuzzDatagrams gives an engine whatever a stranger may send.
func FuzzDatagrams(f *testing.F) {
	p := newLone(f, seal.AES256GCM, full)
	v, b := superPacket(p.src, p.dst, protoTCP, 300, make([]byte, 700))
	run, size := p.sealed(v, b)
	for i := range run {
		run[i] ^= byte(i) & 1 // seeds must not be good themselves
	}
	f.Add(run, size)
	f.Add([]byte{noise.TypeInitiation, 0, 0, 7}, 4)
	f.Add(bytes.Repeat([]byte{0x21, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1}, 10), 32)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if len(b) > maxPacket || size <= 0 {
			return
		}
		before := p.r.rx.packets.Load()
		p.arrive(bytes.Clone(b), size, byte(size), time.Now())
		if p.r.rx.packets.Load() != before {
			t.Errorf("delivered something out of %x", b)
		}
		if len(p.e.handshakes.queue) > 0 {
			p.e.handshakes.one(<-p.e.handshakes.queue, time.Now())
		}
	})
}

// FuzzInner gives an engine whatever a peer may seal: up to three bodies in one receive.
func FuzzInner(f *testing.F) {
	p := newLone(f, seal.AES256GCM, full)
	other := newLone(f, seal.AES256GCM, full).r
	other.id = peer.ID{2}
	_, tcp := superPacket(p.src, p.dst, protoTCP, 300, make([]byte, 300))
	_, udp := superPacket(p.src, p.dst, protoUDP, 300, make([]byte, 300))
	segment := func(kind, place byte, b []byte) []byte { return append([]byte{kind, place, 0, 1}, b...) }
	f.Add(segment(flagTCP|flagPartial, 0, tcp), segment(flagTCP|flagPartial, 1, tcp), segment(flagTCP|flagPartial, 2, tcp), true)
	f.Add(segment(flagUDP|flagPartial, 0, udp), segment(flagUDP|flagPartial, 1, udp[:60]), segment(kindProbe, 0, []byte("abcdef")), false)
	f.Add(segment(kindPacket, 0, tcp), segment(flagPartial, 0, tcp[:30]), segment(kindEcho, 0, nil), true)
	f.Add(segment(kindControl, 0, nil), segment(9, 0, tcp), segment(flagPartial, 0, append([]byte{0x46}, tcp[1:]...)), true)
	// The peer carries for us and for itself, and we for it to another.
	p.e.SetRelay(true)
	p.e.members.Store(&members{p.r.id: p.r, other.id: other})
	self, far := p.r.id[:], other.id[:]
	inside := make([]byte, overhead)
	header{lane: 1, index: 7}.put(inside)
	for leg := range uint8(7) {
		f.Add(segment(kindRelayed, leg, slices.Concat(far, self, inside)), segment(kindRelayed, leg, slices.Concat(self, far, tcp)),
			segment(kindRelayed, leg, far[:9]), true)
	}
	f.Fuzz(func(t *testing.T, a, b, c []byte, offloads bool) {
		o := Offload{}
		if offloads {
			o = full
		}
		p.e.tun.Store(&tunnel{queues: p.e.tun.Load().queues, offload: o})
		k := p.r.sending.Load().keys
		for _, plain := range [][]byte{a, b, c} {
			if len(plain) < metaSize || len(plain) > maxPacket-overhead {
				continue
			}
			l := &k.send[2]
			if err := l.ready(k, 2); err != nil {
				t.Fatal(err)
			}
			d := make([]byte, headerSize)
			header{lane: 2, index: 7, counter: l.sealer.Next()}.put(d)
			sealed, err := l.sealer.Seal(nil, plain, d)
			if err != nil {
				t.Fatal(err)
			}
			p.in.device(p.e.tun.Load())
			p.in.from = path.Direct(portOf(p.sink))
			p.in.datagram(append(d, sealed...), byte(len(a)), time.Now())
		}
		p.in.flush()
		for len(p.e.controls.queue) > 0 {
			<-p.e.controls.queue
		}
	})
}

// FuzzOutbound gives an engine whatever a kernel, or a pod through it, may hand over.
func FuzzOutbound(f *testing.F) {
	p := newLone(f, seal.AES256GCM, full)
	tcp, b := superPacket(p.src, p.dst, protoTCP, 300, make([]byte, 1000))
	f.Add(tcp.flags, tcp.kind, tcp.segment, tcp.sumStart, tcp.sumInStart, b)
	udp, b := superPacket(p.src, p.dst, protoUDP, 1, make([]byte, 1000))
	f.Add(udp.flags, udp.kind, udp.segment, udp.sumStart, udp.sumInStart, b)
	f.Add(uint8(1), uint8(0), uint16(0), uint16(20), uint16(2), b)
	f.Fuzz(func(_ *testing.T, flags, kind uint8, segment, start, in uint16, b []byte) {
		if len(b) > maxPacket {
			return
		}
		n := copy(p.out.in[tunRoom:], b)
		p.out.packet(vnet{flags: flags, kind: kind, segment: segment, sumStart: start, sumInStart: in}, p.out.in, n, 1)
		p.out.flush(1)
	})
}
