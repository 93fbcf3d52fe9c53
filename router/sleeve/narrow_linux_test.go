package sleeve

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"weft/mesh/peer"
)

// narrow is a box before a host that swallows datagrams which a path of 1,280 bytes does not carry.
type narrow struct {
	at        netip.AddrPort
	swallowed atomic.Int64
}

// narrowed makes one. It serves one client, the last that called.
func narrowed(t *testing.T, h *host) *narrow {
	t.Helper()
	const carries = 1280 - 28 // what is left to UDP
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadBuffer(4 << 20)
		return c
	}
	near, far := listen(), listen()
	n := &narrow{at: portOf(near)}
	var client atomic.Pointer[netip.AddrPort]
	var wg sync.WaitGroup
	pass := func(in, out *net.UDPConn, to func(from netip.AddrPort) *netip.AddrPort) {
		b := make([]byte, maxPacket)
		for {
			size, from, err := in.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if size > carries {
				n.swallowed.Add(1)
			} else if to := to(from); to != nil {
				_, _ = out.WriteToUDPAddrPort(b[:size], *to)
			}
		}
	}
	wg.Go(func() {
		pass(near, far, func(from netip.AddrPort) *netip.AddrPort { client.Store(&from); return &h.addr })
	})
	wg.Go(func() { pass(far, near, func(netip.AddrPort) *netip.AddrPort { return client.Load() }) })
	t.Cleanup(func() { near.Close(); far.Close(); wg.Wait() })
	return n
}

// inHalves checks that packets of the smallest MTU, and control datagrams, cross between hosts whose way carries them in
// halves only.
func inHalves(t *testing.T, n *narrow, a, b *host) {
	t.Helper()
	up(t, a, b)
	for x, y := range map[*host]*host{a: b, b: a} {
		eventually(t, "halves are sent", func() bool {
			s := x.stats(y)
			return s.Up && s.MTU == minInner && strings.Contains(s.Paths[0].Reason, "halves")
		})
	}
	before := n.swallowed.Load()
	if before == 0 {
		t.Error("nothing was too large: the way is not narrow")
	}
	for x, y := range map[*host]*host{a: b, b: a} {
		for _, size := range []int{600, minInner - 29, minInner - 28} {
			want := udpPacket(x.pod(), y.pod(), random(size))
			x.write(vnet{}, want)
			y.expects(t, [][]byte{want})
		}
		for _, proto := range []byte{protoTCP, protoUDP} {
			v, big := superPacket(x.pod(), y.pod(), proto, minInner-52, random(30*(minInner-52)-7))
			want := said(t, v, big)
			x.write(v, big)
			y.expects(t, want)
		}
		word := random(1000)
		if err := x.e.Send(y.id, word); err != nil {
			t.Fatal(err)
		}
		if c := <-y.control; c.from != x.id || !bytes.Equal(c.b, word) {
			t.Errorf("%d bytes from %v", len(c.b), c.from)
		}
		if d := x.stats(y).Drops; len(d) != 0 {
			t.Errorf("drops %v", d)
		}
	}
}

// TestHalvesThroughARelay: one leg to the relay is too narrow for a packet of full size.
func TestHalvesThroughARelay(t *testing.T) {
	a, b, r := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full)
	r.e.SetRelay(true)
	n, via := narrowed(t, r), []peer.ID{r.id}
	a.tie(tie{other: r, box: n.at}, tie{other: b, relays: via})
	b.tie(tie{other: r, endpoint: true}, tie{other: a, relays: via})
	r.tie(tie{other: a}, tie{other: b})
	inHalves(t, n, a, b)
	if s := a.stats(b); len(s.Via) != 1 {
		t.Errorf("via %v", s.Via)
	}
}

// TestHalvesThroughTwoRelays, and the leg between them is the narrow one.
func TestHalvesThroughTwoRelays(t *testing.T) {
	a, b, ra, rb := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full), newHost(t, 4, full)
	n := narrowed(t, rb)
	a.tie(tie{other: ra, endpoint: true}, tie{other: rb, relays: []peer.ID{ra.id}}, tie{other: b, relays: []peer.ID{rb.id}})
	b.tie(tie{other: rb, endpoint: true}, tie{other: ra, relays: []peer.ID{rb.id}}, tie{other: a, relays: []peer.ID{ra.id}})
	ra.tie(tie{other: a}, tie{other: rb, box: n.at}, tie{other: b, relays: []peer.ID{rb.id}})
	rb.tie(tie{other: b}, tie{other: ra}, tie{other: a, relays: []peer.ID{ra.id}})
	ra.e.SetRelay(true)
	rb.e.SetRelay(true)
	inHalves(t, n, a, b)
	if s := a.stats(b); len(s.Via) != 2 {
		t.Errorf("via %v", s.Via)
	}
}

// TestHalvesOverAStream: the relay is reached by a stream, which carries any size, and sends on by a narrow leg.
func TestHalvesOverAStream(t *testing.T) {
	a, b, r := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full)
	r.e.SetRelay(true)
	a.e.dialer = func(context.Context, netip.AddrPort) (net.Conn, error) {
		here, there := net.Pipe()
		r.e.addStream(there, netip.MustParseAddrPort("192.0.2.9:40000"))
		return here, nil
	}
	n, via := narrowed(t, r), []peer.ID{r.id}
	a.tie(tie{other: r, tcp: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443")}}, tie{other: b, relays: via})
	b.tie(tie{other: r, box: n.at}, tie{other: a, relays: via})
	r.tie(tie{other: a}, tie{other: b})
	inHalves(t, n, a, b)
	if s := a.stats(r); !s.TCP {
		t.Errorf("the relay is reached by %v, not in a stream", s.Endpoint)
	}
}
