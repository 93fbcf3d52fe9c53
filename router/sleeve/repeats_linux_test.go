package sleeve

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/mesh/path"
	"weft/mesh/peer"
)

// TestTheKernelDropsRecordings plays a flood of recorded handshakes on an engine that does not run: each gets so far as the worker
// a few times, then none does, while handshakes that nobody has seen pass, and so does a recording from where a peer is. When the
// flood is over the socket is as it was.
func TestTheKernelDropsRecordings(t *testing.T) {
	const known, stranger = "127.0.0.2", "127.0.0.3"
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	private, _, err := noise.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	conn := conns[0]
	t.Cleanup(func() { conn.Close() })
	for _, err := range []error{e.SetIdentity(Identity{ID: peer.ID{1}, NoisePrivate: private, Cluster: testCluster, Counter: 1}), e.SetUDP(conns)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h, now := &e.handshakes, time.Unix(1, 0)
	h.familiar.Store(&familiar{
		addrs: map[netip.Addr]struct{}{netip.MustParseAddr(known): {}}, listed: []netip.Addr{netip.MustParseAddr(known)}, made: now,
	})
	from := map[string]*net.UDPConn{}
	for _, at := range []string{known, stranger} {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(at)}, conn.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		from[at] = c
	}
	buf := make([]byte, 4096)
	// passes sends a handshake, and does with it what a worker would.
	passes := func(at string, key uint32) (got bool) {
		t.Helper()
		for _, b := range [][]byte{shake(make([]byte, noise.MinInitiation), key), endMark} {
			if _, err := from[at].Write(b); err != nil {
				t.Fatal(err)
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		for {
			n, addr, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatal(err)
			}
			if buf[0] == endMark[0] {
				return got
			}
			h.offer(buf[:n], path.Direct(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())), now)
			got = true
		}
	}
	look := func() {
		now = now.Add(sievePeriod)
		h.sift(now)
	}
	look()
	const recordings = 5
	for range sieveRate / recordings { // four times what should pass in that time
		for key := range uint32(recordings) {
			passes(stranger, key)
		}
	}
	if n := e.Stats().Drops["old_counter"]; n != recordings*(sieveRate/recordings-repeatMost) {
		t.Errorf("%d were taken for recordings", n)
	}
	look()
	if len(h.sieve.recorded) != recordings {
		t.Fatalf("%d recordings are listed", len(h.sieve.recorded))
	}
	hold := func(when string) {
		t.Helper()
		for key := range uint32(recordings) {
			if passes(stranger, key) {
				t.Errorf("%s recording %d passes", when, key)
			}
			if !passes(known, key) {
				t.Errorf("%s recording %d does not pass from where a peer is", when, key)
			}
		}
	}
	hold("at first")
	for range 2 { // what the kernel drops says that the flood goes on
		e.drops.add(dropFlood, sieveRate)
		look()
	}
	hold("while the flood lasts")
	if h.sieve.holes != (holes{}) {
		t.Errorf("others are held back, too: %v", h.sieve.holes)
	}
	if !passes(stranger, recordings) {
		t.Error("a handshake that nobody has seen does not pass")
	}
	look()
	if h.sieve.on() || !passes(stranger, 0) {
		t.Error("the flood is over, and its recordings are held back")
	}

	many := make([]uint32, sieveWords)
	for i := range many {
		many[i] = uint32(i)
	}
	if err := e.sockets.Load().v4.filter(holes{}.program(false, nil, many)); err != nil {
		t.Skipf("this kernel has no room for a filter of many recordings: %v", err)
	}
	if passes(stranger, sieveWords-1) || !passes(stranger, sieveWords) {
		t.Error("of many recordings the last one passes, or what is behind it does not")
	}
}
