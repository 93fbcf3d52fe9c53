// Package pulse decides whether a tunnel works, and how large its packets may be, by echo requests that are sent through
// its device and answered by the machine at the other end: what pods experience is what is measured. It is a step machine
// without clock and socket.
//
//	down ── the full size is answered, or, after three tries, a smaller one that is allowed ──> up
//	up ── unanswered while packets flow, or nothing of an allowed size answered ──> down
//
// While packets flow it is asked every quarter of a second, each second time with the largest that they may be. When that is
// not answered all smaller sizes are asked together: a path that shrinks without a word is known within about a second.
//
// Unanswered is what several questions one after the other were. Where nothing comes from the peer at all, 0.7 s of that are
// enough, so that a connection's third retransmission, after 1.4 s, finds another way; where something does, the other end
// lives and may be late: 1.5 s. Time counts as far as this end looked: one that comes late to its own looks, as on a machine
// with too much to do, has not waited.
//
// In a large cluster a tunnel rests: after a while without traffic nothing is asked any more, until packets flow again.
//
// Sending and receiving, and what to do about a tunnel that is down, are left to the transports.
package pulse

import (
	"cmp"
	"slices"
	"time"

	"weft/router"
	"weft/router/host"
)

const (
	patience   = 1500 * time.Millisecond // an echo of a tunnel in use is given up after it
	silence    = 700 * time.Millisecond  // the same where nothing at all comes from the peer
	flowEvery  = 230 * time.Millisecond  // between echoes of a tunnel in which packets flow
	busyEvery  = 450 * time.Millisecond  // of one that may be in use; and between large ones
	lateEvery  = 180 * time.Millisecond  // of one whose answer is missing
	idleEvery  = 5 * time.Second         // and of one that carries nothing
	tryFirst   = 500 * time.Millisecond  // between echoes of a tunnel that is down; doubles
	tryLast    = 15 * time.Second
	maxPending = 48              // echoes that wait for their answer
	inARow     = 3               // echoes that must be lost together, for an up tunnel to be down
	stall      = 1 * time.Second // a longer pause between looks is this machine's own, and blamed on no peer

	soon     = 250 * time.Millisecond // between looks at a tunnel in which packets flow
	atOnce   = 100 * time.Millisecond // and at one whose answer is missing, or comes in a moment
	slack    = 50 * time.Millisecond  // by which a look may be late, for all of the time before it to count
	underWay = 300 * time.Millisecond // what came so soon after a question may have left before what became of the path
)

// Pulse is what is known of one tunnel. The zero value is down and never tested. Fields are read by others, not written.
type Pulse struct {
	Up       bool
	Since    time.Time // of Up, or that it is looked at
	MTU      int       // largest size that was answered since it is up
	Answered time.Time
	RTT      time.Duration // smoothed; 0 when unknown
	Loss     float64       // 0 to 1, of recent echoes
	Asleep   bool          // it is up, and was not asked for long: the next packets tell whether it is

	rest    time.Duration // without traffic until it sleeps; 0: never
	moved   time.Time     // when there was traffic last, or it came up
	seq     uint16
	pending []waiting
	heard   time.Time // when the newest of those that were answered was sent
	looked  time.Time
	asked   time.Time     // when the newest echo was sent
	large   time.Time     // and the newest as large as packets may be, while they flow
	next    time.Time     // no echo before
	waited  time.Duration // for answers, as far as it was looked
	felt    time.Time     // when something came from the peer
	flows   bool          // packets flow
	pause   time.Duration
	sizes   sizes
	spent   int // bytes of the echoes sent since Spent was asked

	top, told int // what the tunnel may carry, and what Limit said last
}

// Allow says what the tunnel may carry, as the router has it. What the router only repeats of Limit counts for nothing.
func (p *Pulse) Allow(mtu int) {
	if mtu != p.told {
		p.top = mtu
	}
}

// Rest says after what time without traffic the tunnel is asked no more; 0: never. Who is awake asks at once.
func (p *Pulse) Rest(after time.Duration) { p.rest = after }

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

// Narrow reports whether the tunnel is down because the other end answers to small packets only.
func (p *Pulse) Narrow() bool { return !p.Up && p.sizes.narrow }

// Echo is one to be sent.
type Echo struct {
	Seq  uint16
	Size int // bytes, IP header included
}

// waiting is an echo on its way.
type waiting struct {
	Echo
	sent  time.Time
	until time.Time // overdue from then on
	bold  bool      // of a size that is not known to pass: its loss means nothing
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
	p.waited += min(now.Sub(p.looked), cmp.Or(p.Again(), soon)+slack)
	p.looked = now
	for _, a := range answers {
		p.answer(now, a, full)
	}
	if p.silent() == 0 {
		p.waited = 0
	}
	p.settle(now)
	p.giveUp(now)
}

func (p *Pulse) answer(now time.Time, a host.Echo, full int) {
	i := slices.IndexFunc(p.pending, func(w waiting) bool { return w.Seq == a.Seq })
	if i < 0 {
		return
	}
	w := p.pending[i]
	p.pending = slices.Delete(p.pending, i, i+1)
	p.Answered, p.Asleep = now, false
	if w.sent.After(p.heard) {
		p.heard, p.waited = w.sent, 0
	}
	rtt := took(w.sent, a.At, now)
	if p.RTT == 0 {
		p.RTT = rtt
	}
	p.RTT += (rtt - p.RTT) / 8
	if !w.bold {
		p.Loss *= 0.9
	}
	p.passed(now, w.sent.Add(rtt), w, full)
}

// took is how long an answer was on its way. The kernel's stamp is of the wall clock, which jumps; where that says what
// cannot be, the time until now is all that is known.
func took(sent, stamp, now time.Time) time.Duration {
	most := max(now.Sub(sent), time.Microsecond)
	if rtt := stamp.Sub(sent); rtt >= 0 && rtt <= most {
		return max(rtt, time.Microsecond)
	}
	return most
}

// Felt tells that something came through the tunnel from the peer since the last look, whatever it was.
func (p *Pulse) Felt(now time.Time) { p.felt = now }

// giveUp forgets echoes that are overdue. A tunnel is down when the newest that were sent are, and several of them: one
// that is lost says little.
func (p *Pulse) giveUp(now time.Time) {
	if p.Up && (p.mute() || p.silent() >= inARow && slices.ContainsFunc(p.pending, func(w waiting) bool {
		return p.unheard(w) && !now.Before(w.until)
	})) {
		p.Fall(now)
		return
	}
	p.pending = slices.DeleteFunc(p.pending, func(w waiting) bool {
		if now.Before(w.until) || p.Up && p.unheard(w) {
			return false
		}
		if !w.bold {
			p.Loss += (1 - p.Loss) * 0.1
		}
		return true
	})
}

// mute reports whether nothing at all comes from the peer: no answer to what was asked again and again, nor anything else.
func (p *Pulse) mute() bool {
	first := slices.IndexFunc(p.pending, p.unheard)
	return first >= 0 && p.waited >= max(silence, 3*p.RTT) &&
		p.felt.Sub(p.pending[first].sent) <= underWay
}

// late reports whether an answer is missing.
func (p *Pulse) late(now time.Time) bool {
	return slices.ContainsFunc(p.pending, func(w waiting) bool { return p.unheard(w) && now.Sub(w.sent) >= p.missed() })
}

// unheard reports whether an echo should have been answered, and nothing was since it was sent.
func (p *Pulse) unheard(w waiting) bool { return !w.bold && w.sent.After(p.heard) }

// silent counts those.
func (p *Pulse) silent() (n int) {
	for _, w := range p.pending {
		if p.unheard(w) {
			n++
		}
	}
	return n
}

// rise makes the tunnel up for packets of that size.
func (p *Pulse) rise(now time.Time, size int) {
	p.Up, p.Since, p.pause, p.MTU, p.sizes = true, now, 0, size, sizes{}
	p.moved = now
}

// Fall makes the tunnel down, for reasons of its transport.
func (p *Pulse) Fall(now time.Time) {
	p.sizes.open = false
	if p.Up {
		p.Since, p.next, p.sizes = now, now, sizes{}
	}
	for _, w := range p.pending {
		if !w.bold {
			p.Loss += (1 - p.Loss) * 0.1
		}
	}
	p.pending = p.pending[:0]
	p.Up, p.Asleep, p.pause, p.MTU = false, false, 0, 0
}

// Hurry lets the next echo go at once.
func (p *Pulse) Hurry() { p.pause, p.next = 0, time.Time{} }

// Again is how soon it should be looked at again, after Look and Next; 0: when there is time.
func (p *Pulse) Again() time.Duration {
	switch {
	case p.sizes.open && (p.Up || !p.sizes.at.IsZero()), p.Up && !p.Asleep && p.late(p.looked):
		return atOnce
	case p.Up && p.flows:
		return soon
	}
	return 0
}

// Next decides over the next echoes: none most of the time, all sizes at once where it is in doubt which pass.
func (p *Pulse) Next(now time.Time, t Traffic, full int) []Echo {
	if len(p.pending) > maxPending-len(common)-3 {
		return nil
	}
	if p.sleeps(now, t) {
		return nil
	}
	p.flows = t == Flows
	every := busyEvery
	switch {
	case p.late(now):
		every = lateEvery
	case p.flows:
		every = flowEvery
	}
	hurry := p.Up && (t != Quiet || p.silent() > 0 || p.sizes.round > 0)
	hurry = hurry && now.Sub(p.asked) >= every || p.urgent(now)
	if now.Before(p.next) && !hurry {
		return nil
	}
	p.asked = now
	first := len(p.pending)
	if p.Up {
		p.next = now.Add(idleEvery)
		p.ask(now, t, full)
	} else {
		p.pause = min(max(2*p.pause, tryFirst), tryLast)
		p.next = now.Add(p.pause)
		p.try(now, full)
	}
	var out []Echo
	for _, w := range p.pending[first:] {
		out = append(out, w.Echo)
	}
	return out
}

// sleeps decides whether the tunnel is left alone. One that waits for an answer is not.
func (p *Pulse) sleeps(now time.Time, t Traffic) bool {
	if t != Quiet {
		p.moved = now
	}
	if !p.Up || p.rest == 0 {
		if p.Asleep {
			p.Asleep, p.next = false, now
		}
		return false
	}
	if now.Sub(p.moved) < p.rest || p.silent() > 0 || p.sizes.round > 0 {
		return false
	}
	p.Asleep = true
	return true
}

// send notes an echo.
func (p *Pulse) send(now time.Time, size int, bold bool) {
	p.seq++
	p.spent += size + overhead
	p.pending = append(p.pending, waiting{Echo{p.seq, size}, now, now.Add(patience), bold})
}
