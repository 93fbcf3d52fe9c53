package sleeve

import (
	"encoding/binary"

	"weft/crypto/seal"
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
	kindMask    = 0x0f
)

// Flags beside kindPacket.
const (
	flagPartial = 0x10 // the transport checksum is the receiver's to finish
	flagTCP     = 0x20 // a segment of a TCP super-packet
	flagUDP     = 0x40
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

// probe is the body of kindProbe and kindEcho.
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
