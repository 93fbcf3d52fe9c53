package sleeve

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/crypto/replay"
	"weft/crypto/seal"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router"
)

// tie is what a host knows of another one.
type tie struct {
	other    *host
	endpoint bool
	box      netip.AddrPort // what stands before it
	relays   []peer.ID
	tcp      []netip.AddrPort
}

// tie tells h of others, and where they are only where the tie says so.
func (h *host) tie(ties ...tie) {
	h.t.Helper()
	var peers []Peer
	var tunnels []router.Tunnel
	for _, o := range ties {
		p := o.other.peer(netip.AddrPort{}, secretOf(h.t, fmt.Sprint(min(h.n, o.other.n), max(h.n, o.other.n))))
		if o.endpoint {
			p.Endpoints = []netip.AddrPort{o.other.addr}
		}
		if o.box.IsValid() {
			p.Endpoints = []netip.AddrPort{o.box}
		}
		p.Relays, p.TCP = o.relays, o.tcp
		peers, tunnels = append(peers, p), append(tunnels, o.other.tunnel())
	}
	if err := h.e.SetPeers(peers); err != nil {
		h.t.Fatal(err)
	}
	if err := h.e.SetTunnels(tunnels); err != nil {
		h.t.Fatal(err)
	}
}

// pass sends packets from one host to another, and back.
func pass(t *testing.T, a, b *host) {
	t.Helper()
	for i := range 3 {
		for _, way := range [2][2]*host{{a, b}, {b, a}} {
			want := udpPacket(way[0].pod(), way[1].pod(), fmt.Appendf(nil, "packet %d of %v", i, time.Now()))
			way[0].write(vnet{}, want)
			for { // past what is left of a step before
				if _, got := way[1].read(); bytes.Equal(got, want) {
					break
				}
			}
		}
	}
}

// relayed are three hosts: a and b do not know where the other is, and r carries for them.
func relayed(t *testing.T) (a, b, r *host) {
	t.Helper()
	a, b, r = newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full)
	r.e.SetRelay(true)
	via := []peer.ID{r.id}
	a.tie(tie{other: r, endpoint: true}, tie{other: b, relays: via})
	b.tie(tie{other: r, endpoint: true}, tie{other: a, relays: via})
	r.tie(tie{other: a}, tie{other: b})
	return a, b, r
}

func TestRelay(t *testing.T) {
	a, b, r := relayed(t)
	up(t, a, b)
	pass(t, a, b)
	for _, s := range []PeerStats{a.stats(b), b.stats(a)} {
		if !slices.Equal(s.Via, []peer.ID{r.id}) || s.Endpoint.IsValid() || s.RTT == 0 {
			t.Errorf("via %v, endpoint %v, RTT %v", s.Via, s.Endpoint, s.RTT)
		}
	}
	if got, want := a.stats(r).Observed, a.addr; got != want {
		t.Errorf("the relay sees us at %v, we are at %v", got, want)
	}
	eventually(t, "the size that passes is known", func() bool { return a.stats(b).MTU == 1420-48 })
	want := udpPacket(a.pod(), b.pod(), make([]byte, 1420-48-28))
	a.write(vnet{}, want)
	if _, got := b.read(); !bytes.Equal(got, want) {
		t.Error("a packet of that size does not pass")
	}
	v, big := superPacket(a.pod(), b.pod(), protoTCP, 1200, random(50_000))
	a.write(v, big)
	n := 0
	for n < 50_000 {
		v, got := b.read()
		p, _ := parsePacket(got)
		n += len(got) - p.payload
		_ = v
	}
}

func TestRelayCarriesOnlyWhenTold(t *testing.T) {
	a, b, r := relayed(t)
	r.e.SetRelay(false)
	eventually(t, "the relay refuses", func() bool { return r.stats(a).Drops["relay_off"]+r.stats(b).Drops["relay_off"] > 0 })
	if s := a.stats(b); s.Up || s.Handshakes > 0 {
		t.Errorf("up through a relay that is none: %+v", s)
	}
	r.e.SetRelay(true)
	up(t, a, b)
}

// TestRelayReadsNothing: the keys of the relay do not open what it carries, the packet is nowhere in it in clear, and it
// has no keys of the pair.
func TestRelayReadsNothing(t *testing.T) {
	p := newLone(t, seal.AES256GCM, full) // the pair's
	secret := []byte("what only the two may read")
	run, size := p.sealed(vnet{}, udpPacket(p.src, p.dst, secret))
	if len(run) != size && len(run) == 0 {
		t.Fatal("nothing sealed")
	}
	relay := &keys{
		owner: p.r, local: 9, far: 9, suite: seal.AES256GCM, created: time.Now(),
		secret: noise.Keys{Send: [32]byte{5}, Receive: [32]byte{5}},
	}
	id := peer.ID{9}
	frame, err := relay.seal(nil, meta{kind: kindRelayed, place: legUp}, slices.Concat(id[:], run))
	if err != nil {
		t.Fatal(err)
	}
	h, _ := parseHeader(frame)
	plain, _, why := relay.open(h, frame)
	if why != reasons {
		t.Fatalf("the relay does not open its own frame: %v", why)
	}
	inside := plain[metaSize+peer.IDSize:]
	if !bytes.Equal(inside, run) || bytes.Contains(plain, secret) {
		t.Error("what is carried is not what was sealed for the pair")
	}
	if h, ok := parseHeader(inside); !ok {
		t.Error("no sealed datagram inside")
	} else if _, _, why := relay.open(h, bytes.Clone(inside)); why != dropUnauthentic {
		t.Errorf("the relay opens what it carries: %v", why)
	}
}

// TestRelayRefuses: strangers, circles, itself, and legs that come from the wrong side.
func TestRelayRefuses(t *testing.T) {
	from, to := newLone(t, seal.AES256GCM, full), newLone(t, seal.AES256GCM, full)
	to.r.id = peer.ID{2}
	e := from.e
	e.members.Store(&members{from.r.id: from.r, to.r.id: to.r})
	e.SetRelay(true)
	give := func(m meta, ids ...peer.ID) {
		t.Helper()
		var body []byte
		for _, id := range ids {
			body = append(body, id[:]...)
		}
		b, err := from.r.link.current.seal(nil, m, append(body, make([]byte, 100)...))
		if err != nil {
			t.Fatal(err)
		}
		from.arrive(b, len(b), 0, time.Now())
	}
	sent := func() bool {
		_ = to.sink.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, _ := to.sink.Read(make([]byte, 2000))
		return n > 0
	}
	me := to.r.id
	give(meta{kind: kindRelayed, place: legUp}, me)
	_ = to.sink.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 2000)
	n, err := to.sink.Read(buf)
	if err != nil || n != overhead+peer.IDSize+100 {
		t.Fatalf("not carried on in as many bytes: %d, %v", n, err)
	}
	h, _ := parseHeader(buf[:n])
	if plain, _, why := to.r.link.current.open(h, buf[:n]); why != reasons || parseMeta(plain).place != legDown ||
		peer.ID(plain[metaSize:]) != from.r.id {
		t.Errorf("carried on as %x, %v", plain[:metaSize+peer.IDSize], why)
	}
	for name, c := range map[string]struct {
		prepare func()
		m       meta
		ids     []peer.ID
		why     reason
	}{
		"to somebody unknown":     {nil, meta{kind: kindRelayed, place: legUp}, []peer.ID{{77}}, dropRelayUnknown},
		"to the relay itself":     {nil, meta{kind: kindRelayed, place: legUp}, []peer.ID{e.identity.ID}, dropRelayUnknown},
		"far, by way of itself":   {nil, meta{kind: kindRelayed, place: legUpFar}, []peer.ID{me, e.identity.ID}, dropRelayUnknown},
		"far, back by the sender": {nil, meta{kind: kindRelayed, place: legUpFar}, []peer.ID{me, from.r.id}, dropRelayUnknown},
		"back to the sender":      {nil, meta{kind: kindRelayed, place: legUp}, []peer.ID{from.r.id}, dropRelayUnknown},
		"by an unknown second":    {nil, meta{kind: kindRelayed, place: legUpFar}, []peer.ID{me, {77}}, dropRelayUnknown},
		"across to nobody":        {nil, meta{kind: kindRelayed, place: legAcross}, []peer.ID{{77}, me}, dropRelayUnknown},
		"a leg that is none":      {nil, meta{kind: kindRelayed, place: 7}, []peer.ID{me, me}, dropRelayLeg},
		"a leg that is none at 0": {nil, meta{kind: kindRelayed}, []peer.ID{me, me}, dropRelayLeg},
		"to one who needs others": {func() {
			s := *to.r.sending.Load()
			s.path = path.Through(peer.ID{9})
			to.r.sending.Store(&s)
		}, meta{kind: kindRelayed, place: legUp}, []peer.ID{me}, dropRelayAway},
		"to one without a session": {func() { to.r.sending.Store(nil) }, meta{kind: kindRelayed, place: legUp}, []peer.ID{me}, dropRelayAway},
		"when it carries nothing":  {func() { e.SetRelay(false) }, meta{kind: kindRelayed, place: legUp}, []peer.ID{me}, dropRelayOff},
		"more than its share": {func() {
			for from.r.quota.take(1<<20, e.now()) {
			}
			from.r.quota.full.Add(int64(time.Hour))
		}, meta{kind: kindRelayed, place: legUp}, []peer.ID{me}, dropRelayLimit},
	} {
		t.Run(name, func(t *testing.T) {
			former := to.r.sending.Load()
			if c.prepare != nil {
				c.prepare()
			}
			defer func() {
				to.r.sending.Store(former)
				e.SetRelay(true)
				from.r.quota.full.Store(0)
			}()
			before := from.r.drops[c.why].Load()
			give(c.m, c.ids...)
			if from.r.drops[c.why].Load() != before+1 {
				t.Errorf("not counted as %v: %v", c.why, from.r.drops.snapshot())
			}
			if sent() {
				t.Error("sent on")
			}
		})
	}

	// What came by a relay is not carried again, whatever it says.
	before := from.r.drops[dropRelayLeg].Load()
	inner, _ := from.r.link.current.seal(nil, meta{kind: kindRelayed, place: legUp}, slices.Concat(me[:], make([]byte, 100)))
	outer, _ := from.r.link.current.seal(nil, meta{kind: kindRelayed, place: legDown}, slices.Concat(me[:], inner))
	from.arrive(outer, len(outer), 0, time.Now())
	if from.r.drops[dropRelayLeg].Load() != before+1 || sent() {
		t.Errorf("carried twice: %v", from.r.drops.snapshot())
	}
}

// TestRelayingDoesNotAllocate, neither where a packet begins nor where it is carried.
func TestRelayingDoesNotAllocate(t *testing.T) {
	from, to := newLone(t, seal.AES256GCM, full), newLone(t, seal.AES256GCM, full)
	to.r.id = peer.ID{2}
	e := from.e
	e.members.Store(&members{from.r.id: from.r, to.r.id: to.r})
	e.SetRelay(true)
	k := from.r.link.current
	frame, err := k.seal(nil, meta{kind: kindRelayed, place: legUp}, slices.Concat(to.r.id[:], make([]byte, 1000)))
	if err != nil {
		t.Fatal(err)
	}
	buf, now := make([]byte, len(frame)), time.Now()
	if n := testing.AllocsPerRun(100, func() {
		copy(buf, frame)
		if w := k.recv[controlLane].window; w != nil {
			*w = replay.Window{}
		}
		from.r.quota.full.Store(0)
		from.arrive(buf, len(buf), 0, now)
	}); n != 0 {
		t.Errorf("carrying a packet: %v allocations", n)
	}
	s := *to.r.sending.Load()
	s.path = path.Through(from.r.id)
	s.hop = e.hop(to.r.id, s.path)
	small := udpPacket(from.src, from.dst, make([]byte, 64))
	v, big := superPacket(from.src, from.dst, protoTCP, 1300, make([]byte, 60000))
	routes := new(routes)
	routes.Insert(netip.MustParsePrefix("10.32.2.0/24"), to.r)
	e.routes.Store(routes)
	to.r.sending.Store(&s)
	for name, c := range map[string]struct {
		v vnet
		b []byte
	}{"small packet": {vnet{}, small}, "super-packet": {v, big}} {
		if n := testing.AllocsPerRun(100, func() {
			copy(from.out.in[tunRoom:], c.b)
			from.out.packet(c.v, from.out.in, len(c.b), e.now())
			from.out.flush(1)
		}); n != 0 {
			t.Errorf("sending a %s by a relay: %v allocations", name, n)
		}
	}
	if d := to.r.drops.snapshot(); len(d) != 0 {
		t.Errorf("dropped: %v", d)
	}
}

// TestRelaysDeath: the pair goes on by another relay.
func TestRelaysDeath(t *testing.T) {
	a, b, r1, r2 := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full), newHost(t, 4, full)
	via := []peer.ID{r1.id, r2.id}
	a.tie(tie{other: r1, endpoint: true}, tie{other: r2, endpoint: true}, tie{other: b, relays: via})
	b.tie(tie{other: r1, endpoint: true}, tie{other: r2, endpoint: true}, tie{other: a, relays: via})
	for _, r := range []*host{r1, r2} {
		r.e.SetRelay(true)
		r.tie(tie{other: a}, tie{other: b})
	}
	up(t, a, b)
	pass(t, a, b)
	eventually(t, "both relays are known to work", func() bool {
		n := 0
		for _, p := range a.stats(b).Paths {
			if p.State == path.Works {
				n++
			}
		}
		return n == 2
	})
	first, other := r1, r2
	if s := a.stats(b).Via; len(s) != 1 {
		t.Fatalf("via %v", s)
	} else if s[0] == r2.id {
		first, other = r2, r1
	}
	first.stop()
	began := time.Now()
	eventually(t, "packets pass by the other relay", func() bool {
		a.write(vnet{}, udpPacket(a.pod(), b.pod(), []byte("are you there")))
		_, _, err := b.tryRead(20 * time.Millisecond)
		return err == nil && slices.Equal(a.stats(b).Via, []peer.ID{other.id})
	})
	t.Logf("by the other relay after %v", time.Since(began).Round(10*time.Millisecond))
	if n := a.stats(b).Handshakes; n != 1 {
		t.Errorf("%d handshakes: the session did not survive", n)
	}
}

// TestARefusalMovesThePair: a relay that cannot reach the peer says so, and the pair does not wait for silence.
func TestARefusalMovesThePair(t *testing.T) {
	a, b, r1, r2 := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full), newHost(t, 4, full)
	via := []peer.ID{r1.id, r2.id}
	a.tie(tie{other: r1, endpoint: true}, tie{other: r2, endpoint: true}, tie{other: b, relays: via})
	b.tie(tie{other: r2, endpoint: true}, tie{other: a, relays: via}) // it does not know the first one
	r1.tie(tie{other: a}, tie{other: b})
	r2.tie(tie{other: a}, tie{other: b})
	r1.e.SetRelay(true)
	r2.e.SetRelay(true)
	up(t, a, b)
	pass(t, a, b)
	eventually(t, "the reason is known", func() bool {
		s := a.stats(b)
		return slices.Equal(s.Via, []peer.ID{r2.id}) && slices.ContainsFunc(s.Paths, func(p PathStats) bool {
			return slices.Equal(p.Via, []peer.ID{r1.id}) && p.Reason == refusal(refusedAway)
		})
	})
}

// TestTwoRelays: a and b have no relay in common.
func TestTwoRelays(t *testing.T) {
	a, b, ra, rb := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full), newHost(t, 4, full)
	a.tie(tie{other: ra, endpoint: true}, tie{other: rb, relays: []peer.ID{ra.id}}, tie{other: b, relays: []peer.ID{rb.id}})
	b.tie(tie{other: rb, endpoint: true}, tie{other: ra, relays: []peer.ID{rb.id}}, tie{other: a, relays: []peer.ID{ra.id}})
	ra.tie(tie{other: a}, tie{other: rb, endpoint: true}, tie{other: b, relays: []peer.ID{rb.id}})
	rb.tie(tie{other: b}, tie{other: ra, endpoint: true}, tie{other: a, relays: []peer.ID{ra.id}})
	ra.e.SetRelay(true)
	rb.e.SetRelay(true)
	up(t, a, b)
	pass(t, a, b)
	if got := a.stats(b).Via; !slices.Equal(got, []peer.ID{ra.id, rb.id}) {
		t.Errorf("via %v", got)
	}
	if got := b.stats(a).Via; !slices.Equal(got, []peer.ID{rb.id, ra.id}) {
		t.Errorf("back via %v", got)
	}
	eventually(t, "the size that passes is known", func() bool { return a.stats(b).MTU == 1420-64 })
}

// TestRelayedPairGoesDirect once the two can reach each other, and says how well each way works.
func TestRelayedPairGoesDirect(t *testing.T) {
	a, b, r := relayed(t)
	up(t, a, b)
	began := time.Now()
	for x, y := range map[*host]*host{a: b, b: a} {
		if err := x.e.Punch(y.id, []netip.AddrPort{y.addr}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are direct", func() bool { return a.stats(b).Endpoint == b.addr && b.stats(a).Endpoint == a.addr })
	t.Logf("direct after %v", time.Since(began).Round(time.Millisecond))
	pass(t, a, b)
	s := a.stats(b)
	if len(s.Via) != 0 || len(s.Paths) != 2 || !s.Paths[0].Active || s.Paths[1].Reason == "" || s.Handshakes != 1 {
		t.Errorf("%+v", s)
	}
	_ = r
}

// TestPunchWithoutSession: there is no relay, but both are told at the same time where the other is.
func TestPunchWithoutSession(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	a.tie(tie{other: b})
	b.tie(tie{other: a})
	for x, y := range map[*host]*host{a: b, b: a} {
		if err := x.e.Punch(y.id, []netip.AddrPort{y.addr}); err != nil {
			t.Fatal(err)
		}
	}
	up(t, a, b)
	pass(t, a, b)
}

// TestRebinding: the peer's address changes under a running flow, as when a NAT forgets; nothing is told to anybody.
func TestRebinding(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	mesh(t, a, b)
	up(t, a, b)
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := portOf(conns[0])
	if err := b.e.SetUDP(conns); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "packets reach it at its new address", func() bool {
		a.write(vnet{}, udpPacket(a.pod(), b.pod(), []byte("there")))
		b.write(vnet{}, udpPacket(b.pod(), a.pod(), []byte("and back")))
		_, _, err := b.tryRead(20 * time.Millisecond)
		return err == nil && a.stats(b).Endpoint == elsewhere
	})
	t.Logf("followed after %v", time.Since(began).Round(time.Millisecond))
	if n := a.stats(b).Handshakes; n != 1 {
		t.Errorf("%d handshakes", n)
	}
}

// TestStreamsAreDialledSideBySide: a firewall that swallows one port costs no wait for it where another is open.
func TestStreamsAreDialledSideBySide(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	swallowed, open := netip.MustParseAddrPort("192.0.2.1:6783"), netip.MustParseAddrPort("192.0.2.1:443")
	var waiting atomic.Int32
	a.e.dialer = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		if to != open {
			waiting.Add(1)
			defer waiting.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		here, there := net.Pipe()
		b.e.addStream(there, netip.MustParseAddrPort("192.0.2.9:40000"))
		return here, nil
	}
	a.tie(tie{other: b, tcp: []netip.AddrPort{swallowed, open}})
	b.tie(tie{other: a})
	up(t, a, b)
	if waiting.Load() != 1 {
		t.Errorf("%d dials of the swallowed port are under way", waiting.Load())
	}
	if s := a.stats(b); !s.TCP || s.Endpoint != open {
		t.Errorf("by %v, TCP %v", s.Endpoint, s.TCP)
	}
	if got := a.e.streams.likely([]netip.AddrPort{swallowed, open}); got[0] != open {
		t.Errorf("the next peer is dialled at %v", got)
	}
}

// TestStreams: no datagram passes, and the pair talks in a stream; then datagrams pass again.
func TestStreams(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.e.AddStream(c)
		}
	})
	t.Cleanup(func() { ln.Close(); accepting.Wait() })
	a.e.dialer = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", to.String())
	}
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	a.tie(tie{other: b, tcp: []netip.AddrPort{at}})
	b.tie(tie{other: a})
	up(t, a, b)
	pass(t, a, b)
	if s := a.stats(b); !s.TCP || s.Endpoint != at {
		t.Errorf("by %v, TCP %v", s.Endpoint, s.TCP)
	}
	v, big := superPacket(a.pod(), b.pod(), protoTCP, 1200, random(50_000))
	a.write(v, big)
	for n := 0; n < 50_000; {
		_, got := b.read()
		p, _ := parsePacket(got)
		n += len(got) - p.payload
	}
	b.e.streams.mu.Lock()
	for _, s := range b.e.streams.open { // it breaks
		s.close()
	}
	b.e.streams.mu.Unlock()
	eventually(t, "the stream is opened again", func() bool {
		a.write(vnet{}, udpPacket(a.pod(), b.pod(), []byte("again")))
		_, _, err := b.tryRead(20 * time.Millisecond)
		return err == nil
	})
	a.tie(tie{other: b, endpoint: true, tcp: []netip.AddrPort{at}})
	eventually(t, "datagrams are preferred", func() bool { s := a.stats(b); return !s.TCP && s.Endpoint == b.addr })
	pass(t, a, b)
}
