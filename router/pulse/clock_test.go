package pulse

import (
	"testing"
	"time"

	"weft/router/host"
)

// The kernel's stamps are of the wall clock, which jumps: when the time is set after a boot without a battery, or after a
// virtual machine was stopped. What is measured must not.
func TestAJumpOfTheClockIsNoDelay(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": time.Hour, "back": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			p := newPlay()
			p.run(3 * time.Second)
			if !p.Up {
				t.Fatal("not up")
			}
			p.busy = Flows
			p.soon()
			for range 4 { // answers that were stamped after the jump; the looks go by a clock that does not jump
				for i := range p.answers {
					p.answers[i].At = p.answers[i].At.Add(jump)
				}
				p.now = p.now.Add(every)
				p.Look(p.now, p.answers, full)
				p.answers = nil
				for _, e := range p.Next(p.now, p.busy, full) {
					p.answers = append(p.answers, host.Echo{Seq: e.Seq, At: p.now.Add(p.rtt)})
				}
			}
			if p.RTT > every {
				t.Errorf("a round trip takes %v; an answer has come within %v always", p.RTT, every)
			}
			if d := p.missed(); d > slowest {
				t.Errorf("an answer is missed after %v", d)
			}
		})
	}
}

// A path shrinks in the same moment in which the clock is set back.
func TestASearchEndsThoughTheClockIsSetBack(t *testing.T) {
	p := newPlay()
	p.run(3 * time.Second)
	p.busy = Flows
	p.answering = func(size int) bool { return size <= 1300 }
	for range 100 {
		p.now = p.now.Add(100 * time.Millisecond)
		var there []host.Echo
		for _, a := range p.answers {
			a.At = a.At.Add(time.Hour) // as the clock showed before it was set back
			there = append(there, a)
		}
		p.Look(p.now, there, full)
		p.answers = nil
		for _, e := range p.Next(p.now, p.busy, full) {
			if p.answering(e.Size) {
				p.answers = append(p.answers, host.Echo{Seq: e.Seq, At: p.now.Add(p.rtt)})
			}
		}
	}
	if !p.Up || p.MTU != 1300 {
		t.Errorf("after ten seconds: up %v, packets of %d bytes; want 1300", p.Up, p.MTU)
	}
}
