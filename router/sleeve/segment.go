package sleeve

import "encoding/binary"

// cut is a super-packet on its way to becoming segments. Each segment is written over the memory of the super-packet:
// its headers go right before its payload, over the end of the payload before it, which must be sealed by then.
type cut struct {
	head    [maxHeaders]byte // the super-packet's headers
	buf     []byte           // room, then the super-packet
	start   int              // of the super-packet in buf
	headers int
	size    int // payload bytes of each segment but the last
	count   int
	pkt     packet
	id      uint16
	seq     uint32
}

// maxHeaders: IPv6 and a full TCP header.
const maxHeaders = 40 + 60

// init prepares to cut the packet p, which stands in buf behind room bytes, into payloads of size bytes. It reports
// false for a packet that cannot be cut.
func (c *cut) init(buf []byte, room int, p packet, size int) bool {
	n := len(p.b) - p.payload
	if p.proto == 0 || size <= 0 || n <= 0 || room < metaSize {
		return false
	}
	c.buf, c.start, c.headers, c.size, c.pkt = buf, room, p.payload, size, p
	c.count = (n + size - 1) / size
	copy(c.head[:], p.b[:p.payload])
	if !p.v6 {
		c.id = binary.BigEndian.Uint16(p.b[4:])
	}
	if p.proto == protoTCP {
		c.seq = binary.BigEndian.Uint32(p.b[p.l4+4:])
	}
	return true
}

// length is that of segment i with its headers.
func (c *cut) length(i int) int {
	return c.headers + min(c.size, len(c.pkt.b)-c.headers-i*c.size)
}

// segment makes segment i, from 0 in order, and returns it with metaSize bytes of room before it. Its transport
// checksum is left open.
func (c *cut) segment(i int) []byte {
	from := c.start + c.headers + i*c.size
	to := min(from+c.size, c.start+len(c.pkt.b))
	b := c.buf[from-c.headers-metaSize : to]
	h := b[metaSize:]
	copy(h, c.head[:c.headers])
	n := len(h)
	l4 := h[c.pkt.l4:]
	if c.pkt.proto == protoTCP {
		binary.BigEndian.PutUint32(l4[4:], c.seq+uint32(i*c.size))
		if i > 0 {
			l4[tcpFlags] &^= flagCWR
		}
		if i < c.count-1 {
			l4[tcpFlags] &^= flagFIN | flagPSH
		}
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(n-c.pkt.l4))
	}
	if c.pkt.v6 {
		binary.BigEndian.PutUint16(h[4:], uint16(n-40))
		return b
	}
	binary.BigEndian.PutUint16(h[2:], uint16(n))
	binary.BigEndian.PutUint16(h[4:], c.id+uint16(i))
	sumIPv4(h)
	return b
}
