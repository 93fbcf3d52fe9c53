package sleeve

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/crypto/noise"
	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
)

// host is an engine with a socket on loopback and a TUN device made of a socket pair: the test is the kernel.
type host struct {
	t       testing.TB
	id      peer.ID
	n       int
	private [32]byte
	public  [32]byte
	addr    netip.AddrPort
	e       *Engine
	tun     *os.File // the kernel's end
	offload Offload
	control chan control
	stop    func()
}

var testCluster = [32]byte{'c'}

// patience is for conditions that hold at once unless the machine is loaded.
const patience = 20 * time.Second

func newHost(t testing.TB, n int, offload Offload) *host {
	t.Helper()
	h := &host{t: t, id: peer.ID{byte(n)}, n: n, offload: offload, control: make(chan control, 1000)}
	var err error
	if h.private, h.public, err = noise.GenerateKey(); err != nil {
		t.Fatal(err)
	}
	h.start(1)
	return h
}

// start makes a new engine, as a new process would; boot counts them.
func (h *host) start(boot uint64) {
	h.t.Helper()
	var err error
	h.e, err = New(Config{Deliver: func(from peer.ID, b []byte) { h.control <- control{from, b} }})
	if err != nil {
		h.t.Fatal(err)
	}
	conns, err := ListenUDP(h.t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.addr.Port()))
	if err != nil {
		h.t.Fatal(err)
	}
	h.addr = conns[0].LocalAddr().(*net.UDPAddr).AddrPort()
	engine, kernel := tunPair(h.t)
	h.tun = kernel
	id := Identity{ID: h.id, NoisePrivate: h.private, Cluster: testCluster, Counter: boot * CounterSpan}
	for _, err := range []error{
		h.e.SetIdentity(id),
		h.e.SetUDP(conns),
		h.e.SetTUN([]*os.File{engine}, h.offload),
		h.e.SetLocal([]netip.Prefix{h.block(), h.block6()}),
	} {
		if err != nil {
			h.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.e.Run(ctx); err != nil {
			h.t.Error(err)
		}
	})
	h.stop = sync.OnceFunc(func() { cancel(); wg.Wait(); kernel.Close() })
	h.t.Cleanup(h.stop)
}

// tunPair makes the two ends of a TUN queue: packets in, packets out, boundaries kept.
func tunPair(t testing.TB) (engine, kernel *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20) // with root only
	}
	return os.NewFile(uintptr(fds[0]), "tun"), os.NewFile(uintptr(fds[1]), "kernel")
}

func (h *host) block() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(h.n), 0}), 24)
}

func (h *host) block6() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(h.n)}), 120)
}

func (h *host) pod() netip.Addr  { return netip.AddrFrom4([4]byte{10, 32, byte(h.n), 2}) }
func (h *host) pod6() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(h.n), 15: 2}) }

func (h *host) peer(endpoint netip.AddrPort, secrets ...psk.Secret) Peer {
	p := Peer{ID: h.id, NoisePublic: h.public, Secrets: secrets}
	if endpoint.IsValid() {
		p.Endpoints = []netip.AddrPort{endpoint}
	}
	return p
}

func (h *host) tunnel() router.Tunnel {
	return router.Tunnel{Peer: h.id, Blocks: []netip.Prefix{h.block(), h.block6()}, MTU: 1420}
}

// mesh tells every host of every other.
func mesh(t testing.TB, hosts ...*host) {
	t.Helper()
	for _, h := range hosts {
		h.meet(hosts...)
	}
}

// meet tells h of others.
func (h *host) meet(others ...*host) {
	h.t.Helper()
	var peers []Peer
	var tunnels []router.Tunnel
	for _, o := range others {
		if o != h {
			peers = append(peers, o.peer(o.addr, secretOf(h.t, fmt.Sprint(min(h.n, o.n), max(h.n, o.n)))))
			tunnels = append(tunnels, o.tunnel())
		}
	}
	if err := h.e.SetPeers(peers); err != nil {
		h.t.Fatal(err)
	}
	if err := h.e.SetTunnels(tunnels); err != nil {
		h.t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

// stats of one peer.
func (h *host) stats(of *host) PeerStats {
	for _, p := range h.e.Stats().Peers {
		if p.ID == of.id {
			return p
		}
	}
	return PeerStats{}
}

// up waits until all pairs have a session that both have heard on.
func up(t testing.TB, hosts ...*host) {
	t.Helper()
	defer func() {
		if t.Failed() {
			for _, h := range hosts {
				t.Logf("host %d: %+v", h.n, h.e.Stats())
			}
		}
	}()
	for _, a := range hosts {
		for _, b := range hosts {
			if a != b {
				eventually(t, fmt.Sprintf("%d sees %d up", a.n, b.n), func() bool {
					s := a.stats(b)
					return s.Up && s.RTT > 0
				})
			}
		}
	}
}

// write gives the engine a packet, as the kernel would.
func (h *host) write(v vnet, b []byte) {
	h.t.Helper()
	out := b
	if h.offload.Vnet {
		out = make([]byte, vnetSize, vnetSize+len(b))
		v.put(out)
		out = append(out, b...)
	}
	if _, err := h.tun.Write(out); err != nil {
		h.t.Fatal(err)
	}
}

// read takes the next packet that the engine hands to the kernel.
func (h *host) read() (vnet, []byte) {
	h.t.Helper()
	v, b, err := h.tryRead(patience)
	if err != nil {
		h.t.Fatalf("host %d: no packet: %v", h.n, err)
	}
	return v, b
}

func (h *host) tryRead(wait time.Duration) (v vnet, b []byte, err error) {
	if err := h.tun.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return v, nil, err
	}
	buf := make([]byte, vnetSize+maxPacket+1)
	n, err := h.tun.Read(buf)
	if err != nil {
		return v, nil, err
	}
	if !h.offload.Vnet {
		return v, buf[:n], nil
	}
	return parseVnet(buf), buf[vnetSize:n], nil
}

// udpPacket makes a UDP packet with a correct checksum.
func udpPacket(src, dst netip.Addr, payload []byte) []byte {
	b := ipHeader(src, dst, protoUDP, 8+len(payload))
	l4 := len(b)
	b = binary.BigEndian.AppendUint16(b, 1000)
	b = binary.BigEndian.AppendUint16(b, 2000)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	return checksummed(b, l4)
}

// tcpPacket makes a TCP packet with a correct checksum and a timestamp option's worth of options.
func tcpPacket(src, dst netip.Addr, seq uint32, flags byte, payload []byte) []byte {
	b := ipHeader(src, dst, protoTCP, 32+len(payload))
	l4 := len(b)
	b = append(b, 0x12, 0x34, 0, 80)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, 99)
	b = append(b, 8<<4, flags, 1, 0, 0, 0, 0, 0)
	b = append(b, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8)
	b = append(b, payload...)
	return checksummed(b, l4)
}

func ipHeader(src, dst netip.Addr, proto byte, n int) []byte {
	if src.Is4() {
		b := []byte{0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, proto, 0, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(20+n))
		b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
		sumIPv4(b)
		return b
	}
	b := []byte{0x60, 0, 0, 0, 0, 0, proto, 64}
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	return append(append(b, src.AsSlice()...), dst.AsSlice()...)
}

func checksummed(b []byte, l4 int) []byte {
	p, ok := parsePacket(b)
	if !ok || p.l4 != l4 {
		panic("the test made a bad packet")
	}
	p.finishChecksum()
	return b
}

// validSums checks the checksums of a plain packet by a slow second implementation.
func validSums(b []byte) error {
	slow := func(parts ...[]byte) uint16 {
		var s uint32
		for _, p := range parts {
			for i, c := range p {
				if i%2 == 0 {
					s += uint32(c) << 8
				} else {
					s += uint32(c)
				}
			}
		}
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
		return uint16(s)
	}
	p, ok := parsePacket(b)
	if !ok {
		return fmt.Errorf("not a packet: %x", b)
	}
	addrs := b[12:20]
	if p.v6 {
		addrs = b[8:40]
	} else if slow(b[:20]) != 0xffff {
		return fmt.Errorf("bad IPv4 header checksum: %x", b[:20])
	}
	n := len(b) - p.l4
	if slow(addrs, []byte{byte(n >> 8), byte(n), 0, p.proto}, b[p.l4:]) != 0xffff {
		return fmt.Errorf("bad transport checksum in %d bytes", len(b))
	}
	return nil
}
