package pulse

import (
	"time"

	"weft/router"
	"weft/router/host"
)

const (
	fullTries  = 3                      // times that the full size is lost before smaller ones are asked, too
	burstEvery = 4                      // tries of a tunnel that is down, of which one asks all sizes
	raiseEvery = 8 * time.Second        // while packets flow in a tunnel of less than full size: larger ones are asked
	slowest    = 500 * time.Millisecond // bounds of the time after which an answer is missed
	quickest   = 200 * time.Millisecond
	straggle   = 60 * time.Millisecond // between answers to what was sent together, at least
	confirm    = 2                     // times that nothing but the smallest echo passes, before that is believed
)

// common are sizes that are worth asking: usual underlays less what transports add. The smallest that is allowed is last.
var common = [...]int{8920, 4272, 1420, 1412, 1400, 1380, 1340, 1300, router.MinMTU}

// sizes is the search for the largest size that passes. When the one in use is not answered, it is asked again together
// with all smaller ones: that they are answered and it is not shows that it is too large, where silence would show no more
// than a path, or a machine, that is slow just now.
//
//	   ┌─────────────────── it is answered ────────────────────┐
//	   v                                                       │
//	settled ── one asked ──> 1 ── no answer ──> 2, all asked ──┴── only smaller ones answered ──> settled, or down
type sizes struct {
	round  int       // 0: settled; 1: the one in use was asked; more: all were, so many times less one
	burst  time.Time // when all were asked the last time
	open   bool      // and what comes now answers that
	found  int       // the largest below the one in doubt that was answered
	at     time.Time // when the first smaller one was
	none   int       // rounds in which no size that is allowed was
	raised time.Time // when larger ones than the one in use were asked

	tries  int // of a tunnel that is down
	narrow bool
}

// urgent reports whether there is something to ask before its time: an answer is missing, or a round settled nothing.
func (p *Pulse) urgent(now time.Time) bool {
	s := &p.sizes
	return s.round == 1 && now.Sub(p.asked) >= p.missed() || s.round > 1 && !s.open && p.alive()
}

// missed is how long an answer may take.
func (p *Pulse) missed() time.Duration {
	if p.RTT == 0 {
		return slowest
	}
	return max(min(max(3*p.RTT, quickest), slowest), 3*p.RTT/2)
}

// alive reports whether the other end answered since all sizes were asked.
func (p *Pulse) alive() bool { return !p.heard.Before(p.sizes.burst) }

// ask sends the next question to a tunnel that is up.
func (p *Pulse) ask(now time.Time, t Traffic, full int) {
	s := &p.sizes
	use := min(p.MTU, full)
	switch {
	case s.round == 0 && (t != Flows || now.Sub(p.large) < busyEvery):
		if p.silent() > 0 {
			p.send(now, host.MinEcho, false) // one of two is answered sooner than one
		}
		p.send(now, host.MinEcho, false)
		if p.MTU < full && t == Quiet {
			p.send(now, full, true) // it may have grown
		}
	case s.round == 0:
		s.round, p.large = 1, now
		p.send(now, use, false)
		if p.MTU < full && now.Sub(s.raised) >= raiseEvery {
			s.raised = now
			p.send(now, full, true)
			p.between(now, p.MTU, full)
		}
	case s.round == 1 || !s.open && p.alive():
		s.round++
		s.burst, s.open, s.found, s.at = now, true, 0, time.Time{}
		p.send(now, use, true)
		p.between(now, 0, use)
		p.send(now, host.MinEcho, false)
		p.send(now, use, true) // as the last, too: what drops bursts drops their ends
	default: // nothing is heard at all
		p.send(now, host.MinEcho, false)
		p.send(now, use, true)
	}
}

// try sends the next question to a tunnel that is down.
func (p *Pulse) try(now time.Time, full int) {
	s := &p.sizes
	s.tries++
	s.open, s.found, s.at = false, 0, time.Time{}
	p.send(now, full, false)
	if n := s.tries - 1 - fullTries; n >= 0 && n%burstEvery == 0 {
		s.burst, s.open = now, true
		p.between(now, 0, full)
		p.send(now, host.MinEcho, true)
		p.send(now, full, true)
	}
}

// between asks the common sizes that are larger than one and smaller than another.
func (p *Pulse) between(now time.Time, one, another int) {
	for _, size := range common {
		if one < size && size < another {
			p.send(now, size, true)
		}
	}
}

// passed takes an answer in, which the kernel got at some time.
func (p *Pulse) passed(now, at time.Time, w waiting, full int) {
	s := &p.sizes
	switch {
	case !p.Up && w.Size >= full:
		p.rise(now, w.Size)
	case p.Up && w.Size >= min(p.MTU, full):
		p.MTU = max(p.MTU, w.Size)
		p.sizes = sizes{raised: s.raised}
	case s.open && !w.sent.Before(s.burst):
		if s.at.IsZero() {
			s.at = at
		}
		if w.Size >= router.MinMTU {
			s.found = max(s.found, w.Size)
		}
	}
}

// settle ends a round in which smaller sizes were answered, and the one in doubt was not, once its answer cannot be
// behind theirs any more.
func (p *Pulse) settle(now time.Time) {
	s := &p.sizes
	switch {
	case !s.open:
		return
	case s.at.IsZero():
		if now.Sub(s.burst) >= patience {
			s.open, s.narrow = false, false
		}
		return
	case now.Sub(s.at) < max(straggle, p.RTT/2):
		return
	}
	s.open = false
	switch {
	case !p.Up && s.found > 0:
		p.rise(now, s.found)
	case !p.Up:
		s.narrow = true
	case s.found > 0:
		p.shrink(now, s.found)
	default:
		if s.none++; s.none >= confirm {
			p.Fall(now)
			p.sizes = sizes{narrow: true, tries: fullTries}
		}
	}
}

// shrink believes a smaller size to be the largest that passes. The loss of larger ones means nothing then.
func (p *Pulse) shrink(now time.Time, size int) {
	p.MTU = size
	p.sizes = sizes{raised: now}
	for i := range p.pending {
		p.pending[i].bold = p.pending[i].bold || p.pending[i].Size > size
	}
}
