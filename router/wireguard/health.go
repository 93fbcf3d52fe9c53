package wireguard

import (
	"time"

	"weft/router/host"
	"weft/router/pulse"
)

const (
	// handshakeLife is how old a session's handshake gets while all is well: WireGuard renews after 120 s.
	handshakeLife = 140 * time.Second
	mendFirst     = 15 * time.Second // three handshakes that fail; doubles
	mendLast      = 10 * time.Minute
)

// earlyAt is when a peer that never answered is added anew: its end had perhaps not been told of us when our first
// handshake arrived, and WireGuard itself would wait 5 s before the next.
var earlyAt = [...]time.Duration{1500 * time.Millisecond, 3 * time.Second}

// health is what is known of one tunnel: its pulse, and what WireGuard's counters and handshakes say. It is a step machine
// without clock and socket; it is drawn in the package comment.
type health struct {
	pulse.Pulse

	handshake time.Time // as the device tells it
	shaken    time.Time // when that value was first seen
	received  uint64
	meter     pulse.Meter
	seen      time.Time // when received changed

	mended   time.Time // or the first look
	mendWait time.Duration
	mends    int
	early    int // how often it was added anew before its first handshake
}

// look is what one look at the device and the socket found.
type look struct {
	peer      Peer
	known     bool        // the device has the peer
	answers   []host.Echo // from this peer
	full      int         // size of a packet that fills the tunnel
	testable  bool        // both ends have an address to test with
	reachable bool        // the peer's daemon is reached otherwise
	yields    bool        // the other end tries its former secret first: both at once would go on missing each other
}

// remedy is what to do to a tunnel that does not come up.
type remedy uint8

const (
	nothing remedy = iota
	otherSecret
	addAnew
	again // addAnew, as a matter of course
)

// step takes a look and says which echoes to send, and what would help.
func (h *health) step(now time.Time, l look) (send []pulse.Echo, help remedy) {
	if h.mended.IsZero() {
		h.mended = now
	}
	traffic, up := h.count(now, l.peer), h.Up
	h.Look(now, l.answers, l.full)
	usable := l.known && l.testable
	if !usable {
		h.Fall(now)
	}
	if up && !h.Up {
		h.mended = now
	}
	if usable {
		send = h.Next(now, traffic, l.full)
	}
	return send, h.mend(now, l)
}

// count looks at what the device counted, and says whether packets flow.
func (h *health) count(now time.Time, p Peer) pulse.Traffic {
	if p.Handshake != h.handshake {
		h.handshake, h.shaken = p.Handshake, now
		if age := now.Sub(p.Handshake); age > 0 && age < handshakeLife && !p.Handshake.IsZero() {
			h.shaken = now.Add(-age) // the wall clock is believed where it says something likely
		}
		h.mends, h.mendWait = 0, 0
		h.Hurry() // a session is there
	}
	if p.Received != h.received {
		h.seen = now
		h.Felt(now)
	}
	h.received = p.Received
	return h.meter.Read(now, p.Received+p.Sent, h.Spent())
}

// mend says what would help a tunnel whose handshakes fail although the peer is there.
func (h *health) mend(now time.Time, l look) remedy {
	if h.Asleep { // and so are handshakes
		h.mended = now
		return nothing
	}
	limit := mendFirst
	if h.Up {
		limit = handshakeLife
	}
	if h.mendWait == 0 {
		h.mendWait = mendFirst
	}
	if l.known && h.handshake.IsZero() && h.early < len(earlyAt) && now.Sub(h.Since) >= earlyAt[h.early] {
		h.early++
		return again
	}
	if !l.known || !l.reachable || now.Sub(h.shaken) < limit || !h.Up && now.Sub(h.Answered) < limit || now.Sub(h.mended) < h.mendWait {
		return nothing
	}
	h.mended, h.mendWait = now, min(2*h.mendWait, mendLast)
	h.mends++
	turn := h.mends == 1
	if l.yields {
		turn = h.mends == 2
	}
	switch {
	case !h.Up && !turn:
		return addAnew
	case h.Up && l.yields && h.mends%2 != 0:
		return nothing
	}
	return otherSecret // while up always: adding the peer anew would end the session that is still there
}
