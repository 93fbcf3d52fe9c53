package sleeve

import "time"

// Times of measuring the MTU.
const (
	mtuAnswer = time.Second
	mtuTries  = 3
	mtuVerify = time.Minute      // a size that passed is asked again
	mtuRaise  = 10 * time.Minute // a smaller one than wanted: try the wanted one again
)

// mtuSteps are inner sizes below the wanted one that are worth trying: common underlays less 80. The last always fits.
var mtuSteps = [...]int{8920, 4272, 1420, 1412, 1400, 1380, 1340, 1300, 1280}

// mtuSearch finds the largest inner packet that passes, by probes padded to its size, since no word of routers on the
// way can be relied on. It is a pure machine, and it never asks for more than one size at a time.
//
//	  ┌──────────── want changes ─────────────┐
//	  v                                       │
//	trying(size) ── answered ──> passed(size) ─┤ after 1 min: trying(size); after 10 min below want: trying(want)
//	  │  ^
//	  └──┘ 3 misses: the next smaller size
type mtuSearch struct {
	want   int // 0: nothing to find
	size   int // being tried, or the last that passed
	passed int // reported; 0 while unknown
	number uint32
	asked  time.Time // zero: not waiting for an answer
	misses int
	next   time.Time
	raise  time.Time
}

// wanted says how large packets shall become.
func (m *mtuSearch) wanted(n int) {
	if n != m.want {
		*m = mtuSearch{want: n, size: n, number: m.number}
	}
}

// restart looks again from the top, after a change of path.
func (m *mtuSearch) restart() { *m = mtuSearch{want: m.want, size: m.want, number: m.number} }

// due is when ask has something to do, and whether it ever has.
func (m *mtuSearch) due() (time.Time, bool) {
	if m.want == 0 {
		return time.Time{}, false
	}
	if !m.asked.IsZero() {
		return m.asked.Add(mtuAnswer), true
	}
	return m.next, true
}

// ask returns a probe to send, if it is time for one.
func (m *mtuSearch) ask(now time.Time) (probe, bool) {
	at, ok := m.due()
	if !ok || now.Before(at) {
		return probe{}, false
	}
	if !m.asked.IsZero() {
		if m.misses++; m.misses == mtuTries {
			m.shrink(now)
		}
	} else if m.size < m.want && !now.Before(m.raise) {
		m.size = m.want
	}
	m.number++
	m.asked = now
	return probe{number: m.number, size: uint16(m.size)}, true
}

func (m *mtuSearch) shrink(now time.Time) {
	m.misses, m.raise = 0, now.Add(mtuRaise)
	if m.passed >= m.size {
		m.passed = 0
	}
	for _, s := range mtuSteps {
		if s < m.size {
			m.size = s
			return
		}
	}
}

// answer takes an echo in.
func (m *mtuSearch) answer(p probe, now time.Time) {
	if m.asked.IsZero() || p.number != m.number || int(p.size) != m.size {
		return
	}
	m.passed, m.misses, m.asked, m.next = m.size, 0, time.Time{}, now.Add(mtuVerify)
	if m.raise.IsZero() || !now.Before(m.raise) {
		m.raise = now.Add(mtuRaise)
	}
}
