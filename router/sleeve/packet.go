package sleeve

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

const (
	protoTCP = 6
	protoUDP = 17

	tcpFlags = 13 // offset in the TCP header
	flagFIN  = 0x01
	flagPSH  = 0x08
	flagCWR  = 0x80
	ecnMask  = 0x03
	ecnCE    = 0x03

	ipDontFragment = 0x40 // in byte 6 of an IPv4 header

	maxPacket = 65535 // bytes, of an IPv4 packet; larger IPv6 ones are not carried either
)

// packet is what the engine reads out of an inner packet's headers. b is exactly as long as the IP header says.
type packet struct {
	b        []byte
	src, dst netip.Addr
	v6       bool
	tos      uint8
	// proto is TCP or UDP, and l4 the offset of its header, when the packet is plain: no IPv4 options, no extension
	// headers, no fragment, header complete. Otherwise proto is 0: such packets are carried, but never cut or joined.
	proto uint8
	l4    int
	// payload is the offset behind the transport header of a plain packet.
	payload int
}

// parsePacket reads an IP packet that may have stray bytes behind it.
func parsePacket(b []byte) (p packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	switch b[0] >> 4 {
	case 4:
		head, size := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if head < 20 || size < head || size > len(b) {
			return p, false
		}
		p.b, p.tos = b[:size], b[1]
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		fragment := binary.BigEndian.Uint16(b[6:])&0x3fff != 0
		if head == 20 && !fragment {
			p.transport(b[9], head)
		}
		return p, true
	case 6:
		if len(b) < 40 {
			return p, false
		}
		size := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if size > len(b) {
			return p, false
		}
		p.b, p.v6, p.tos = b[:size], true, b[0]<<4|b[1]>>4
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		p.transport(b[6], 40)
		return p, true
	}
	return p, false
}

func (p *packet) transport(proto uint8, at int) {
	switch proto {
	case protoTCP:
		if len(p.b) < at+20 {
			return
		}
		n := int(p.b[at+12]>>4) * 4
		if n < 20 || len(p.b) < at+n {
			return
		}
		p.payload = at + n
	case protoUDP:
		if len(p.b) < at+8 {
			return
		}
		p.payload = at + 8
	default:
		return
	}
	p.proto, p.l4 = proto, at
}

// sumOffset is where the checksum stands in the transport header of a plain packet.
func (p *packet) sumOffset() int {
	if p.proto == protoTCP {
		return 16
	}
	return 6
}

// pseudo is the sum over the pseudo header for a transport part of n bytes.
func (p *packet) pseudo(n int) uint64 {
	addrs := p.b[12:20]
	if p.v6 {
		addrs = p.b[8:40]
	}
	return sum(addrs, uint64(p.proto)+uint64(n))
}

// startChecksum writes what the kernel expects under NEEDS_CSUM: the folded sum of the pseudo header.
func (p *packet) startChecksum() {
	binary.BigEndian.PutUint16(p.b[p.l4+p.sumOffset():], fold(p.pseudo(len(p.b)-p.l4)))
}

// finishChecksum computes the transport checksum of a plain packet.
func (p *packet) finishChecksum() {
	field := p.b[p.l4+p.sumOffset():]
	field[0], field[1] = 0, 0
	c := ^fold(sum(p.b[p.l4:], p.pseudo(len(p.b)-p.l4)))
	if c == 0 && p.proto == protoUDP {
		c = 0xffff // zero means none
	}
	binary.BigEndian.PutUint16(field, c)
}

// setLength writes the length of the whole packet, and the IPv4 header checksum.
func (p *packet) setLength(n int) {
	if p.v6 {
		binary.BigEndian.PutUint16(p.b[4:], uint16(n-40))
		return
	}
	binary.BigEndian.PutUint16(p.b[2:], uint16(n))
	sumIPv4(p.b)
}

// congested marks the packet as having met congestion outside (RFC 6040): false if it cannot carry the mark.
func (p *packet) congested() bool {
	switch p.tos & ecnMask {
	case ecnCE:
		return true
	case 0:
		return false
	}
	p.tos |= ecnCE
	if p.v6 {
		p.b[1] |= ecnCE << 4
		return true
	}
	p.b[1] = p.tos
	sumIPv4(p.b)
	return true
}

func sumIPv4(b []byte) {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(b[:int(b[0]&15)*4], 0)))
}

// sum adds b to a ones' complement sum as big endian 16-bit words; the result is to be folded.
func sum(b []byte, initial uint64) uint64 {
	acc, carry := initial, uint64(0)
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(rest[:]), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}
