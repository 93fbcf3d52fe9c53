package wireguard

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/router"
	"weft/router/host"
	"weft/router/pulse"
)

const full = 1420

// play drives a health through time, one look every 500 ms.
type play struct {
	h         health
	now       time.Time
	l         look
	answering func(size int) bool
	waiting   []host.Echo
	sent      []pulse.Echo
	helped    []remedy
}

func newPlay() *play {
	return &play{
		now: time.Unix(1000, 0), answering: func(int) bool { return true },
		l: look{known: true, testable: true, reachable: true, full: full},
	}
}

func (p *play) run(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); p.now = p.now.Add(500 * time.Millisecond) {
		p.l.answers, p.waiting = p.waiting, nil
		send, help := p.h.step(p.now, p.l)
		if help != nothing {
			p.helped = append(p.helped, help)
		}
		for _, e := range send {
			p.sent = append(p.sent, e)
			if p.answering(e.Size) {
				p.waiting = append(p.waiting, host.Echo{Seq: e.Seq, At: p.now.Add(3 * time.Millisecond)})
			}
		}
	}
}

// busy makes the counters move.
func (p *play) busy(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); {
		p.l.peer.Sent += 10000
		p.run(500 * time.Millisecond)
	}
}

func (p *play) shake() { p.l.peer.Handshake = p.now }

func TestUpOnlyAfterAFullPacketWasAnswered(t *testing.T) {
	p := newPlay()
	p.shake()
	p.answering = func(size int) bool { return size < full }
	p.run(2 * time.Second)
	if p.h.Up {
		t.Error("up although no full packet passed")
	}
	p.answering = func(int) bool { return true }
	p.run(5 * time.Second)
	if !p.h.Up || p.h.MTU != full || p.h.RTT != 3*time.Millisecond {
		t.Errorf("not up, or not in full: %+v", p.h)
	}
}

func TestASmallerPathIsFoundAndGrowsAgain(t *testing.T) {
	p := newPlay()
	p.shake()
	p.answering = func(size int) bool { return size <= router.MinMTU }
	p.run(time.Minute)
	if !p.h.Up || p.h.MTU != router.MinMTU {
		t.Fatalf("a path of %d bytes is not used: %+v", router.MinMTU, p.h)
	}
	p.answering = func(int) bool { return true }
	p.run(20 * time.Second)
	if !p.h.Up || p.h.MTU != full {
		t.Errorf("a path that grew is not noticed: %+v", p.h)
	}
}

func TestDownWithinTwoSecondsWhilePacketsFlow(t *testing.T) {
	p := newPlay()
	p.shake()
	p.busy(10 * time.Second)
	if !p.h.Up {
		t.Fatal("not up")
	}
	p.answering = func(int) bool { return false }
	died := p.now
	for p.h.Up {
		p.busy(500 * time.Millisecond)
	}
	if took := p.now.Sub(died); took > 2500*time.Millisecond {
		t.Errorf("down after %s", took)
	}
}

func TestOneLostEchoIsBorne(t *testing.T) {
	p := newPlay()
	p.shake()
	dice := rand.New(rand.NewPCG(1, 2)) // the same ones each time
	p.answering = func(int) bool { return dice.IntN(4) != 0 }
	p.run(5 * time.Second)
	for range 200 {
		p.busy(500 * time.Millisecond)
		if !p.h.Up {
			t.Fatal("down although three of four echoes are answered")
		}
	}
	if p.h.Loss < 0.1 || p.h.Loss > 0.5 {
		t.Errorf("loss of a quarter is said to be %.2f", p.h.Loss)
	}
}

func TestAnIdleTunnelIsLeftInPeace(t *testing.T) {
	p := newPlay()
	p.shake()
	p.run(5 * time.Second)
	p.sent = nil
	for range 2 { // handshakes go on
		p.run(time.Minute)
		p.shake()
	}
	if n := len(p.sent); n < 20 || n > 30 {
		t.Errorf("%d echoes in two idle minutes", n)
	}
	for _, s := range p.sent {
		if s.Size > host.MinEcho {
			t.Errorf("an idle tunnel is tested with %d bytes", s.Size)
		}
	}
}

// A tunnel that rests renews no keys: that these are old is no reason to mend anything, nor when it wakes.
func TestRestIsNoFailure(t *testing.T) {
	p := newPlay()
	p.h.Rest(time.Minute)
	p.shake()
	p.busy(5 * time.Second)
	p.run(time.Hour)
	if !p.h.Asleep || len(p.helped) > 0 {
		t.Fatalf("after an hour: asleep %v, helped by %v", p.h.Asleep, p.helped)
	}
	p.busy(10 * time.Second) // WireGuard makes a handshake of its own
	if p.h.Asleep || !p.h.Up || len(p.helped) > 0 {
		t.Errorf("awake: %+v, helped by %v", p.h, p.helped)
	}
}

func TestMendingBeginsWithTheFormerSecret(t *testing.T) {
	p := newPlay()
	p.answering = func(int) bool { return false }
	p.run(2 * time.Minute)
	want := []remedy{again, again, otherSecret, addAnew, addAnew}
	if len(p.helped) < len(want) {
		t.Fatalf("helped by %v, want %v", p.helped, want)
	}
	for i, r := range want {
		if p.helped[i] != r {
			t.Fatalf("helped by %v, want %v", p.helped, want)
		}
	}
	// Nothing is mended where the peer is not there at all.
	q := newPlay()
	q.l.reachable = false
	q.answering = func(int) bool { return false }
	q.run(5 * time.Minute)
	if len(q.helped) > 2 {
		t.Errorf("a peer that is nowhere is mended: %v", q.helped)
	}
}

// Both began to agree at once and took the two secrets in different order: whenever each of them looks, they meet.
func TestSecretsInDifferentOrderMeet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ends := [2]*play{newPlay(), newPlay()}
		ends[1].l.yields = true
		second := [2]bool{false, true} // which of the two secrets each uses; its newest at first
		for _, p := range ends {
			p.answering = func(int) bool { return false }
		}
		up := rapid.Bool().Draw(t, "a session is there still")
		if up {
			for _, p := range ends {
				p.answering = func(int) bool { return true }
				p.shake()
				p.busy(handshakeLife - 20*time.Second)
			}
		}
		ends[1].run(time.Duration(rapid.IntRange(0, 40).Draw(t, "later")) * 500 * time.Millisecond)
		const limit = 3 * time.Minute
		together := 0
		for range limit / (500 * time.Millisecond) {
			for i, p := range ends {
				p.helped = nil
				p.run(500 * time.Millisecond)
				for _, r := range p.helped {
					second[i] = r == otherSecret && !second[i] || r == again && second[i] || r == addAnew && i == 1
				}
			}
			if second[0] != second[1] {
				together = 0
			} else if together++; together == 10 { // WireGuard tries every 5 s
				return
			}
		}
		t.Fatalf("not within %v", limit)
	})
}

func TestASessionThatIsNotRenewedIsMendedWithoutEndingIt(t *testing.T) {
	p := newPlay()
	p.shake()
	for range 200 {
		p.busy(time.Second)
	}
	if len(p.helped) == 0 {
		t.Fatal("a handshake 200 s ago worries nobody")
	}
	for _, r := range p.helped {
		if r != otherSecret {
			t.Errorf("an up tunnel is helped by %v", r)
		}
	}
}

// Whatever happens, what is kept is bounded, and nothing is up without an answer.
func TestHealthIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlay()
		share := rapid.IntRange(0, 10).Draw(t, "share")
		p.answering = func(int) bool { return rapid.IntRange(0, 10).Draw(t, "answer") < share }
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			p.l.known = rapid.IntRange(0, 9).Draw(t, "known") > 0
			p.l.peer.Sent = rapid.Uint64().Draw(t, "sent")
			if rapid.Bool().Draw(t, "shake") {
				p.shake()
			}
			p.run(time.Duration(rapid.IntRange(1, 20).Draw(t, "looks")) * 500 * time.Millisecond)
			if p.h.Loss < 0 || p.h.Loss > 1 {
				t.Fatalf("%+v", p.h)
			}
			if share == 0 && p.h.Up {
				t.Fatal("up without an answer")
			}
		}
	})
}
