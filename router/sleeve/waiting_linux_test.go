package sleeve

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// What waits for a session that does not come is let go: a machine with many peers that are down would else keep the last
// packets to each of them, up to 256 KiB a peer, until those come back.
func TestPacketsDoNotWaitForEver(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	a.stop() // its own looks would be in the way of ours
	b.stop()
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.SetIdentity(Identity{ID: a.id, NoisePrivate: a.private, Cluster: testCluster, Counter: CounterSpan}); err != nil {
		t.Fatal(err)
	}
	if err := e.SetPeers([]Peer{b.peer(netip.AddrPort{}, secretOf(t, "12"))}); err != nil {
		t.Fatal(err)
	}
	r, now := e.member(b.id), time.Now()
	early, late := udpPacket(a.pod(), b.pod(), []byte("early")), udpPacket(a.pod(), b.pod(), []byte("late"))
	r.hold(vnet{}, early, e.at(now))
	r.hold(vnet{}, late, e.at(now.Add(2*time.Second)))
	e.step(now.Add(queueLife / 2))
	if len(r.queue) != 2 || r.queueN != len(early)+len(late) {
		t.Fatalf("%d packets wait, %d bytes", len(r.queue), r.queueN)
	}
	e.step(now.Add(queueLife + time.Second))
	if len(r.queue) != 1 || r.queueN != len(late) {
		t.Errorf("%d packets wait, %d bytes; want the late one", len(r.queue), r.queueN)
	}
	e.step(now.Add(queueLife + time.Minute))
	if r.queue != nil || r.queueN != 0 {
		t.Errorf("%d packets wait, %d bytes, of a minute ago", len(r.queue), r.queueN)
	}
	if n := r.drops[dropNoSession].Load(); n != 2 {
		t.Errorf("%d counted as dropped", n)
	}
}

// A run that cannot be cut must not be tried for ever.
func TestAForeignDatagramLargerThanAnySendIsRefused(t *testing.T) {
	h := newHost(t, 1, Offload{})
	done := make(chan error, 1)
	go func() { done <- h.e.SendForeign(make([]byte, maxSend+1), maxSend+1, h.addr) }()
	select {
	case err := <-done:
		if err == nil {
			t.Errorf("%d bytes were sent in one datagram", maxSend+1)
		}
	case <-time.After(patience):
		t.Fatal("it is tried for ever")
	}
}

// A member that opens streams by the hundred takes none from others: what it has proven to be its own makes room for its
// next, and for nobody else's.
func TestOneMemberCannotHaveAllStreams(t *testing.T) {
	a, b, c := newHost(t, 1, Offload{}), newHost(t, 2, Offload{}), newHost(t, 3, Offload{})
	mesh(t, a, b, c)
	up(t, a, b, c)
	open := func(from *host, port uint16) *stream {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close(); there.Close() })
		at := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
		if !a.e.addStream(here, at) {
			return nil
		}
		s := a.e.streams.find(at)
		d, err := from.e.member(a.id).sending.Load().keys.seal(nil, meta{kind: kindControl}, []byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := there.Write(slices.Concat([]byte{0, byte(len(d))}, d)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the stream is known to be a member's", func() bool { return s.last.Load() != 0 })
		return s
	}
	mine := open(c, 1)
	for i := range maxOpen {
		if open(b, uint16(1000+i)) == nil {
			t.Fatalf("the member's own stream %d found no room", i)
		}
	}
	if open(c, 2) == nil {
		t.Error("another member finds no room")
	}
	if mine.gone() {
		t.Error("another member's stream was closed")
	}
	eventually(t, "few streams are left to the one who opens so many", func() bool {
		a.e.streams.mu.RLock()
		defer a.e.streams.mu.RUnlock()
		return len(a.e.streams.open) <= maxOwn+2
	})
}
