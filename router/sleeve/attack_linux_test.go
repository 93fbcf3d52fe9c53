package sleeve

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/router"
)

// attacker is a router between two hosts that sees and may touch every datagram: each host knows the other by one of
// its two addresses.
type attacker struct {
	t      testing.TB
	a, b   *host
	forA   *net.UDPConn // stands for b towards a
	forB   *net.UDPConn
	mu     sync.Mutex
	toA    [][]byte
	toB    [][]byte
	hold   bool // sealed datagrams to b are kept, not passed on
	closed sync.WaitGroup
}

func between(t testing.TB, a, b *host) *attacker {
	t.Helper()
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	x := &attacker{t: t, a: a, b: b, forA: listen(), forB: listen()}
	secret := secretOf(t, "attacked pair")
	for _, err := range []error{
		a.e.SetPeers([]Peer{b.peer(portOf(x.forA), secret)}), a.e.SetTunnels([]router.Tunnel{b.tunnel()}),
		b.e.SetPeers([]Peer{a.peer(portOf(x.forB), secret)}), b.e.SetTunnels([]router.Tunnel{a.tunnel()}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	pass := func(in, out *net.UDPConn, to netip.AddrPort, seen *[][]byte, holds bool) {
		buf := make([]byte, 65536)
		for {
			n, err := in.Read(buf)
			if err != nil {
				return
			}
			x.mu.Lock()
			*seen = append(*seen, slices.Clone(buf[:n]))
			hold := holds && x.hold && noise.Type(buf[:n]) == 0
			x.mu.Unlock()
			if !hold {
				_, _ = out.WriteToUDPAddrPort(buf[:n], to) // or it is lost
			}
		}
	}
	x.closed.Go(func() { pass(x.forA, x.forB, b.addr, &x.toB, true) })
	x.closed.Go(func() { pass(x.forB, x.forA, a.addr, &x.toA, false) })
	t.Cleanup(func() { x.forA.Close(); x.forB.Close(); x.closed.Wait() })
	return x
}

func portOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func (x *attacker) seen(to *host) [][]byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	if to == x.a {
		return slices.Clone(x.toA)
	}
	return slices.Clone(x.toB)
}

// inject sends b to a host, from the address that it knows the other by.
func (x *attacker) inject(to *host, b []byte) {
	c := x.forB
	if to == x.a {
		c = x.forA
	}
	if _, err := c.WriteToUDPAddrPort(b, to.addr); err != nil {
		x.t.Fatal(err)
	}
}

// dropped sums the drops of a host for some reasons.
func dropped(h *host, why ...reason) (n uint64) {
	s := h.e.Stats()
	for _, r := range why {
		n += s.Drops[r.String()]
		for _, p := range s.Peers {
			n += p.Drops[r.String()]
		}
	}
	return n
}

// nothing checks that a host's kernel got no packet, after everything sent before was handled: the sentinel proves it.
func (x *attacker) nothing(h *host) {
	x.t.Helper()
	from := x.a
	if h == x.a {
		from = x.b
	}
	sentinel := udpPacket(from.pod(), h.pod(), []byte("sentinel"))
	x.mu.Lock()
	x.hold = false
	x.mu.Unlock()
	from.write(vnet{}, sentinel)
	if _, got := h.read(); !bytes.Equal(got, sentinel) {
		x.t.Fatalf("delivered: %x", got)
	}
}

func TestAttacksOnTheWire(t *testing.T) {
	a, b, c := newHost(t, 1, Offload{}), newHost(t, 2, Offload{}), newHost(t, 3, Offload{})
	x := between(t, a, b)
	up(t, a, b)
	if err := c.e.SetPeers([]Peer{a.peer(a.addr, secretOf(t, "ac")), b.peer(b.addr, secretOf(t, "bc"))}); err != nil {
		t.Fatal(err)
	}

	// Capture datagrams that were delivered, and one that never was.
	for range 20 {
		a.write(vnet{}, udpPacket(a.pod(), b.pod(), []byte("secret")))
		b.read()
	}
	x.mu.Lock()
	x.hold = true
	x.mu.Unlock()
	before := len(x.seen(b))
	a.write(vnet{}, udpPacket(a.pod(), b.pod(), []byte("held back")))
	isData := func(d []byte) bool { return d[0] == firstLane+1 }
	eventually(t, "a datagram is held", func() bool { return slices.ContainsFunc(x.seen(b)[before:], isData) })
	i := slices.IndexFunc(x.seen(b)[before:], isData)
	held := x.seen(b)[before+i]

	t.Run("nothing is readable", func(t *testing.T) {
		for _, d := range append(x.seen(a), x.seen(b)...) {
			if bytes.Contains(d, []byte("secret")) || bytes.Contains(d, []byte{10, 32, 1, 2, 10, 32, 2, 2}) {
				t.Fatalf("in clear: %x", d)
			}
		}
	})
	t.Run("flipped", func(t *testing.T) {
		n := dropped(b, dropUnauthentic, dropUnknownIndex, dropMalformed, dropReplay)
		for bit := range len(held) * 8 {
			d := slices.Clone(held)
			d[bit/8] ^= 1 << (bit % 8)
			x.inject(b, d)
		}
		eventually(t, "all are counted", func() bool {
			return dropped(b, dropUnauthentic, dropUnknownIndex, dropMalformed, dropReplay)-n >= uint64(len(held)*8)
		})
	})
	t.Run("truncated and extended", func(t *testing.T) {
		n := dropped(b, dropUnauthentic, dropMalformed)
		for i := 1; i < len(held); i++ {
			x.inject(b, held[:i])
		}
		x.inject(b, append(slices.Clone(held), 0))
		eventually(t, "all are counted", func() bool {
			return dropped(b, dropUnauthentic, dropMalformed)-n >= uint64(len(held))
		})
	})
	t.Run("to the wrong node", func(t *testing.T) {
		n := dropped(c, dropUnknownIndex)
		for _, d := range x.seen(b) {
			if isData(d) {
				x.inject(c, d)
			}
		}
		eventually(t, "all are counted", func() bool { return dropped(c, dropUnknownIndex)-n >= 21 })
	})
	t.Run("reflected", func(t *testing.T) {
		n := dropped(a, dropUnknownIndex, dropUnauthentic)
		for _, d := range x.seen(b) {
			if isData(d) {
				x.inject(a, d)
			}
		}
		eventually(t, "all are counted", func() bool { return dropped(a, dropUnknownIndex, dropUnauthentic)-n >= 21 })
	})
	t.Run("replayed", func(t *testing.T) {
		n, count := dropped(b, dropReplay), uint64(0)
		for _, d := range x.seen(b) {
			if isData(d) && !bytes.Equal(d, held) {
				x.inject(b, d)
				count++
			}
		}
		eventually(t, "all are counted", func() bool { return dropped(b, dropReplay)-n >= count })
	})
	t.Run("replayed from another address", func(t *testing.T) {
		endpoint := b.stats(a).Endpoint
		n, count := dropped(b, dropReplay), uint64(0)
		other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		for _, d := range x.seen(b) {
			if isData(d) && !bytes.Equal(d, held) {
				if _, err := other.WriteToUDPAddrPort(d, b.addr); err != nil {
					t.Fatal(err)
				}
				count++
			}
		}
		eventually(t, "all are counted", func() bool { return dropped(b, dropReplay)-n >= count })
		if got := b.stats(a).Endpoint; got != endpoint {
			t.Errorf("the endpoint moved from %v to %v", endpoint, got)
		}
	})
	t.Run("handshakes replayed and reflected", func(t *testing.T) {
		n, count := dropped(b, dropOldCounter, dropUnknownIndex), uint64(0)
		for _, d := range x.seen(b) {
			if noise.Type(d) != 0 {
				x.inject(b, d)
				count++
			}
		}
		eventually(t, "all are counted", func() bool { return dropped(b, dropOldCounter, dropUnknownIndex)-n >= count })
		m := dropped(a, dropMAC)
		for _, d := range x.seen(b) {
			if noise.Type(d) != 0 {
				x.inject(a, d)
			}
		}
		eventually(t, "all are counted", func() bool { return dropped(a, dropMAC)-m >= count })
		for _, d := range x.seen(b) {
			if noise.Type(d) != 0 {
				x.inject(c, d)
			}
		}
		eventually(t, "all are counted", func() bool { return dropped(c, dropMAC) >= count })
	})
	x.nothing(b)
	x.nothing(a)
	if _, p, err := c.tryRead(10 * time.Millisecond); err == nil {
		t.Errorf("the third node was given %x", p)
	}
	t.Run("the held datagram is good", func(t *testing.T) {
		x.inject(b, held)
		if _, got := b.read(); !bytes.HasSuffix(got, []byte("held back")) {
			t.Errorf("got %x", got)
		}
	})
	t.Run("no counter twice", func(t *testing.T) {
		for _, h := range []*host{a, b} {
			seen := map[header]bool{}
			for _, d := range x.seen(h) {
				if head, ok := parseHeader(d); ok {
					if seen[head] {
						t.Fatalf("counter used twice: %+v", head)
					}
					seen[head] = true
				}
			}
			if len(seen) == 0 {
				t.Error("no datagrams seen")
			}
		}
	})
}

func TestStrangersGetSilence(t *testing.T) {
	a, b, stranger := newHost(t, 1, Offload{}), newHost(t, 2, Offload{}), newHost(t, 3, Offload{})
	mesh(t, a, b)
	secret := secretOf(t, "guess")
	if err := stranger.e.SetPeers([]Peer{a.peer(a.addr, secret)}); err != nil { // a does not know it
		t.Fatal(err)
	}
	foreign := newHost(t, 4, Offload{}) // a member of another cluster with a key that a knows
	id := Identity{ID: foreign.id, NoisePrivate: b.private, Cluster: [32]byte{'x'}, Counter: 1}
	if err := foreign.e.SetIdentity(id); err != nil {
		t.Fatal(err)
	}
	if err := foreign.e.SetPeers([]Peer{a.peer(a.addr, secretOf(t, "12"))}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are refused", func() bool {
		return dropped(a, dropStranger) >= 2 && dropped(a, dropHandshake) >= 2
	})
	for _, h := range []*host{stranger, foreign} {
		if s := h.stats(a); s.Up || s.Handshakes != 0 || s.LastSeen != (time.Time{}) {
			t.Errorf("host %d got an answer: %+v", h.n, s)
		}
	}
	up(t, a, b)
}

// TestNobodySpeaksForOthers: what a peer with a good session may not send.
func TestNobodySpeaksForOthers(t *testing.T) {
	a, b, c := newHost(t, 1, Offload{}), newHost(t, 2, Offload{}), newHost(t, 3, Offload{})
	mesh(t, a, b, c)
	up(t, a, b, c)
	evil := b.tunnel()
	for _, p := range []string{"127.0.0.0/8", "192.168.0.0/16", "203.0.113.0/24", "::1/128", "fd00::/120"} {
		evil.Blocks = append(evil.Blocks, netip.MustParsePrefix(p))
	}
	evil.Blocks = append(evil.Blocks, c.block(), c.block6())
	if err := a.e.SetTunnels([]router.Tunnel{evil}); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	for _, p := range []struct {
		name     string
		src, dst netip.Addr
		why      reason
	}{
		{"from a third node's block", c.pod(), b.pod(), dropSource},
		{"from a third node's block, v6", c.pod6(), b.pod6(), dropSource},
		{"from the receiver's own block", b.pod(), b.pod(), dropSource},
		{"from 127.0.0.1", addr("127.0.0.1"), b.pod(), dropSource},
		{"from a LAN", addr("192.168.1.5"), b.pod(), dropSource},
		{"from the world", addr("203.0.113.1"), b.pod(), dropSource},
		{"to 127.0.0.1", a.pod(), addr("127.0.0.1"), dropDestination},
		{"to ::1", a.pod6(), addr("::1"), dropDestination},
		{"to the receiver's LAN", a.pod(), addr("192.168.1.1"), dropDestination},
		{"to the world", a.pod(), addr("203.0.113.1"), dropDestination},
		{"to a third node through the receiver", a.pod(), c.pod(), dropDestination},
	} {
		t.Run(p.name, func(t *testing.T) {
			n := dropped(b, p.why)
			a.write(vnet{}, udpPacket(p.src, p.dst, []byte("evil")))
			eventually(t, "it is counted", func() bool { return dropped(b, p.why) == n+1 })
		})
	}
	good := udpPacket(a.pod(), b.pod(), []byte("good"))
	a.write(vnet{}, good)
	if _, got := b.read(); !bytes.Equal(got, good) {
		t.Fatalf("delivered: %x", got)
	}
}

func TestRemovedPeerIsCutOffAtOnce(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	x := between(t, a, b)
	up(t, a, b)
	x.mu.Lock()
	x.hold = true
	x.mu.Unlock()
	before := len(x.seen(b))
	a.write(vnet{}, udpPacket(a.pod(), b.pod(), []byte("late")))
	eventually(t, "a datagram is held", func() bool { return len(x.seen(b)) > before })
	if err := b.e.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	n := dropped(b, dropUnknownIndex)
	for _, d := range x.seen(b)[before:] {
		x.inject(b, d)
	}
	eventually(t, "it is counted", func() bool { return dropped(b, dropUnknownIndex) > n })
	if err := b.e.Send(a.id, []byte("x")); err == nil {
		t.Error("sent to a removed peer")
	}
	if _, p, err := b.tryRead(10 * time.Millisecond); err == nil {
		t.Errorf("delivered %x", p)
	}
}

func TestRestartAndReplacement(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	mesh(t, a, b)
	up(t, a, b)
	b.stop()
	start := time.Now()
	b.start(2)
	b.meet(a, b)
	up(t, b)
	eventually(t, "the restarted peer answers", func() bool { return b.stats(a).Up && b.stats(a).RTT > 0 })
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("back after %v", d)
	}
	// New descriptors under a running engine, as when a device is made anew.
	engine, kernel := tunPair(t)
	a.tun.Close()
	if err := a.e.SetTUN([]*os.File{engine}, Offload{}); err != nil {
		t.Fatal(err)
	}
	a.tun = kernel
	t.Cleanup(func() { kernel.Close() })
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.e.SetUDP(conns); err != nil {
		t.Fatal(err)
	}
	p := udpPacket(a.pod(), b.pod(), []byte("after"))
	a.write(vnet{}, p)
	if _, got := b.read(); !bytes.Equal(got, p) {
		t.Errorf("got %x", got)
	}
	p = udpPacket(b.pod(), a.pod(), []byte("back"))
	eventually(t, "the new socket's address is learnt", func() bool { return b.stats(a).Endpoint == portOf(conns[0]) })
	b.write(vnet{}, p)
	if _, got := a.read(); !bytes.Equal(got, p) {
		t.Errorf("got %x", got)
	}
}
