package pulse

import "time"

const (
	// trickle is what must have moved through a tunnel between two readings, in bytes, to mean anything: small echoes,
	// handshakes and their answers are less.
	trickle  = 512
	overhead = 96                     // what transports and their counters add to an echo, at most
	reading  = 400 * time.Millisecond // between two readings, at least
)

// Traffic says whether a tunnel carries packets.
type Traffic uint8

// What it may carry.
const (
	Quiet   Traffic = iota // nothing, but small echoes
	Perhaps                // something, which may be echoes of both ends
	Flows                  // more than those
)

// Meter tells by a counter of bytes whether packets flow. Echoes are counted like all else, those of the other end and
// their answers, too: two ends that each took the other's for traffic would go on asking for ever.
type Meter struct {
	at     time.Time
	bytes  uint64
	echoes uint64 // our own since then
	before uint64 // and in the time before
	last   Traffic
}

// Read takes the sum of what was sent and received, and what our own echoes were since the last time. A counter that went
// back begins anew.
func (m *Meter) Read(now time.Time, bytes, echoes uint64) Traffic {
	m.echoes += echoes
	if !m.at.IsZero() && now.Sub(m.at) < reading {
		return m.last
	}
	moved := bytes - m.bytes
	switch {
	case m.at.IsZero() || bytes < m.bytes || moved <= trickle:
		m.last = Quiet
	case moved <= trickle+2*m.echoes+2*max(m.echoes, m.before):
		m.last = Perhaps
	default:
		m.last = Flows
	}
	m.at, m.bytes, m.before, m.echoes = now, bytes, m.echoes, 0
	return m.last
}

// Spent is how many bytes the echoes were since it was asked last, for a Meter.
func (p *Pulse) Spent() uint64 {
	n := p.spent
	p.spent = 0
	return uint64(n)
}
