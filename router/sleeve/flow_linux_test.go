package sleeve

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"weft/crypto/seal"
)

// open leaves the checksum of a packet to be finished, as a pod's veth does, and forbids to cut it.
func open(b []byte) (vnet, []byte) {
	if b[0]>>4 == 4 {
		b[6] |= ipDontFragment
		sumIPv4(b)
	}
	p, _ := parsePacket(b)
	p.startChecksum()
	return partial(&p), b
}

// receive gives the engine the n datagrams that it sent: those of one size in one receive, as the kernel does.
func (p *lone) receive(t *testing.T, n int) {
	t.Helper()
	var run []byte
	var size, count, last int
	deliver := func() {
		if count > 0 {
			p.arrive(run, size, 0, time.Now())
		}
		run, count = nil, 0
	}
	buf := make([]byte, maxPacket)
	for range n {
		if err := p.sink.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		got, err := p.sink.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if count == maxSegments || count > 0 && (got > size || last < size) {
			deliver()
		}
		if count == 0 {
			size = got
		}
		run, last = append(run, buf[:got]...), got
		count++
	}
	deliver()
}

// TestRowsOfPackets sends packets one by one and expects each of them, in order and bit for bit, from however few writes;
// only the IPv4 ID, which means nothing where fragmentation is forbidden, may differ.
func TestRowsOfPackets(t *testing.T) {
	p := newLone(t, seal.AES256GCM, full)
	engine, kernel := tunPair(t)
	t.Cleanup(func() { engine.Close(); kernel.Close() })
	h := &host{t: t, tun: kernel, offload: full}
	p.e.tun.Store(&tunnel{queues: []*os.File{engine}, offload: full})
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	sizes := []int{0, 1, 99, 100, 1300}
	var writes, packets int
	for range 100 {
		var want [][]byte
		usual := sizes[1+r.IntN(len(sizes)-1)]
		for range 1 + r.IntN(50) {
			size, src, dst := usual, p.src, p.dst
			if r.IntN(20) == 0 {
				size = sizes[r.IntN(len(sizes))]
			}
			if r.IntN(30) == 0 {
				src, dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
			}
			b := udpPacket(src, dst, random(size))
			switch l4 := len(b) - 8 - size; r.IntN(40) {
			case 0:
				b[l4+1]++ // another flow
			case 1:
				b[1] ^= 0x20 // another traffic class
			}
			v, b := open(b)
			whole := kernelSegments(t, v, b)[0]
			if r.IntN(40) == 0 {
				v, b = vnet{}, whole // its checksum is finished
			}
			want = append(want, whole)
			copy(p.out.in[tunRoom:], b)
			p.out.packet(v, p.out.in, len(b), 1)
		}
		p.out.flush(1)
		p.receive(t, len(want))
		packets += len(want)
		for len(want) > 0 {
			writes++
			v, b := h.read()
			for _, got := range kernelSegments(t, v, b) {
				if got[0]>>4 == 4 {
					copy(got[4:6], want[0][4:6])
					sumIPv4(got)
				}
				if !bytes.Equal(got, want[0]) {
					t.Fatalf("got\n%x, want\n%x", got[:min(60, len(got))], want[0][:min(60, len(want[0]))])
				}
				want = want[1:]
			}
		}
	}
	if d := p.r.drops.snapshot(); len(d) != 0 {
		t.Error(d)
	}
	if writes*3 > packets {
		t.Errorf("%d writes for %d packets: hardly any was joined", writes, packets)
	}
}
