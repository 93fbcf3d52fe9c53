package sleeve

import (
	"encoding/binary"
	"net/netip"

	"weft/crypto/seal"
	"weft/mesh/path"
	"weft/mesh/peer"
)

// The layout drawn in doc.go, bytes.
const (
	headerSize = 12
	metaSize   = 4
	overhead   = headerSize + metaSize + seal.Overhead

	firstLane = 0x20 // the first byte of lane 0
	lanes     = 16

	controlLane = 0
)

// Kinds of bodies, append only.
const (
	kindPacket  = 0
	kindControl = 1
	kindProbe   = 2
	kindEcho    = 3
	kindRelayed = 4
	kindFirst   = 5 // half of a packet, or of another kind if flagOther says so
	kindSecond  = 6
	kindMask    = 0x0f
)

// Flags beside kindPacket.
const (
	flagPartial = 0x10 // the transport checksum is the receiver's to finish
	flagTCP     = 0x20 // a segment of a TCP super-packet
	flagUDP     = 0x40
	flagOther   = 0x80 // of a half: place is the kind of what was cut
)

// header is the clear part of a sealed datagram.
type header struct {
	lane    uint8
	index   uint32
	counter uint64
}

func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(firstLane|h.lane)<<24|h.index)
	binary.BigEndian.PutUint64(b[4:], h.counter)
}

// parseHeader reports false for what cannot be a sealed datagram.
func parseHeader(b []byte) (h header, ok bool) {
	if len(b) < overhead || b[0]&^(lanes-1) != firstLane {
		return header{}, false
	}
	word := binary.BigEndian.Uint32(b)
	return header{
		lane:    uint8(word>>24) & (lanes - 1),
		index:   word & 0xffffff,
		counter: binary.BigEndian.Uint64(b[4:]),
	}, true
}

// meta is the first sealed word.
type meta struct {
	kind  uint8 // with flags
	place uint8 // in the super-packet
	id    uint16
}

func (m meta) put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(m.kind)<<24|uint32(m.place)<<16|uint32(m.id))
}

func parseMeta(b []byte) meta {
	word := binary.BigEndian.Uint32(b)
	return meta{kind: uint8(word >> 24), place: uint8(word >> 16), id: uint16(word)}
}

// probe is the body of kindProbe, and the beginning of that of kindEcho.
type probe struct {
	number uint32
	size   uint16 // inner size that the probe stands for: its body was padded to it
}

const probeSize = 6

func (p probe) append(dst []byte) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(dst, p.number), p.size)
}

func parseProbe(b []byte) (probe, bool) {
	if len(b) < probeSize {
		return probe{}, false
	}
	return probe{number: binary.BigEndian.Uint32(b), size: binary.BigEndian.Uint16(b[4:])}, true
}

// test reports whether the sender only tries the way that the probe took.
func (p probe) test() bool { return p.number&path.NumberTest != 0 }

// echo is the body of kindEcho.
type echo struct {
	probe
	plain    bool           // of a build that says no more, and answers where it last heard packets from
	observed netip.AddrPort // where the probe came from; zero when it was relayed
	received uint32         // datagrams with packets, by the keys of the probe; wraps
}

const echoSize = probeSize + 16 + 2 + 4

func (e echo) append(dst []byte) []byte {
	dst = e.probe.append(dst)
	a := [16]byte{}
	if e.observed.IsValid() {
		a = e.observed.Addr().As16()
	}
	dst = binary.BigEndian.AppendUint16(append(dst, a[:]...), e.observed.Port())
	return binary.BigEndian.AppendUint32(dst, e.received)
}

func parseEcho(b []byte) (e echo, ok bool) {
	if e.probe, ok = parseProbe(b); !ok {
		return e, false
	}
	if len(b) < echoSize {
		e.plain = true
		return e, true
	}
	a := netip.AddrFrom16([16]byte(b[probeSize:])).Unmap()
	if port := binary.BigEndian.Uint16(b[probeSize+16:]); port != 0 && !a.IsUnspecified() {
		e.observed = netip.AddrPortFrom(a, port)
	}
	e.received = binary.BigEndian.Uint32(b[probeSize+18:])
	return e, true
}

// Legs of a relayed datagram, the place of its meta. Each comes after those before it, so none is carried in a circle.
const (
	legUp      = 1 // to the one relay: to
	legUpFar   = 2 // to the first relay of two: to, the second relay
	legAcross  = 3 // from the first to the second: to, from
	legDown    = 4 // from the one relay: from
	legDownFar = 5 // from the second relay: from, the first relay
	legRefused = 6 // back from the first relay, with no datagram: to, why
)

// Why a relay refuses, append only.
const (
	refusedOff     = 1
	refusedUnknown = 2
	refusedAway    = 3
)

// refusal is why in words.
func refusal(code byte) string {
	switch code {
	case refusedOff:
		return "the relay carries nothing for others"
	case refusedUnknown:
		return "the relay does not know the peer"
	case refusedAway:
		return "the relay has no way of its own to the peer"
	}
	return "the relay refuses"
}

// relayHead is how many bytes of ids stand before the datagram on a leg; 0: no such leg.
func relayHead(leg uint8) int {
	switch leg {
	case legUp, legDown:
		return peer.IDSize
	case legUpFar, legAcross, legDownFar:
		return 2 * peer.IDSize
	}
	return 0
}
