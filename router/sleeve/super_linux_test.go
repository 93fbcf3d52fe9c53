package sleeve

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// superPacket makes what the kernel hands over: one packet far above the MTU, its checksum begun.
func superPacket(src, dst netip.Addr, proto byte, size int, payload []byte) (vnet, []byte) {
	var b []byte
	v := vnet{flags: vnetNeedsSum, segment: uint16(size), sumInStart: 16}
	switch {
	case proto == protoUDP:
		b, v.kind, v.sumInStart = udpPacket(src, dst, payload), vnetUDP, 6
	case src.Is4():
		b, v.kind = tcpPacket(src, dst, 1000, flagFIN|flagPSH|flagCWR|0x10, payload), vnetTCP4
	default:
		b, v.kind = tcpPacket(src, dst, 1000, flagFIN|flagPSH|0x10, payload), vnetTCP6
	}
	p, ok := parsePacket(b)
	if !ok {
		panic("the test made a bad packet")
	}
	p.startChecksum()
	v.sumStart = uint16(p.l4)
	v.headers = uint16(len(b)) // the kernel is known to say too much here
	return v, b
}

// kernelSegments does what the receiving kernel does with a packet behind a vnet header: finish its checksum, or cut it
// into packets with finished checksums. It is written without the code under test's cut.
func kernelSegments(t *testing.T, v vnet, b []byte) [][]byte {
	t.Helper()
	b = bytes.Clone(b)
	p, ok := parsePacket(b)
	if !ok || len(p.b) != len(b) {
		t.Fatalf("engine wrote no packet: %x", b[:min(len(b), 80)])
	}
	if v.flags&vnetNeedsSum != 0 {
		if int(v.sumStart) != p.l4 || int(v.sumInStart) != p.sumOffset() {
			t.Fatalf("checksum said to be at %d+%d", v.sumStart, v.sumInStart)
		}
		if got := binary.BigEndian.Uint16(b[p.l4+p.sumOffset():]); got != fold(p.pseudo(len(b)-p.l4)) {
			t.Fatalf("checksum begun as %x", got)
		}
	}
	if v.kind == vnetNone {
		if v.flags&vnetNeedsSum != 0 {
			p.finishChecksum()
		}
		return [][]byte{b}
	}
	if int(v.headers) != p.payload {
		t.Fatalf("headers said to be %d, are %d", v.headers, p.payload)
	}
	var out [][]byte
	payload := b[p.payload:]
	for off := 0; off < len(payload); off += int(v.segment) {
		part := payload[off:min(off+int(v.segment), len(payload))]
		s := append(bytes.Clone(b[:p.payload]), part...)
		if !p.v6 {
			binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
			binary.BigEndian.PutUint16(s[4:], binary.BigEndian.Uint16(b[4:])+uint16(off/int(v.segment)))
			sumIPv4(s)
		} else {
			binary.BigEndian.PutUint16(s[4:], uint16(len(s)-40))
		}
		if p.proto == protoTCP {
			binary.BigEndian.PutUint32(s[p.l4+4:], binary.BigEndian.Uint32(b[p.l4+4:])+uint32(off))
			if off+len(part) < len(payload) {
				s[p.l4+tcpFlags] &^= flagFIN | flagPSH
			}
			if off > 0 {
				s[p.l4+tcpFlags] &^= flagCWR
			}
		} else {
			binary.BigEndian.PutUint16(s[p.l4+4:], uint16(len(s)-p.l4))
		}
		q, _ := parsePacket(s)
		q.finishChecksum()
		out = append(out, s)
	}
	return out
}

func TestSuperPacketsCross(t *testing.T) {
	full := Offload{Vnet: true, TSO: true, USO: true}
	for name, offload := range offloads {
		t.Run(name, func(t *testing.T) {
			a, b := newHost(t, 1, full), newHost(t, 2, offload)
			mesh(t, a, b)
			up(t, a, b)
			for _, c := range []struct {
				src, dst   netip.Addr
				proto      byte
				size, from int
			}{
				{a.pod(), b.pod(), protoTCP, 1368, 60000},
				{a.pod(), b.pod(), protoTCP, 1368, 1369},
				{a.pod6(), b.pod6(), protoTCP, 1348, 65000},
				{a.pod(), b.pod(), protoTCP, 8868, 60000}, // jumbo
				{a.pod(), b.pod(), protoTCP, 536, 60000},  // more segments than one send takes
				{a.pod(), b.pod(), protoTCP, 64, 30000},   // too small to join
				{a.pod(), b.pod(), protoUDP, 1392, 50000},
				{a.pod6(), b.pod6(), protoUDP, 1372, 40000},
			} {
				t.Run(fmt.Sprintf("%d bytes of protocol %d by %d", c.from, c.proto, c.size), func(t *testing.T) {
					data := random(c.from)
					v, p := superPacket(c.src, c.dst, c.proto, c.size, data)
					want := kernelSegments(t, vnet{
						flags: v.flags, kind: v.kind, segment: v.segment, sumStart: v.sumStart,
						sumInStart: v.sumInStart, headers: uint16(len(p) - len(data)),
					}, p)
					a.write(v, p)
					writes := 0
					for i := 0; i < len(want); {
						gv, gb := b.read()
						writes++
						for _, got := range kernelSegments(t, gv, gb) {
							if err := validSums(got); err != nil {
								t.Fatalf("packet %d: %v", i, err)
							}
							if !bytes.Equal(got, want[i]) {
								t.Fatalf("packet %d is\n%x, want\n%x", i, got[:60], want[i][:60])
							}
							i++
						}
					}
					t.Logf("%d packets in %d writes", len(want), writes)
					joins := c.proto == protoTCP && offload.TSO || c.proto == protoUDP && offload.USO
					if joins && c.size >= minJoin && writes > len(want)/4+2 {
						t.Errorf("%d writes for %d packets: nothing was joined", writes, len(want))
					}
				})
			}
			if d := b.stats(a).Drops; len(d) != 0 {
				t.Errorf("drops: %v", d)
			}
		})
	}
}

// TestSendOneByOne is the fallback for a card that cannot cut.
func TestSendOneByOne(t *testing.T) {
	full := Offload{Vnet: true, TSO: true, USO: true}
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	mesh(t, a, b)
	up(t, a, b)
	a.e.sockets.Load().v4.oneByOne.Store(true)
	v, p := superPacket(a.pod(), b.pod(), protoTCP, 1368, random(20000))
	a.write(v, p)
	for n := 0; n < 20000; {
		_, got := b.read()
		q, _ := parsePacket(got)
		n += len(got) - q.payload
	}
}
