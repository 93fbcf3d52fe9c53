package wireguard

import (
	"slices"
	"time"

	"weft/router"
	"weft/router/host"
)

const (
	patience   = 1500 * time.Millisecond // an echo of a tunnel in use is given up after it
	idleEvery  = 5 * time.Second         // between echoes of a tunnel that carries nothing
	tryFirst   = time.Second             // between echoes of a tunnel that is down; doubles
	tryLast    = 15 * time.Second
	busyBytes  = 512 // what a look must find moved, for the tunnel to count as in use; our echoes are less
	fullTries  = 3   // echoes of full size that are lost, before a smaller one is tried
	maxPending = 8   // echoes that wait for their answer
	inARow     = 3   // echoes that must be lost together, for an up tunnel to be down

	// handshakeLife is how old a session's handshake gets while all is well: WireGuard renews after 120 s.
	handshakeLife = 140 * time.Second
	mendFirst     = 15 * time.Second // three handshakes that fail; doubles
	mendLast      = 10 * time.Minute
)

// earlyAt is when a peer that never answered is added anew: its end had perhaps not been told of us when our first
// handshake arrived, and WireGuard itself would wait 5 s before the next.
var earlyAt = [...]time.Duration{1500 * time.Millisecond, 3 * time.Second}

// health is what is known of one tunnel. It is a step machine without clock and socket; it is drawn in the package
// comment.
//
//	down <-> up
type health struct {
	up       bool
	since    time.Time // of up, or that it is watched
	seq      uint16
	pending  []probe
	next     time.Time // no echo before
	wait     time.Duration
	lost     int // echoes of full size in a row
	mtu      int // largest size that was answered
	answered time.Time
	rtt      time.Duration
	loss     float64

	handshake time.Time // as the device tells it
	shaken    time.Time // when that value was first seen
	received  uint64
	sent      uint64
	seen      time.Time // when received changed

	mended   time.Time // or the first look
	mendWait time.Duration
	mends    int
	early    int // how often it was added anew before its first handshake
}

// probe is an echo on its way.
type probe struct {
	seq  uint16
	size int
	at   time.Time
	bold bool // larger than what is known to pass: its loss means nothing
}

// look is what one look at the device and the socket found.
type look struct {
	peer      Peer
	known     bool        // the device has the peer
	answers   []host.Echo // from this peer
	full      int         // size of a packet that fills the tunnel
	testable  bool        // both ends have an address to test with
	reachable bool        // the peer's daemon is reached otherwise
}

// remedy is what to do to a tunnel that does not come up.
type remedy uint8

const (
	nothing remedy = iota
	otherSecret
	addAnew
	again // addAnew, as a matter of course
)

// step takes a look and says which echo to send (size 0: none), and what would help.
func (h *health) step(now time.Time, l look) (send probe, help remedy) {
	if h.since.IsZero() {
		h.since, h.mended = now, now
	}
	busy := h.count(now, l.peer)
	for _, a := range l.answers {
		h.answer(now, a, l.full)
	}
	h.pending = slices.DeleteFunc(h.pending, func(p probe) bool { return p.bold && now.Sub(p.at) >= patience })
	overdue := len(h.pending) > 0 && now.Sub(h.pending[0].at) >= patience
	if h.up && len(h.pending) < inARow { // one that is lost says little
		overdue = false
	}
	switch {
	case !l.known || !l.testable:
		h.fall(now)
		return probe{}, h.mend(now, l)
	case h.up && overdue:
		h.fall(now)
	case !h.up && overdue:
		if h.pending[0].size >= l.full {
			h.lost++
		}
		h.drop(1)
	}
	return h.probe(now, busy, l.full), h.mend(now, l)
}

// count looks at what the device counted, and reports whether packets flow.
func (h *health) count(now time.Time, p Peer) (busy bool) {
	if p.Handshake != h.handshake {
		h.handshake, h.shaken = p.Handshake, now
		if age := now.Sub(p.Handshake); age > 0 && age < handshakeLife && !p.Handshake.IsZero() {
			h.shaken = now.Add(-age) // the wall clock is believed where it says something likely
		}
		h.mends, h.mendWait = 0, 0
		h.wait, h.next = 0, time.Time{} // a session is there: try it at once
	}
	if p.Received != h.received {
		h.seen = now
	}
	busy = p.Received-h.received > busyBytes || p.Sent-h.sent > busyBytes
	if p.Received < h.received || p.Sent < h.sent { // the peer was added anew
		busy = false
	}
	h.received, h.sent = p.Received, p.Sent
	return busy
}

// answer takes an echo's answer.
func (h *health) answer(now time.Time, a host.Echo, full int) {
	for i, p := range h.pending {
		if p.seq != a.Seq {
			continue
		}
		h.answered = now
		rtt := max(a.At.Sub(p.at), time.Microsecond)
		if h.rtt == 0 {
			h.rtt = rtt
		}
		h.rtt += (rtt - h.rtt) / 8
		h.loss *= 0.9
		h.mtu = max(h.mtu, p.size)
		// A size below the full one counts only where the full one was lost again and again.
		if !h.up && (p.size >= full || h.lost >= fullTries) {
			h.up, h.since, h.wait, h.mtu = true, now, 0, p.size
		}
		h.pending = append(h.pending[:i:i], h.pending[i+1:]...)
		if i > 0 { // older ones that are not answered by now are lost
			h.drop(i)
		}
		return
	}
}

// drop gives the oldest n up.
func (h *health) drop(n int) {
	h.pending = h.pending[n:]
	for range n {
		h.loss += (1 - h.loss) * 0.1
	}
}

func (h *health) fall(now time.Time) {
	if h.up {
		h.since, h.mended = now, now
	}
	h.up, h.wait, h.lost, h.mtu = false, 0, 0, 0
	h.drop(len(h.pending))
}

// probe decides over the next echo.
func (h *health) probe(now time.Time, busy bool, full int) probe {
	hurry := h.up && (busy || slices.ContainsFunc(h.pending, func(p probe) bool { return !p.bold }))
	if !hurry && now.Before(h.next) || len(h.pending) >= maxPending {
		return probe{}
	}
	size := host.MinEcho
	if h.up {
		h.next = now.Add(idleEvery)
		if h.mtu < full && !busy {
			size = full // it may have grown
		}
	} else {
		h.wait = min(max(2*h.wait, tryFirst), tryLast)
		h.next = now.Add(h.wait)
		size = full
		if h.lost >= fullTries && h.lost%2 == 1 {
			size = router.MinMTU
		}
	}
	h.seq++
	p := probe{h.seq, size, now, h.up && size > h.mtu}
	h.pending = append(h.pending, p)
	return p
}

// mend says what would help a tunnel whose handshakes fail although the peer is there.
func (h *health) mend(now time.Time, l look) remedy {
	limit := mendFirst
	if h.up {
		limit = handshakeLife
	}
	if h.mendWait == 0 {
		h.mendWait = mendFirst
	}
	if l.known && h.handshake.IsZero() && h.early < len(earlyAt) && now.Sub(h.since) >= earlyAt[h.early] {
		h.early++
		return again
	}
	if !l.known || !l.reachable || now.Sub(h.shaken) < limit || !h.up && now.Sub(h.answered) < limit || now.Sub(h.mended) < h.mendWait {
		return nothing
	}
	h.mended, h.mendWait = now, min(2*h.mendWait, mendLast)
	h.mends++
	if h.mends == 1 || h.up { // adding the peer anew would end the session that is still there
		return otherSecret
	}
	return addAnew
}
