package sleeve

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"weft/mesh/peer"
)

// drowsy is short enough for a test, and longer than a session takes to open on a loaded machine.
const drowsy = 2 * time.Second

// sparse makes hosts let their peers sleep.
func (h *host) sparse() { h.e.SetSparse(Sparse{On: true, Idle: drowsy}) }

// sleeps waits until a host has no session with another for want of traffic.
func sleeps(t *testing.T, a, b *host) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d sleeps as %d sees it", b.n, a.n), func() bool {
		s := a.stats(b)
		return s.Asleep && !s.Up && s.KeyAge < 0
	})
}

// sent gives a host one packet and waits until it has come to the other: none is sent twice.
func sent(t *testing.T, a, b *host, what string) {
	t.Helper()
	want := udpPacket(a.pod(), b.pod(), []byte(what))
	began := time.Now()
	a.write(vnet{}, want)
	if _, got := b.read(); !bytes.Equal(got, want) {
		t.Fatalf("%s: %x arrived, sent %x", what, got, want)
	}
	t.Logf("%s: after %v", what, time.Since(began).Round(100*time.Microsecond))
}

func TestTrafficOpensASessionAndItsEndClosesIt(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	a.sparse()
	b.sparse()
	mesh(t, a, b)
	sleeps(t, a, b)
	if n := a.stats(b).Handshakes; n != 0 {
		t.Errorf("%d handshakes with a peer that nothing was sent to", n)
	}
	sent(t, a, b, "the first packet")
	sent(t, b, a, "its answer")
	sleeps(t, a, b)
	sleeps(t, b, a)
	before := b.stats(a).Handshakes
	sent(t, b, a, "the other end's first packet")
	if after := b.stats(a).Handshakes; before == 0 || after <= before {
		t.Errorf("%d handshakes for the first session, %d with the second", before, after)
	}
}

func TestControlWakesAPeer(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	a.sparse()
	b.sparse()
	mesh(t, a, b)
	sleeps(t, a, b)
	sleeps(t, b, a)
	for i := range 3 {
		if err := a.e.Send(b.id, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		if c := <-b.control; c.from != a.id || string(c.b) != fmt.Sprint(i) {
			t.Fatalf("datagram %d: %q of %s", i, c.b, c.from.Short())
		}
	}
	sleeps(t, a, b)
	sleeps(t, b, a)
}

// Either end may be another process than the one that fell asleep.
func TestASleepingPeerMayHaveBeenRestarted(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	a.sparse()
	b.sparse()
	mesh(t, a, b)
	sent(t, a, b, "before")
	sleeps(t, a, b)
	b.stop()
	b.start(2)
	b.sparse()
	b.meet(a)
	sent(t, a, b, "to the new one")
	b.stop()
	b.start(3)
	b.sparse()
	b.meet(a)
	sent(t, b, a, "from the one after")
}

// A session that one end has given up is still one for the other for a moment: what that sends is not lost.
func TestPacketsOfTheOtherEndsSessionStillArrive(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	a.e.SetSparse(Sparse{On: true, Idle: drowsy})
	b.e.SetSparse(Sparse{On: true, Idle: time.Hour})
	mesh(t, a, b)
	sent(t, a, b, "opening")
	sleeps(t, a, b)
	before := a.stats(b).Handshakes
	sent(t, b, a, "on the session that is left")
	eventually(t, "a session again", func() bool { return a.stats(b).Handshakes > before })
}

func TestPinnedPeersNeverSleep(t *testing.T) {
	a, b, c := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full)
	hosts := []*host{a, b, c}
	tell := func(pin bool) {
		for _, h := range hosts {
			var peers []Peer
			for _, o := range hosts {
				if o != h {
					p := o.peer(o.addr, secretOf(t, fmt.Sprint(min(h.n, o.n), max(h.n, o.n))))
					p.Pinned = pin && h != c && o != c
					peers = append(peers, p)
				}
			}
			if err := h.e.SetPeers(peers); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, h := range hosts {
		h.sparse()
	}
	tell(true)
	up(t, a, b)
	sleeps(t, a, c)
	sleeps(t, b, c)
	if s := a.stats(b); s.Asleep || s.KeyAge < 0 {
		t.Errorf("a pinned peer: up %v, asleep %v, %s", s.Up, s.Asleep, s.Reason)
	}
	tell(false)
	sleeps(t, a, b)
	a.e.SetSparse(Sparse{})
	up(t, a, b)
}

// Nothing but the relay knows where the two are, and it sleeps as well.
func TestASleepingRelayIsWokenForThoseWhoNeedIt(t *testing.T) {
	a, b, r := newHost(t, 1, full), newHost(t, 2, full), newHost(t, 3, full)
	r.e.SetRelay(true)
	for _, h := range []*host{a, b, r} {
		h.sparse()
	}
	via := []peer.ID{r.id}
	a.tie(tie{other: r, endpoint: true}, tie{other: b, relays: via})
	b.tie(tie{other: r, endpoint: true}, tie{other: a, relays: via})
	r.tie(tie{other: a, endpoint: true}, tie{other: b, endpoint: true})
	sleeps(t, a, b)
	sleeps(t, a, r)
	sent(t, a, b, "through a relay that slept")
	if s := a.stats(b); len(s.Via) != 1 || s.Via[0] != r.id {
		t.Errorf("it went by %v", s.Via)
	}
	sleeps(t, a, b)
	sleeps(t, r, b)
}

// What waits for a session is bounded, whoever sends it and whatever it is.
func TestWhatWaitsForASleepingPeerIsBounded(t *testing.T) {
	a, b := newHost(t, 1, full), newHost(t, 2, full)
	a.sparse()
	a.tie(tie{other: b}) // nobody knows where it is
	for i := range 3 * queuePackets {
		if err := a.e.Send(b.id, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.stats(b).Drops["queue_full"]; got != 2*queuePackets {
		t.Errorf("%d of %d were dropped: %v", got, 3*queuePackets, a.stats(b).Drops)
	}
	sleeps(t, a, b)
}
