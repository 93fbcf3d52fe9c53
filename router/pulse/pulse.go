// Package pulse decides whether a tunnel works, by echo requests that are sent through its device and answered by the
// machine at the other end: what pods experience is what is measured. It is a step machine without clock and socket.
//
//	down ── a full-size echo answered ──> up ── 1.5 s unanswered while packets flow ──> down
//
// Until one was answered echoes are as large as the tunnel takes, later small ones do. A tunnel in which full-size echoes
// are lost again and again is tried with the smallest MTU that is allowed, and with the full one again once it is up. While
// packets flow every second echo is as large as they may be: a path that shrinks without a word swallows those only.
//
// Sending and receiving, and what to do about a tunnel that is down, are left to the transports.
package pulse

import (
	"slices"
	"time"

	"weft/router"
	"weft/router/host"
)

const (
	patience   = 1500 * time.Millisecond // an echo of a tunnel in use is given up after it
	idleEvery  = 5 * time.Second         // between echoes of a tunnel that carries nothing
	tryFirst   = 500 * time.Millisecond  // between echoes of a tunnel that is down; doubles
	tryLast    = 15 * time.Second
	fullTries  = 4               // echoes of full size that are lost, before a smaller one is tried
	bigTries   = 3               // the same of an up tunnel, whose small ones are answered
	growEvery  = 16              // echoes of a busy tunnel of less than full size, one of which is larger than what passes
	maxPending = 8               // echoes that wait for their answer
	inARow     = 3               // echoes that must be lost together, for an up tunnel to be down
	stall      = 1 * time.Second // a longer pause between looks is this machine's own, and blamed on no peer
)

// Busy is what must have moved through a tunnel between two looks, in bytes, for it to count as in use; echoes and their
// answers are less.
const Busy = 512

// Pulse is what is known of one tunnel. The zero value is down and never tested. Fields are read by others, not written.
type Pulse struct {
	Up       bool
	Since    time.Time // of Up, or that it is looked at
	MTU      int       // largest size that was answered since it is up
	Answered time.Time
	RTT      time.Duration // smoothed; 0 when unknown
	Loss     float64       // 0 to 1, of recent echoes

	seq     uint16
	pending []waiting
	looked  time.Time
	next    time.Time // no echo before
	pause   time.Duration
	lost    int // echoes of full size in a row
	bigLost int // while it is up: echoes of what packets may have, in a row

	top, told int // what the tunnel may carry, and what Limit said last
}

// Allow says what the tunnel may carry, as the router has it. What the router only repeats of Limit counts for nothing.
func (p *Pulse) Allow(mtu int) {
	if mtu != p.told {
		p.top = mtu
	}
}

// Full is how large an echo must be to fill the tunnel, on a device of some MTU; 0: not known.
func (p *Pulse) Full(device int) int {
	if device > 0 {
		return min(p.top, device)
	}
	return p.top
}

// Limit is the largest packet that passes, where that is less than the tunnel may carry; else 0.
func (p *Pulse) Limit() int {
	p.told = 0
	if p.Up && p.MTU >= router.MinMTU && p.MTU < p.top {
		p.told = p.MTU
	}
	return p.told
}

// Echo is one to be sent; Size 0: none.
type Echo struct {
	Seq  uint16
	Size int // bytes, IP header included
}

// waiting is an echo on its way.
type waiting struct {
	Echo
	sent  time.Time
	until time.Time // overdue from then on
	bold  bool      // larger than what is known to pass: its loss means nothing
}

// Look takes the answers of this peer that have come since the last look.
func (p *Pulse) Look(now time.Time, answers []host.Echo, full int) {
	if p.Since.IsZero() {
		p.Since = now
	}
	if late := now.Sub(p.looked) - stall; !p.looked.IsZero() && late > 0 {
		for i := range p.pending {
			p.pending[i].until = p.pending[i].until.Add(late)
		}
	}
	p.looked = now
	for _, a := range answers {
		p.answer(now, a, full)
	}
	p.pending = slices.DeleteFunc(p.pending, func(w waiting) bool { return w.bold && !now.Before(w.until) })
	if len(p.pending) == 0 || now.Before(p.pending[0].until) {
		return
	}
	switch {
	case !p.Up:
		if p.pending[0].Size >= full {
			p.lost++
		}
		p.drop(1)
	case len(p.pending) >= inARow: // one that is lost says little
		p.Fall(now)
	}
}

func (p *Pulse) answer(now time.Time, a host.Echo, full int) {
	i := slices.IndexFunc(p.pending, func(w waiting) bool { return w.Seq == a.Seq })
	if i < 0 {
		return
	}
	w := p.pending[i]
	p.Answered = now
	rtt := max(a.At.Sub(w.sent), time.Microsecond)
	if p.RTT == 0 {
		p.RTT = rtt
	}
	p.RTT += (rtt - p.RTT) / 8
	p.Loss *= 0.9
	if w.Size >= p.MTU {
		p.MTU, p.bigLost = w.Size, 0
	}
	// A size below the full one counts only where the full one was lost again and again.
	if !p.Up && (w.Size >= full || p.lost >= fullTries) {
		p.Up, p.Since, p.pause, p.MTU = true, now, 0, w.Size
	}
	p.pending = append(p.pending[:i:i], p.pending[i+1:]...)
	if i > 0 { // older ones that are not answered by now are lost
		p.drop(i)
	}
	if p.Up && p.bigLost >= bigTries {
		p.shrink(now)
	}
}

// drop gives the oldest n up.
func (p *Pulse) drop(n int) {
	for _, w := range p.pending[:n] {
		if !w.bold && w.Size >= p.MTU {
			p.bigLost++
		}
		p.Loss += (1 - p.Loss) * 0.1
	}
	p.pending = p.pending[n:]
}

// shrink believes the smallest size to pass, and gives up when that was it already.
func (p *Pulse) shrink(now time.Time) {
	p.bigLost = 0
	if p.MTU <= router.MinMTU {
		p.Fall(now)
		return
	}
	p.MTU = router.MinMTU
}

// Fall makes the tunnel down, for reasons of its transport.
func (p *Pulse) Fall(now time.Time) {
	if p.Up {
		p.Since = now
	}
	p.drop(len(p.pending))
	p.Up, p.pause, p.lost, p.bigLost, p.MTU = false, 0, 0, 0, 0
}

// Hurry lets the next echo go at once.
func (p *Pulse) Hurry() { p.pause, p.next = 0, time.Time{} }

// Next decides over the next echo. busy says whether packets flow.
func (p *Pulse) Next(now time.Time, busy bool, full int) Echo {
	hurry := p.Up && (busy || slices.ContainsFunc(p.pending, func(w waiting) bool { return !w.bold }))
	if !hurry && now.Before(p.next) || len(p.pending) >= maxPending {
		return Echo{}
	}
	size := host.MinEcho
	if p.Up {
		p.next = now.Add(idleEvery)
		switch {
		case p.MTU < full && (!busy || p.seq%growEvery == 0):
			size = full // it may have grown
		case busy && p.seq%2 == 0:
			size = min(p.MTU, full)
		}
	} else {
		p.pause = min(max(2*p.pause, tryFirst), tryLast)
		p.next = now.Add(p.pause)
		size = full
		if p.lost >= fullTries && (p.lost-fullTries)%2 == 0 {
			size = router.MinMTU
		}
	}
	p.seq++
	e := Echo{p.seq, size}
	p.pending = append(p.pending, waiting{e, now, now.Add(patience), p.Up && size > p.MTU})
	return e
}
