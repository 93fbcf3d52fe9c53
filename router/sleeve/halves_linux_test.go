package sleeve

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/crypto/seal"
)

// newHalved is a lone engine that sends in halves, and what its kernel gets.
func newHalved(t *testing.T) (*lone, *host) {
	p := newLone(t, seal.AES256GCM, full)
	s := *p.r.sending.Load()
	s.halved = true
	p.r.sending.Store(&s)
	engine, kernel := tunPair(t)
	t.Cleanup(func() { engine.Close(); kernel.Close() })
	p.e.tun.Store(&tunnel{queues: []*os.File{engine}, offload: full})
	return p, &host{t: t, tun: kernel, offload: full}
}

// give takes one packet of the kernel's and returns the datagrams that are sent for it.
func (p *lone) give(t *testing.T, v vnet, b []byte) (sent [][]byte) {
	t.Helper()
	before := p.r.tx.packets.Load()
	copy(p.out.in[tunRoom:], b)
	p.out.packet(v, p.out.in, len(b), p.e.now())
	p.out.flush(p.e.now())
	buf := make([]byte, maxPacket)
	for range p.r.tx.packets.Load() - before {
		if err := p.sink.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := p.sink.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, bytes.Clone(buf[:n]))
	}
	return sent
}

// expects reads packets until all of want were there, in order and bit for bit.
func (h *host) expects(t *testing.T, want [][]byte) {
	t.Helper()
	for len(want) > 0 {
		v, b := h.read()
		for _, got := range kernelSegments(t, v, b) {
			if len(want) == 0 || !bytes.Equal(got, want[0]) {
				t.Fatalf("got %x, %d more expected", got[:min(len(got), 60)], len(want))
			}
			want = want[1:]
		}
	}
}

// said is what becomes of a packet that the kernel gave, by another's reckoning.
func said(t *testing.T, v vnet, b []byte) [][]byte {
	if p, _ := parsePacket(b); v.kind != vnetNone {
		v.headers = uint16(p.payload)
	}
	return kernelSegments(t, v, b)
}

// TestHalvesCross: packets of all sizes arrive as they were, and no datagram is larger than half of one.
func TestHalvesCross(t *testing.T) {
	p, h := newHalved(t)
	src6, dst6 := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	type given struct {
		v vnet
		b []byte
	}
	packets := map[string]given{}
	for _, n := range []int{0, 1, 611, 612, 613, 700, 1251, 1252} { // 28 bytes are headers
		packets[fmt.Sprintf("datagram of %d", n+28)] = given{vnet{}, udpPacket(p.src, p.dst, random(n))}
		v, b := open(udpPacket(p.src, p.dst, random(n)))
		packets[fmt.Sprintf("datagram of %d, open", n+28)] = given{v, b}
	}
	for _, size := range []int{1228, 1227, 600, 100} {
		v, b := superPacket(p.src, p.dst, protoTCP, size, random(20*size-7))
		packets[fmt.Sprintf("TCP by %d", size)] = given{v, b}
		v, b = superPacket(p.src, p.dst, protoUDP, size, random(20*size))
		packets[fmt.Sprintf("UDP by %d", size)] = given{v, b}
	}
	v, b := superPacket(src6, dst6, protoTCP, 1208, random(50_000))
	packets["TCP on IPv6"] = given{v, b}
	for name, g := range packets {
		t.Run(name, func(t *testing.T) {
			want := said(t, g.v, g.b)
			sent := p.give(t, g.v, g.b)
			for _, d := range sent {
				if len(d) > maxWhole+overhead {
					t.Errorf("a datagram of %d bytes", len(d))
				}
				p.arrive(bytes.Clone(d), len(d), 0, time.Now())
			}
			h.expects(t, want)
			if d := p.r.drops.snapshot(); len(d) != 0 {
				t.Errorf("drops %v", d)
			}
		})
	}
}

// TestHalvesAreJoinedAsSuperPackets: what comes in one receive is written at once, as when it comes in one piece.
func TestHalvesAreJoinedAsSuperPackets(t *testing.T) {
	p, h := newHalved(t)
	v, b := superPacket(p.src, p.dst, protoTCP, 1228, random(20*1228))
	b[20+tcpFlags] &^= flagCWR // else the first stands alone
	sent := p.give(t, v, b)
	if len(sent) != 40 {
		t.Fatalf("%d datagrams", len(sent))
	}
	p.arrive(slices.Concat(sent...), len(sent[0]), 0, time.Now())
	if gv, got := h.read(); len(got) != len(b) || gv.segment != 1228 {
		t.Errorf("%d bytes in segments of %d", len(got), gv.segment)
	}
}

// TestHalvesWithoutTheOther: each datagram in turn is lost, or comes twice, or after its neighbours. What is lost costs its
// own packet and no other, what is late within reason costs none.
func TestHalvesWithoutTheOther(t *testing.T) {
	p, h := newHalved(t)
	data := random(6 * 1228)
	v, b := superPacket(p.src, p.dst, protoTCP, 1228, data)
	want := said(t, v, b)
	for i := range 12 {
		arrive := func(order []int) {
			sent := p.give(t, v, b)
			for _, j := range order {
				p.arrive(bytes.Clone(sent[j]), len(sent[j]), 0, time.Now())
			}
		}
		all := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
		arrive(slices.Delete(slices.Clone(all), i, i+1))
		h.expects(t, slices.Delete(slices.Clone(want), i/2, i/2+1))
		arrive(slices.Insert(slices.Clone(all), i, i))
		h.expects(t, want)
		if i < 11 {
			late := slices.Insert(slices.Delete(slices.Clone(all), i, i+1), i+1, i)
			arrive(late)
			order := slices.Clone(want)
			if i%2 == 1 { // of two packets now the second is whole first, or both are in order
				last := func(n int) int { return max(slices.Index(late, 2*n), slices.Index(late, 2*n+1)) }
				slices.SortStableFunc(order, func(x, y []byte) int {
					at := func(z []byte) int {
						return last(slices.IndexFunc(want, func(w []byte) bool { return bytes.Equal(w, z) }))
					}
					return at(x) - at(y)
				})
			}
			h.expects(t, order)
		}
	}
	if got := p.r.drops[dropHalf].Load(); got == 0 {
		t.Error("halves without the other are not counted")
	}
}

// TestHalvesLeaveTogether: packets of whatever sizes that wait in the queue together arrive as they were.
func TestHalvesLeaveTogether(t *testing.T) {
	p, h := newHalved(t)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		var want [][]byte
		before := p.r.tx.packets.Load()
		for range 1 + rng.IntN(20) {
			n := []int{1252, 1251, 800, 500, rng.IntN(1252)}[rng.IntN(5)]
			b := udpPacket(p.src, p.dst, random(n))
			want = append(want, b)
			copy(p.out.in[tunRoom:], b)
			p.out.packet(vnet{}, p.out.in, len(b), p.e.now())
		}
		p.out.flush(p.e.now())
		p.receive(t, int(p.r.tx.packets.Load()-before))
		h.expects(t, want)
	}
	if d := p.r.drops.snapshot(); len(d) != 0 {
		t.Errorf("drops %v", d)
	}
}

// TestHalvesKeepMarks: congestion on one half is congestion on the packet.
func TestHalvesKeepMarks(t *testing.T) {
	p, h := newHalved(t)
	for marked := range 2 {
		b := udpPacket(p.src, p.dst, random(1000))
		b[1] |= 1
		sumIPv4(b)
		sent := p.give(t, vnet{}, b)
		for i, d := range sent {
			tos := uint8(1)
			if i == marked {
				tos = ecnCE
			}
			p.arrive(bytes.Clone(d), len(d), tos, time.Now())
		}
		_, got := h.read()
		if q, _ := parsePacket(got); q.tos&ecnMask != ecnCE {
			t.Errorf("half %d was marked, the packet is marked %d", marked, q.tos&ecnMask)
		}
	}
}

// TestHalvesOfTooMuch: what no path asks for is not sent, and not kept by who gets it.
func TestHalvesOfTooMuch(t *testing.T) {
	p, _ := newHalved(t)
	if sent := p.give(t, vnet{}, udpPacket(p.src, p.dst, random(2*maxHalf))); len(sent) != 0 {
		t.Errorf("%d datagrams", len(sent))
	}
	v, b := superPacket(p.src, p.dst, protoTCP, 30_000, random(60_000))
	if sent := p.give(t, v, b); len(sent) != 0 {
		t.Errorf("%d datagrams", len(sent))
	}
	if got := p.r.drops[dropTooBig].Load(); got != 3 {
		t.Errorf("%d counted as too big", got)
	}
	var h halves
	for _, m := range []meta{
		{kind: kindFirst | flagOther, place: kindRelayed},
		{kind: kindFirst | flagOther, place: kindFirst},
		{kind: kindFirst | flagOther | flagTCP, place: kindProbe},
		{kind: kindSecond | flagOther, place: kindProbe, id: 1},
	} {
		if _, _, _, why := h.join(1, m, 0, nil, nil); why != dropMalformed {
			t.Errorf("%+v: %v", m, why)
		}
	}
	if _, _, _, why := h.join(1, meta{kind: kindFirst}, 0, make([]byte, maxHalf+1), nil); why != dropMalformed {
		t.Errorf("a half of %d bytes: %v", maxHalf+1, why)
	}
}

// TestHalvesDoNotAllocate once the first came.
func TestHalvesDoNotAllocate(t *testing.T) {
	p, _ := newHalved(t)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	p.e.tun.Store(&tunnel{queues: []*os.File{null}, offload: full})
	v, b := superPacket(p.src, p.dst, protoTCP, 1228, make([]byte, 30*1228))
	buf, now := make([]byte, maxPacket), time.Now()
	if n := testing.AllocsPerRun(100, func() {
		copy(p.out.in[tunRoom:], b)
		p.out.packet(v, p.out.in, len(b), p.e.now())
		p.out.flush(1)
		p.arrive(buf[:copy(buf, p.out.pack.out)], maxWhole+overhead, 0, now)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if d := p.r.drops.snapshot(); len(d) != 0 {
		t.Errorf("drops %v", d)
	}
}

// TestASmallPathIsCrossed, on either family: the device takes 1,280 bytes from now on, so that no packet of full size
// passes in one piece, and packets flow.
func TestASmallPathIsCrossed(t *testing.T) {
	for _, family := range []string{"192.0.2.%d", "2001:db8::%d"} {
		t.Run(family, func(t *testing.T) {
			one, two := newSite(t, 1, 1420, full), newSite(t, 2, 1420, full)
			for _, s := range []*site{one, two} {
				s.addr = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(family, s.n)), 6783)
			}
			connect(t, 1500, one, two)
			transfer(t, one, two, two.inner(), 1<<20)
			for dev, s := range map[string]*site{"up0": one, "up1": two} {
				s.ip(t, "link set "+dev+" mtu 1280", "link set weft-sl mtu 1280")
			}
			for _, s := range []*site{one, two} {
				eventually(t, "halves are sent", func() bool {
					p := s.e.Stats().Peers[0]
					return p.Up && p.MTU == minInner && strings.Contains(p.Paths[0].Reason, "halves")
				})
			}
			transfer(t, one, two, two.inner(), 4<<20)
			transfer(t, two, one, one.inner6(), 4<<20)
			if got := one.checksumErrors(t) + two.checksumErrors(t); got != "" {
				t.Error(got)
			}
		})
	}
}

// FuzzHalves gives a lane whatever a peer may seal.
func FuzzHalves(f *testing.F) {
	f.Add(uint64(0), byte(kindFirst), byte(0), []byte("ab"), uint64(1), byte(kindSecond), byte(0), []byte("cd"))
	f.Add(uint64(9), byte(kindSecond|flagOther), byte(kindProbe), []byte("cd"), uint64(8), byte(kindFirst|flagOther), byte(kindProbe), []byte("ab"))
	f.Add(uint64(0), byte(kindSecond), byte(0), []byte{}, uint64(1<<64-1), byte(kindFirst), byte(0), []byte{})
	f.Fuzz(func(t *testing.T, c1 uint64, k1, p1 byte, b1 []byte, c2 uint64, k2, p2 byte, b2 []byte) {
		var h halves
		m1, m2 := meta{kind: k1, place: p1}, meta{kind: k2, place: p2}
		for _, m := range []meta{m1, m2} {
			if kind := m.kind & kindMask; kind != kindFirst && kind != kindSecond {
				return
			}
		}
		if _, _, body, _ := h.join(c1, m1, 0, b1, nil); body != nil {
			t.Fatalf("one half is %x", body)
		}
		whole, _, body, why := h.join(c2, m2, 0, b2, nil)
		if body == nil {
			return
		}
		first, second := b1, b2
		if k1&kindMask == kindSecond {
			first, second, c1, c2 = b2, b1, c2, c1
		}
		if c2 != c1+1 || k1&^kindMask != k2&^kindMask || p1 != p2 || why != reasons || !bytes.Equal(body, slices.Concat(first, second)) {
			t.Errorf("%d %x and %d %x make %+v %x, %v", c1, k1, c2, k2, whole, body, why)
		}
	})
}
