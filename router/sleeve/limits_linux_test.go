package sleeve

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/mesh/peer"
	"weft/router"
)

// TestFloodOfHandshakes: a member, or whoever knows the public key, floods; an honest peer still gets in, by proving its
// address with a cookie.
func TestFloodOfHandshakes(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	// Messages that pass mac1 and cost two Diffie-Hellman operations each.
	private, _, err := noise.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := noise.NewKey(private)
	if err != nil {
		t.Fatal(err)
	}
	_, msg, err := noise.Initiate(noise.Local{Key: key, Cluster: testCluster}, b.public, 1,
		noise.Offer{Counter: 1, Ciphers: []uint8{1}, PSKs: []noise.ID{{1}}})
	if err != nil {
		t.Fatal(err)
	}
	flooder, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.addr))
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	answers := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = flooder.Write(msg)
			}
		}
	})
	wg.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, err := flooder.Read(buf)
			if err != nil {
				return
			}
			if n != noise.CookieSize {
				answers++
			}
		}
	})
	defer wg.Wait()
	defer flooder.Close()
	defer close(stop)
	eventually(t, "the flood is noticed", func() bool { return dropped(b, dropCookie) > 0 || dropped(b, dropRate) > 100 })
	mesh(t, a, b)
	eventually(t, "the honest peer gets in", func() bool { return a.stats(b).Handshakes > 0 && a.stats(b).RTT > 0 })
	if answers != 0 {
		t.Errorf("%d answers to a stranger", answers)
	}
}

// TestBulkDoesNotStarveControl keeps the socket busy with super-packets while datagrams of the daemons pass.
func TestBulkDoesNotStarveControl(t *testing.T) {
	full := Offload{Vnet: true, TSO: true, USO: true}
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	mesh(t, a, b)
	up(t, a, b)
	v, p := superPacket(a.pod(), b.pod(), protoTCP, 1368, make([]byte, 60000))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		out := make([]byte, vnetSize)
		v.put(out)
		out = append(out, p...)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = a.tun.Write(out)
			}
		}
	})
	wg.Go(func() {
		for { // b's kernel takes what comes
			if _, _, err := b.tryRead(time.Second); err != nil {
				return
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	eventually(t, "bulk flows", func() bool { return b.stats(a).RxPackets > 1000 })
	sent, got := 0, 0
	for range 50 {
		if err := a.e.Send(b.id, []byte("gossip")); err != nil {
			t.Fatal(err)
		}
		sent++
		select {
		case <-b.control:
			got++
		case <-time.After(2 * time.Second):
		}
	}
	if got < sent*9/10 {
		t.Errorf("%d of %d control datagrams arrived under load", got, sent)
	}
	if got < sent {
		t.Logf("%d of %d arrived; %+v, %+v", got, sent, a.e.Stats(), b.e.Stats())
	}
}

func TestSlowDaemonDoesNotStopPackets(t *testing.T) {
	a := newHost(t, 1, Offload{})
	b := newHost(t, 2, Offload{})
	b.control = make(chan control) // nobody reads
	mesh(t, a, b)
	up(t, a, b)
	eventually(t, "the oldest are dropped", func() bool {
		for range 100 {
			if err := a.e.Send(b.id, make([]byte, MaxControl)); err != nil {
				t.Fatal(err)
			}
		}
		return dropped(b, dropControl) > 0
	})
	p := udpPacket(a.pod(), b.pod(), []byte("through"))
	a.write(vnet{}, p)
	if _, got := b.read(); !bytes.Equal(got, p) {
		t.Errorf("got %x", got)
	}
	go func() { // let the engine's goroutine end
		for range b.control {
		}
	}()
	t.Cleanup(func() { b.stop(); close(b.control) })
}

func TestQueueIsBounded(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	a.meet(a, b)
	for i := range queuePackets + 10 {
		a.write(vnet{}, udpPacket(a.pod(), b.pod(), []byte{byte(i)}))
	}
	eventually(t, "the oldest are dropped", func() bool { return dropped(a, dropQueueFull) == 10 })
	b.meet(a, b)
	for i := range queuePackets {
		_, got := b.read()
		if last := got[len(got)-1]; last != byte(i+10) {
			t.Fatalf("packet %d is number %d", i, last)
		}
	}
}

func TestSendRefuses(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	if err := a.e.Send(b.id, nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("got %v", err)
	}
	a.meet(a, b)
	if err := a.e.Send(b.id, nil); !errors.Is(err, ErrNoSession) {
		t.Errorf("got %v", err)
	}
	if err := a.e.Send(b.id, make([]byte, MaxControl+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	b.meet(a, b)
	up(t, a, b)
	if err := a.e.SetUDP(nil); err != nil {
		t.Fatal(err)
	}
	if err := a.e.Send(b.id, nil); !errors.Is(err, ErrNoSocket) {
		t.Errorf("got %v", err)
	}
}

func TestSettersRefuse(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	one, two := peer.ID{1}, peer.ID{2}
	block := netip.MustParsePrefix("10.0.0.0/24")
	for name, err := range map[string]error{
		"no id":             e.SetIdentity(Identity{NoisePrivate: [32]byte{1}}),
		"no peer id":        e.SetPeers([]Peer{{NoisePublic: [32]byte{1}}}),
		"one key twice":     e.SetPeers([]Peer{{ID: one, NoisePublic: [32]byte{1}}, {ID: two, NoisePublic: [32]byte{1}}}),
		"one id twice":      e.SetPeers([]Peer{{ID: one, NoisePublic: [32]byte{1}}, {ID: one, NoisePublic: [32]byte{2}}}),
		"one block twice":   e.SetTunnels([]router.Tunnel{{Peer: one, Blocks: []netip.Prefix{block}}, {Peer: two, Blocks: []netip.Prefix{block}}}),
		"one tunnel twice":  e.SetTunnels([]router.Tunnel{{Peer: one}, {Peer: one}}),
		"bits after prefix": e.SetTunnels([]router.Tunnel{{Peer: one, Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}}),
		"v4 in v6":          e.SetLocal([]netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/120")}),
		"absurd mtu":        e.SetTunnels([]router.Tunnel{{Peer: one, MTU: 1 << 20}}),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestPeerWithoutKey: who wants peers and has not heard the key of one says so, and the session stays.
func TestPeerWithoutKey(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	mesh(t, a, b)
	up(t, a, b)
	before := a.stats(b).Handshakes
	if err := a.e.SetPeers([]Peer{{ID: b.id}, {ID: peer.ID{9}}}); err != nil {
		t.Fatal(err)
	}
	if err := a.e.Send(b.id, []byte("still here")); err != nil {
		t.Errorf("the session is gone: %v", err)
	}
	if err := a.e.Send(peer.ID{9}, nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("a stranger without a key became a peer: %v", err)
	}
	if got := a.stats(b).Handshakes; got != before {
		t.Errorf("%d handshakes, %d before", got, before)
	}
	// Another peer that claims its key now has it.
	if err := a.e.SetPeers([]Peer{{ID: b.id}, {ID: peer.ID{9}, NoisePublic: b.public}}); err != nil {
		t.Fatal(err)
	}
	if err := a.e.Send(b.id, nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("got %v", err)
	}
}

// TestIdentityChanges: a new Noise key goes beside the session, a new cluster ends it.
func TestIdentityChanges(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	mesh(t, a, b)
	up(t, a, b)
	before := b.stats(a).Handshakes
	id := Identity{ID: a.id, NoisePrivate: a.private, Cluster: testCluster, Counter: 5, Epoch: 2}
	if err := a.e.SetIdentity(id); err != nil { // a lower counter than is in use changes nothing
		t.Fatal(err)
	}
	var err error
	if a.private, a.public, err = noise.GenerateKey(); err != nil {
		t.Fatal(err)
	}
	id.NoisePrivate = a.private
	if err := a.e.SetIdentity(id); err != nil {
		t.Fatal(err)
	}
	p := udpPacket(a.pod(), b.pod(), []byte("old key"))
	a.write(vnet{}, p)
	if _, got := b.read(); !bytes.Equal(got, p) {
		t.Fatalf("got %x", got)
	}
	if s := b.stats(a); s.Handshakes != before {
		t.Errorf("b completed %d handshakes with a key that it does not know", s.Handshakes-before)
	}
	b.meet(a, b) // b hears of the new key
	eventually(t, "both use a session with the new key", func() bool {
		return b.stats(a).Handshakes > 0 && b.stats(a).RTT > 0 && a.stats(b).Handshakes > before
	})
	p = udpPacket(a.pod(), b.pod(), []byte("new key"))
	a.write(vnet{}, p)
	if _, got := b.read(); !bytes.Equal(got, p) {
		t.Fatalf("got %x", got)
	}
	id.Cluster[0]++
	if err := a.e.SetIdentity(id); err != nil {
		t.Fatal(err)
	}
	if s := a.stats(b); s.Up || s.KeyAge >= 0 {
		t.Errorf("still up in another cluster: %+v", s)
	}
}

func TestLimiter(t *testing.T) {
	l := limiter{}
	now := time.Unix(0, 0)
	count := func(a string) (n int) {
		for range 100 {
			if l.allow(netip.MustParseAddr(a), 24, 56, now) {
				n++
			}
		}
		return n
	}
	if n := count("192.0.2.1"); n != sourceBurst {
		t.Errorf("%d at once", n)
	}
	if n := count("192.0.2.200"); n != 0 {
		t.Errorf("%d more from the same network", n)
	}
	if n := count("192.0.3.1"); n != sourceBurst {
		t.Errorf("%d from another network", n)
	}
	if n := count("2001:db8::1") + count("2001:db8:0:ff::1"); n != sourceBurst {
		t.Errorf("%d from one IPv6 network", n)
	}
	now = now.Add(time.Second)
	if n := count("192.0.2.1"); n != sourceRate {
		t.Errorf("%d a second later", n)
	}
	for i := range 3 * sourceTable {
		l.allow(netip.AddrFrom4([4]byte{byte(i >> 8), byte(i), 1, 1}), 24, 56, now)
	}
	if len(l) > sourceTable {
		t.Errorf("%d sources are remembered", len(l))
	}
}

// TestListenUDP: both families share a port, and what the engine counts on is set.
func TestListenUDP(t *testing.T) {
	conns, err := ListenUDP(t.Context(), netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	var ports []uint16
	for _, c := range conns {
		defer c.Close()
		ports = append(ports, portOf(c).Port())
	}
	if len(slices.Compact(ports)) != 1 || ports[0] == 0 {
		t.Errorf("ports %v", ports)
	}
	if _, err := ListenUDP(t.Context(), netip.AddrPortFrom(netip.IPv4Unspecified(), ports[0])); err == nil {
		t.Error("a port in use is given")
	}
}

// TestBusyQueueCanBeTakenAway closes queues while packets keep coming, so that some are closed between two reads.
func TestBusyQueueCanBeTakenAway(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	mesh(t, a, b)
	up(t, a, b)
	p := udpPacket(a.pod(), b.pod(), make([]byte, 500))
	for range 100 {
		engine, kernel := tunPair(t)
		for range 50 {
			if _, err := kernel.Write(p); err != nil {
				break // full
			}
		}
		if err := a.e.SetTUN([]*os.File{engine}, Offload{}); err != nil {
			t.Fatal(err)
		}
		a.tun.Close()
		a.tun = kernel
	}
	t.Cleanup(func() { a.stop(); a.tun.Close() })
	done := make(chan struct{})
	go func() { a.stop(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the engine does not end")
	}
}
