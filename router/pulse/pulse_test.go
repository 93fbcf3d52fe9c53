package pulse

import (
	"cmp"
	"slices"
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
	busy      Traffic
	rtt       time.Duration
	answering func(size int) bool
	answers   []host.Echo // on their way, or there
	sent      []Echo
}

func newPlay() *play {
	return &play{now: time.Unix(1000, 0), rtt: 3 * time.Millisecond, answering: func(int) bool { return true }}
}

func (p *play) look(after time.Duration) {
	p.now = p.now.Add(after)
	var there []host.Echo
	p.answers = slices.DeleteFunc(p.answers, func(a host.Echo) bool {
		if a.At.After(p.now) {
			return false
		}
		there = append(there, a)
		return true
	})
	p.Look(p.now, there, full)
	for _, e := range p.Next(p.now, p.busy, full) {
		p.sent = append(p.sent, e)
		if p.answering(e.Size) {
			p.answers = append(p.answers, host.Echo{Seq: e.Seq, At: p.now.Add(p.rtt)})
		}
	}
}

// soon is a look as soon as the pulse wants it.
func (p *play) soon() {
	p.look(cmp.Or(p.Again(), every))
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
	p.busy = Flows
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

// A path that shrinks without a word while packets flow: what still passes is known within 1.3 s, the tunnel stays up.
func TestAPathThatShrinksIsKnownWithinASecond(t *testing.T) {
	for _, path := range []int{1412, 1405, 1350, 1310, router.MinMTU} {
		p := newPlay()
		p.Allow(full)
		p.busy = Flows
		p.run(5 * time.Second)
		if !p.Up || p.Limit() != 0 {
			t.Fatalf("not up in full: %+v", p.Pulse)
		}
		passes := 0
		for _, size := range common {
			if size <= path {
				passes = max(passes, size)
			}
		}
		p.answering = func(size int) bool { return size <= path }
		shrunk := p.now
		for p.Limit() != passes {
			p.soon()
			if took := p.now.Sub(shrunk); took > 1300*time.Millisecond || !p.Up {
				t.Fatalf("a path of %d after %s: %+v", path, took, p.Pulse)
			}
		}
		p.Allow(passes) // the router says what it heard
		before := p.Loss
		p.run(5 * time.Second)
		if !p.Up || p.Limit() != passes || p.Full(0) != full || p.Loss > before {
			t.Fatalf("a path of %d: it does not stay: %+v", path, p.Pulse)
		}
		p.answering = func(int) bool { return true }
		p.run(10 * time.Second)
		if p.Limit() != 0 {
			t.Errorf("a path that grew under traffic is not noticed: %+v", p.Pulse)
		}
	}
}

// A path that takes less than what is allowed makes the tunnel down, within two seconds, and says so; it is up again once
// the path is.
func TestAPathTooSmallMakesTheTunnelDown(t *testing.T) {
	p := newPlay()
	p.Allow(full)
	p.busy = Flows
	p.run(5 * time.Second)
	p.answering = func(size int) bool { return size < router.MinMTU }
	shrunk := p.now
	for p.Up {
		p.soon()
	}
	if took := p.now.Sub(shrunk); took > 1600*time.Millisecond || !p.Narrow() {
		t.Errorf("down after %s, narrow: %v", took, p.Narrow())
	}
	p.run(time.Minute)
	if p.Up || !p.Narrow() {
		t.Errorf("up again by small packets, or without a word: %+v", p.Pulse)
	}
	p.answering = func(int) bool { return true }
	p.run(15 * time.Second)
	if !p.Up || p.MTU != full || p.Narrow() {
		t.Errorf("it does not come back: %+v", p.Pulse)
	}
	p.answering = func(int) bool { return false }
	p.run(5 * time.Second)
	if p.Up || p.Narrow() {
		t.Errorf("silence is taken for a path that is too small: %+v", p.Pulse)
	}
}

// Echoes that are lost by chance, a tenth of them, take nothing from a tunnel for longer than until larger sizes are asked.
func TestLossIsNotTakenForASmallPath(t *testing.T) {
	p := newPlay()
	p.Allow(full)
	p.busy = Flows
	p.run(5 * time.Second)
	n := 0
	p.answering = func(int) bool { n++; return n%10 != 0 }
	small := 0
	for range 2000 {
		p.soon()
		if !p.Up {
			t.Fatal("down by a tenth of loss")
		}
		if p.Limit() != 0 {
			small++
		}
	}
	if small > 0 {
		t.Errorf("of 2,000 looks at a path with loss %d found it small", small)
	}
}

// A tunnel that may rest is asked nothing once it was quiet for long, is awake with the first packets, and down as soon as
// any other when nobody answers those.
func TestATunnelRestsUntilPacketsFlow(t *testing.T) {
	const rest = time.Minute
	p := newPlay()
	p.Allow(full)
	p.Rest(rest)
	p.busy = Flows
	p.run(10 * time.Second)
	p.busy = Quiet
	p.run(rest - 5*time.Second)
	if p.Asleep {
		t.Fatal("asleep too early")
	}
	p.run(10 * time.Second)
	p.sent = nil
	p.run(time.Hour)
	if !p.Asleep || !p.Up || len(p.sent) > 0 {
		t.Fatalf("%d echoes in an hour of rest: %+v", len(p.sent), p.Pulse)
	}
	p.busy = Flows
	p.look(every)
	if len(p.sent) != 1 || !p.Asleep {
		t.Fatalf("packets flow: %v, %+v", p.sent, p.Pulse)
	}
	p.look(every)
	if p.Asleep || !p.Up {
		t.Fatalf("it was answered: %+v", p.Pulse)
	}
	p.busy = Quiet
	p.run(time.Hour)
	p.answering, p.busy = func(int) bool { return false }, Flows
	woken := p.now
	for p.Up {
		p.soon()
	}
	if took := p.now.Sub(woken); took > 2500*time.Millisecond || p.Asleep {
		t.Errorf("down after %s: %+v", took, p.Pulse)
	}
	p.answering = func(int) bool { return true }
	p.run(20 * time.Second)
	p.busy = Quiet
	p.run(time.Hour)
	if !p.Asleep {
		t.Fatal("not asleep")
	}
	p.Rest(0) // the cluster is small again
	p.run(time.Second)
	if p.Asleep {
		t.Error("asleep although it must not be")
	}
}

// A tunnel that dies while packets flow is down within a second, soon enough for a connection's third retransmission; where
// the other end is still heard by other packets it is borne for longer. The path is as long as it is.
func TestSilenceWhilePacketsFlow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlay()
		p.busy = Flows
		p.rtt = time.Duration(rapid.SampledFrom([]int{0, 3, 30, 150, 400}).Draw(t, "rtt")) * time.Millisecond
		for range rapid.IntRange(20, 30).Draw(t, "looks") {
			p.soon()
		}
		if !p.Up {
			t.Fatalf("not up: %+v", p.Pulse)
		}
		heard := rapid.Bool().Draw(t, "heard otherwise")
		p.answering = func(int) bool { return false }
		for died := p.now; p.Up; { // the worst moment: an answer is just on its way
			if heard {
				p.Felt(p.now)
			}
			p.soon()
			took, least, most := p.now.Sub(died), max(silence, 3*p.rtt), time.Second+3*p.rtt
			if heard {
				least, most = patience, 2100*time.Millisecond
			}
			if !p.Up && took < least || took > most {
				t.Fatalf("down %v after %s, want %s to %s", !p.Up, took, least, most)
			}
		}
	})
}

// A machine with too much to do looks late and hears late: it blames no peer for it.
func TestLateLooksAreNoSilence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlay()
		p.busy = Flows
		for range 20 {
			p.run(5 * time.Second)
			p.answering = func(int) bool { return false }
			for began := p.now; ; { // it is busy for longer than silence is borne
				p.look(time.Duration(rapid.IntRange(390, 900).Draw(t, "look")) * time.Millisecond)
				if p.now.Sub(began) > 1650*time.Millisecond {
					break
				}
				if !p.Up {
					t.Fatalf("down after %s: %+v", p.now.Sub(began), p.Pulse)
				}
			}
			p.answering = func(int) bool { return true }
		}
	})
}

// Answers that come late, one after the other, come.
func TestDelayIsNoSilence(t *testing.T) {
	p := newPlay()
	p.busy = Flows
	for range 20 {
		p.soon()
	}
	for p.rtt = 0; p.rtt < 650*time.Millisecond; p.rtt += 50 * time.Millisecond { // queues on the path fill
		p.soon()
	}
	for range 200 {
		if p.soon(); !p.Up {
			t.Fatalf("down: %+v", p.Pulse)
		}
	}
}

// While packets flow a tunnel is asked with no more than a small packet each quarter of a second, and a large one each half;
// a quiet one no more than before.
func TestQuestionsAreFew(t *testing.T) {
	p := newPlay()
	p.Allow(full)
	count := func(d time.Duration) (small, large int) {
		p.sent = nil
		for end := p.now.Add(d); p.now.Before(end); {
			p.soon()
		}
		for _, e := range p.sent {
			if e.Size >= full {
				large++
			} else {
				small++
			}
		}
		return small, large
	}
	p.run(5 * time.Second)
	p.busy = Flows
	count(5 * time.Second)
	if small, large := count(time.Minute); small+large > 240 || large > 120 || large < 110 || small < 110 {
		t.Errorf("in a busy minute %d small and %d large questions", small, large)
	}
	p.busy = Quiet
	count(5 * time.Second)
	if small, large := count(time.Minute); small > 12 || large > 0 {
		t.Errorf("in a quiet minute %d small and %d large questions", small, large)
	}
}

// Two ends that hear nothing but each other's echoes fall silent.
func TestEchoesAreNoTraffic(t *testing.T) {
	var m Meter
	p := newPlay()
	p.run(5 * time.Second)
	now, bytes := p.now, uint64(0)
	read := func(more int) Traffic {
		now, bytes = now.Add(every), bytes+uint64(more)
		return m.Read(now, bytes, p.Spent())
	}
	p.Spent()
	read(0)
	if got := read(100 << 10); got != Flows {
		t.Fatalf("100 KiB: %d", got)
	}
	p.busy = Flows
	p.look(every)
	if got := read(4*full + 400); got != Perhaps { // one echo there and back, and one of the other end
		t.Errorf("echoes of both: %d", got)
	}
	if got := read(2 * full); got != Perhaps { // the other end's, which still thinks that packets flow
		t.Errorf("the other end's echo: %d", got)
	}
	if got := read(300); got != Quiet {
		t.Errorf("small echoes: %d", got)
	}
	if bytes = 0; read(0) != Quiet {
		t.Error("a counter that went back is traffic")
	}
}

// Who slept himself, as a starved or suspended machine does, does not blame the peer for what he did not hear meanwhile.
func TestOwnSleepIsNoSilenceOfThePeer(t *testing.T) {
	p := newPlay()
	p.busy = Flows
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
			p.busy = Traffic(rapid.IntRange(0, 2).Draw(t, "busy"))
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
