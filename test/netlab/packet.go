package netlab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// Packet is an Ethernet frame as it passed a link.
type Packet struct {
	Time    time.Time
	Link    string // where it was seen, host.device
	Out     bool   // left the device (towards the other end) rather than came in by it
	Data    []byte // the frame
	Len     int    // of the frame on the link; more than len(Data) when it was cut
	Segment int    // payload bytes per packet when this is a segmentation super-packet that the kernel can describe, else 0
}

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd

	protoICMP   = 1
	protoIPIP   = 4
	protoTCP    = 6
	protoUDP    = 17
	protoIPv6   = 41
	protoGRE    = 47
	protoICMPv6 = 58
)

// Header is what a packet says about itself at the IP level and one above.
type Header struct {
	Src, Dst         netip.Addr
	Proto            uint8 // of the payload
	SrcPort, DstPort uint16
	Fragment         bool   // not the first piece: no ports
	Payload          []byte // above the transport header of UDP and TCP, else above the IP header
}

// ether splits the frame into its type and what follows.
func (p *Packet) ether() (kind uint16, rest []byte) { return parseEther(p.Data) }

func parseEther(b []byte) (kind uint16, rest []byte) {
	if len(b) < 14 {
		return 0, nil
	}
	kind, rest = binary.BigEndian.Uint16(b[12:]), b[14:]
	if kind == etherVLAN && len(rest) >= 4 {
		kind, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	return kind, rest
}

// IP parses the outermost IP header; false for other frames.
func (p *Packet) IP() (Header, bool) {
	kind, rest := p.ether()
	if kind != etherIPv4 && kind != etherIPv6 {
		return Header{}, false
	}
	return parseIP(rest)
}

// Datagrams are the UDP payloads of the packet: one, or as many as the super-packet will be cut into; none when it is not
// UDP.
func (p *Packet) Datagrams() [][]byte {
	h, ok := p.IP()
	if !ok || h.Proto != protoUDP || h.Fragment {
		return nil
	}
	if p.Segment == 0 {
		return [][]byte{h.Payload}
	}
	var out [][]byte
	for b := h.Payload; len(b) > 0; {
		n := min(p.Segment, len(b))
		out, b = append(out, b[:n]), b[n:]
	}
	return out
}

// String is one line for people.
func (p *Packet) String() string {
	dir := "in"
	if p.Out {
		dir = "out"
	}
	at := fmt.Sprintf("%s %s %-3s", p.Time.Format("15:04:05.000000"), p.Link, dir)
	h, ok := p.IP()
	if !ok {
		kind, _ := p.ether()
		return fmt.Sprintf("%s ethertype %#04x, %d bytes", at, kind, p.Len)
	}
	name := map[uint8]string{protoICMP: "icmp", protoTCP: "tcp", protoUDP: "udp", protoICMPv6: "icmpv6"}[h.Proto]
	if name == "" {
		name = fmt.Sprintf("proto %d", h.Proto)
	}
	if h.SrcPort != 0 || h.DstPort != 0 {
		return fmt.Sprintf("%s %v > %v %s, %d bytes", at, netip.AddrPortFrom(h.Src, h.SrcPort), netip.AddrPortFrom(h.Dst, h.DstPort), name, p.Len)
	}
	return fmt.Sprintf("%s %v > %v %s, %d bytes", at, h.Src, h.Dst, name, p.Len)
}

// parseIP reads an IP packet of either version; what follows may be cut short.
func parseIP(b []byte) (Header, bool) {
	if len(b) == 0 {
		return Header{}, false
	}
	var h Header
	switch b[0] >> 4 {
	case 4:
		ihl := int(b[0]&15) * 4
		if ihl < 20 || len(b) < ihl {
			return Header{}, false
		}
		h.Src, _ = netip.AddrFromSlice(b[12:16])
		h.Dst, _ = netip.AddrFromSlice(b[16:20])
		h.Proto = b[9]
		h.Fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
		if total := int(binary.BigEndian.Uint16(b[2:])); total >= ihl && total < len(b) { // Ethernet padding
			b = b[:total]
		}
		h.Payload = b[ihl:]
	case 6:
		if len(b) < 40 {
			return Header{}, false
		}
		h.Src, _ = netip.AddrFromSlice(b[8:24])
		h.Dst, _ = netip.AddrFromSlice(b[24:40])
		h.Proto = b[6]
		if n := int(binary.BigEndian.Uint16(b[4:])); n > 0 && 40+n < len(b) {
			b = b[:40+n]
		}
		h.Payload = b[40:]
		h.skipExtensions()
	default:
		return Header{}, false
	}
	if h.Fragment {
		return h, true
	}
	switch {
	case h.Proto == protoUDP && len(h.Payload) >= 8:
		h.ports()
		h.Payload = h.Payload[8:]
	case h.Proto == protoTCP && len(h.Payload) >= 20:
		h.ports()
		h.Payload = h.Payload[min(len(h.Payload), max(20, int(h.Payload[12]>>4)*4)):]
	}
	return h, true
}

func (h *Header) ports() {
	h.SrcPort, h.DstPort = binary.BigEndian.Uint16(h.Payload), binary.BigEndian.Uint16(h.Payload[2:])
}

func (h *Header) skipExtensions() {
	for range 8 {
		switch h.Proto {
		case 0, 43, 60: // hop by hop, routing, destination options
			if len(h.Payload) < 8 || len(h.Payload) < int(h.Payload[1])*8+8 {
				return
			}
			h.Proto, h.Payload = h.Payload[0], h.Payload[int(h.Payload[1])*8+8:]
		case 44: // fragment
			if len(h.Payload) < 8 {
				return
			}
			h.Fragment = binary.BigEndian.Uint16(h.Payload[2:])&0xfff8 != 0
			h.Proto, h.Payload = h.Payload[0], h.Payload[8:]
			if h.Fragment {
				return
			}
		default:
			return
		}
	}
}

// Cleartext matches packets that show an address in one of the prefixes to whoever listens on the link: in the IP header,
// in ARP or neighbour discovery, in the header of a packet carried inside (VXLAN, GRE, IP in IP, an ICMP error's quotation),
// or in anything that looks like a valid IP header at any place of a UDP or TCP payload.
func Cleartext(prefixes ...netip.Prefix) Matcher {
	in := func(a netip.Addr) bool {
		for _, p := range prefixes {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	return func(p *Packet) bool { return frameShows(p.Data, in, 0) }
}

// maxNesting bounds tunnels in tunnels.
const maxNesting = 4

func frameShows(frame []byte, in func(netip.Addr) bool, depth int) bool {
	kind, rest := parseEther(frame)
	switch kind {
	case etherARP:
		return len(rest) >= 28 && (in(netip.AddrFrom4([4]byte(rest[14:18]))) || in(netip.AddrFrom4([4]byte(rest[24:28]))))
	case etherIPv4, etherIPv6:
		return ipShows(rest, in, depth)
	}
	return false
}

func ipShows(b []byte, in func(netip.Addr) bool, depth int) bool {
	h, ok := parseIP(b)
	if !ok || depth > maxNesting {
		return false
	}
	if in(h.Src) || in(h.Dst) {
		return true
	}
	switch {
	case h.Fragment:
		return scanShows(h.Payload, in)
	case h.Proto == protoIPIP, h.Proto == protoIPv6:
		return ipShows(h.Payload, in, depth+1)
	case h.Proto == protoGRE && len(h.Payload) > 4:
		return ipShows(h.Payload[4:], in, depth+1) || scanShows(h.Payload, in)
	case h.Proto == protoICMP && len(h.Payload) > 8:
		return ipShows(h.Payload[8:], in, depth+1)
	case h.Proto == protoICMPv6 && len(h.Payload) >= 24 && (h.Payload[0] == 135 || h.Payload[0] == 136):
		return in(netip.AddrFrom16([16]byte(h.Payload[8:24])))
	case h.Proto == protoICMPv6 && len(h.Payload) > 8 && h.Payload[0] < 128:
		return ipShows(h.Payload[8:], in, depth+1)
	case h.Proto == protoUDP:
		// VXLAN: flags 8, three reserved bytes, network, one reserved byte, then a frame.
		if v := h.Payload; len(v) > 22 && v[0] == 8 && v[1]|v[2]|v[3]|v[7] == 0 && frameShows(v[8:], in, depth+1) {
			return true
		}
		return scanShows(h.Payload, in)
	case h.Proto == protoTCP:
		return scanShows(h.Payload, in)
	}
	return false
}

// scanShows looks for an IP header at every place of b. Sealed data passes for one about once in 2^45 places: the version,
// a length that fits, a plausible protocol, an address in the prefixes, and for IPv4 the checksum must all agree.
func scanShows(b []byte, in func(netip.Addr) bool) bool {
	for ; len(b) >= 20; b = b[1:] {
		switch b[0] >> 4 {
		case 4:
			ihl := int(b[0]&15) * 4
			total := int(binary.BigEndian.Uint16(b[2:]))
			if ihl >= 20 && total >= ihl && total <= len(b) && plausible(b[9]) &&
				(in(netip.AddrFrom4([4]byte(b[12:16]))) || in(netip.AddrFrom4([4]byte(b[16:20])))) && checksum(b[:ihl]) == 0 {
				return true
			}
		case 6:
			if len(b) >= 40 && int(binary.BigEndian.Uint16(b[4:])) <= len(b)-40 && plausible(b[6]) &&
				(in(netip.AddrFrom16([16]byte(b[8:24]))) || in(netip.AddrFrom16([16]byte(b[24:40])))) {
				return true
			}
		}
	}
	return false
}

func plausible(proto uint8) bool {
	switch proto {
	case protoICMP, protoTCP, protoUDP, protoICMPv6, 0, 44, 2, 50, 132:
		return true
	}
	return false
}

// checksum is the Internet checksum; 0 over a header that holds a right one.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Contains matches packets with the bytes anywhere, for contents that must not be seen.
func Contains(marker []byte) Matcher {
	return func(p *Packet) bool { return bytes.Contains(p.Data, marker) }
}

// UDP matches UDP datagrams from or to the port.
func UDP(port uint16) Matcher {
	return func(p *Packet) bool {
		h, ok := p.IP()
		return ok && h.Proto == protoUDP && (h.SrcPort == port || h.DstPort == port)
	}
}

// TCP matches TCP segments from or to the port.
func TCP(port uint16) Matcher {
	return func(p *Packet) bool {
		h, ok := p.IP()
		return ok && h.Proto == protoTCP && (h.SrcPort == port || h.DstPort == port)
	}
}

// Any matches what any of the matchers does.
func Any(ms ...Matcher) Matcher {
	return func(p *Packet) bool {
		for _, m := range ms {
			if m(p) {
				return true
			}
		}
		return false
	}
}

// Not matches what m does not.
func Not(m Matcher) Matcher { return func(p *Packet) bool { return !m(p) } }

// The pcap file format, nanosecond variant: a header of 24 bytes, then 16 bytes before each packet.
func appendPcapHeader(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, 0xa1b23c4d)
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = binary.LittleEndian.AppendUint64(b, 0)
	b = binary.LittleEndian.AppendUint32(b, 1<<18)
	return binary.LittleEndian.AppendUint32(b, 1) // Ethernet
}

func appendPcap(b []byte, p *Packet) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Time.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Time.Nanosecond()))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Len))
	return append(b, p.Data...)
}
