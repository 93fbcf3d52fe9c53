package sleeve

import (
	"encoding/binary"
)

// minJoin is the smallest payload of TCP segments that are joined: below it a peer could make us build packets of
// thousands of segments. For UDP the kernel has a limit of its own, maxSegments.
const minJoin = 256

// join collects consecutive segments of one super-packet into buf. The first segment's headers serve for all: they
// were checked, and those of the rest are never looked at but for lengths and flags.
type join struct {
	buf  []byte // vnet header, then the packet being built
	n    int    // its length
	pkt  packet // its first segment, within buf
	k    *keys
	lane uint8
	kind uint8
	id   uint16
	last uint8 // place of the newest segment
	size int   // payload of each segment
	segs int   // 0: nothing collected
	full bool  // no more fit: a shorter segment came
}

func newJoin() *join { return &join{buf: make([]byte, vnetSize+maxPacket)} }

// first starts a run with a checked packet, or reports false if it is not one to join with others.
func (j *join) first(k *keys, lane uint8, m meta, p packet) bool {
	size := len(p.b) - p.payload
	if m.kind&(flagTCP|flagUDP) == 0 || m.kind&flagPartial == 0 || p.proto == 0 || size == 0 {
		return false
	}
	if p.proto == protoTCP && size < minJoin {
		return false
	}
	if (m.kind&flagTCP != 0) != (p.proto == protoTCP) || p.proto == protoTCP && p.b[p.l4+tcpFlags]&flagCWR != 0 {
		return false
	}
	copy(j.buf[vnetSize:], p.b)
	p.b = j.buf[vnetSize : vnetSize+len(p.b)]
	j.k, j.lane, j.kind, j.id, j.last, j.pkt = k, lane, m.kind, m.id, m.place, p
	j.n, j.size, j.segs, j.full = len(p.b), size, 1, false
	return true
}

// next adds a segment if it continues the run.
func (j *join) next(k *keys, lane uint8, m meta, b []byte) bool {
	if j.segs == 0 || j.full || k != j.k || lane != j.lane || m.kind != j.kind || m.id != j.id || m.place != j.last+1 {
		return false
	}
	size := len(b) - j.pkt.payload
	if size <= 0 || size > j.size || j.n+size > maxPacket || j.segs == maxSegments || b[0]>>4 != j.pkt.b[0]>>4 {
		return false
	}
	if j.pkt.proto == protoTCP {
		flags := b[j.pkt.l4+tcpFlags]
		if int(b[j.pkt.l4+12]>>4)*4 != j.pkt.payload-j.pkt.l4 || flags&flagCWR != 0 {
			return false
		}
		j.pkt.b[j.pkt.l4+tcpFlags] |= flags & (flagFIN | flagPSH)
	}
	copy(j.buf[vnetSize+j.n:], b[j.pkt.payload:])
	j.n += size
	j.last++
	j.segs++
	j.full = size < j.size
	return true
}

// finish ends the run and returns the packet behind its vnet header; the checksum is the kernel's to finish.
func (j *join) finish() []byte {
	out := j.buf[:vnetSize+j.n]
	j.pkt.b = out[vnetSize:]
	v := partial(&j.pkt)
	if j.segs > 1 {
		j.pkt.setLength(j.n)
		v.segment = uint16(j.size)
		v.headers = uint16(j.pkt.payload)
		switch {
		case j.pkt.proto == protoUDP:
			binary.BigEndian.PutUint16(j.pkt.b[j.pkt.l4+4:], uint16(j.n-j.pkt.l4))
			v.kind = vnetUDP
		case j.pkt.v6:
			v.kind = vnetTCP6
		default:
			v.kind = vnetTCP4
		}
	}
	j.pkt.startChecksum()
	v.put(out)
	j.segs, j.k = 0, nil
	return out
}

// partial describes a plain packet whose checksum the kernel shall finish.
func partial(p *packet) vnet {
	return vnet{flags: vnetNeedsSum, sumStart: uint16(p.l4), sumInStart: uint16(p.sumOffset())}
}
