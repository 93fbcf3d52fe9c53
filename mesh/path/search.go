package path

import "time"

// Times of measuring the MTU.
const (
	sizeTries  = 3
	sizeVerify = time.Minute      // a size that passed is asked again
	sizeBusy   = 2 * time.Second  // the same while packets flow
	sizeRaise  = 10 * time.Minute // a smaller one than wanted: try the wanted one again
	sizePause  = 15 * time.Second // after none passed
)

// MinMTU is what every way must carry to be taken by choice: IPv6 inside needs it.
const MinMTU = 1280

// sizes are inner sizes below the wanted one that are worth trying: common underlays less 80. The last always fits.
var sizes = [...]int{8920, 4272, 1420, 1412, 1400, 1380, 1340, 1300, MinMTU}

// search finds the largest inner packet that passes, by probes padded to its size, since no word of routers on the way
// can be relied on. It never asks for more than one size at a time.
//
//	  ┌──────────── want changes ─────────────┐
//	  v                                       │
//	trying(size) ── answered ──> passed(size) ─┤ after 1 min, 2 s with traffic: trying(size); after 10 min below want:
//	  │  ^                                        trying(want)
//	  └──┘ 3 misses: the next smaller size
type search struct {
	want   int // 0: nothing to find
	size   int // being tried, or the last that passed
	passed int // 0 while unknown
	number uint32
	asked  time.Time // zero: not waiting for an answer
	misses int
	next   time.Time // of the next verification, without traffic
	raise  time.Time
	pause  time.Time // none passed: not before
}

// wanted says how large packets shall become.
func (m *search) wanted(n int) {
	if n != m.want {
		*m = search{want: n, size: n}
	}
}

// restart looks again from the top, after a change of what is behind the way.
func (m *search) restart() { *m = search{want: m.want, size: m.want} }

// again asks soon whether what passed still does.
func (m *search) again() { m.asked, m.next, m.misses = time.Time{}, time.Time{}, 0 }

// due is when there is something to do; false: never.
func (m *search) due(busy bool, patience time.Duration) (time.Time, bool) {
	switch {
	case m.want == 0:
		return time.Time{}, false
	case !m.asked.IsZero():
		return m.asked.Add(patience), true
	case !m.pause.IsZero():
		return m.pause, true
	case busy && !m.next.IsZero():
		return m.next.Add(sizeBusy - sizeVerify), true
	}
	return m.next, true
}

// ask returns the size to probe, if it is time for one.
func (m *search) ask(now time.Time, busy bool, patience time.Duration) (size int, ok bool) {
	at, ok := m.due(busy, patience)
	if !ok || now.Before(at) {
		return 0, false
	}
	if !m.asked.IsZero() {
		if m.misses++; m.misses == sizeTries && !m.shrink(now) {
			m.asked, m.pause = time.Time{}, now.Add(sizePause)
			return 0, false
		}
	} else if m.size < m.want && !now.Before(m.raise) {
		m.size = m.want
	}
	m.asked, m.pause = now, time.Time{}
	return m.size, true
}

// shrink goes on to the next smaller size; false: there is none.
func (m *search) shrink(now time.Time) bool {
	m.misses, m.raise = 0, now.Add(sizeRaise)
	if m.passed >= m.size {
		m.passed = 0
	}
	for _, s := range sizes {
		if s < m.size {
			m.size = s
			return true
		}
	}
	return false
}

// answer takes an answer in.
func (m *search) answer(number uint32, size int, now time.Time) {
	if m.asked.IsZero() || number != m.number || size != m.size {
		return
	}
	m.passed, m.misses, m.asked, m.next = m.size, 0, time.Time{}, now.Add(sizeVerify)
	if m.raise.IsZero() || !now.Before(m.raise) {
		m.raise = now.Add(sizeRaise)
	}
}

// narrow reports whether what passed before is passing no more.
func (m *search) narrow() bool {
	return m.misses >= suspectMisses && m.passed >= m.size || m.want > 0 && m.passed == 0 && !m.raise.IsZero()
}
