package sleeve

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/crypto/replay"
	"weft/crypto/seal"
	"weft/mesh/path"
	"weft/mesh/peer"
)

// lone is an engine without workers that has a session with itself: what outbound makes, inbound takes.
type lone struct {
	e    *Engine
	r    *remote
	out  *outbound
	in   *inbound
	sink *net.UDPConn
	src  netip.Addr
	dst  netip.Addr
}

func newLone(t testing.TB, suite seal.Suite, offload Offload) *lone {
	t.Helper()
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.SetUDP(conns); err != nil {
		t.Fatal(err)
	}
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conns[0].Close(); sink.Close(); null.Close() })
	r := &remote{id: peer.ID{1}, engine: e}
	k := &keys{owner: r, local: 7, far: 7, suite: suite, created: time.Now(), secret: noise.Keys{Send: [32]byte{1}, Receive: [32]byte{1}}}
	to := path.Direct(portOf(sink))
	r.link = link{owner: r, current: k, from: to, node: &node{indexes: &e.indexes}}
	r.link.paths.Established(to, time.Now())
	r.sending.Store(&sending{keys: k, path: to, from: to, to: to.Endpoint})
	e.indexes.entries = map[uint32]entry{7: {r, k}}
	e.peers = map[peer.ID]*remote{r.id: r}
	p := &lone{
		e: e, r: r, out: newOutbound(e, 1), in: newInbound(e), sink: sink,
		src: netip.MustParseAddr("10.32.1.2"), dst: netip.MustParseAddr("10.32.2.2"),
	}
	rt := new(routes)
	for _, b := range []string{"10.32.1.0/24", "10.32.2.0/24", "fd00::/64"} {
		rt.Insert(netip.MustParsePrefix(b), r)
	}
	e.routes.Store(rt)
	if err := e.SetLocal([]netip.Prefix{netip.MustParsePrefix("10.32.0.0/16"), netip.MustParsePrefix("fd00::/64")}); err != nil {
		t.Fatal(err)
	}
	e.tun.Store(&tunnel{queues: []*os.File{null}, offload: offload})
	return p
}

// arrive is what a worker does with what one receive brought.
func (p *lone) arrive(b []byte, size int, tos uint8, now time.Time) {
	p.in.from = path.Direct(portOf(p.sink))
	p.in.batch(b, size, tos, now)
}

// sealed are the datagrams that outbound makes of one packet, as one receive would bring them.
func (p *lone) sealed(v vnet, b []byte) (run []byte, size int) {
	copy(p.out.in[tunRoom:], b)
	p.out.packet(v, p.out.in, len(b), p.e.now())
	p.out.flush(p.e.now())
	size = len(p.out.pack.out)
	if v.kind != vnetNone {
		q, _ := parsePacket(b)
		size = q.payload + int(v.segment) + overhead
	}
	return bytes.Clone(p.out.pack.out), size
}

var full = Offload{Vnet: true, TSO: true, USO: true}

// TestOverhead: a packet costs what the driver says.
func TestOverhead(t *testing.T) {
	p := newLone(t, seal.AES256GCM, full)
	b := udpPacket(p.src, p.dst, make([]byte, 100))
	run, _ := p.sealed(vnet{}, b)
	if got := len(run) - len(b) + 28; got != Overhead4 {
		t.Errorf("%d bytes on IPv4, the driver says %d", got, Overhead4)
	}
	if Overhead6-Overhead4 != 20 {
		t.Error("IPv6 is 20 bytes more")
	}
}

// TestGoldenFrame pins the layout of doc.go.
func TestGoldenFrame(t *testing.T) {
	p := newLone(t, seal.ChaCha20Poly1305, full)
	p.r.sending.Load().keys.far = 0xabcdef
	v, b := superPacket(p.src, p.dst, protoTCP, 300, make([]byte, 700))
	run, size := p.sealed(v, b)
	lane := seal.LaneKey(&[32]byte{1}, 1)
	o, err := seal.NewOpener(seal.ChaCha20Poly1305, &lane)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; len(run) > 0; i++ {
		d := run[:min(size, len(run))]
		run = run[len(d):]
		head := fmt.Sprintf("21abcdef%016x", i)
		if got := fmt.Sprintf("%x", d[:12]); got != head {
			t.Errorf("header %s, want %s", got, head)
		}
		plain, err := o.Open(nil, uint64(i), d[12:], d[:12])
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%x", plain[:4]), fmt.Sprintf("30%02x0001", i); got != want {
			t.Errorf("meta %s, want %s", got, want)
		}
		if n := binary.BigEndian.Uint16(plain[6:]); int(n) != len(plain)-4 {
			t.Errorf("inner length %d in %d bytes", n, len(plain)-4)
		}
	}
	if got := fmt.Sprintf("%x", (probe{number: 1, size: 2}).append(nil)); got != "000000010002" {
		t.Errorf("probe %s", got)
	}
}

// TestJoinAfterLoss drops each segment in turn: what is joined on both sides of the gap must be right.
func TestJoinAfterLoss(t *testing.T) {
	for _, proto := range []byte{protoTCP, protoUDP} {
		p := newLone(t, seal.AES256GCM, full)
		engine, kernel := tunPair(t)
		t.Cleanup(func() { engine.Close(); kernel.Close() })
		h := &host{t: t, tun: kernel, offload: full}
		p.e.tun.Store(&tunnel{queues: []*os.File{engine}, offload: full})
		for lost := range 6 {
			data := random(6*1000 - 1)
			v, b := superPacket(p.src, p.dst, proto, 1000, data)
			want := kernelSegments(t, vnet{
				flags: v.flags, kind: v.kind, segment: v.segment, sumStart: v.sumStart,
				sumInStart: v.sumInStart, headers: uint16(len(b) - len(data)),
			}, b)
			want = append(want[:lost:lost], want[lost+1:]...)
			run, size := p.sealed(v, b)
			run = append(run[:lost*size:lost*size], run[min((lost+1)*size, len(run)):]...)
			p.arrive(run, size, 0, time.Now())
			if d := p.r.drops.snapshot(); len(d) != 0 {
				t.Fatal(d)
			}
			for len(want) > 0 {
				gv, gb := h.read()
				for _, got := range kernelSegments(t, gv, gb) {
					if !bytes.Equal(got, want[0]) {
						t.Fatalf("protocol %d, lost %d: got\n%x, want\n%x", proto, lost, got[:60], want[0][:60])
					}
					want = want[1:]
				}
			}
		}
	}
}

func TestCongestionMarks(t *testing.T) {
	p := newLone(t, seal.AES256GCM, full)
	engine, kernel := tunPair(t)
	t.Cleanup(func() { engine.Close(); kernel.Close() })
	h := &host{t: t, tun: kernel, offload: full}
	p.e.tun.Store(&tunnel{queues: []*os.File{engine}, offload: full})
	for _, c := range []struct {
		name             string
		inner, outer     byte
		want             byte
		v6, dropped, sup bool
	}{
		{name: "no congestion", inner: 2, outer: 2, want: 2},
		{name: "congestion", inner: 2, outer: 3, want: 3},
		{name: "congestion, ECT(1)", inner: 1, outer: 3, want: 3},
		{name: "marked before", inner: 3, outer: 3, want: 3},
		{name: "cannot be marked", inner: 0, outer: 3, dropped: true},
		{name: "congestion, v6", inner: 2, outer: 3, want: 3, v6: true},
		{name: "congestion on a super-packet", inner: 2, outer: 3, want: 3, sup: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := p.src, p.dst
			if c.v6 {
				src, dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
			}
			v, b := vnet{}, udpPacket(src, dst, []byte("x"))
			if c.sup {
				v, b = superPacket(src, dst, protoTCP, 1000, make([]byte, 5000))
				b[33] &^= flagCWR
			}
			if c.v6 {
				b[1] |= c.inner << 4
			} else {
				b[1] |= c.inner
				sumIPv4(b)
			}
			run, size := p.sealed(v, b)
			n := p.r.drops[dropECN].Load()
			p.arrive(run, size, c.outer, time.Now())
			if c.dropped {
				if p.r.drops[dropECN].Load() != n+1 {
					t.Error("not dropped")
				}
				return
			}
			gv, got := h.read()
			for _, s := range kernelSegments(t, gv, got) {
				q, _ := parsePacket(s)
				if q.tos&ecnMask != c.want {
					t.Errorf("mark %d, want %d", q.tos&ecnMask, c.want)
				}
				if err := validSums(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestPathDoesNotAllocate(t *testing.T) {
	for _, suite := range []seal.Suite{seal.AES256GCM, seal.ChaCha20Poly1305} {
		p := newLone(t, suite, full)
		v, big := superPacket(p.src, p.dst, protoTCP, 1368, make([]byte, 60000))
		small := udpPacket(p.src, p.dst, make([]byte, 64))
		for name, c := range map[string]struct {
			v vnet
			b []byte
		}{"super-packet": {v, big}, "small packet": {vnet{}, small}} {
			if n := testing.AllocsPerRun(100, func() {
				copy(p.out.in[tunRoom:], c.b)
				p.out.packet(c.v, p.out.in, len(c.b), p.e.now())
				p.out.flush(1)
			}); n != 0 {
				t.Errorf("%v: sending a %s: %v allocations, want 0", suite, name, n)
			}
			now := time.Now()
			buf := make([]byte, maxPacket)
			if n := testing.AllocsPerRun(100, func() {
				copy(p.out.in[tunRoom:], c.b)
				p.out.packet(c.v, p.out.in, len(c.b), p.e.now())
				p.out.flush(1)
				size := overhead + len(c.b)
				if c.v.kind != 0 {
					size = overhead + 52 + 1368
				}
				p.arrive(buf[:copy(buf, p.out.pack.out)], size, 0, now)
			}); n != 0 {
				t.Errorf("%v: receiving a %s: %v allocations, want 0", suite, name, n)
			}
		}
		for r, n := range p.r.drops.snapshot() {
			t.Errorf("dropped %d: %s", n, r)
		}
	}
}

// TestTheLargestSuperPacketsLeaveInOneSend: as many segments as the kernel's TCP makes of the bound that a device is given.
func TestTheLargestSuperPacketsLeaveInOneSend(t *testing.T) {
	p := newLone(t, seal.AES256GCM, full)
	src6, dst6 := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	for _, c := range []struct {
		src, dst       netip.Addr
		segment, count int
	}{
		{p.src, p.dst, 1420 - 52, 45},
		{src6, dst6, 1420 - 72, 45},
		{p.src, p.dst, 1360 - 52, 47},
		{p.src, p.dst, 8920 - 52, 6},
	} {
		v, b := superPacket(c.src, c.dst, protoTCP, c.segment, random(c.count*c.segment))
		q, _ := parsePacket(b)
		copy(p.out.in[tunRoom:], b)
		p.out.packet(v, p.out.in, len(b), p.e.now())
		if got, want := len(p.out.pack.out), c.count*(q.payload+c.segment+overhead); got != want {
			t.Errorf("%d segments of %d bytes: the last send is of %d bytes, want all %d", c.count, c.segment, got, want)
		}
	}
}

func BenchmarkOutbound(b *testing.B) {
	for _, suite := range []seal.Suite{seal.AES256GCM, seal.ChaCha20Poly1305} {
		for _, size := range []int{64, 1368, 60000} {
			b.Run(fmt.Sprintf("%v/%d", suite, size), func(b *testing.B) {
				p := newLone(b, suite, full)
				v, pkt := superPacket(p.src, p.dst, protoTCP, 1368, make([]byte, size))
				if size < 2000 {
					v = vnet{}
				}
				b.SetBytes(int64(size))
				for b.Loop() {
					copy(p.out.in[tunRoom:], pkt)
					p.out.packet(v, p.out.in, len(pkt), 1)
					p.out.flush(1)
				}
			})
		}
	}
}

func BenchmarkInbound(b *testing.B) {
	for _, suite := range []seal.Suite{seal.AES256GCM, seal.ChaCha20Poly1305} {
		for _, size := range []int{64, 60000} {
			b.Run(fmt.Sprintf("%v/%d", suite, size), func(b *testing.B) {
				p := newLone(b, suite, full)
				v, pkt := superPacket(p.src, p.dst, protoTCP, 1368, make([]byte, size))
				if size < 2000 {
					v = vnet{}
				}
				run, cut := p.sealed(v, pkt)
				buf := make([]byte, len(run))
				k := p.r.sending.Load().keys
				now := time.Now()
				b.SetBytes(int64(size))
				for b.Loop() {
					copy(buf, run)
					if w := k.recv[1].window; w != nil {
						*w = replay.Window{} // or all would be replays
					}
					p.arrive(buf, cut, 0, now)
				}
				if n := p.r.drops.snapshot(); len(n) != 0 {
					b.Error(n)
				}
			})
		}
	}
}

// TestPacketsLeaveTogether: what waits in the queue shares a send as long as it may, and order is kept.
func TestPacketsLeaveTogether(t *testing.T) {
	p := newLone(t, seal.AES256GCM, full)
	give := func(n int) {
		b := udpPacket(p.src, p.dst, make([]byte, n))
		copy(p.out.in[tunRoom:], b)
		p.out.packet(vnet{}, p.out.in, len(b), 1)
	}
	for i, step := range []struct{ payload, together int }{
		{100, 1}, {100, 2}, {100, 3}, // equal ones
		{50, 4},          // a shorter one ends the send
		{50, 1}, {51, 1}, // a longer one begins another
		{51, 2},
	} {
		if give(step.payload); p.out.pack.count != step.together {
			t.Errorf("step %d: %d together, want %d", i, p.out.pack.count, step.together)
		}
	}
	for range 2 * maxSegments {
		give(51)
		if p.out.pack.count > maxSegments {
			t.Fatalf("%d in one send", p.out.pack.count)
		}
	}
	p.out.flush(1)
	if d := p.r.drops.snapshot(); len(d) != 0 || p.out.pack.count != 0 {
		t.Errorf("%d left, drops %v", p.out.pack.count, d)
	}
}

// BenchmarkKernelTCP is one TCP flow between two namespaces, each with an engine and a TUN device.
func BenchmarkKernelTCP(b *testing.B) {
	x, y := twoSites(b, 1500, full, full)
	const size = 64 << 20
	b.SetBytes(size)
	for b.Loop() {
		transfer(b, x, y, y.inner(), size)
	}
}
