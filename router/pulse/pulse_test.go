package pulse

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/router"
	"weft/router/host"
)

const (
	full  = 1420
	every = 500 * time.Millisecond
)

// play drives a pulse through time.
type play struct {
	Pulse
	now       time.Time
	busy      bool
	answering func(size int) bool
	answers   []host.Echo
	sent      []Echo
}

func newPlay() *play {
	return &play{now: time.Unix(1000, 0), answering: func(int) bool { return true }}
}

func (p *play) look(after time.Duration) {
	p.now = p.now.Add(after)
	answers := p.answers
	p.answers = nil
	p.Look(p.now, answers, full)
	e := p.Next(p.now, p.busy, full)
	if e.Size == 0 {
		return
	}
	p.sent = append(p.sent, e)
	if p.answering(e.Size) {
		p.answers = append(p.answers, host.Echo{Seq: e.Seq, At: p.now.Add(3 * time.Millisecond)})
	}
}

func (p *play) run(d time.Duration) {
	for ; d > 0; d -= every {
		p.look(every)
	}
}

func TestUpAfterAFullEchoAndDownWhenInUseAndSilent(t *testing.T) {
	p := newPlay()
	p.answering = func(size int) bool { return size < full }
	p.run(2 * time.Second)
	if p.Up {
		t.Fatal("up although no full packet passed")
	}
	p.answering = func(int) bool { return true }
	p.run(5 * time.Second)
	if !p.Up || p.MTU != full || p.RTT != 3*time.Millisecond {
		t.Fatalf("not up, or not in full: %+v", p.Pulse)
	}
	p.busy = true
	p.run(5 * time.Second)
	p.answering = func(int) bool { return false }
	died := p.now
	for p.Up {
		p.look(every)
	}
	if took := p.now.Sub(died); took > 2500*time.Millisecond {
		t.Errorf("down after %s", took)
	}
}

func TestASmallerPathIsUsedAndGrowsAgain(t *testing.T) {
	p := newPlay()
	p.answering = func(size int) bool { return size <= router.MinMTU }
	p.run(time.Minute)
	if !p.Up || p.MTU != router.MinMTU {
		t.Fatalf("a path of %d bytes is not used: %+v", router.MinMTU, p.Pulse)
	}
	p.answering = func(int) bool { return true }
	p.run(20 * time.Second)
	if !p.Up || p.MTU != full {
		t.Errorf("a path that grew is not noticed: %+v", p.Pulse)
	}
}

// A path that shrinks without a word while packets flow is used at the smallest size, and given up where that is lost, too.
func TestAPathThatSwallowsLargePacketsIsNoticed(t *testing.T) {
	p := newPlay()
	p.Allow(full)
	p.run(2 * time.Second)
	p.busy = true
	p.run(5 * time.Second)
	if !p.Up || p.Limit() != 0 {
		t.Fatalf("not up in full: %+v", p.Pulse)
	}
	p.answering = func(size int) bool { return size <= 1300 }
	shrunk := p.now
	for p.Limit() == 0 {
		p.look(every)
		if took := p.now.Sub(shrunk); took > 6*time.Second || !p.Up {
			t.Fatalf("after %s: %+v", took, p.Pulse)
		}
	}
	p.Allow(router.MinMTU) // the router says what it heard
	p.run(5 * time.Second)
	if !p.Up || p.Limit() != router.MinMTU || p.Full(0) != full {
		t.Fatalf("it does not stay: %+v", p.Pulse)
	}
	p.answering = func(int) bool { return true }
	p.run(30 * time.Second)
	if p.Limit() != 0 {
		t.Errorf("a path that grew under traffic is not noticed: %+v", p.Pulse)
	}
	p.Allow(full)
	p.answering = func(size int) bool { return size < router.MinMTU }
	p.run(20 * time.Second)
	if p.Up {
		t.Error("up although no packet of the smallest MTU passes")
	}
}

// Who slept himself, as a starved or suspended machine does, does not blame the peer for what he did not hear meanwhile.
func TestOwnSleepIsNoSilenceOfThePeer(t *testing.T) {
	p := newPlay()
	p.busy = true
	p.run(5 * time.Second)
	for range 20 {
		late := p.answers
		p.answers = nil
		p.look(5 * time.Second) // the answers are on their way: the other end slept with us
		p.answers = append(late, p.answers...)
		p.look(every)
		if !p.Up {
			t.Fatal("down because of a pause of its own")
		}
	}
}

// Whatever happens, what is kept is bounded, and nothing is up without an answer.
func TestPulseIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlay()
		share := rapid.IntRange(0, 10).Draw(t, "share")
		p.answering = func(int) bool { return rapid.IntRange(0, 10).Draw(t, "answer") < share }
		for range rapid.IntRange(1, 100).Draw(t, "looks") {
			p.busy = rapid.Bool().Draw(t, "busy")
			if rapid.IntRange(0, 20).Draw(t, "fall") == 0 {
				p.Fall(p.now)
			}
			p.look(time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond)
			if len(p.pending) > maxPending || p.Loss < 0 || p.Loss > 1 || p.RTT < 0 {
				t.Fatalf("%+v", p.Pulse)
			}
			if share == 0 && p.Up {
				t.Fatal("up without an answer")
			}
		}
	})
}
